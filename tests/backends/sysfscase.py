"""
A sysfs backend on a kernel in memory, with time and threads that the test controls.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from usbip_server.backends.sysfs import SysfsBackend
from usbip_server.kernel import usbip_host, usbip_sockfd
from usbip_server.kernel.usbids import UsbIds
from usbip_server.model.device import UsbDevice
from usbip_server.model.errors import OperationFailed, ShareError
from usbip_server.testing import FakeKernel, FakeReactor


class SysfsCase(SynchronousTestCase):
    """
    The devices 1-1, 1-2 and 1-10. Operations have a deadline of 30 s.
    """

    def setUp(self) -> None:
        self.patch(usbip_sockfd, "PERMISSION_SECONDS", 0)
        self.patch(usbip_host, "SETTLE_SECONDS", 0)
        self.kernel = FakeKernel()
        for busId in ("1-1", "1-2", "1-10"):
            self.kernel.plug(busId, serial=f"S{busId}")
        self.reactor = FakeReactor()
        self.backend = SysfsBackend(self.kernel, self.reactor, 30.0, UsbIds([]), self.reactor.spawn)
        self.successResultOf(Deferred.fromCoroutine(self.backend.start()))

    def tearDown(self) -> None:
        self.successResultOf(Deferred.fromCoroutine(self.backend.stop()))
        self.kernel.list("bus/usb/devices")  # raises KernelBug if the kernel has crashed

    def device(self, busId: str = "1-1") -> UsbDevice:
        """A device as shown by the inventory."""
        device = self.backend.inventory.get(busId)
        assert device is not None
        return device

    def bind(self, busId: str = "1-1", allowMounted: bool = False) -> Deferred[UsbDevice]:
        """Begin to bind a device."""
        return Deferred.fromCoroutine(self.backend.bind(self.device(busId), 30, allowMounted))

    def unbind(self, busId: str = "1-1") -> Deferred[UsbDevice]:
        """Begin to unbind a device."""
        return Deferred.fromCoroutine(self.backend.unbind(self.device(busId), 30))

    def release(self, busId: str = "1-1") -> Deferred[UsbDevice]:
        """Begin to end the session of a device."""
        return Deferred.fromCoroutine(self.backend.release(self.device(busId), 30))

    def rebind(self, *busIds: str) -> None:
        """Bind and unbind devices: each keeps its entry in usbip-host's table."""
        for busId in busIds:
            self.successResultOf(self.bind(busId))
            self.successResultOf(self.unbind(busId))

    def fails(
        self, result: Deferred[UsbDevice], text: str, kind: type[ShareError] = OperationFailed
    ) -> None:
        """The operation has failed with a message that contains the text."""
        self.assertIn(text, str(self.failureResultOf(result, kind).value))

    def fillTable(self, places: int) -> None:
        """Fill places of usbip-host's table with the names of other devices."""
        self.kernel.fillTable(*(f"9-{port}" for port in range(1, places + 1)))

    def onWrite(
        self,
        suffix: str,
        before: Callable[[], object] = lambda: None,
        after: Callable[[], object] = lambda: None,
    ) -> None:
        """Call functions before and after each write to an attribute."""
        write = self.kernel.write

        def wrapped(path: str, data: bytes) -> None:
            if path.endswith(suffix):
                before()
            write(path, data)
            if path.endswith(suffix):
                after()

        self.patch(self.kernel, "write", wrapped)

    def takeThread(self) -> Callable[[], None]:
        """Take the thread of an operation that has begun while threads are held; later threads run
        at once."""
        [held] = self.reactor.threads
        self.reactor.threads.clear()
        self.reactor.hold = False
        return partial(held)
