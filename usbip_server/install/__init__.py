"""
Installs what a server or a client needs besides the Python package: C{usbipshare setup}.
"""
