"""
How Twisted finds the backend. There is no C{__init__.py} in this folder nor in the one
above: that would hide Twisted itself.
"""

from usbip_server.backends.plugin import BackendMaker

jsonfile = BackendMaker(
    "jsonfile",
    "jsonfile_backend.backend",
    "devices listed in a JSON file",
)
