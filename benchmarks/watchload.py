"""Clients that watch, and one that causes events: C{python -m benchmarks.watchload}, a process of
its own with as little Python between the system calls as possible."""

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
"""Seconds without a byte after which the measurement fails."""

_RESET = struct.pack("ii", 1, 0)

HEARTBEAT = b'{"event":"heartbeat"'


class WatchLoad(msgspec.Struct, frozen=True, kw_only=True):
    """A load for a server.

    @ivar port: of the server, on 127.0.0.1.
    @ivar pid: the process of the server.
    @ivar listen: the request of a watcher, which is answered by a line and then by events.
    @ivar causes: requests that each cause an event and are answered by a line, sent in turn.
    @ivar watchers: the number of watchers.
    @ivar events: the number of events.
    @ivar inFlight: how many events may be under way. With one, the next is caused when all
        watchers have received the last.
    @ivar weighAt: the server's memory is measured after these numbers of events."""

    port: int
    pid: int
    listen: str
    causes: tuple[str, ...]
    watchers: int
    events: int
    inFlight: int = 1
    weighAt: tuple[int, ...] = ()


class WatchOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured.

    @ivar delays: for each event, where one is under way at a time: seconds from the request
        that causes it until the last watcher has received it.
    @ivar rate: events per second.
    @ivar serverCpu: seconds of the server's CPU time per event.
    @ivar weights: the server's memory, in KiB, each time it was measured."""

    delays: tuple[float, ...]
    rate: float
    serverCpu: float
    weights: tuple[int, ...]


class Watchers:
    """The watchers, and the client that causes events."""

    def __init__(self, load: WatchLoad) -> None:
        self._load = load
        self._poll = select.epoll()
        self._watchers: dict[int, socket.socket] = {}
        self._received: dict[int, int] = {}
        for _ in range(load.watchers):
            watcher = _connect(load.port)
            watcher.sendall(load.listen.encode() + b"\n")
            _readLine(watcher)
            self._watchers[watcher.fileno()] = watcher
            self._received[watcher.fileno()] = 0
            self._poll.register(watcher.fileno(), select.EPOLLIN)
        self._client = _connect(load.port)

    def run(self) -> WatchOutcome:
        """Cause all events, and measure."""
        load = self._load
        delays, weights = [], []
        cpu, began = cpuSeconds(load.pid), time.monotonic()
        for number in range(0, load.events, load.inFlight):
            some = range(number, number + load.inFlight)
            request = "".join(load.causes[i % len(load.causes)] + "\n" for i in some).encode()
            sent = time.monotonic()
            self._client.sendall(request)
            self._receive(number + load.inFlight)
            delays.append(time.monotonic() - sent)
            for _ in some:
                _readLine(self._client)
            if number + load.inFlight in load.weighAt:
                weights.append(memory(load.pid))
        seconds = time.monotonic() - began
        for watcher in self._watchers.values():
            watcher.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            watcher.close()  # the server notices at once: the next round is not disturbed
        return WatchOutcome(
            delays=tuple(delays) if load.inFlight == 1 else (),
            rate=load.events / seconds,
            serverCpu=(cpuSeconds(load.pid) - cpu) / load.events,
            weights=tuple(weights),
        )

    def _receive(self, upTo: int) -> None:
        """Wait until each watcher has received a number of events."""
        waiting = len(self._watchers)
        while waiting:
            ready = self._poll.poll(PATIENCE)
            if not ready:
                raise RuntimeError(f"{waiting} watchers receive nothing any more")
            for descriptor, _ in ready:
                data = self._watchers[descriptor].recv(2**16)
                if not data:
                    raise RuntimeError("the server closed the connection of a watcher")
                lines = data.count(b"\n") - data.count(HEARTBEAT)
                received = self._received[descriptor] = self._received[descriptor] + lines
                waiting -= received == upTo and lines > 0
                if received > upTo:
                    raise RuntimeError("more events were received than caused")


def _connect(port: int) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), PATIENCE)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def _readLine(client: socket.socket) -> None:
    """Read a line, and nothing behind it."""
    while True:
        data = client.recv(2**16, socket.MSG_PEEK)
        if not data:
            raise RuntimeError("the server has closed")
        end = data.find(b"\n") + 1
        client.recv(end or len(data))
        if end:
            return


def put(load: WatchLoad) -> WatchOutcome:
    """Put a load on a server, from another process."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.watchload"],
        input=msgspec.json.encode(load),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )
    return msgspec.json.decode(done.stdout, type=WatchOutcome)


def main() -> None:
    """Carry out the load that standard input describes; print the outcome as JSON."""
    load = msgspec.json.decode(sys.stdin.buffer.read(), type=WatchLoad)
    sys.stdout.buffer.write(msgspec.json.encode(Watchers(load).run()))


if __name__ == "__main__":
    main()
