"""
Tests of L{usbip_server.protocols.web}.
"""

from __future__ import annotations

import json
import socket
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.support import (
    ALICE,
    UNO,
    PatientBackend,
    PromptBackend,
    Wire,
    asked,
    threeWays,
)
from usbip_server.answers import Answers
from usbip_server.errors import DeviceInUse
from usbip_server.limits import Limits, Timeouts
from usbip_server.protocols.web import CODE_OF, WebFactory
from usbip_server.replies import Status
from usbip_server.sharing import Sharing

LIST = b'{"command":"list"}'
ATTACH = b'{"command":"attach","id":"1-1.4"}'


def post(
    body: bytes, *headers: bytes, path: bytes = b"/", host: bytes = b"192.0.2.1:5055"
) -> bytes:
    """A POST as clients send it."""
    lines = [
        b"POST %s HTTP/1.1" % path,
        b"Host: %s" % host,
        b"Content-Length: %d" % len(body),
        *headers,
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def get(method: bytes = b"GET", path: bytes = b"/", version: bytes = b"1.1") -> bytes:
    """A request without a body."""
    return b"%s %s HTTP/%s\r\nHost: localhost\r\n\r\n" % (method, path, version)


class Response:
    """
    One HTTP response.
    """

    def __init__(self, head: bytes) -> None:
        first, *lines = head.decode("latin-1").split("\r\n")
        self.code = int(first.split()[1])
        self.headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        self.body = b""

    @property
    def json(self) -> dict[str, Any]:
        """The JSON in it."""
        answer: dict[str, Any] = json.loads(self.body)
        return answer


def responses(received: bytes, bodiless: bool = False) -> list[Response]:
    """Take what a client received apart."""
    found = []
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        response = Response(head)
        length = 0 if bodiless else int(response.headers["content-length"])
        response.body, received = received[:length], received[length:]
        found.append(response)
    return found


class WebTestCase(SynchronousTestCase):
    """
    HTTP connections to a backend that does at once, or not, what is asked of it.
    """

    hosts: tuple[str, ...] = ()

    def setUp(self) -> None:
        self.clock = Clock()
        self.backend: PatientBackend = PromptBackend()
        self.timeouts = Timeouts(request=30, answer=1.8)

    def connect(self) -> Wire:
        """A new connection."""
        sharing = Sharing(self.backend, self.clock, self.timeouts)
        asked(sharing.start())
        limits = Limits(requestBytes=1024)
        factory = WebFactory(Answers(sharing), self.hosts, limits, self.timeouts, self.clock)
        return Wire(factory.makeChannel(ALICE))

    def ask(self, request: bytes) -> Response:
        """The one response to a request, delivered in all three ways."""
        seen = []
        for _, segments in threeWays([request]):
            wire = self.connect()
            wire.send(*segments)
            [response] = responses(wire.received)
            seen.append(response)
            wire.closeWrite()
            self.assertTrue(wire.lost)
        self.assertEqual(len({(response.code, response.body) for response in seen}), 1)
        return seen[0]


class CommandTests(WebTestCase):
    """
    Commands over HTTP.
    """

    def test_list(self) -> None:
        """A POST with the JSON as body gets the JSON that a plain connection gets."""
        response = self.ask(post(LIST))
        self.assertEqual(response.code, 200)
        self.assertEqual(response.headers["content-type"], "application/json")
        self.assertEqual(response.json["status"], "success")
        self.assertEqual(len(response.json["data"]), 3)
        self.assertTrue(response.body.endswith(b"\n"))

    def test_contentTypes(self) -> None:
        """The content type does not matter: curl says it were a form."""
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
        ):
            response = self.ask(post(LIST, b"Content-Type: " + kind))
            self.assertEqual((response.code, response.json["status"]), (200, "success"), kind)

    def test_chunked(self) -> None:
        """A body may come in chunks."""
        head = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (LIST[:5], LIST[5:]))
        self.assertEqual(self.ask(head + body + b"0\r\n\r\n").code, 200)

    def test_queryString(self) -> None:
        """A query behind the path does not matter."""
        self.assertEqual(self.ask(post(LIST, path=b"/?a=b")).code, 200)

    def test_codes(self) -> None:
        """Each status has its code."""
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

    def test_failure(self) -> None:
        """A device that was found but could not be had is 502, with the device."""
        self.backend = PatientBackend()
        wire = self.connect()
        wire.send(post(ATTACH))
        self.assertEqual(wire.received, b"")
        self.backend.calls[0].fail(DeviceInUse(UNO))
        [response] = responses(wire.received)
        self.assertEqual(response.code, 502)
        self.assertEqual(set(response.json), {"status", "data", "message"})

    def test_everyStatusHasACode(self) -> None:
        """There is a code for each status there is."""
        self.assertEqual(set(CODE_OF), set(Status))

    def test_bug(self) -> None:
        """A bug is 500, logged, and the end of the connection."""
        self.patch(Sharing, "_list", None)
        wire = self.connect()
        wire.send(post(LIST))
        [response] = responses(wire.received)
        self.assertEqual((response.code, response.json["status"]), (500, "error"))
        self.assertTrue(wire.lost)
        self.assertNotEqual(self.flushLoggedErrors(TypeError), [])


