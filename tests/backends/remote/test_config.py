"""
Tests of L{usbip_server.backends.remote.config}.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.testing import MemoryReactorClock
from twisted.plugin import getPlugins
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from tests.support.certificates import LAB, authority, signed
from tests.support.fixtures import UNO, changed
from usbip_server.backends.remote.config import Host, Options, hostsIn
from usbip_server.client.servers import ClientTls, Server
from usbip_server.interfaces import IUsbBackend, IUsbBackendMaker
from usbip_server.model.device import Lease
from usbip_server.model.options import InvalidOption, convert


def hosts(*said: Any) -> tuple[Host, ...]:
    """The hosts of a configuration."""
    return hostsIn(convert({"hosts": list(said)}, Options))


class OptionsTests(SynchronousTestCase):
    """
    The options of the backend.
    """

    def assertWrong(self, path: str, reason: str, *said: Any) -> None:
        """It is refused, with the path of the key and a reason."""
        error = self.assertRaises(InvalidOption, hosts, *said)
        self.assertEqual(".".join(map(str, error.path)), path)
        self.assertIn(reason, error.reason)

    def test_names(self) -> None:
        """A host name or an address is enough; each server has a range of a hundred buses."""
        self.assertEqual(
            hosts("raspi3", "192.0.2.7:5056", "::1"),
            (
                Host(server=Server(name="raspi3", host="raspi3"), bus=100),
                Host(server=Server(name="192.0.2.7:5056", host="192.0.2.7", port=5056), bus=200),
                Host(server=Server(name="::1", host="::1"), bus=300),
            ),
        )

    def test_allOptions(self) -> None:
        """Every option of a server."""
        folder = self.mktemp()
        authority(LAB).write(folder, "ca")
        certificate, key = signed("gate").write(folder, "gate")
        tls = {"ca": f"{folder}/ca.pem", "certificate": certificate, "key": key}
        said = {
            "host": "192.0.2.7",
            "name": "attic",
            "port": 5056,
            "export_port": 3241,
            "token": "usbip_x",
            "tls": {**tls, "server_name": "attic.example.org"},
            "bus": 0,
        }
        [host] = hosts(said)
        server = Server(
            name="attic",
            host="192.0.2.7",
            port=5056,
            exportPort=3241,
            token="usbip_x",
            tls=ClientTls(**tls, serverName="attic.example.org"),
        )
        self.assertEqual(host, Host(server=server, bus=0))

    def test_invalid(self) -> None:
        """Invalid values are refused; more of a server's options in C{tests.client.test_config}."""
        for path, reason, values in (
            ("hosts", "length", ()),
            ("hosts.1", "is not a server", ("raspi3", "a b")),
            ("hosts.0.host", "is not a server", ({"host": "a b"},)),
            ("hosts.0.host", "is missing", ({"name": "raspi3"},)),
            ("hosts.0.hots", "unknown key", ({"host": "raspi3", "hots": 1},)),
            ("hosts.0.bus", "<= 65000", ({"host": "raspi3", "bus": 65001},)),
            ("hosts.1", "is named twice", ("raspi3", "raspi3")),
            ("hosts.0.token_file", "cannot be read", ({"host": "a", "token_file": "/nowhere"},)),
            ("hosts.0.tls.ca", "cannot be read", ({"host": "a", "tls": {"ca": "/nowhere"}},)),
        ):
            self.assertWrong(path, reason, *values)

    def test_overlappingRanges(self) -> None:
        """The ranges of two servers must not overlap."""
        for bus in (1, 100, 199):
            self.assertWrong("hosts.1", "overlaps that of a", "a", {"host": "b", "bus": bus})
        self.assertEqual([host.bus for host in hosts("a", {"host": "b", "bus": 0})], [100, 0])

    def test_plugin(self) -> None:
        """It is found as C{backend: {type: remote}}, and does not connect before it is started."""
        [maker] = [each for each in getPlugins(IUsbBackendMaker) if each.name == "remote"]
        reactor = MemoryReactorClock()
        backend = maker.makeBackend({"hosts": ["raspi3"]}, reactor)
        verifyObject(IUsbBackend, backend)
        self.assertEqual((reactor.tcpClients, reactor.getDelayedCalls()), ([], []))
        self.assertRaises(InvalidOption, maker.makeBackend, {}, reactor)


class HostTests(SynchronousTestCase):
    """
    Bus ids at the server and at the gateway.
    """

    host = Host(server=Server(name="raspi3", host="raspi3"), bus=300)

    def test_busIds(self) -> None:
        """The bus number has the start of the range added."""
        for there, here in (("1-1.4", "301-1.4"), ("99-2", "399-2")):
            self.assertEqual(self.host.busIdHere(there), here)
            self.assertEqual(self.host.busIdThere(here), there)
        self.assertIsNone(self.host.busIdHere("100-1"))
        for here in ("300-1", "400-1", "1-1", "299-1"):
            self.assertIsNone(self.host.busIdThere(here))

    def test_here(self) -> None:
        """A device has the name of its server in its description and path, and not its name and
        lease there."""
        lease = Lease(owner="ci", address="192.0.2.8")
        there = changed(UNO, name="uno", lease=lease, path="pci-0000:00:14.0-usb-0:1.4")
        self.assertEqual(
            self.host.here(there, "301-1.4"),
            changed(
                UNO,
                busId="301-1.4",
                description="Arduino SA Uno R3 (CDC ACM) at raspi3",
                path="raspi3/pci-0000:00:14.0-usb-0:1.4",
                sysfsPath="raspi3:1-1.4",
            ),
        )
