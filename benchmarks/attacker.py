"""Clients that do harm: C{python -m benchmarks.attacker}, a process of its own that runs until it
is terminated. It opens connections from an address of its own, and another one for each that the
server closes."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import sys
import time
from collections.abc import Iterator

import msgspec

from benchmarks.procfs import takeCore

SEGMENT = 2**16
"""Bytes to send at a time."""

PAUSE = 0.005
"""Seconds without an attempt after one in which no connection could be made."""

LIST = b'{"command":"list","keep_alive":true}\n'


class Attack(msgspec.Struct, frozen=True, kw_only=True):
    """What the clients do.

    @ivar name: a description for the report.
    @ivar connections: the number of simultaneous connections; 0: no attack.
    @ivar payload: the key in L{PAYLOADS} of what each connection sends.
    @ivar repeats: send it again and again; otherwise once.
    @ivar reads: read what comes, and drop it.
    @ivar leaves: disconnect as soon as something has come.
    @ivar overTls: connect to the port with TLS.
    @ivar isAllowed: connect from an address whose clients may list and watch.
    @ivar toggles: another client of that address attaches and detaches a device all the time."""

    name: str
    connections: int = 0
    payload: str = "nothing"
    repeats: bool = False
    reads: bool = True
    leaves: bool = False
    overTls: bool = False
    isAllowed: bool = True
    toggles: bool = False


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """What the process gets on its standard input.

    @ivar port: the port for requests, on 127.0.0.1.
    @ivar tlsPort: the port for requests over TLS.
    @ivar address: the address to connect from.
    @ivar core: the core to run on."""

    attack: Attack
    port: int
    tlsPort: int
    address: str
    core: int


def clientHello() -> bytes:
    """The first message of a TLS client."""
    out = ssl.MemoryBIO()
    context = ssl.create_default_context()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost").do_handshake()
    return out.read()


PAYLOADS = {
    "nothing": lambda: b"",
    "list": lambda: b'{"command":"list"}\n',
    "hello": clientHello,
    "garbage": lambda: os.urandom(SEGMENT),
    "invalid": lambda: b"1\n" * (SEGMENT // 2),
    "lists": lambda: LIST * (SEGMENT // len(LIST)),
    "watch": lambda: b'{"command":"watch"}\n',
}


class Client:
    """A connection.

    @ivar socket: the socket, which does not block."""

    def __init__(self, orders: Orders, payload: bytes) -> None:
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self._attack = orders.attack
        self._payload = self._unsent = payload
        self.socket.bind((orders.address, 0))
        port = orders.tlsPort if orders.attack.overTls else orders.port
        with contextlib.suppress(BlockingIOError):
            self.socket.connect(("127.0.0.1", port))

    @property
    def interest(self) -> int:
        """The events of epoll(7) to wait for."""
        reading = select.EPOLLIN if self._attack.reads else 0
        return reading | (select.EPOLLOUT if self._unsent else 0) | select.EPOLLRDHUP

    def act(self, events: int) -> bool:
        """Send and read.

        @return: whether the connection goes on."""
        try:
            if events & select.EPOLLOUT and self._unsent:
                self._unsent = self._unsent[self.socket.send(self._unsent) :]
                if not self._unsent and self._attack.repeats:
                    self._unsent = self._payload
            if events & select.EPOLLIN and self._attack.reads:
                received = self.socket.recv(2**20, socket.MSG_TRUNC)
                return received != b"" and not self._attack.leaves
        except BlockingIOError:
            return True
        except OSError:
            return False
        return not events & (select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR)


def toggling(port: int, address: str) -> Iterator[None]:
    """Attach and detach a device in turn. Each step sends or receives what it can."""
    client = socket.create_connection(("127.0.0.1", port), 10, (address, 0))
    client.setblocking(False)
    while True:
        for command in ("attach", "detach"):
            client.send(b'{"command":"%s","id":"1-1.1.1","keep_alive":true}\n' % command.encode())
            while True:
                yield
                with contextlib.suppress(BlockingIOError):
                    if client.recv(2**16).endswith(b"\n"):
                        break


def run(orders: Orders) -> None:
    """Attack until terminated."""
    attack = orders.attack
    payload = PAYLOADS[attack.payload]()
    poll = select.epoll()
    clients: dict[int, Client] = {}
    toggle = toggling(orders.port, orders.address) if attack.toggles else iter(())
    retryAt = 0.0
    while True:
        while len(clients) < attack.connections and time.monotonic() >= retryAt:
            try:
                client = Client(orders, payload)
            except OSError:
                retryAt = time.monotonic() + PAUSE
                break
            clients[client.socket.fileno()] = client
            poll.register(client.socket, client.interest)
        for descriptor, events in poll.poll(PAUSE, 256):
            client = clients[descriptor]
            if not client.act(events):
                del clients[descriptor]
                client.socket.close()
                continue
            poll.modify(descriptor, client.interest)
        next(toggle, None)


def main() -> None:
    """Entry point."""
    orders = msgspec.json.decode(sys.stdin.buffer.read(), type=Orders)
    takeCore(0, orders.core)
    run(orders)


if __name__ == "__main__":
    main()
