"""
The sysfs backend on a kernel in memory.
"""

from __future__ import annotations

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from usbip_server.backends.sysfs import SysfsBackend
from usbip_server.interfaces import IUsbBackend
from usbip_server.kernel.usbids import UsbIds
from usbip_server.model.device import UsbDevice
from usbip_server.testing import FakeKernel, HangingDeviceConformance, KernelExportConformance


class SysfsConformanceTests(KernelExportConformance, HangingDeviceConformance, TestCase):
    """
    It is a backend as every other, with real threads and a real reactor.
    """

    async def makeBackend(self) -> IUsbBackend:
        self.kernel = FakeKernel()
        self.kernel.plug("1-1", serial="A1", manufacturer="QEMU", product="QEMU USB HARDDRIVE")
        self.kernel.plug("1-2.4", "0403", "6001", interfaces=((255, 255, 255),))
        return SysfsBackend(self.kernel, reactor, 30.0, UsbIds([]))

    async def importDevice(self, device: UsbDevice) -> None:
        self.kernel.importDevice(device.busId)

    async def unplug(self, device: UsbDevice) -> None:
        self.kernel.unplug(device.busId)

    async def plug(self, device: UsbDevice) -> None:
        self.kernel.plug(device.busId, serial="A1", manufacturer="QEMU", product="OTHER")

    async def hang(self, device: UsbDevice) -> None:
        self.kernel.hang(device.busId)

    async def revive(self, device: UsbDevice) -> None:
        self.kernel.revive(device.busId)
