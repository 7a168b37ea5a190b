"""
Server-sent events (text/event-stream: WHATWG HTML, 9.2)::

    client <- server   retry: 2000
    client <- server   id: 41 / event: snapshot / data: {"status":"success","data":[...]}
    client <- server   id: 42 / event: bound / data: {"event":"bound","seq":42,...}
    client <- server   : heartbeat
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from usbip_server.model.errors import InvalidRequest
from usbip_server.model.requests import WatchDevices, shown, watching
from usbip_server.runtime.eventlog import Told

RECONNECT = b"retry: 2000\n\n"
"""The milliseconds after which a browser reconnects."""

LONGEST_NUMBER = 18
"""The most digits of an event number; a longer one is not from this server."""


def asked(
    query: Mapping[bytes, Sequence[bytes]],
    lastSeen: bytes | None,
    kind: type[WatchDevices] = WatchDevices,
) -> WatchDevices:
    """
    Make a watch command of a query string.

    @param query: the parsed query string.
    @param lastSeen: C{Last-Event-ID}, which a browser sends when it reconnects.
    @param kind: the class of the command.
    @raise InvalidRequest: a key or a value is invalid.
    """
    if b"token" in query:
        raise InvalidRequest(
            "invalid request: `token`: URLs are written to logs, so send it in a header, "
            "Authorization: Bearer"
        )
    fields = {}
    for key, values in query.items():
        if len(values) > 1:
            raise InvalidRequest(f"invalid request: `{shown(_text(key))}` is given twice")
        fields[_text(key)] = _text(values[0])
    if lastSeen is not None and lastSeen.isdigit() and len(lastSeen) <= LONGEST_NUMBER:
        fields["since"] = _text(lastSeen)
    return watching(fields, kind)


def snapshot(answer: bytes, seq: int) -> bytes:
    """The reply to a watch command, as the first event."""
    return _framed(b"snapshot", seq, answer)


def frame(event: Told, line: bytes) -> bytes:
    """An event."""
    return _framed(event.word.encode(), event.seq, line)


def beat() -> bytes:
    """A comment as a heartbeat, which browsers do not report as an event."""
    return b": heartbeat\n\n"


def _framed(kind: bytes, seq: int, line: bytes) -> bytes:
    return b"id: %d\nevent: %s\ndata: %s\n" % (seq, kind, line)


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise InvalidRequest("invalid request: it is not UTF-8") from None
