"""
Tests of L{usbip_server.client.servers}.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from usbip_server.client.servers import MOST, Server, serverAt, serversIn


class NamedTests(SynchronousTestCase):
    """
    Addresses of servers.
    """

    def test_addresses(self) -> None:
        """Names and addresses, with and without a port."""
        for text, host, port in (
            ("raspi", "raspi", 5055),
            (" raspi.lab ", "raspi.lab", 5055),
            ("raspi:5056", "raspi", 5056),
            ("192.0.2.7", "192.0.2.7", 5055),
            ("192.0.2.7:1", "192.0.2.7", 1),
            ("::1", "::1", 5055),
            ("[::1]", "::1", 5055),
            ("[::1]:65535", "::1", 65535),
            ("2001:db8::1", "2001:db8::1", 5055),
            ("fe80::1%eth0", "fe80::1%eth0", 5055),
            ("[fe80::1%br-lan.7]:5056", "fe80::1%br-lan.7", 5056),
            ("bücher", "bücher", 5055),
        ):
            server = serverAt(text)
            self.assertEqual((server.host, server.port), (host, port))
            self.assertEqual(str(server), text.strip())

    def test_wrongAddresses(self) -> None:
        """A text that is not an address is an error that shows the syntax."""
        for text in (
            *("", " ", ":5055", "raspi:", "raspi:x", "raspi:0", "raspi:65536", "a b", "raspi:-1"),
            *("http://raspi", "raspi/", "[raspi]", "[::1", "::1]", "[::1]x", "[]:1", "1:2:3"),
            *("raspi:" + "9" * 5000, "raspi:\u0665"),
        ):
            error = self.assertRaises(ValueError, serverAt, text)
            if not text.endswith("9"):
                self.assertIn(repr(text.strip()), str(error))

    def test_address(self) -> None:
        """The address of a server can be parsed again."""
        for text in ("raspi", "raspi:5056", "192.0.2.7", "::1", "[::1]:5056", "fe80::1%eth0"):
            server = serverAt(text)
            self.assertEqual(server.address, text)
            self.assertEqual(server.called(server.address), text)
        self.assertEqual(serverAt("[::1]:5056").exportAddress, "[::1]:3240")
        self.assertEqual(serverAt("raspi:5056").exportAddress, "raspi:3240")

    def test_called(self) -> None:
        """Messages contain the name, and the address if that is different."""
        bench = Server(name="bench", host="192.0.2.7")
        self.assertEqual(bench.called(bench.address), "bench (192.0.2.7)")
        self.assertEqual(str(bench), "bench")


class RangeTests(SynchronousTestCase):
    """
    Ranges of addresses.
    """

    def test_ranges(self) -> None:
        """From one address to another, or all host addresses of a network."""
        for text, wanted in (
            ("192.0.2.10-192.0.2.12", ["192.0.2.10", "192.0.2.11", "192.0.2.12"]),
            ("192.0.2.10 - 12", ["192.0.2.10", "192.0.2.11", "192.0.2.12"]),
            ("192.0.2.255-192.0.3.0", ["192.0.2.255", "192.0.3.0"]),
            ("192.0.2.7", ["192.0.2.7"]),
            ("192.0.2.0/30", ["192.0.2.1", "192.0.2.2"]),
            ("192.0.2.7/32", ["192.0.2.7"]),
            ("2001:db8::1-2001:db8::2", ["2001:db8::1", "2001:db8::2"]),
        ):
            self.assertEqual([*serversIn(text)], wanted)
        self.assertEqual(len([*serversIn("10.0.0.0-10.0.3.255")]), MOST)

    def test_wrongRanges(self) -> None:
        """A text that is not a range, or is too large a range, is an error."""
        for text, reason in (
            ("raspi", "raspi"),
            ("", ""),
            ("192.0.2.12-192.0.2.10", "has to ascend"),
            ("192.0.2.1-300", "300"),
            ("192.0.2.1-::1", "has to ascend"),
            ("10.0.0.0/8", "more than 1024"),
            ("10.0.0.0-10.1.0.0", "at most 1024"),
            ("192.0.2.1/24", "host bits"),
            ("192.0.2.0/x", "192.0.2.0/x"),
        ):
            error = self.assertRaises(ValueError, lambda text=text: [*serversIn(text)])
            self.assertIn("is not a range of addresses", str(error))
            self.assertIn(reason, str(error))
