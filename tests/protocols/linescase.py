"""
A JSON connection in memory, for its tests.
"""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.support import ALICE, PatientBackend, PromptBackend, Wire, asked
from usbip_server.answers import Answers
from usbip_server.limits import Limits, Timeouts
from usbip_server.protocols.lines import JsonLines
from usbip_server.settings import Settings
from usbip_server.sharing import Sharing

LIST = b'{"command":"list"}'
KEEP = b'{"command":"list","keep_alive":true}'
FIND = b'{"command":"find","bus":"1-1.4","keep_alive":true}'
ATTACH = b'{"command":"attach","id":"1-1.4","keep_alive":true}'
TRICKY = rb'{"command":"find","desc":"}{\"\\","keep_alive":true}'


class LinesTestCase(SynchronousTestCase):
    """
    A connection to a backend that does at once, or not, what is asked of it.
    """

    limits = Limits(requestBytes=1024)
    timeouts = Timeouts(request=30, answer=1.8)

    def setUp(self) -> None:
        self.clock = Clock()
        self.backend: PatientBackend = PromptBackend()

    def connect(self) -> Wire:
        """A new connection."""
        sharing = Sharing(self.backend, self.clock, Settings(timeouts=self.timeouts))
        asked(sharing.start())
        return Wire(JsonLines(Answers(sharing), ALICE, self.limits, self.timeouts, self.clock))

    def patiently(self) -> Wire:
        """A connection on which attach and detach take until the test ends them."""
        self.backend = PatientBackend()
        return self.connect()

    def assertAllEnds(self, wire: Wire) -> None:
        """Once the client has closed its side, nothing is left of the connection."""
        wire.closeWrite()
        self.assertTrue(wire.lost)
        self.assertEqual(self.clock.getDelayedCalls(), [])
