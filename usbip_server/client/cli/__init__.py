"""
The C{usbipshare} command.
"""
