"""
How much and how long: what the configuration's C{limits} and C{timeouts} say.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86400)]


class Limits(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    rename={
        "requestBytes": "request_bytes",
    },
):
    """
    How much one client may ask for.

    @ivar requestBytes: the longest request, in bytes.
    @ivar connections: how many connections there may be at a time.
    """

    requestBytes: Annotated[int, msgspec.Meta(ge=1024, le=16 * 1024 * 1024)] = 64 * 1024
    connections: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1024


class Timeouts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    How long things may take, in seconds.

    @ivar request: until a whole request is there, from the connection or the last answer.
    @ivar answer: until the answer; old clients give up after two seconds.
    @ivar bind: until a bind or unbind is given up.
    @ivar stop: how long a daemon that is told to end waits for what is in progress.
    """

    request: Seconds = 30.0
    answer: Seconds = 1.8
    bind: Seconds = 30.0
    stop: Seconds = 5.0
