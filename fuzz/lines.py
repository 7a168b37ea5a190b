"""Connections of the port for requests."""

from __future__ import annotations

import json

from fuzz import framing
from fuzz.cutting import cut
from fuzz.memory import daemon
from tests.support.fixtures import ALICE, Wire
from usbip_server.model.replies import Status
from usbip_server.protocols.lines import CommandFactory
from usbip_server.server.responder import Responder

SEEDS = framing.SEEDS

WORDS = framing.WORDS

STATUSES = {status.value for status in Status}


def check(data: bytes) -> None:
    """The answers to an input, in any segmentation, are lines as the contract describes them; no
    bug is logged, and nothing remains afterwards."""
    pieces = cut(data)
    answers, whole = answersTo(pieces), answersTo([b"".join(pieces)])
    # What a client sends before an answer is answered, too: in segments that may be less.
    assert whole.startswith(answers), (whole, answers)


def answersTo(pieces: list[bytes]) -> bytes:
    """The answers to a client that sends segments, closes its side, and then the connection."""
    with daemon() as memory:
        responder = Responder(memory.core.dispatcher, memory.core.requests)
        lines = CommandFactory(responder, memory.settings, memory.reactor).make(ALICE)
        wire = Wire(lines)
        wire.send(*pieces)
        wire.closeWrite()
        if not wire.lost:
            wire.drop()
        for line in wire.received.splitlines(keepends=True):
            assert line.endswith(b"\n")
            answer = json.loads(line)
            assert "event" in answer or answer["status"] in STATUSES
        return wire.received
