"""
Tests of L{usbip_server.protocols.lines}: invalid input.
"""

from __future__ import annotations

import random

from tests.protocols.linescase import FIND, LIST, TRICKY, LinesTestCase
from usbip_server.model.options import Limits
from usbip_server.protocols.requestreceiver import CONTINUATION


class BadInputTests(LinesTestCase):
    """
    Invalid input is answered with an error, and never logged with a traceback.
    """

    limits = Limits(requestBytes=16 * 1024)

    BAD = (
        b"}",
        b"}}}{",
        b"[]",
        b'["list"]',
        b"null",
        b"42",
        b'"list"',
        b"NaN",
        b"{}",
        b"{]",
        b'{"command":NaN}',
        b'{"command":"find","bus":NaN}',
        b'{"command":"find","bus":Infinity}',
        b'{"command":"find","bus":1e999}',
        b'{"command":"find","bus":1.5}',
        b'{"command":"find","bus":true}',
        b'{"command":"find","bus":["1-1"]}',
        b'{"command":"find","bus":' + b"9" * 5000 + b"}",
        b'{"command":"find","id":5}',
        b'{"command":"find","id":""}',
        b'{"command":"find","id":" "}',
        b'{"command":"find","id":"' + b"*" * 300 + b'"}',
        b'{"command":"find"}',
        b'{"command":"find","id":null}',
        b'{"command":"find","id":"1-1","colour":"red"}',
        b'{"command":"list","detail":1}',
        b'{"command":"list","keep_alive":"yes"}',
        b'{"command":"LIST"}',
        b'{"command":null}',
        b'{"command":["list"]}',
        b'{"command":{"command":"list"}}',
        b'{"Command":"list"}',
        b'{"command":"find","desc":"\xff"}',
        b'{"command":"find","desc":"\xc0\xaf"}',
        b'{"command":"find","desc":"\xed\xa0\x80"}',
        b'{"command":"\\ud800"}',
        b'{"comm\\ud800and":"list"}',
        b'{"command":"list"\x00}',
        b"\x00\x01\x02",
        b"\xff\xfe{\x00}\x00",
        b"'{}'",
        b'{"command":"list",}',
        b'{"command":"list"',
        b'{"command":"list"]',
        b"{" * 5000 + b"}" * 5000,
        b'{"a":' * 3000 + b"1" + b"}" * 3000,
        b'{"command":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b"[" * 10000,
    )

    def test_bad(self) -> None:
        """
        Invalid input is answered with an error and the connection is closed: at once; a while after
        a line feed, if an object may go on; or when the client has closed its side.
        """
        for bad in self.BAD:
            for end in (b"\n", b"\r\n", b""):
                wire = self.connect()
                wire.send(bad + end)
                if not wire.closed:  # an object that may go on
                    self.clock.advance(CONTINUATION)
                if not wire.closed:
                    wire.closeWrite()
                self.assertEqual(set(wire.statuses), {"error"}, bad[:60])
                self.assertTrue(wire.closed)
                self.assertEqual(set(wire.answers[0]), {"status", "message"})
                self.assertLess(len(wire.received), 4096)
                self.assertAllEnds(wire)

    def test_namesTheKey(self) -> None:
        """An error names the key that is wrong."""
        for request, key in (
            (b'{"command":"lsit"}', "command"),
            (b'{"id":"1-1"}', "command"),
            (b'{"command":"find","id":5}', "id"),
            (b'{"command":"find","bus":[]}', "bus"),
            (b'{"command":"find","colour":"red"}', "colour"),
            (b'{"command":"list","id":"1-1"}', "id"),
            (b'{"command":"find","serial":""}', "serial"),
            (b'{"command":"find"}', "desc"),
        ):
            wire = self.connect()
            wire.send(request)
            self.assertIn(f"`{key}`", wire.answers[0]["message"])

    def test_loneSurrogate(self) -> None:
        """Half a surrogate pair in a criterion matches nothing, and is no error."""
        wire = self.connect()
        wire.send(b'{"command":"find","desc":"\\ud800"}')
        self.assertIn(wire.statuses, (["error"], ["not_found"]))

    def test_randomBytes(self) -> None:
        """Random bytes are answered with errors or not at all, and the connection ends."""
        chance = random.Random(5055)
        alphabet = [*b'{}{}[]"\\:, \r\n', *b"commandlist", 0, 0x80, 0xFF, 0xED]
        for number in range(10_000):
            size = chance.randrange(1, 60)
            if number % 2:
                noise = chance.randbytes(size)
            else:
                noise = bytes(chance.choices(alphabet, k=size))
            wire = self.connect()
            for segment in (noise[: size // 2], noise[size // 2 :]):
                wire.send(segment)
            wire.closeWrite()
            self.assertLessEqual(set(wire.statuses), {"error"}, noise)
            self.assertTrue(wire.lost, noise)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_mutatedRequests(self) -> None:
        """Requests with some bytes changed get replies of the documented form only."""
        chance = random.Random(3240)
        for _ in range(3_000):
            request = bytearray(chance.choice([LIST, FIND, TRICKY]))
            for _ in range(chance.randrange(1, 4)):
                request[chance.randrange(len(request))] = chance.randrange(256)
            wire = self.connect()
            wire.send(bytes(request))
            wire.closeWrite()
            self.assertTrue(wire.lost)
            for answer in wire.answers:
                self.assertIn(answer["status"], ("success", "error", "not_found"))
        self.assertEqual(self.flushLoggedErrors(), [])
