"""
Events for web pages and C{curl -N}: server-sent events (WHATWG HTML, 9.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from usbip_server.model.errors import InvalidRequest
from usbip_server.model.requests import WatchDevices, shown, watching
from usbip_server.runtime.eventlog import Told

RECONNECT = b"retry: 2000\n\n"
"""Milliseconds after which a browser comes back."""

LONGEST_NUMBER = 18
"""Digits of an event's number; what has more is none of ours."""


def asked(
    query: Mapping[bytes, Sequence[bytes]],
    lastSeen: bytes | None,
    kind: type[WatchDevices] = WatchDevices,
) -> WatchDevices:
    """
    What is to be watched.

    @param query: the query string, taken apart.
    @param lastSeen: C{Last-Event-ID}, which a browser sends when it comes back.
    @param kind: of command.
    @raise InvalidRequest: it makes no sense.
    """
    if b"token" in query:
        raise InvalidRequest(
            "invalid request: `token`: addresses end up in logs, so send it as a header, "
            "Authorization: Bearer"
        )
    fields = {}
    for key, values in query.items():
        if len(values) > 1:
            raise InvalidRequest(f"invalid request: `{shown(_text(key))}` stands there twice")
        fields[_text(key)] = _text(values[0])
    if lastSeen is not None and lastSeen.isdigit() and len(lastSeen) <= LONGEST_NUMBER:
        fields["since"] = _text(lastSeen)
    return watching(fields, kind)


def snapshot(answer: bytes, seq: int) -> bytes:
    """The answer to a watch, as the first event."""
    return _framed(b"snapshot", seq, answer)


def frame(event: Told, line: bytes) -> bytes:
    """An event."""
    return _framed(event.word.encode(), event.seq, line)


def beat() -> bytes:
    """A comment: a sign of life that is no event."""
    return b": heartbeat\n\n"


def _framed(kind: bytes, seq: int, line: bytes) -> bytes:
    return b"id: %d\nevent: %s\ndata: %s\n" % (seq, kind, line)


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise InvalidRequest("invalid request: it is not UTF-8") from None
