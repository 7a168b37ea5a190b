"""
Connections of the control port.
"""

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
    """
    Whatever comes, and in whichever pieces, is answered by lines of the contract's shape, as
    far as it is answered; there is no bug in it, and nothing is left of it.
    """
    pieces = cut(data)
    answers, whole = heard(pieces), heard([b"".join(pieces)])
    # Who says more before the answer has it answered too: it may be less in pieces.
    assert whole.startswith(answers), (whole, answers)


def heard(pieces: list[bytes]) -> bytes:
    """
    What a client hears that says this and closes its side, and goes when no more comes.
    """
    with daemon() as memory:
        responder = Responder(memory.core.dispatcher)
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