class OtherMethodTests(WebTestCase):
    """
    What is not a POST to /.
    """

    def test_get(self) -> None:
        """Whoever opens it in a browser is told how to ask."""
        response = self.ask(get())
        self.assertEqual(response.code, 200)
        self.assertIn(b"curl -X POST", response.body)
        self.assertIn("text/plain", response.headers["content-type"])
        self.assertEqual(response.headers["x-content-type-options"], "nosniff")

    def test_head(self) -> None:
        """HEAD has the head of that."""
        wire = self.connect()
        wire.send(get(b"HEAD"))
        [response] = responses(wire.received, bodiless=True)
        self.assertEqual(response.code, 200)
        self.assertGreater(int(response.headers["content-length"]), 0)

    def test_elsewhere(self) -> None:
        """There is nothing at any other path."""
        for path in (b"/favicon.ico", b"/list", b"//", b"*", b"http://evil.example/"):
            self.assertEqual(self.ask(get(path=path)).code, 404)
            self.assertEqual(self.ask(post(ATTACH, path=path)).code, 404)
        self.assertEqual(self.backend.calls, [])

    def test_otherMethods(self) -> None:
        """Other methods are not allowed, and the answer says which are."""
        for method in (b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"BREW"):
            response = self.ask(get(method))
            self.assertEqual(response.code, 405)
            self.assertEqual(response.headers["allow"], "GET, HEAD, POST")
            self.assertEqual(response.json["status"], "error")


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


