"""
Connections to the control port in memory, for their tests.
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
from usbip_server.protocols.web import WebFactory
from usbip_server.server.config import LiveSettings, Settings
from usbip_server.server.core import Core
from usbip_server.server.responder import Responder

LIST = b'{"command":"list"}'
KEEP = b'{"command":"list","keep_alive":true}'
FIND = b'{"command":"find","bus":"1-1.4","keep_alive":true}'
ATTACH = b'{"command":"attach","id":"1-1.4","keep_alive":true}'
TRICKY = rb'{"command":"find","desc":"}{\"\\","keep_alive":true}'


class ConnectionTestCase(SynchronousTestCase):
    """
    Connections to a daemon whose backend binds at once, or when the test lets it.

    @ivar core: the daemon.
    """

    limits = Limits(requestBytes=1024)
    timeouts = Timeouts(request=30, answer=1.8)
    hosts: tuple[str, ...] = ()
    access = EVERYBODY

    def setUp(self) -> None:
        self.clock = Clock()
        self.backend: PatientBackend = PromptBackend()

    def begin(self) -> None:
        """Start another daemon."""
        self.settings = LiveSettings(
            Settings(
                access=self.access, limits=self.limits, timeouts=self.timeouts, hosts=self.hosts
            )
        )
        self.core = Core(
            self.backend, self.clock, self.settings, now=lambda: EPOCH + self.clock.seconds()
        )
        asked(self.core.start())
        responder = Responder(self.core.dispatcher, self.core.requests)
        self.lines = CommandFactory(responder, self.settings, self.clock)
        self.web = WebFactory(responder, self.settings, self.clock, monitor=self.core.monitor)

    def become(self, device: UsbDevice, **fields: object) -> None:
        """Change fields of a device."""
        self.backend.inventory.replace([changed(device, **fields)], {device.busId})


class LinesTestCase(ConnectionTestCase):
    """
    JSON connections.
    """

    def connect(self) -> Wire:
        """A new connection, to a daemon of its own."""
        self.begin()
        return self.another()

    def another(
        self, principal: Principal = ALICE, transport: MemoryTransport | None = None
    ) -> Wire:
        """One more connection, to the same daemon."""
        return Wire(self.lines.make(principal), transport)

    def stopped(self) -> Deferred[None]:
        """Stop the daemon; fires when that is done."""
        return asked(self.core.stop())

    def patiently(self) -> Wire:
        """A connection on which attach and detach take until the test ends them."""
        self.backend = PatientBackend()
        return self.connect()

    def assertAllEnds(self, wire: Wire) -> None:
        """Once the client has closed its side, nothing is left of the connection."""
        wire.closeWrite()
        self.assertTrue(wire.lost)
        self.assertEqual(self.clock.getDelayedCalls(), [])
