"""The conformance suite of backends on a real kernel. C{tests.backends} runs it on the kernel in
memory."""

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
    """The suite uses the disk, as unbinding a disk takes the kernel longest."""

    patience = guest.DEADLINE
    timeout = 300

    async def asetUp(self) -> None:
        """Load all modules, and wait for the devices."""
        await deferToThread(guest.awaitDevices)  # first: see GuestCase
        for module in ("usbip-host", "vhci-hcd"):
            await deferToThread(guest.modprobe, module)
        self.addCleanup(deferToThread, guest.resetUsb)

    def choose(self, devices: tuple[UsbDevice, ...]) -> UsbDevice:
        return next(device for device in devices if device.busId == guest.DISK.busId)

    async def importDevice(self, device: UsbDevice) -> None:
        def attach() -> None:
            with guest.stockUsbipd():
                guest.stockAttach(device.busId)

        await deferToThread(attach)

    async def unplug(self, device: UsbDevice) -> None:
        await deferToThread(guest.unplug, guest.DISK)
        await deferToThread(guest.waitGone, device.busId)

    async def plug(self, device: UsbDevice) -> None:
        await deferToThread(guest.plug, guest.DISK)
        await deferToThread(guest.waitPresent, device.busId)


class SysfsTests(RealKernel, TestCase):
    """The sysfs backend."""

    async def makeBackend(self) -> IUsbBackend:
        await self.asetUp()
        return sysfs.makeBackend({}, reactor)


class UsbipToolTests(RealKernel, TestCase):
    """The usbip backend, with Debian's C{usbip}."""

    async def makeBackend(self) -> IUsbBackend:
        await self.asetUp()
        return usbiptool.makeBackend({}, reactor)
