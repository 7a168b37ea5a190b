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
        """
        Addresses, localhost, this machine's names and configured names are accepted as
        C{Host}.
        """
        for host in self.OURS:
            self.assertEqual(self.ask(post(LIST, host=host)).code, 200, host)

    def test_foreignNames(self) -> None:
        """Any other name is refused: an attacker can make it resolve to this machine."""
        for host in self.FOREIGN:
            response = self.ask(post(ATTACH, host=host))
            self.assertEqual((response.code, response.json["status"]), (403, "error"), host)
        self.assertEqual(self.backend.calls, [])

    def test_noHost(self) -> None:
        """A request without a C{Host} is not from a browser, and is accepted."""
        request = b"POST / HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s" % (len(LIST), LIST)
        self.assertEqual(self.ask(request).code, 200)

    def test_sameOrigin(self) -> None:
        """A page of this server is accepted."""
        for host in (b"localhost:5055", b"192.0.2.1:5055", b"[::1]:5055", b"lab.example.org"):
            for scheme in (b"http://", b"https://"):
                response = self.ask(post(LIST, b"Origin: " + scheme + host, host=host))
                self.assertEqual(response.code, 200, host)

    def test_foreignOrigin(self) -> None:
        """A page of another host, of another port or in a file is refused."""
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
        """An C{Origin} without a C{Host} is refused."""
        request = (
            b"POST / HTTP/1.0\r\nOrigin: http://localhost\r\nContent-Length: 18\r\n\r\n" + LIST
        )
        self.assertEqual(self.ask(request).code, 403)

    def test_messages(self) -> None:
        """The message names what is refused, and what to do."""
        response = self.ask(post(LIST, host=b"evil.example"))
        self.assertIn("evil.example", response.json["message"])
        self.assertIn("hosts", response.json["message"])

    def test_get(self) -> None:
        """The check applies to every method."""
        request = b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n"
        self.assertEqual(self.ask(request).code, 403)
