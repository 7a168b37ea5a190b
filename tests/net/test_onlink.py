"""
Tests of L{usbip_server.net.onlink}.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

from twisted.trial.unittest import SynchronousTestCase

from usbip_server.net.onlink import MAX_AGE, SHARED, Interface, OnLink, addresses, networksOf


class OnLinkTests(SynchronousTestCase):
    """
    The networks of this machine.
    """

    def test_addresses(self) -> None:
        """The addresses of this machine are read from the kernel, with their networks."""
        found = addresses()
        self.assertIn(ip_interface("127.0.0.1/8"), found)
        for each in found:
            self.assertIn(each.ip, each.network)

    def test_networks(self) -> None:
        """
        An address alone is no network, and one that contains half of the Internet has no
        neighbours; an interface of Tailscale leads to all of its nodes.
        """
        ours = (
            "203.0.113.1/0",
            "192.0.2.1/7",
            "2001:db8::1/16",
            "192.0.2.7/24",
            "192.0.2.8/24",
            "2001:db8:7::1/64",
            "100.101.102.103/32",
            "::1/128",
        )
        expected = (ip_network("192.0.2.0/24"), ip_network("2001:db8:7::/64"))
        self.assertEqual(networksOf(map(ip_interface, ours)), expected)
        withTailscale = networksOf(map(ip_interface, (*ours, "fd7a:115c:a1e0::1/128")))
        self.assertEqual({*withTailscale} - {*expected}, {SHARED})
        self.assertIn(ip_address("100.64.0.1"), SHARED)

    def test_again(self) -> None:
        """
        The addresses are read again after some seconds; until they change, the networks are the
        same tuple. If they cannot be read there are none.
        """
        now, reads = 0.0, 0
        found: list[Interface] = [ip_interface("192.0.2.7/24")]
        error: list[OSError] = []

        def read() -> list[Interface]:
            nonlocal reads
            reads += 1
            if error:
                raise error[0]
            return list(found)

        onLink = OnLink(lambda: now, read)
        before = onLink.networks()
        for _ in range(100):
            self.assertIs(onLink.networks(), before)
        self.assertEqual(reads, 1)
        now += MAX_AGE
        self.assertIs(onLink.networks(), before)
        self.assertEqual(reads, 2)
        found.append(ip_interface("2001:db8:7::1/64"))
        now += MAX_AGE
        self.assertEqual(len(onLink.networks()), 2)
        error.append(OSError())
        now += MAX_AGE
        self.assertEqual(onLink.networks(), ())
