"""
Makes requests as fast as a server takes them: C{python -m benchmarks.load}, a process
of its own with as little Python between the system calls as can be.
"""

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
"""Let the kernel count bytes and drop them (tcp(7)): to copy gigabytes would take longer than
making them, and we would measure that."""

PATIENCE = 30.0
"""Seconds without an answer after which there is no use in going on."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """
    What is to be done.

    @ivar port: where, on 127.0.0.1.
    @ivar pid: the server, whose CPU time is wanted.
    @ivar requests: what to ask, one after the other and again from the first; where each
        has a connection of its own, the first only.
    @ivar answerBytes: how long each answer has to be; C{None} if they differ.
    @ivar connections: how many at a time.
    @ivar inFlight: on each connection; 0 for a connection per request.
    @ivar seconds: for how long.
    @ivar core: which one to run on, if not on any.
    @ivar warmUp: seconds before that which do not count.
    """

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
    """
    How it went.

    @ivar rate: answers in a second.
    @ivar serverShare: of a core, that the server used.
    @ivar loadShare: of a core, that we used: where this is not below the server's, we have
        measured ourselves.
    """

    rate: float
    serverShare: float
    loadShare: float

    @property
    def ratePerCore(self) -> float:
        """Answers for each second of CPU time of the server."""
        return self.rate / self.serverShare


class Meter:
    """
    Counts answers from the end of the warming up to the end.
    """

    def __init__(self, load: Load) -> None:
        self._load = load
        self._from = time.monotonic() + load.warmUp
        self._until = self._from + load.seconds
        self._counting = False
        self._answers = 0

    def more(self, answers: int) -> bool:
        """
        Count some.

        @return: is it to go on?
        """
        now = time.monotonic()
        if self._counting:
            self._answers += answers
        elif now >= self._from:
            self._counting = True
            self._from, self._server, self._own = now, cpuSeconds(self._load.pid), _ownCpu()
        self._until = max(self._until, self._from + self._load.seconds)
        return now < self._until

    def outcome(self) -> Outcome:
        """What has been counted."""
        seconds = time.monotonic() - self._from
        return Outcome(
            rate=self._answers / seconds,
            serverShare=(cpuSeconds(self._load.pid) - self._server) / seconds,
            loadShare=(_ownCpu() - self._own) / seconds,
        )


def _ownCpu() -> float:
    return time.process_time()


def connectionPerRequest(load: Load, meter: Meter) -> None:
    """
    Connect, ask, read to the end, again and again.

    The oldest connection is the one to wait for: a server answers in the order it is
    asked, or has to wait for us to look. That saves the calls to learn which one is done.
    """
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
    """
    Keep connections, with requests in flight on each.
    """
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
    """
    Receive answers of any length.

    @return: how many have come to their end.
    """
    data = client.recv(AT_ONCE)
    if not data:
        raise RuntimeError("the server closed a connection that was to be kept")
    return data.count(b"\n")


def _countBytes(answerBytes: int) -> Callable[[socket.socket], int]:
    """
    The same for answers all of one length: the kernel need not even copy them to us.
    """
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
    """
    Connect and ask, without the detour that C{socket.create_connection} makes through
    C{getaddrinfo}.
    """
    client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    # Else a request may wait for the server to acknowledge the last one (Nagle's algorithm),
    # and the server, with nothing to answer, is in no hurry.
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.connect(("127.0.0.1", port))
    client.send(request)
    return client


def _inTurn(requests: tuple[str, ...]) -> Callable[[int], bytes]:
    """
    A function that returns the bytes of the next so many requests.
    """
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
        raise RuntimeError(f"an answer is not what it should be: {got}, not {wanted}")


def put(load: Load) -> Outcome:
    """
    Put a load on a server, from another process.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load"],
        input=msgspec.json.encode(load),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )
    return msgspec.json.decode(done.stdout, type=Outcome)


def main() -> None:
    """
    Do what standard input says.
    """
    load = msgspec.json.decode(sys.stdin.buffer.read(), type=Load)
    if load.core is not None:
        takeCore(0, load.core)
    meter = Meter(load)
    (pipelined if load.inFlight else connectionPerRequest)(load, meter)
    sys.stdout.buffer.write(msgspec.json.encode(meter.outcome()))


if __name__ == "__main__":
    main()
