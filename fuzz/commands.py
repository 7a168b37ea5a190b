"""The decoder of JSON requests."""

from __future__ import annotations

import json
import re

import msgspec

from tests.docs.documents import documents
from tests.support.fixtures import DEVICES
from usbip_server.model.criteria import CRITERIA, describe, given
from usbip_server.model.errors import InvalidRequest
from usbip_server.model.requests import COMMANDS, DeviceRequest, Request, WatchDevices, decode
from usbip_server.protocols.interfaces import refusal

LONGEST_MESSAGE = 1000


def documented() -> tuple[bytes, ...]:
    """The requests in the documents."""
    texts = [block.text for document in documents() for block in document.blocks]
    spans = [span for document in documents() for span in document.spans()]
    found = re.findall(r'\{"command":.*?\}(?!\})', "\n".join([*texts, *spans]))
    return tuple(sorted({text.encode() for text in found}))


SEEDS = (
    *documented(),
    rb'{"command":"find","desc":"}{\"\\","keep_alive":true}',
    b'{"command":"find","bus":NaN}',
    b'{"command":"find","desc":"\\ud800"}',
    b'{"command":"attach","id":"uno","lease":{"owner":"a","ttl":1e400}}',
    '{"command":"find","desc":"Tästatur"}'.encode(),
)

WORDS = (
    *(f'"{name}"'.encode() for name in (*COMMANDS, *CRITERIA)),
    *(b'"command":', b'"lease":{"owner":"', b'"ttl":', b'"wait":', b'"force":', b'"since":'),
    *(b'"first":', b'"detail":', b'"keep_alive":', b'"token":', b'"connection"', b'"owner":'),
    *(b"true", b"false", b"null", b"NaN", b"1e400", b"\\ud800", b"\\u0000", b'"},{"', b'":"'),
)


def check(data: bytes) -> None:
    """An input is a command that can be encoded, or is refused with a readable message."""
    try:
        command = decode(data)
    except InvalidRequest as error:
        checkRefusal(error)
    else:
        checkCommand(command)


def checkCommand(command: Request) -> None:
    """Assert that a command is the same after encoding and decoding."""
    encoded = msgspec.json.encode(command)
    assert decode(encoded) == command
    assert type(command).__struct_config__.tag == json.loads(encoded)["command"]
    if isinstance(command, DeviceRequest | WatchDevices):
        command.selector.among(DEVICES)
        assert describe(given(command)).isprintable()


def checkRefusal(error: InvalidRequest) -> None:
    """Assert that the message of an error is one readable line."""
    message = str(error)
    assert message.isprintable()
    assert len(message) < LONGEST_MESSAGE
    assert json.loads(refusal(message).encoded) == {"status": "error", "message": message}
