"""
Tests of L{tests.support.fixtures}.
"""

from __future__ import annotations

from twisted.internet.interfaces import ITCPTransport
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from tests.support.fixtures import MemoryTransport, PatientBackend, PromptBackend, threeWays
from usbip_server.interfaces import IUsbBackend


class FakesTests(SynchronousTestCase):
    """
    The fakes are what they stand for.
    """

    def test_backends(self) -> None:
        """The backends provide IUsbBackend."""
        verifyObject(IUsbBackend, PatientBackend())
        verifyObject(IUsbBackend, PromptBackend())

    def test_transport(self) -> None:
        """The transport provides ITCPTransport."""
        verifyObject(ITCPTransport, MemoryTransport())

    def test_threeWays(self) -> None:
        """Whichever way input is delivered, it is the same bytes."""
        self.assertEqual(
            [b"".join(segments) for _, segments in threeWays([b"ab", b"c"])], [b"abc"] * 3
        )
