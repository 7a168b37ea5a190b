"""
L{usbip_server.server.advertiser}.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress
from twisted.trial.unittest import SynchronousTestCase

from usbip_server import __version__
from usbip_server.net.announcer import hostName
from usbip_server.net.endpoints import Listener, OverTls, Purpose
from usbip_server.net.mdns import Announcement, Ports
from usbip_server.server import advertiser
from usbip_server.server.advertiser import Advertiser
from usbip_server.server.config import Advertise

PLAIN: Any = object()
TLS: Any = OverTls(None, PLAIN, None)  # type: ignore[arg-type]
EVERYWHERE, HERE = IPv6Address("TCP", "::", 5055), IPv4Address("TCP", "127.0.0.1", 5055)


class FakePort:
    """A port that listens at an address."""

    def __init__(self, address: IAddress) -> None:
        self._address = address

    def getHost(self) -> IAddress:
        """See C{IListeningPort}."""
        return self._address


class FakeAnnouncer:
    """Records what is announced."""

    made: list[FakeAnnouncer] = []  # noqa: RUF012

    def __init__(self, announcement: Announcement) -> None:
        self.announcement = announcement
        self.isRunning = False
        self.made.append(self)

    def start(self) -> None:
        """See L{usbip_server.net.mdns.Announcer}."""
        self.isRunning = True

    def stop(self) -> None:
        """See L{usbip_server.net.mdns.Announcer}."""
        self.isRunning = False


def port(
    address: IAddress, purpose: Purpose = Purpose.REQUESTS, endpoint: Any = PLAIN
) -> tuple[Any, Any]:
    """A listener, and the port it has opened."""
    return Listener("", endpoint, purpose), FakePort(address)


class AdvertiserTests(SynchronousTestCase):
    """
    What is announced.
    """

    def setUp(self) -> None:
        FakeAnnouncer.made = []
        self.patch(advertiser, "Announcer", FakeAnnouncer)
        self.advertiser = Advertiser()

    def running(self) -> list[Announcement]:
        """What is announced now."""
        return [each.announcement for each in FakeAnnouncer.made if each.isRunning]

    def test_ports(self) -> None:
        """The ports are announced that other machines can reach."""
        self.advertiser.update(
            True,
            [
                port(HERE),
                port(UNIXAddress("/run/x")),
                port(IPv4Address("TCP", "192.168.1.2", 5056), endpoint=TLS),
                port(IPv6Address("TCP", "::", 3240), Purpose.EXPORT),
                port(IPv6Address("TCP", "::1", 3241), Purpose.SECURED_EXPORT),
            ],
        )
        ports = Ports(secureRequests=5056, export=3240)
        self.assertEqual(self.running(), [Announcement(hostName(), __version__, ports)])

    def test_notReachable(self) -> None:
        """A daemon that only this machine can reach is not announced; nor one with C{off}."""
        self.advertiser.update(True, [port(HERE), port(EVERYWHERE, Purpose.EXPORT)])
        self.advertiser.update(False, [port(EVERYWHERE)])
        self.assertEqual(FakeAnnouncer.made, [])

    def test_reloaded(self) -> None:
        """A reload changes the announcement only if it is another."""
        options = Advertise(name="attic", interfaces=("eth0",))
        for given in (True, True, options, options):
            self.advertiser.update(given, [port(EVERYWHERE)])
        [announcement] = self.running()
        self.assertEqual(announcement.name, "attic")
        self.assertEqual(announcement.interfaces, ("eth0",))
        self.assertEqual(len(FakeAnnouncer.made), 2)
        self.advertiser.update(False, [port(EVERYWHERE)])
        self.assertEqual(self.running(), [])
        self.assertIs(self.advertiser.stop(), None)
