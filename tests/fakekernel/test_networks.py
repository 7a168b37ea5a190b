"""
Tests of L{usbip_server.kernel.networks}, in made trees.
"""

from __future__ import annotations

import ipaddress
import os
import struct
import sys

from twisted.trial.unittest import SynchronousTestCase

from usbip_server.kernel.networks import networkUsesOf
from usbip_server.kernel.system import System
from usbip_server.testing import FakeKernel

HEAD = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"


def printed(address: str) -> str:
    """An IPv4 address, as the kernel prints it in a table."""
    (word,) = struct.unpack("=I", ipaddress.ip_address(address).packed)
    return f"{word:08X}"


class NetworksTests(SynchronousTestCase):
    """
    A device 1-1 that is the network adapter eth0.
    """

    def setUp(self) -> None:
        self.root = self.mktemp()
        self.system = System(self.root)
        for path in (
            "bus/usb/devices/1-1/1-1:1.0/net/eth0/queues",
            "bus/usb/devices/1-2/1-2:1.0",
            "class/net/eth0",
        ):
            os.makedirs(f"{self.root}/{path}")

    def routes(self, *routes: tuple[str, str], ipv6: str = "") -> None:
        """These are the routes: network and interface."""
        table = HEAD
        for text, interface in routes:
            network = ipaddress.IPv4Network(text)
            address, mask = map(printed, (str(network.network_address), str(network.netmask)))
            table += f"{interface}\t{address}\t00000000\t0001\t0\t0\t0\t{mask}\t0\t0\t0\n"
        os.makedirs(f"{self.root}/proc/self/net", exist_ok=True)
        for name, content in (("route", table), ("ipv6_route", ipv6)):
            with open(f"{self.root}/proc/self/net/{name}", "w") as file:
                file.write(content)

    def peers(self, *addresses: str) -> None:
        """These are connected to this machine."""
        kernel = FakeKernel()
        for address in addresses:
            kernel.connect(address)
        self.patch(
            self.system, "connections", lambda: kernel.connections().replace(b":0CA8", b":0016")
        )

    def uses(self, *expected: str, busId: str = "1-1") -> None:
        """The device has exactly these uses."""
        self.assertEqual(networkUsesOf(self.system, busId), expected)

    def test_notUsed(self) -> None:
        """An adapter without routes is not used, nor is one that only others are reached through;
        other devices are not adapters."""
        self.uses()
        self.routes(("0.0.0.0/0", "wlan0"), ("192.0.2.0/24", "wlan0"), ("198.51.100.0/24", "eth0"))
        self.peers("192.0.2.7", "203.0.113.1", "127.0.0.1", "::1")
        self.uses()
        self.uses(busId="1-2")
        self.uses(busId="1-3")

    def test_used(self) -> None:
        """An adapter is used if it has the default route, or the most specific route to a
        connected address."""
        self.routes(("0.0.0.0/0", "eth0"))
        self.uses("eth0 has the default route")
        self.routes(("0.0.0.0/0", "wlan0"), ("192.0.2.0/24", "eth0"), ("192.0.2.64/26", "wlan0"))
        for address, isUsed in (("192.0.2.7", True), ("192.0.2.65", False), ("192.0.2.1", True)):
            self.peers(address)
            self.uses(*([f"eth0 carries the connection of {address}"] if isUsed else []))

    def test_ipv6(self) -> None:
        """The adapter that carries an IPv6 connection is found, also with a link-local address."""
        rest = "00000000000000000000000000000000 00 00000000000000000000000000000000"
        tail = "00000100 00000001 00000000 00000001"
        local, site = "fe80" + 28 * "0", "20010db8" + 24 * "0"
        lines = f"{local} 40 {rest} {tail}     eth0\n{local} 40 {rest} {tail}    wlan0\n"
        self.routes(ipv6=lines)
        self.peers("fe80::7")
        self.uses("eth0 carries the connection of fe80::7")
        self.routes(ipv6=f"{site} 20 {rest} {tail} eth0\n{32 * '0'} 00 {rest} {tail} wlan0\n")
        for address, isUsed in (("2001:db8::7", True), ("2001:db9::7", False)):
            self.peers(address)
            self.uses(*([f"eth0 carries the connection of {address}"] if isUsed else []))
        self.routes(ipv6=f"{32 * '0'} 00 {rest} {tail} eth0\n")
        self.peers()
        self.uses("eth0 has the default route")

    def test_bridge(self) -> None:
        """An adapter is used if a bridge that it is a part of is."""
        os.makedirs(f"{self.root}/class/net/br0")
        os.symlink("../bond0", f"{self.root}/class/net/eth0/upper_bond0")
        os.makedirs(f"{self.root}/class/net/bond0")
        os.symlink("../br0", f"{self.root}/class/net/bond0/upper_br0")
        self.routes(("0.0.0.0/0", "br0"))
        self.uses("eth0 has the default route")

    def test_damaged(self) -> None:
        """Tables that are truncated anywhere do no harm."""
        self.routes(("0.0.0.0/0", "eth0"))
        whole, _ = self.system.routes()
        for end in range(len(whole)):
            for tables in ((whole[:end], b""), (b"", whole[:end])):
                self.patch(self.system, "routes", lambda tables=tables: tables)
                networkUsesOf(self.system, "1-1")

    def test_real(self) -> None:
        """The tables of the real kernel can be parsed."""
        ipv4, _ = System().routes()
        if sys.platform == "linux" and ipv4:
            self.assertTrue(ipv4.startswith(b"Iface"))
        self.assertEqual(networkUsesOf(System(), "1-99"), ())
