"""The decoder of a server's JSON replies and events, and what commands print of them."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence

from tests.docs.documents import documents
from usbip_server.client.cli.eventprinter import eventLine
from usbip_server.client.cli.output import fieldsOf
from usbip_server.client.cli.tables import devicesTable, deviceTable
from usbip_server.client.cli.text import plain
from usbip_server.client.devices import RemoteDevice, deviceIn, foundIn, remoteIn
from usbip_server.client.servers import Server
from usbip_server.model.errors import Unreachable
from usbip_server.model.replies import ReceivedReply, decodeReply, encodeDevices

SERVER = Server(name="raspi", host="raspi")


def documented() -> tuple[bytes, ...]:
    """The replies and events in the documents."""
    blocks = [block.text for document in documents() for block in document.blocks]
    lines = [line.lstrip("< ") for block in blocks for line in block.splitlines()]
    return tuple(
        sorted({line.encode() for line in lines if line.startswith(('{"status":', '{"event":'))})
    )


SEEDS = documented()

WORDS = (
    *(b'"data":[', b'"bus_id":"', b'"vendor_id":"', b'"device_name":"/dev/bus/usb/', b'"holder":{'),
    *(b'"since":"', b'"until":"', b'"lease":{"owner":"', b'"ttl":"connection"', b'"state":"'),
    *(b"9999-12-31T23:59:59-12:00", b"0001-01-01T00:00:00+12:00", b"1e400", b"\\ud800", b"null"),
    *(b"\\u001b[31m", b"\\u009b", b"\\u202e", b"\\u00a0", b"\\\\x1b", b"[[[", b"-1"),
)


def check(data: bytes) -> None:
    """An input is refused in one line, or nothing of it that is printed controls a terminal, and
    its devices stay the same when a gateway passes them on."""
    try:
        received = decodeReply(data)
        if isinstance(received, ReceivedReply):
            assert plain(received.message).isprintable()
            listed = received.data
        else:
            assert plain(eventLine(SERVER, received)).isprintable()
            listed = received.get("data")
        found = foundIn(SERVER, listed) if isinstance(listed, list) else [remoteIn(SERVER, listed)]
    except (ValueError, Unreachable) as error:
        assert str(error).isprintable()
    else:
        checkDevices(found)


def checkDevices(found: Sequence[RemoteDevice]) -> None:
    """Assert that devices can be printed and passed on."""
    for table in (devicesTable(found), *map(deviceTable, found)):
        assert "".join(table.lines(io.StringIO())).isprintable()
    for each in found:
        json.dumps(fieldsOf(each))
        encoded = bytes(encodeDevices(each.device, True))
        assert bytes(encodeDevices(deviceIn(SERVER, json.loads(encoded)), True)) == encoded
