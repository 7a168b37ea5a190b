"""
The conformance suite, that the kernel in memory passes too, on the real one.
"""

from __future__ import annotations

from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.kernel import guest
from usbip_server.backends import sysfs, usbiptool
from usbip_server.interfaces import IUsbBackend
from usbip_server.model.device import UsbDevice
from usbip_server.testing import KernelExportConformance


class RealKernel(KernelExportConformance):
    """
    The disk is worked with, as unbinding it takes the kernel longest.
    """

    patience = guest.DEADLINE
    timeout = 300

    async def asetUp(self) -> None:
        """Have all modules and devices there."""
        await deferToThread(guest.awaitDevices)  # first: bus 1 is the first one there
        for module in ("usbip-host", "vhci-hcd"):
            await deferToThread(guest.modprobe, module)
        self.addCleanup(deferToThread, guest.resetUsb)

    def choose(self, devices: tuple[UsbDevice, ...]) -> UsbDevice:
        return next(device for device in devices if device.busId == guest.DISK.busId)

    async def importDevice(self, device: UsbDevice) -> None:
        await deferToThread(self._import, device.busId)

    def _import(self, busId: str) -> None:
        with guest.StockUsbipd():
            guest.check("usbip", "attach", "-r", "127.0.0.1", "-b", busId)
            guest.waitImport()

    async def unplug(self, device: UsbDevice) -> None:
        await deferToThread(guest.unplug, guest.DISK)
        await deferToThread(guest.waitGone, device.busId)

    async def plug(self, device: UsbDevice) -> None:
        await deferToThread(guest.plug, guest.DISK)
        await deferToThread(guest.waitPresent, device.busId)


class SysfsTests(RealKernel, TestCase):
    """
    The sysfs backend.
    """

    async def makeBackend(self) -> IUsbBackend:
        await self.asetUp()
        return sysfs.makeBackend({}, reactor)


class UsbipToolTests(RealKernel, TestCase):
    """
    The usbip backend, with Debian's C{usbip}.
    """

    async def makeBackend(self) -> IUsbBackend:
        await self.asetUp()
        return usbiptool.makeBackend({}, reactor)