class LengthTests(WebTestCase):
    """
    How long a request may be.
    """

    def test_contentLength(self) -> None:
        """A body that is too long is refused, once it has been read, and not kept meanwhile."""
        body = LIST + b" " * 2000
        response = self.ask(post(body))
        self.assertEqual((response.code, response.json["status"]), (400, "error"))
        self.assertIn("1024 bytes", response.json["message"])

    def test_chunked(self) -> None:
        """So is one in chunks."""
        head = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        response = self.ask(head + (b"64\r\n" + b" " * 100 + b"\r\n") * 20 + b"0\r\n\r\n")
        self.assertEqual(response.code, 400)
        self.assertIn("1024 bytes", response.json["message"])

    def test_justFits(self) -> None:
        """One that is as long as is allowed is not."""
        self.assertEqual(self.ask(post(LIST + b" " * (1024 - len(LIST)))).code, 200)
        self.assertEqual(self.ask(post(LIST + b" " * (1025 - len(LIST)))).code, 400)

    def test_announcedHuge(self) -> None:
        """To announce a huge body takes no memory."""
        wire = self.connect()
        wire.send(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n")
        wire.send(b"x" * 100_000)
        self.assertFalse(wire.ended)
        [request] = wire.protocol.requests
        self.assertLessEqual(request.content.seek(0, 2), 1024)
        self.clock.advance(30.1)
        self.assertTrue(wire.ended)

    def test_headers(self) -> None:
        """Endless headers are cut off."""
        wire = self.connect()
        wire.send(b"POST / HTTP/1.1\r\n")
        for _ in range(1000):
            wire.send(b"X: " + b"x" * 1000 + b"\r\n")
        self.assertTrue(wire.ended)

    def test_garbage(self) -> None:
        """What is not HTTP after all is refused with 400."""
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
            self.assertTrue(wire.ended, garbage)


class ConnectionTests(WebTestCase):
    """
    How long a connection lasts.
    """

    def test_pipelined(self) -> None:
        """Requests one after another on a connection are answered in their order."""
        find = b'{"command":"find","id":"1-1.4"}'
        for way, segments in threeWays([post(LIST), post(find), get()]):
            wire = self.connect()
            wire.send(*segments)
            codes = [response.code for response in responses(wire.received)]
            self.assertEqual(codes, [200, 200, 200], way)
            self.assertFalse(wire.ended)

    def test_manyPipelined(self) -> None:
        """As many as a segment holds are."""
        for request in (get(), post(LIST)):
            many = 2**16 // len(request)
            wire = self.connect()
            wire.send(request * many)
            self.assertEqual(len(responses(wire.received)), many)

    def test_pipelinedBehindSlow(self) -> None:
        """That is so when the first takes its time."""
        for way, segments in threeWays([post(ATTACH), post(LIST)]):
            self.backend = PatientBackend()
            wire = self.connect()
            wire.send(*segments)
            self.assertEqual(wire.received, b"", way)
            self.backend.calls[0].succeed()
            wire.turn()
            bodies = [response.json["data"] for response in responses(wire.received)]
            self.assertEqual([type(body) for body in bodies], [dict, list], way)

    def test_connectionClose(self) -> None:
        """A client that asks for the close has it."""
        wire = self.connect()
        wire.send(post(LIST, b"Connection: close"))
        self.assertEqual(responses(wire.received)[0].code, 200)
        self.assertTrue(wire.lost)

    def test_halfClose(self) -> None:
        """A client may close its side and wait for the answer."""
        self.backend = PatientBackend()
        wire = self.connect()
        wire.send(post(ATTACH))
        wire.closeWrite()
        self.assertFalse(wire.ended)
        self.backend.calls[0].succeed()
        wire.turn()
        self.assertEqual(responses(wire.received)[0].code, 200)
        self.assertTrue(wire.lost)

    def test_halfCloseBehindPipelined(self) -> None:
        """All that was asked before is answered then."""
        self.backend = PatientBackend()
        wire = self.connect()
        wire.send(post(ATTACH) + post(LIST))
        wire.closeWrite()
        self.backend.calls[0].succeed()
        wire.turn()
        self.assertEqual([response.code for response in responses(wire.received)], [200, 200])
        self.assertTrue(wire.lost)

    def test_halfCloseIdle(self) -> None:
        """Where nothing was asked that is the end."""
        wire = self.connect()
        wire.closeWrite()
        self.assertTrue(wire.lost)

    def test_halfCloseIncomplete(self) -> None:
        """So it is where a request was begun and will never be whole."""
        request = post(LIST, b"Connection: close")
        for length in range(1, len(request)):
            wire = self.connect()
            wire.send(request[:length])
            wire.closeWrite()
            self.assertTrue(wire.lost, request[:length])
            self.assertEqual(wire.received, b"")

    def test_breaks(self) -> None:
        """A connection that breaks while an answer is under way leaves nothing behind."""
        self.backend = PatientBackend()
        wire = self.connect()
        wire.send(post(ATTACH))
        wire.drop()
        self.backend.calls[0].succeed()
        self.assertEqual(wire.received, b"")
        self.assertEqual(self.flushLoggedErrors(), [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_slowDrip(self) -> None:
        """A client whose bytes drip in is cut off, however busily they do."""
        request = post(LIST)
        for length in (1, 40, len(request) - 5):
            wire = self.connect()
            wire.send(request[:length])
            for byte in b"X" * 31:
                wire.send(bytes([byte])) if length < len(request) - 5 else None
                self.clock.advance(1)
            self.assertTrue(wire.ended, length)
            self.assertNotIn(b" 200 ", wire.received)

    def test_idleAfterAnswer(self) -> None:
        """After an answer the client has the whole time again, and no more."""
        wire = self.connect()
        self.clock.advance(20)
        wire.send(post(LIST))
        self.clock.advance(20)
        wire.send(post(LIST))
        self.assertEqual(len(responses(wire.received)), 2)
        self.clock.advance(31)
        self.assertTrue(wire.ended)

    def test_notWhileAnswering(self) -> None:
        """None of it passes while the server works."""
        self.timeouts = Timeouts(request=1, answer=1.8)
        self.backend = PatientBackend()
        wire = self.connect()
        wire.send(post(ATTACH))
        self.clock.advance(1.5)
        self.assertFalse(wire.ended)
        self.backend.calls[0].succeed()
        self.assertEqual(responses(wire.received)[0].code, 200)

    def test_closeIdle(self) -> None:
        """A daemon that stops closes a connection on which nothing is in progress."""
        wire = self.connect()
        wire.send(post(LIST))
        wire.protocol.close()
        self.assertTrue(wire.ended)

    def test_closeWhileAnswering(self) -> None:
        """One on which something is, when that is answered."""
        self.backend = PatientBackend()
        wire = self.connect()
        wire.send(post(ATTACH))
        wire.protocol.close()
        self.assertFalse(wire.ended)
        self.backend.calls[0].succeed()
        wire.turn()
        self.assertEqual(responses(wire.received)[0].code, 200)
        self.assertTrue(wire.lost)
