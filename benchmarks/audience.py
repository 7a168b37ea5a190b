"""
Many who listen, and one who has something happen: C{python -m benchmarks.audience}, a
process of its own with as little Python between the system calls as can be.
"""

from __future__ import annotations

import select
import socket
import struct
import subprocess
import sys
import time

import msgspec

from benchmarks.children import ROOT
from benchmarks.procfs import cpuSeconds, memory

PATIENCE = 30.0
"""Seconds without a byte after which there is no use in going on."""

_RESET = struct.pack("ii", 1, 0)

HEARTBEAT = b'{"event":"heartbeat"'


class Show(msgspec.Struct, frozen=True, kw_only=True):
    """
    What is to be done.

    @ivar port: where, on 127.0.0.1.
    @ivar pid: the server.
    @ivar listen: what a listener says, to be answered by a line and then told of events.
    @ivar causes: what causes an event and is answered by a line, in turn.
    @ivar listeners: how many.
    @ivar events: how many.
    @ivar inFlight: how many events may be under way. With one, the next is caused when all
        have heard of the last.
    @ivar weighAt: after so many events the server's memory is looked at.
    """

    port: int
    pid: int
    listen: str
    causes: tuple[str, ...]
    listeners: int
    events: int
    inFlight: int = 1
    weighAt: tuple[int, ...] = ()


class Review(msgspec.Struct, frozen=True, kw_only=True):
    """
    How it went.

    @ivar delays: for each event, where one is under way at a time: seconds from the request
        that causes it until the last listener has it.
    @ivar rate: events in a second.
    @ivar serverCpu: seconds of CPU time that an event takes the server.
    @ivar weights: the server's memory, in KiB, as often as it was looked at.
    """

    delays: tuple[float, ...]
    rate: float
    serverCpu: float
    weights: tuple[int, ...]


class Audience:
    """
    The listeners, and the one who asks.
    """

    def __init__(self, show: Show) -> None:
        self._show = show
        self._poll = select.epoll()
        self._listeners: dict[int, socket.socket] = {}
        self._heard: dict[int, int] = {}
        for _ in range(show.listeners):
            listener = _connect(show.port)
            listener.sendall(show.listen.encode() + b"\n")
            _readLine(listener)
            self._listeners[listener.fileno()] = listener
            self._heard[listener.fileno()] = 0
            self._poll.register(listener.fileno(), select.EPOLLIN)
        self._asking = _connect(show.port)

    def run(self) -> Review:
        """Have it all happen."""
        show = self._show
        delays, weights = [], []
        cpu, began = cpuSeconds(show.pid), time.monotonic()
        for number in range(0, show.events, show.inFlight):
            some = range(number, number + show.inFlight)
            request = "".join(show.causes[i % len(show.causes)] + "\n" for i in some).encode()
            asked = time.monotonic()
            self._asking.sendall(request)
            self._listen(number + show.inFlight)
            delays.append(time.monotonic() - asked)
            for _ in some:
                _readLine(self._asking)
            if number + show.inFlight in show.weighAt:
                weights.append(memory(show.pid))
        seconds = time.monotonic() - began
        for listener in self._listeners.values():
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            listener.close()  # so that the server knows at once, and the next round is alone
        return Review(
            delays=tuple(delays) if show.inFlight == 1 else (),
            rate=show.events / seconds,
            serverCpu=(cpuSeconds(show.pid) - cpu) / show.events,
            weights=tuple(weights),
        )

    def _listen(self, upTo: int) -> None:
        """
        Until all have heard so many events.
        """
        waiting = len(self._listeners)
        while waiting:
            ready = self._poll.poll(PATIENCE)
            if not ready:
                raise RuntimeError(f"{waiting} hear nothing any more")
            for descriptor, _ in ready:
                data = self._listeners[descriptor].recv(2**16)
                if not data:
                    raise RuntimeError("a listener was sent away")
                lines = data.count(b"\n") - data.count(HEARTBEAT)
                heard = self._heard[descriptor] = self._heard[descriptor] + lines
                waiting -= heard == upTo and lines > 0
                if heard > upTo:
                    raise RuntimeError("there are more events than were caused")


def _connect(port: int) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), PATIENCE)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def _readLine(client: socket.socket) -> None:
    """
    Read a line. What is read is read bit by bit, so that nothing is behind it.
    """
    while True:
        data = client.recv(2**16, socket.MSG_PEEK)
        if not data:
            raise RuntimeError("the server has closed")
        end = data.find(b"\n") + 1
        client.recv(end or len(data))
        if end:
            return


def put(show: Show) -> Review:
    """
    Have it happen, from another process.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.audience"],
        input=msgspec.json.encode(show),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )
    return msgspec.json.decode(done.stdout, type=Review)


def main() -> None:
    """
    Do what standard input says.
    """
    show = msgspec.json.decode(sys.stdin.buffer.read(), type=Show)
    sys.stdout.buffer.write(msgspec.json.encode(Audience(show).run()))


if __name__ == "__main__":
    main()
