"""
What the tests of the sysfs backend's faults need.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from usbip_server.backends.sysfs import SysfsBackend
from usbip_server.kernel import usbip_sockfd
from usbip_server.kernel.usbids import UsbIds
from usbip_server.model.device import UsbDevice
from usbip_server.model.errors import OperationFailed, ShareError
from usbip_server.testing import FakeKernel, FakeReactor


class SysfsCase(SynchronousTestCase):
    """
    Time passes when the test says so, and threads run when it says so.
    """

    def setUp(self) -> None:
        self.patch(usbip_sockfd, "PERMISSION_SECONDS", 0)
        self.kernel = FakeKernel()
        for busId in ("1-1", "1-2", "1-10"):
            self.kernel.plug(busId, serial=f"S{busId}")
        self.reactor = FakeReactor()
        self.backend = SysfsBackend(self.kernel, self.reactor, 30.0, UsbIds([]), self.reactor.spawn)
        self.successResultOf(Deferred.fromCoroutine(self.backend.start()))

    def tearDown(self) -> None:
        self.successResultOf(Deferred.fromCoroutine(self.backend.stop()))
        self.kernel.list("bus/usb/devices")  # it has not died

    def device(self, busId: str = "1-1") -> UsbDevice:
        """The device as the inventory has it."""
        device = self.backend.inventory.get(busId)
        assert device is not None
        return device

    def bind(self, busId: str = "1-1", allowMounted: bool = False) -> Deferred[UsbDevice]:
        """Begin to bind it."""
        return Deferred.fromCoroutine(self.backend.bind(self.device(busId), 30, allowMounted))

    def unbind(self, busId: str = "1-1") -> Deferred[UsbDevice]:
        """Begin to unbind it."""
        return Deferred.fromCoroutine(self.backend.unbind(self.device(busId), 30))

    def release(self, busId: str = "1-1") -> Deferred[UsbDevice]:
        """Begin to release it."""
        return Deferred.fromCoroutine(self.backend.release(self.device(busId), 30))

    def fails(
        self, result: Deferred[UsbDevice], text: str, kind: type[ShareError] = OperationFailed
    ) -> None:
        """It has failed, and says why."""
        self.assertIn(text, str(self.failureResultOf(result, kind).value))
