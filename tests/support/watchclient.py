"""
A client that watches, for tests that may block.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

SECONDS = 60.0
"""For what it waits for; a virtual machine without KVM is slow."""


class WatchClient:
    """
    Is told what happens for as long as a C{with} lasts.

    @ivar answer: what the request was answered.
    @ivar events: what it has been told since, as far as that was read; without heartbeats.
    """

    def __init__(self, port: int, **request: object) -> None:
        """
        @param request: what C{watch} is to say besides.
        """
        self.events: list[dict[str, Any]] = []
        self._port = port
        self._request = {"command": "watch", **request}

    def __enter__(self) -> WatchClient:
        self._socket = socket.create_connection(("127.0.0.1", self._port), SECONDS)
        self._lines = self._socket.makefile("rb")
        self._socket.sendall(json.dumps(self._request).encode() + b"\n")
        self.answer = self._next()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lines.close()
        self._socket.close()

    def told(self, kind: str, busId: str) -> dict[str, Any]:
        """
        Wait until it is told of something, from now on.

        @return: the event.
        @raise AssertionError: it is not, or the daemon has closed.
        """
        return self._until(
            lambda event: event["event"] == kind and event["data"]["bus_id"] == busId,
            f"{kind!r} of {busId}",
        )

    def upTo(self, seq: int) -> list[dict[str, Any]]:
        """
        Wait until it is told the event with a number, from now on.

        @return: all it has been told.
        """
        self._until(lambda event: event["seq"] == seq, f"number {seq}")
        return self.events

    def awaitHeartbeat(self) -> dict[str, Any]:
        """Wait for the next heartbeat."""
        while (event := self._next())["event"] != "heartbeat":
            self.events.append(event)
        return event

    def kinds(self, busId: str) -> list[str]:
        """What it was told of a device, less what can come at any time: C{changed}."""
        kinds = [event["event"] for event in self.events if event["data"]["bus_id"] == busId]
        return [kind for kind in kinds if kind != "changed"]

    def _until(self, isMeant: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        begin = len(self.events)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            event = self._next()
            if event["event"] != "heartbeat":
                self.events.append(event)
                if isMeant(event):
                    return event
        raise AssertionError(f"not told of {what}: {self.events[begin:]}")

    def _next(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line.endswith(b"\n"):
            raise AssertionError(f"the daemon has closed; it had told {self.events}")
        told: dict[str, Any] = json.loads(line)
        return told
