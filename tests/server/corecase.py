"""
A L{usbip_server.server.core.Core} whose backend waits to be told, for its tests.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fixtures import ALICE, EVERYBODY, PatientBackend, asked
from usbip_server.model.device import UsbDevice
from usbip_server.model.errors import (
    ShareError,
)
from usbip_server.model.options import Timeouts
from usbip_server.model.policy import Principal
from usbip_server.model.replies import Devices
from usbip_server.model.requests import AttachDevice, DetachDevice, Request
from usbip_server.net.caller import Caller
from usbip_server.server.config import LiveSettings, Settings
from usbip_server.server.core import Core

ATTACH = AttachDevice(id="1-1.4")
DETACH = DetachDevice(id="1-1.4")


class CoreTestCase(SynchronousTestCase):
    """
    On a backend whose operations end when the test says so.
    """

    started = True

    def setUp(self) -> None:
        self.clock = Clock()
        self.backend = PatientBackend(started=self.started)
        self.timeouts = Timeouts(answer=1.8, bind=30, stop=5)
        settings = Settings(access=EVERYBODY, timeouts=self.timeouts)
        self.core = Core(self.backend, self.clock, LiveSettings(settings))
        self.start = asked(self.core.start())

    def ask(self, command: Request, principal: Principal = ALICE) -> Deferred[Devices]:
        """Have a command carried out."""
        return asked(self.core.dispatcher.perform(command, Caller(principal)))  # type: ignore[arg-type]

    @property
    def asked(self) -> list[tuple[str, str]]:
        """What was asked of the backend."""
        return [(call.verb, call.device.busId) for call in self.backend.calls]

    def device(self, result: Deferred[Devices]) -> UsbDevice:
        """The device that is the result."""
        device = self.successResultOf(result)
        assert isinstance(device, UsbDevice)
        return device

    def error(self, result: Deferred[Devices], kind: type[ShareError]) -> str:
        """The text of the error that is the result."""
        return str(self.failureResultOf(result, kind).value)
