"""
An HTTP connection in memory, for its tests.
"""

from __future__ import annotations

import json
from typing import Any

from tests.protocols.linescase import ConnectionTestCase
from tests.support.fixtures import ALICE, Wire, threeWays

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


def get(
    method: bytes = b"GET", path: bytes = b"/", version: bytes = b"1.1", *headers: bytes
) -> bytes:
    """A request without a body."""
    lines = [b"%s %s HTTP/%s" % (method, path, version), b"Host: localhost", *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


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


class WebTestCase(ConnectionTestCase):
    """
    HTTP connections.
    """

    def connect(self) -> Wire:
        """A new connection, to a daemon of its own."""
        self.begin()
        return self.another()

    def another(self) -> Wire:
        """One more connection, to the same daemon."""
        return Wire(self.web.makeChannel(ALICE))

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
