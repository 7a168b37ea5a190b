"""
For tests, ours and those of other people's backends: what every backend has to do, and a
kernel and a reactor that do nothing of their own accord.
"""

from usbip_server.testing.conformance import (
    BackendConformance,
    ExportConformance,
    HangingDeviceConformance,
    KernelConformance,
    KernelExportConformance,
    NoExportConformance,
)
from usbip_server.testing.kernel import FakeKernel, KernelBug
from usbip_server.testing.reactor import FakeReactor
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
