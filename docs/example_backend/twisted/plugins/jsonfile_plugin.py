"""
Announces the backend to Twisted. This folder and the one above must not contain an C{__init__.py},
which would hide Twisted itself.
"""

from usbip_server.backends.plugin import BackendMaker

jsonfile = BackendMaker(
    "jsonfile",
    "jsonfile_backend.backend",
    "devices listed in a JSON file",
)
