"""
The commands of C{usbipshare}, a module for each, with C{command} in it. Their docstrings are
their help.
"""
