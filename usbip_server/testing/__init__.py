"""
Public test support for backends, also those of other packages: a conformance suite, and fakes of
the kernel and the reactor.
"""

from usbip_server.testing.conformance import (
    BackendConformance,
    HangingDeviceConformance,
    KernelConformance,
)
from usbip_server.testing.exportconformance import (
    ExportConformance,
    KernelExportConformance,
    NoExportConformance,
)
from usbip_server.testing.kernel import FakeKernel
from usbip_server.testing.reactor import FakeReactor
from usbip_server.testing.usbiphost import KernelBug
from usbip_server.testing.vhci import FakeVhci

__all__ = [
    "BackendConformance",
    "ExportConformance",
    "FakeKernel",
    "FakeReactor",
    "FakeVhci",
    "HangingDeviceConformance",
    "KernelBug",
    "KernelConformance",
    "KernelExportConformance",
    "NoExportConformance",
]
