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

__all__ = [
    "BackendConformance",
    "ExportConformance",
    "FakeKernel",
    "FakeReactor",
    "HangingDeviceConformance",
    "KernelBug",
    "KernelConformance",
    "KernelExportConformance",
    "NoExportConformance",
]
