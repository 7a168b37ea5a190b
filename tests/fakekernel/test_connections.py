"""
Tests of L{usbip_server.kernel.importers}: the list of TCP connections, and those of sockets.
"""

from __future__ import annotations

import socket
import sys

from twisted.trial.unittest import SynchronousTestCase

from usbip_server.kernel.importers import Connection, connectionOf, established
from usbip_server.kernel.system import CONNECTIONS, System

# As Linux 6.1 prints them on a little-endian machine.
HEAD = b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"  # noqa: E501
LISTENING = b"   0: 00000000:0CA8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 17305 1 00000000a50d38ce 100 0 0 10 0                     \n"  # noqa: E501
IPV4 = b"   1: 010200C0:0CA8 070200C0:C8A2 01 00000000:00000000 02:000A2C2A 00000000     0        0 26481 3 000000006aacab3e 20 4 30 10 -1                    \n"  # noqa: E501
CLOSING = IPV4.replace(b" 01 ", b" 08 ")
SSH = IPV4.replace(b":0CA8", b":0016")
OUTGOING = b"   2: 010200C0:C8A2 070200C0:0CA8 01 00000000:00000000 02:000A2C2A 00000000     0        0 26481 3 000000006aacab3e 20 4 30 10 -1                    \n"  # noqa: E501
IPV6 = b"   0: B80D0120000000000000000001000000:0CA8 B80D01200000000000000000EFBE0000:D431 01 00000000:00000000 02:00000A1B 00000000     0        0 31337 2 00000000deadbeef 21 4 30 10 -1\n"  # noqa: E501
MAPPED = b"   1: 0000000000000000FFFF0000010200C0:0CA8 0000000000000000FFFF0000070200C0:C8A3 01 00000000:00000000 02:00000A1B 00000000     0        0 31338 2 00000000deadbeef 21 4 30 10 -1\n"  # noqa: E501

ALICE = "192.0.2.7"


class EstablishedTests(SynchronousTestCase):
    """
    The kernel's list of connections.
    """

    if sys.byteorder != "little":
        skip = "the lines are those of a little-endian machine"

    def test_lines(self) -> None:
        """The connection in a line: each 32-bit word of an address is reversed, a port is not. An
        IPv4 address on an IPv6 socket is an IPv4 address. A line that is truncated anywhere is no
        connection, or that one."""
        for line, local, remote, port in (
            (IPV4, "192.0.2.1", ALICE, 51362),
            (IPV6, "2001:db8::1", "2001:db8::beef", 54321),
            (MAPPED, "192.0.2.1", ALICE, 51363),
        ):
            one = Connection(local=local, localPort=3240, remote=remote, remotePort=port)
            self.assertEqual(list(established(line)), [one])
            for end in range(len(line)):
                self.assertIn(list(established(line[:end])), ([], [one]))

    def test_otherLines(self) -> None:
        """Headings, other states, other ports, the client's end of a connection and damaged lines
        are skipped."""
        self.assertEqual(list(established(HEAD + LISTENING + CLOSING + SSH + OUTGOING)), [])
        for other in (
            HEAD,
            LISTENING,
            SSH,
            b"\n",
            b"\xff\xfe\0\n",
            IPV4.replace(b"070200C0:", b"070200G0:"),
            IPV4.replace(b"070200C0:", b"0x0200C0:"),
            IPV4.replace(b"070200C0:", b"070200:"),
            IPV4.replace(b"070200C0:", b"070200C0"),
            IPV4.replace(b":C8A2", b":-8A2"),
            IPV4.replace(b":C8A2", b":C8A"),
            IPV6.replace(b"EFBE0000:", b"EFBE00:"),
        ):
            self.assertEqual(len(list(established(IPV4 + other + IPV6))), 2, other)

    def test_system(self) -> None:
        """The list of the real kernel contains our connections, although it is read in pieces; that
        of a made tree is empty, and a kernel without IPv6 has one list."""
        listening = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listening.close)
        clients = [socket.create_connection(listening.getsockname()) for _ in range(100)]
        for each in [*clients, *(listening.accept()[0] for _ in clients)]:
            self.addCleanup(each.close)
        found = established(System().connections(), listening.getsockname()[1])
        self.assertEqual(
            {(connection.remote, connection.remotePort) for connection in found},
            {client.getsockname() for client in clients},
        )
        self.assertEqual(System(self.mktemp()).connections(), b"")
        self.patch(sys.modules[System.__module__], "CONNECTIONS", (CONNECTIONS[0], "/proc/none"))
        self.assertTrue(System().connections().startswith(HEAD[:20]))


class ConnectionOfTests(SynchronousTestCase):
    """
    The connection of a socket.
    """

    def assertBothEnds(self, listening: socket.socket, address: str) -> None:
        """The connection of a socket that is connected to an address from the same address."""
        with listening, socket.create_connection((address, listening.getsockname()[1])) as client:
            ours, _ = listening.accept()
            with ours:
                expected = Connection(
                    local=address,
                    localPort=listening.getsockname()[1],
                    remote=address,
                    remotePort=client.getsockname()[1],
                )
                self.assertEqual(connectionOf(ours), expected)

    def test_ipv4(self) -> None:
        """A TCP connection over IPv4."""
        self.assertBothEnds(socket.create_server(("127.0.0.1", 0)), "127.0.0.1")

    def test_ipv6(self) -> None:
        """A TCP connection over IPv6; an IPv4-mapped address is an IPv4 address."""
        if not socket.has_dualstack_ipv6():
            self.skipTest("this machine has no IPv6")
        for address in ("::1", "127.0.0.1"):
            listening = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
            self.assertBothEnds(listening, address)

    def test_none(self) -> None:
        """Other sockets, unconnected ones and closed ones have none."""
        for each in (*socket.socketpair(), socket.socket()):
            self.assertIsNone(connectionOf(each))
            each.close()
            self.assertIsNone(connectionOf(each))
