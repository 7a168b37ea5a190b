"""
usbipshare: a daemon that shares this machine's USB devices over USB/IP.
"""

import os.path

__version__ = "0.1.0"
"""Also the version of the distribution: C{setup.cfg} reads it from here."""

PRODUCT = f"usbipshare/{__version__}"
"""The C{Server} header of the daemon's HTTP responses (RFC 9110, 10.2.4)."""

DOCUMENTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data", "docs")
"""The folder of the documents, which is installed with the package: messages refer to it."""
