"""
Tests of L{usbip_server.protocols.web}: requests, their responses, and limits of length.
"""

from __future__ import annotations

from tests.protocols.webcase import ATTACH, LIST, WebTestCase, get, post, responses
from tests.support.fixtures import UNO, PatientBackend
from usbip_server import PRODUCT
from usbip_server.model.errors import DeviceInUse
from usbip_server.model.policy import Policy
from usbip_server.model.replies import Status
from usbip_server.protocols.framing import BYTE_ORDER_MARK
from usbip_server.protocols.web import CODE_OF
from usbip_server.server.dispatcher import Dispatcher

CHUNKED = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunks(*parts: bytes) -> bytes:
    """A body in chunks."""
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (*parts, b""))


class CommandTests(WebTestCase):
    """
    Commands over HTTP.
    """

    def test_list(self) -> None:
        """
        A POST with a JSON request gets the reply that a plain connection gets, whatever the
        content type (curl sends that of a form), the query string, and the client's C{Connection}
        header are, and also if the body is in chunks, and the target in absolute form.
        """
        for request in (
            post(LIST),
            post(LIST, path=b"/?a=b"),
            post(BYTE_ORDER_MARK + LIST),
            *(
                post(LIST, path=scheme + b"localhost:5055" + path, host=b"evil.example")
                for scheme in (b"http://", b"HTTPS://")
                for path in (b"", b"/", b"/?a=b")
            ),
            CHUNKED + chunks(LIST[:5], LIST[5:]),
            post(LIST, b"Connection: close"),
            post(LIST, b"Connection: keep-alive"),
            *(
                post(LIST, b"Content-Type: " + kind)
                for kind in (
                    b"application/json",
                    b"application/x-www-form-urlencoded",
                    b"application/x-www-form-urlencoded; charset=utf-8",
                    b"multipart/form-data; boundary=x",
                    b"multipart/form-data",
                    b"multipart/form-data; boundary=",
                    b"text/plain",
                    b"nonsense",
                    b"",
                )
            ),
        ):
            response = self.ask(request)
            self.assertEqual((response.code, response.json["status"]), (200, "success"), request)
            self.assertEqual(response.headers["content-type"], "application/json")
            self.assertEqual(response.headers["connection"], "close")
            self.assertEqual(len(response.json["data"]), 3)
            self.assertTrue(response.body.endswith(b"\n"))

    def test_codes(self) -> None:
        """Each status has its HTTP status code."""
        for request, status, code in (
            (LIST, "success", 200),
            (ATTACH, "success", 200),
            (b'{"command":"lsit"}', "error", 400),
            (b"", "error", 400),
            (b"\xff", "error", 400),
            (b'{"command":"find","id":"9-9"}', "not_found", 404),
            (b'{"command":"find","id":"*"}', "multiple_matches", 409),
        ):
            response = self.ask(post(request))
            self.assertEqual((response.json["status"], response.code), (status, code), request)
        self.assertEqual(set(CODE_OF), set(Status))

    def test_failure(self) -> None:
        """A C{failure} is 502, and contains the device."""
        self.backend = PatientBackend()
        wire = self.connect()
        wire.send(post(ATTACH))
        self.assertEqual(wire.received, b"")
        self.backend.calls[0].fail(DeviceInUse(UNO))
        [response] = responses(wire.received)
        self.assertEqual(response.code, 502)
        self.assertEqual(set(response.json), {"status", "data", "message"})

    def test_token(self) -> None:
        """A bearer token is used like one in the request; other schemes are ignored."""
        for header in (b"Bearer wrong", b"bearer  wrong ", b"BEARER wrong"):
            response = self.ask(post(LIST, b"Authorization: " + header))
            self.assertEqual((response.code, response.json["status"]), (403, "error"), header)
            self.assertIn("the token that 192.0.2.7 shows is not known", response.json["message"])
        for header in (b"Basic d3Jvbmc6d3Jvbmc=", b"", b"Bearerwrong"):
            self.assertEqual(self.ask(post(LIST, b"Authorization: " + header)).code, 200)
        inBody = LIST.replace(b"}", b',"token":"wrong"}')
        self.assertEqual(self.ask(post(inBody)).code, 403)

    def test_server(self) -> None:
        """Each response contains the version of the server."""
        for request, code in (
            (post(LIST), 200),
            (post(b"{"), 400),
            (post(LIST, host=b"evil"), 403),
            (get(), 200),
            (get(b"HEAD", b"/x", b"1.0"), 404),
            (get(b"PUT"), 405),
        ):
            wire = self.connect()
            wire.send(request)
            [response] = responses(wire.received, bodiless=request.startswith(b"HEAD"))
            self.assertEqual((response.code, response.headers["server"]), (code, PRODUCT))
            self.assertEqual(wire.received.lower().count(b"\r\nserver: "), 1)

    def test_bug(self) -> None:
        """A bug is 500 and logged, and the connection is closed."""
        self.patch(Dispatcher, "list", None)
        wire = self.connect()
        wire.send(post(LIST))
        [response] = responses(wire.received)
        self.assertEqual((response.code, response.json["status"]), (500, "error"))
        self.assertTrue(wire.closed)
        self.assertNotEqual(self.flushLoggedErrors(TypeError), [])


