"""
L{usbip_server.net.mdns} and L{usbip_server.net.announcer}, with real packets on loopback.
"""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Sequence

from twisted.trial.unittest import SynchronousTestCase
from zeroconf import ServiceInfo, Zeroconf

from usbip_server.net.announcer import Announcer
from usbip_server.net.mdns import (
    SERVICE,
    Announcement,
    FoundServer,
    Ports,
    browse,
    privateAddresses,
)

HERE = ("127.0.0.1",)
PORTS = Ports(requests=5055, secureRequests=5056, export=3240, secureExport=3241)
SECONDS = 30.0
"""For what takes a second on an idle machine."""


def loopback(interfaces: Sequence[str]) -> tuple[str, ...]:
    """The addresses on which tests announce."""
    return HERE


class AnnouncementTests(SynchronousTestCase):
    """
    Servers that announce themselves are found.
    """

    def setUp(self) -> None:
        self.name = f"test-{uuid.uuid4().hex[:12]}"

    def announce(self, name: str, ports: Ports = PORTS) -> Announcer:
        """Announce a server until the end of the test."""
        announcer = Announcer(Announcement(name, "1.2", ports), loopback)
        announcer.start()
        self.addCleanup(announcer.join)
        self.addCleanup(announcer.stop)
        return announcer

    def found(self, count: int) -> list[FoundServer]:
        """The servers of this test, as soon as there are so many."""
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            found = [each for each in browse(0.5, HERE) if each.name.startswith(self.name)]
            if len(found) == count:
                return found
        raise AssertionError(f"not {count} servers: {found}")

    def test_found(self) -> None:
        """A server is found with its name, address, version and ports, until it is stopped."""
        announcer = self.announce(self.name)
        self.assertEqual(self.found(1), [FoundServer(self.name, HERE, "1.2", PORTS)])
        announcer.stop()
        announcer.join()
        self.assertEqual(self.found(0), [])

    def test_onlyTls(self) -> None:
        """A server without unencrypted ports is found as such."""
        ports = Ports(secureRequests=5056, secureExport=3241)
        self.announce(self.name, ports)
        self.assertEqual([each.ports for each in self.found(1)], [ports])

    def test_sameName(self) -> None:
        """Of two servers with one name, the second is announced under another."""
        self.announce(self.name)
        self.found(1)
        self.announce(self.name)
        names = [each.name for each in self.found(2)]
        self.assertEqual(names, [self.name, f"{self.name}-2"])

    def test_nonsense(self) -> None:
        """Answers that make no sense are ignored, and those of others are used."""
        liar = Zeroconf(interfaces=list(HERE))
        self.addCleanup(liar.close)
        for number, (port, properties) in enumerate(
            ((0, {}), (5055, {"version": "1\x1b[2J", "export": "99999", "tls": "x"}))
        ):
            name = f"{self.name}-{number}."
            info = ServiceInfo(
                SERVICE,
                name + SERVICE,
                port,
                properties=properties,
                server=f"{self.name}.local.",
                addresses=[socket.inet_aton("127.0.0.1")],
            )
            liar.register_service(info)
        [server] = self.found(1)
        self.assertEqual(server, FoundServer(f"{self.name}-1", HERE, "", Ports(requests=5055)))


class AddressesTests(SynchronousTestCase):
    """
    Where it is announced.
    """

    def test_private(self) -> None:
        """Neither loopback nor public addresses are used, and only those of given interfaces."""
        for address in privateAddresses():
            self.assertFalse(address.startswith("127."), address)
        self.assertEqual(privateAddresses(["lo"]), ())

    def test_noAddress(self) -> None:
        """Without an address nothing is announced, and it can be stopped."""
        announcer = Announcer(Announcement("none", "1", PORTS), lambda interfaces: ())
        announcer.start()
        announcer.stop()
        announcer.join()
        self.assertEqual(browse(0.1, ()), [])
