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
        "watchBytes": "watch_bytes",
    },
):
    """
    How much one client may ask for.

    @ivar requestBytes: the longest request, in bytes.
    @ivar connections: how many connections there may be at a time.
    @ivar watchBytes: how much of what a watcher is told may wait for it to read, in bytes.
    @ivar history: how many events are remembered for those who come back.
    @ivar hooks: how many hooks run at a time.
    """

    requestBytes: Annotated[int, msgspec.Meta(ge=1024, le=16 * 1024 * 1024)] = 64 * 1024
    connections: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1024
    watchBytes: Annotated[int, msgspec.Meta(ge=1024, le=1024 * 1024 * 1024)] = 256 * 1024
    history: Annotated[int, msgspec.Meta(ge=0, le=10_000_000)] = 10_000
    hooks: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 8


class Timeouts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    How long things may take, in seconds.

    @ivar request: until a whole request is there, from the connection or the last answer.
    @ivar answer: until the answer; old clients give up after two seconds.
    @ivar bind: until a bind or unbind is given up.
    @ivar heartbeat: between signs of life to those who wait or watch.
    @ivar stop: how long a daemon that is told to end waits for what is in progress.
    """

    request: Seconds = 30.0
    answer: Seconds = 1.8
    bind: Seconds = 30.0
    heartbeat: Seconds = 15.0
    stop: Seconds = 5.0
