"""
Tests of L{usbip_server.protocols.web}: who may ask.
"""

from __future__ import annotations

import socket

from tests.protocols.webcase import ATTACH, LIST, WebTestCase, post


class AdmissionTests(WebTestCase):
    """
    A web page in somebody's browser must not be able to drive the daemon.
    """

    hosts = ("Lab.Example.org", "pi.")

    OURS = (
        b"localhost",
        b"localhost:5055",
        b"LOCALHOST",
        b"localhost.",
        b"localhost.:5055",
        b"127.0.0.1",
        b"127.0.0.1:80",
        b"192.0.2.1:5055",
        b"[::1]",
        b"[::1]:5055",
        b"[2001:DB8::1]:5055",
        b"[fe80::1%eth0]:5055",
        b"lab.example.org",
        b"LAB.example.ORG:5055",
        b"lab.example.org.",
        b"pi:5055",
        socket.gethostname().encode(),
        socket.gethostname().upper().encode() + b":5055",
        socket.gethostname().partition(".")[0].encode() + b".local",
    )
    FOREIGN = (
        b"evil.example",
        b"evil.example:5055",
        b"localhost.evil.example",
        b"127.0.0.1.evil.example",
        b"192.0.2.1.nip.io:5055",
        b"lab.example.org.evil.example",
        b"example.org",
        b"[evil.example]",
        b"",
        b":5055",
        b"localhost@evil.example",
        b"evil.example/localhost",
        b"\xff\xfe",
    )

    def test_ourNames(self) -> None:
        """An address, localhost, this machine's and a configured name are good hosts."""
        for host in self.OURS:
            self.assertEqual(self.ask(post(LIST, host=host)).code, 200, host)

    def test_foreignNames(self) -> None:
        """Any other name is one that an attacker may have made resolve to us."""
        for host in self.FOREIGN:
            response = self.ask(post(ATTACH, host=host))
            self.assertEqual((response.code, response.json["status"]), (403, "error"), host)
        self.assertEqual(self.backend.calls, [])

    def test_noHost(self) -> None:
        """A client that says no host is no browser."""
        request = b"POST / HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s" % (len(LIST), LIST)
        self.assertEqual(self.ask(request).code, 200)

    def test_sameOrigin(self) -> None:
        """A page of this very host may ask."""
        for host in (b"localhost:5055", b"192.0.2.1:5055", b"[::1]:5055", b"lab.example.org"):
            for scheme in (b"http://", b"https://"):
                response = self.ask(post(LIST, b"Origin: " + scheme + host, host=host))
                self.assertEqual(response.code, 200, host)

    def test_foreignOrigin(self) -> None:
        """A page of any other may not: another host, another port, a file."""
        for origin in (
            b"http://evil.example",
            b"https://evil.example:5055",
            b"http://192.0.2.1",
            b"http://192.0.2.1:8080",
            b"http://192.0.2.1:5055.evil.example",
            b"http://192.0.2.2:5055",
            b"http://localhost:5055",
            b"null",
            b"file://",
            b"192.0.2.1:5055",
            b"",
            b"\xff",
        ):
            response = self.ask(post(ATTACH, b"Origin: " + origin))
            self.assertEqual((response.code, response.json["status"]), (403, "error"), origin)
        self.assertEqual(self.backend.calls, [])

    def test_originWithoutHost(self) -> None:
        """An origin needs a host to be the same as."""
        request = (
            b"POST / HTTP/1.0\r\nOrigin: http://localhost\r\nContent-Length: 18\r\n\r\n" + LIST
        )
        self.assertEqual(self.ask(request).code, 403)

    def test_messages(self) -> None:
        """The refusal names what is refused, and what to do."""
        response = self.ask(post(LIST, host=b"evil.example"))
        self.assertIn("evil.example", response.json["message"])
        self.assertIn("hosts", response.json["message"])

    def test_get(self) -> None:
        """That is so for every method."""
        request = b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n"
        self.assertEqual(self.ask(request).code, 403)
