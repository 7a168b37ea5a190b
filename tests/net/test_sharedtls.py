"""
Tests of L{usbip_server.net.sharedtls}. That TLS works is shown in C{test_handshake.py}.
"""

from __future__ import annotations

from twisted.internet.address import IPv4Address
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.trial.unittest import SynchronousTestCase

from tests.support.certificates import signed, trusting
from tests.support.reactorturn import turn
from tests.support.tlswire import ADDRESS, TlsWire
from usbip_server.net.certificates import Certificates, Tls, read
from usbip_server.net.sharedtls import SharedTls, SharedTlsFactory
from usbip_server.net.turns import DIRECT

OTHER = IPv4Address("TCP", "192.0.2.9", 40000)


class SharedTlsTests(SynchronousTestCase):
    """
    Handshakes that take time.
    """

    def test_turns(self) -> None:
        """
        Many handshakes of one address take turns, and one of another address does not wait; a
        connection that ends meanwhile has no turn.
        """
        clock = Clock()
        decrypt = TLSMemoryBIOProtocol.dataReceived

        def slowly(connection: SharedTls, data: bytes) -> None:
            clock.rightNow += DIRECT / 4
            decrypt(connection, data)

        self.patch(TLSMemoryBIOProtocol, "dataReceived", slowly)
        certificate, key = signed("localhost").write(self.mktemp(), "server")
        certificates = Certificates(read(Tls(certificate=certificate, key=key)))
        factory = SharedTlsFactory(certificates, Factory.forProtocol(Protocol), clock)

        def connect(address: IPv4Address = ADDRESS) -> TlsWire:
            return TlsWire(factory, None, trusting(), clock, address=address, advances=False)

        wires = [connect() for _ in range(20)]
        waiting = [wire for wire in wires if wire.transport.producerState == "paused"]
        self.assertGreater(len(waiting), 15)
        other = connect(OTHER)
        self.assertEqual(other.version, "TLSv1.3")
        waiting[-1].drop()
        for _ in range(100):
            turn(clock)
            for wire in wires:
                wire.turn()
        versions = [wire.version for wire in wires if wire is not waiting[-1]]
        self.assertEqual(versions, ["TLSv1.3"] * 19)
        self.assertEqual({wire.transport.producerState for wire in wires[:-1]}, {"producing"})
