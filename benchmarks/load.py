"""Sends requests as fast as a server answers them: C{python -m benchmarks.load}, a process of its
own with as little Python between the system calls as possible."""

from __future__ import annotations

import select
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable

import msgspec

from benchmarks.children import ROOT
from benchmarks.procfs import cpuSeconds, takeCore

AT_ONCE = 2**20
"""Bytes to receive."""

_UNSEEN = socket.MSG_TRUNC
"""Has the kernel count bytes and drop them (tcp(7)): copying gigabytes would take longer than what
is to be measured."""

PATIENCE = 30.0
"""Seconds without an answer after which the measurement fails."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """A load for a server.

    @ivar port: of the server, on 127.0.0.1.
    @ivar pid: the process of the server, whose CPU time is measured.
    @ivar requests: sent one after the other, and again from the first; with a connection per
        request only the first.
    @ivar answerBytes: the required length of each answer; C{None} if they differ.
    @ivar connections: how many at a time.
    @ivar inFlight: requests on each connection; 0 for a connection per request.
    @ivar seconds: the duration.
    @ivar core: the processor core to run on; C{None} for any.
    @ivar warmUp: seconds before the measurement."""

    port: int
    pid: int
    requests: tuple[str, ...]
    answerBytes: int | None
    connections: int
    inFlight: int
    seconds: float
    core: int | None = None
    warmUp: float = 0.2


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured.

    @ivar rate: answers per second.
    @ivar serverShare: the share of a core that the server used.
    @ivar loadShare: the share of a core that this process used. Where that is not less than the
        server's, the rate is limited by this process."""

    rate: float
    serverShare: float
    loadShare: float

    @property
    def ratePerCore(self) -> float:
        """Answers per second of the server's CPU time."""
        return self.rate / self.serverShare


class Meter:
    """Counts answers after the warm-up."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._from = time.monotonic() + load.warmUp
        self._until = self._from + load.seconds
        self._counting = False
        self._answers = 0

    def more(self, answers: int) -> bool:
        """Count answers.

        @return: whether the measurement goes on."""
        now = time.monotonic()
        if self._counting:
            self._answers += answers
        elif now >= self._from:
            self._counting = True
            self._from, self._server, self._own = now, cpuSeconds(self._load.pid), _ownCpu()
        self._until = max(self._until, self._from + self._load.seconds)
        return now < self._until

    def outcome(self) -> Outcome:
        """The figures so far."""
        seconds = time.monotonic() - self._from
        return Outcome(
            rate=self._answers / seconds,
            serverShare=(cpuSeconds(self._load.pid) - self._server) / seconds,
            loadShare=(_ownCpu() - self._own) / seconds,
        )


def _ownCpu() -> float:
    return time.process_time()


def connectionPerRequest(load: Load, meter: Meter) -> None:
    """Connect, send a request, and read to the end, again and again.

    The oldest connection is waited for, as a server answers in the order of the requests. That
    saves the system calls that tell which connection has ended."""
    request = load.requests[0].encode() + b"\n"
    room = bytearray(AT_ONCE)
    clients: deque[socket.socket] = deque()
    for _ in range(load.connections):
        clients.append(_connect(load.port, request))
    while meter.more(1):
        client = clients.popleft()
        _check(client.recv_into(room, AT_ONCE, _UNSEEN | socket.MSG_WAITALL), load.answerBytes)
        client.close()
        clients.append(_connect(load.port, request))


def pipelined(load: Load, meter: Meter) -> None:
    """Keep connections open, with several requests in flight on each."""
    requests = _inTurn(load.requests)
    receive = _countLines if load.answerBytes is None else _countBytes(load.answerBytes)
    clients: dict[int, socket.socket] = {}
    poll = select.epoll()
    for _ in range(load.connections):
        client = _connect(load.port, requests(load.inFlight))
        clients[client.fileno()] = client
        poll.register(client.fileno(), select.EPOLLIN)
    answers = 0
    while meter.more(answers):
        answers = 0
        for descriptor, _ in _poll(poll):
            client = clients[descriptor]
            if count := receive(client):
                client.send(requests(count))
                answers += count


def _countLines(client: socket.socket) -> int:
    """Receive answers of any length.

    @return: how many are complete."""
    data = client.recv(AT_ONCE)
    if not data:
        raise RuntimeError("the server closed a connection that was to be kept")
    return data.count(b"\n")


def _countBytes(answerBytes: int) -> Callable[[socket.socket], int]:
    """The same for answers of one length: the kernel does not copy them."""
    room = bytearray(AT_ONCE)
    received: dict[socket.socket, int] = {}

    def count(client: socket.socket) -> int:
        got = client.recv_into(room, AT_ONCE, _UNSEEN)
        if not got:
            raise RuntimeError("the server closed a connection that was to be kept")
        answers, received[client] = divmod(received.get(client, 0) + got, answerBytes)
        return answers

    return count


def _connect(port: int, request: bytes) -> socket.socket:
    """Connect and send a request, without C{getaddrinfo}, which C{socket.create_connection}
    calls."""
    client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    # Without this a request may wait until the server has acknowledged the last one (Nagle's
    # algorithm), which the server delays.
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.connect(("127.0.0.1", port))
    client.send(request)
    return client


def _inTurn(requests: tuple[str, ...]) -> Callable[[int], bytes]:
    """A function that returns the bytes of the next requests, of which it is given the number."""
    lines = [request.encode() + b"\n" for request in requests]
    at = 0

    def following(count: int) -> bytes:
        nonlocal at
        first, at = at, (at + count) % len(lines)
        some = lines[first : first + count]
        while len(some) < count:
            some += lines[: count - len(some)]
        return b"".join(some)

    return following


def _poll(poll: select.epoll) -> list[tuple[int, int]]:
    events = poll.poll(PATIENCE)
    if not events:
        raise RuntimeError(f"no answer for {PATIENCE:g} s")
    return events


def _check(got: int, wanted: int | None) -> None:
    if wanted is not None and got != wanted:
        raise RuntimeError(f"an answer has {got} bytes instead of {wanted}")


def put(load: Load) -> Outcome:
    """Put a load on a server, from another process."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load"],
        input=msgspec.json.encode(load),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )
    return msgspec.json.decode(done.stdout, type=Outcome)


def main() -> None:
    """Carry out the load that standard input describes; print the outcome as JSON."""
    load = msgspec.json.decode(sys.stdin.buffer.read(), type=Load)
    if load.core is not None:
        takeCore(0, load.core)
    meter = Meter(load)
    (pipelined if load.inFlight else connectionPerRequest)(load, meter)
    sys.stdout.buffer.write(msgspec.json.encode(meter.outcome()))


if __name__ == "__main__":
    main()
