"""
What C{twistd} and C{backend: {type: ...}} find of usbipshare.
"""

from twisted.application.service import ServiceMaker

from usbip_server.backends.plugin import BackendMaker

usbipshare = ServiceMaker(
    "usbipshare",
    "usbip_server.tap",
    "Share this machine's USB devices over the network (USB/IP).",
    "usbipshare",
)

sysfs = BackendMaker(
    "sysfs",
    "usbip_server.backends.sysfs",
    "this machine's devices, through /sys",
)

usbip = BackendMaker(
    "usbip",
    "usbip_server.backends.usbiptool",
    "this machine's devices, through the usbip program",
)

virtual = BackendMaker(
    "virtual",
    "usbip_server.backends.virtual",
    "devices made of software, for trying things out",
)

remote = BackendMaker(
    "remote",
    "usbip_server.backends.remote.backend",
    "other servers' devices: a gateway to them",
)
