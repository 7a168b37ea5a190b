"""
usbipshare: a daemon that shares this machine's USB devices over USB/IP.

C{docs/explanation/architecture.md} draws how a request flows through the modules.
"""

import os.path
from importlib.metadata import version

__version__ = version("usbipshare")


PRODUCT = f"usbipshare/{__version__}"
"""What a server calls itself in C{Server} (RFC 9110, 10.2.4)."""

DOCUMENTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data", "docs")
"""The folder of the documents, which is installed with the package: messages refer to it."""
