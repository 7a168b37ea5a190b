"""The decoder of query strings of C{GET /events}."""

from __future__ import annotations

from twisted.web.http import parse_qs

from fuzz.commands import checkCommand, checkRefusal
from usbip_server.model.errors import InvalidRequest
from usbip_server.protocols.sse import asked

SEEDS = (
    b"",
    b"serial=DISK1",
    b"id=1-1.4&detail=true",
    b"bus=1&desc=arduino*&since=12&keep_alive=1",
    b"since=-1",
    b"desc=%ff%00%ed%a0%80",
)

WORDS = (b"id=", b"bus=", b"serial=", b"desc=", b"since=", b"detail=", b"token=", b"true", b"%ff")


def check(data: bytes) -> None:
    """The same as for requests in JSON. The first line is the query string, the rest the header
    C{Last-Event-ID}."""
    query, _, lastSeen = data.partition(b"\n")
    try:
        command = asked(parse_qs(query, 1), lastSeen or None)
    except InvalidRequest as error:
        checkRefusal(error)
    else:
        checkCommand(command)
