"""
usbipshare: a daemon that shares this machine's USB devices over USB/IP.

C{docs/architecture.md} draws how a request flows through the modules.
"""

from importlib.metadata import version

__version__ = version("usbipshare")


PRODUCT = f"usbipshare/{__version__}"
"""What a server calls itself in C{Server} (RFC 9110, 10.2.4)."""
