"""
usbipshare: a daemon that shares this machine's USB devices over USB/IP.

C{docs/architecture.md} draws how a request flows through the modules.
"""
