"""
What servers say, line by line, as docs/protocol.md has it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from usbip_server.errors import ASK_AGAIN, ShareError
from usbip_server.replies import Status

Notice = dict[str, Any]
"""A line that answers nothing, but says how it goes, or what has happened."""

LONGEST_LINE = 16 * 1024 * 1024
"""Bytes: a list of all devices of a large room, with everything known of each."""

NO_ANSWER = "it closes without an answer"

MAYBE_TLS = ": if it speaks TLS only, give it `tls` in client.yaml"
"""What there is to add to that if it has not said anything."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """
    What a server answers.

    @ivar status: how it went.
    @ivar data: the device, or the devices, with the contract's keys.
    @ivar message: for people.
    @ivar seq: of a watch.
    """

    status: Status
    data: Any = None
    message: str = ""
    seq: int | None = None

    @property
    def isPending(self) -> bool:
        """Does it only say that it takes longer, and that it can be asked again?"""
        return self.status is Status.FAILURE and self.message.endswith(ASK_AGAIN)


class Refused(ShareError):
    """
    A server has answered, but not that it is done.

    @ivar status: what it has answered.
    """

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status


def understood(line: bytes) -> Answer | Notice:
    """
    What a line says.

    @raise ValueError: nothing that a server of ours would say; the text says so.
    """
    try:
        value = msgspec.json.decode(line)
        if isinstance(value, dict) and "event" in value:
            return value
        return msgspec.convert(value, Answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("what answers there is no usbipshare") from None
