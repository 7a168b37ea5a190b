"""
A JSON connection in memory, for its tests.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fixtures import (
    ALICE,
    EPOCH,
    EVERYBODY,
    MemoryTransport,
    PatientBackend,
    PromptBackend,
    Wire,
    asked,
    changed,
)
from usbip_server.model.device import UsbDevice
from usbip_server.model.options import Limits, Timeouts
from usbip_server.model.policy import Principal
from usbip_server.protocols.lines import CommandFactory
from usbip_server.server.config import LiveSettings, Settings
from usbip_server.server.core import Core
from usbip_server.server.responder import Responder

LIST = b'{"command":"list"}'
KEEP = b'{"command":"list","keep_alive":true}'
FIND = b'{"command":"find","bus":"1-1.4","keep_alive":true}'
ATTACH = b'{"command":"attach","id":"1-1.4","keep_alive":true}'
TRICKY = rb'{"command":"find","desc":"}{\"\\","keep_alive":true}'


class LinesTestCase(SynchronousTestCase):
    """
    A connection to a backend that does at once, or not, what is asked of it.

    @ivar sharing: what answers.
    """

    limits = Limits(requestBytes=1024)
    timeouts = Timeouts(request=30, answer=1.8)

    def setUp(self) -> None:
        self.clock = Clock()
        self.backend: PatientBackend = PromptBackend()

    def connect(self) -> Wire:
        """A new connection, to a daemon of its own."""
        self.settings = LiveSettings(
            Settings(access=EVERYBODY, limits=self.limits, timeouts=self.timeouts)
        )
        self.core = Core(
            self.backend, self.clock, self.settings, now=lambda: EPOCH + self.clock.seconds()
        )
        asked(self.core.start())
        return self.another()

    def another(
        self, principal: Principal = ALICE, transport: MemoryTransport | None = None
    ) -> Wire:
        """One more connection, to the same daemon."""
        answers = Responder(self.core.dispatcher)
        lines = CommandFactory(answers, self.settings, self.clock).make(principal)
        return Wire(lines, transport)

    def stopped(self) -> Deferred[None]:
        """Stop it; fires when that is done."""
        return asked(self.core.stop())

    def become(self, device: UsbDevice, **fields: object) -> None:
        """Let a device be like that from now on."""
        self.backend.inventory.replace([changed(device, **fields)], {device.busId})

    def patiently(self) -> Wire:
        """A connection on which attach and detach take until the test ends them."""
        self.backend = PatientBackend()
        return self.connect()

    def assertAllEnds(self, wire: Wire) -> None:
        """Once the client has closed its side, nothing is left of the connection."""
        wire.closeWrite()
        self.assertTrue(wire.lost)
        self.assertEqual(self.clock.getDelayedCalls(), [])
