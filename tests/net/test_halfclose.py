"""
Tests of L{usbip_server.net.halfclose}.
"""

from __future__ import annotations

from twisted.internet.interfaces import ISSLTransport, IUNIXTransport
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import directlyProvides, providedBy

from tests.support.fixtures import MemoryTransport
from usbip_server.net.halfclose import closeOurSide


class CloseOurSideTests(SynchronousTestCase):
    """
    Closing one direction, where that is possible.
    """

    def test_tcp(self) -> None:
        """Over TCP only our side is closed."""
        transport = MemoryTransport()
        closeOurSide(transport)
        self.assertTrue(transport.writeClosed)
        self.assertFalse(transport.disconnecting)

    def test_unix(self) -> None:
        """So it is over a unix socket."""
        transport = MemoryTransport()
        directlyProvides(transport, IUNIXTransport)
        closeOurSide(transport)
        self.assertTrue(transport.writeClosed)

    def test_tls(self) -> None:
        """TLS cannot do that: both are closed, with TLS's own farewell."""
        transport = MemoryTransport()
        directlyProvides(transport, ISSLTransport, providedBy(transport))
        closeOurSide(transport)
        self.assertFalse(transport.writeClosed)
        self.assertTrue(transport.disconnecting)

    def test_other(self) -> None:
        """Nor can any other transport."""
        transport = StringTransport()
        closeOurSide(transport)
        self.assertTrue(transport.disconnecting)
