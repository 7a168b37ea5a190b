"""
Tests of L{usbip_server.protocols.origins}.
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

    def assertRefused(self, request: bytes, named: bytes = b"") -> None:
        """The request is 403, and the message contains a name."""
        response = self.ask(request)
        self.assertEqual((response.code, response.json["status"]), (403, "error"), request)
        self.assertIn(named.decode("latin-1"), response.json["message"])
        self.assertEqual(self.backend.calls, [])

    def test_host(self) -> None:
        """
        Addresses, localhost, this machine's names and configured names are accepted as C{Host};
        any other name is refused, for every method: an attacker can make it resolve to this
        machine. A request without one is not from a browser, and is accepted.
        """
        for host in self.OURS:
            self.assertEqual(self.ask(post(LIST, host=host)).code, 200, host)
        for host in self.FOREIGN:
            self.assertRefused(post(ATTACH, host=host))
        self.assertRefused(post(LIST, host=b"evil.example"), b"evil.example")
        self.assertRefused(post(LIST, host=b"evil.example"), b"hosts")
        self.assertRefused(b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n")
        absolute = post(ATTACH, path=b"http://evil.example/", host=b"localhost")
        self.assertRefused(absolute, b"evil.example")
        request = b"POST / HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s" % (len(LIST), LIST)
        self.assertEqual(self.ask(request).code, 200)

    def test_origin(self) -> None:
        """
        A page of this server is accepted; a page of another host, of another port or in a file,
        and any page if there is no C{Host}, is refused.
        """
        for host in (b"localhost:5055", b"192.0.2.1:5055", b"[::1]:5055", b"lab.example.org"):
            for scheme in (b"http://", b"https://"):
                response = self.ask(post(LIST, b"Origin: " + scheme + host, host=host))
                self.assertEqual(response.code, 200, host)
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
            self.assertRefused(post(ATTACH, b"Origin: " + origin))
        head = b"POST / HTTP/1.0\r\nOrigin: http://localhost\r\nContent-Length: 18\r\n\r\n"
        self.assertRefused(head + LIST)
