"""
What C{twistd} finds of usbipshare's client service.
"""

from twisted.application.service import ServiceMaker

usbipclient = ServiceMaker(
    "usbipclient",
    "usbip_server.client.service.tap",
    "Keep USB devices of other machines plugged into this one (USB/IP).",
    "usbipclient",
)
