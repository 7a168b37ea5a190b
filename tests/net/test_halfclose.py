"""
Tests of L{usbip_server.net.halfclose}.
"""

from __future__ import annotations

from twisted.internet.interfaces import ISSLTransport, ITCPTransport, IUNIXTransport
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import directlyProvides

from tests.support.fixtures import MemoryTransport
from usbip_server.net.halfclose import closeOurSide


class CloseOurSideTests(SynchronousTestCase):
    """
    Closing one direction, where that is possible.
    """

    def test_half(self) -> None:
        """
        Over TCP and over a unix socket only our side is closed. TLS cannot do that: both are
        closed, with close_notify.
        """
        for interfaces, isHalf in (
            ((ITCPTransport,), True),
            ((IUNIXTransport,), True),
            ((ISSLTransport, ITCPTransport), False),
        ):
            transport = MemoryTransport()
            directlyProvides(transport, *interfaces)
            closeOurSide(transport)
            self.assertEqual(transport.writeClosed, isHalf)
            self.assertEqual(transport.disconnecting, not isHalf)

    def test_other(self) -> None:
        """Nor can any other transport."""
        transport = StringTransport()
        closeOurSide(transport)
        self.assertTrue(transport.disconnecting)