class OtherRequestTests(WebTestCase):
    """
    Requests that are not a POST to /.
    """

    def test_get(self) -> None:
        """GET / returns a text that explains how to send a command; HEAD returns its headers."""
        response = self.ask(get())
        self.assertEqual(response.code, 200)
        self.assertIn(b"curl -X POST", response.body)
        self.assertIn("text/plain", response.headers["content-type"])
        self.assertEqual(response.headers["x-content-type-options"], "nosniff")
        wire = self.connect()
        wire.send(get(b"HEAD"))
        [head] = responses(wire.received, bodiless=True)
        self.assertEqual((head.code, head.headers), (200, response.headers))

    def test_elsewhere(self) -> None:
        """Any other path is 404."""
        for path in (
            b"/favicon.ico",
            b"/list",
            b"//",
            b"*",
            b"http://localhost/list",
            b"ftp://localhost/",
        ):
            self.assertEqual(self.ask(get(path=path)).code, 404)
            self.assertEqual(self.ask(post(ATTACH, path=path)).code, 404)
        self.assertEqual(self.backend.calls, [])

    def test_otherMethods(self) -> None:
        """Other methods are 405, and the response lists the allowed ones."""
        for method in (b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"BREW"):
            response = self.ask(get(method))
            self.assertEqual(response.code, 405)
            self.assertEqual(response.headers["allow"], "GET, HEAD, POST")
            self.assertEqual(response.json["status"], "error")

    def test_malformed(self) -> None:
        """A malformed HTTP request is 400."""
        for garbage in (
            b"LIST\r\n\r\n",
            b"A\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            b"POST / HTTP/1.1\r\nNo colon\r\n\r\n",
        ):
            wire = self.connect()
            wire.send(garbage)
            self.assertTrue(wire.received.startswith(b"HTTP/1.1 400 "), garbage)
            self.assertTrue(wire.closed, garbage)


class LengthTests(WebTestCase):
    """
    How long a request may be.
    """

    def test_body(self) -> None:
        """
        A body of the longest length is accepted; one that is longer is refused when it has been
        read, with C{Content-Length} and in chunks.
        """
        for request, code in (
            (post(LIST.ljust(1024)), 200),
            (post(LIST.ljust(1025)), 400),
            (post(LIST.ljust(3000)), 400),
            (CHUNKED + chunks(*[b" " * 100] * 20), 400),
        ):
            response = self.ask(request)
            self.assertEqual(response.code, code)
            if code == 400:
                self.assertEqual(response.json["status"], "error")
                self.assertIn("1024 bytes", response.json["message"])

    def test_announcedHuge(self) -> None:
        """A huge C{Content-Length} allocates no memory."""
        wire = self.connect()
        wire.send(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n")
        wire.send(b"x" * 100_000)
        self.assertFalse(wire.closed)
        [request] = wire.protocol.requests
        self.assertLessEqual(request.content.seek(0, 2), 1024)
        self.clock.advance(30.1)
        self.assertTrue(wire.closed)

    def test_headers(self) -> None:
        """A connection with endless headers is closed."""
        wire = self.connect()
        wire.send(b"POST / HTTP/1.1\r\n")
        for _ in range(1000):
            wire.send(b"X: " + b"x" * 1000 + b"\r\n")
        self.assertTrue(wire.closed)


class MonitorTests(WebTestCase):
    """
    What operators read.
    """

    def test_metrics(self) -> None:
        """C{GET /metrics} is a page in Prometheus' text format."""
        response = self.ask(get(path=b"/metrics"))
        self.assertEqual(response.code, 200)
        self.assertEqual(
            response.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8"
        )
        self.assertIn(b'\nusbipshare_devices{state="free"} 3\n', response.body)

    def test_health(self) -> None:
        """C{GET /health} is 200, or 503 with the reason."""
        self.assertEqual(self.ask(get(path=b"/health")).json, {"status": "success"})
        wire = self.connect()
        self.backend.inventory.trouble = "no /sys"
        wire.send(get(path=b"/health"))
        [response] = responses(wire.received)
        self.assertEqual((response.code, response.json["status"]), (503, "error"))
        self.assertIn("no /sys", response.json["message"])

    def test_refused(self) -> None:
        """Other methods, and clients without the right, are refused."""
        self.assertEqual(self.ask(post(LIST, path=b"/metrics")).code, 405)
        self.access = Policy()
        for path in (b"/metrics", b"/health"):
            self.assertEqual(self.ask(get(path=path)).code, 403)
