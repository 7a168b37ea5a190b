"""
Who has imported a device.

Of those that we hand out ourselves we know. Of those that a stock C{usbipd} has handed out,
or we before we were started anew, the kernel does not tell. But it was given the connection
that the client asked on, so that stays in the kernel's list of connections for as long as the
client has the device. Which one belongs to which device is not in the list: it is known only
if nothing else is possible.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Set

import msgspec

from usbip_server.kernel.system import ISystem
from usbip_server.model.device import Holder

USBIPD_PORT = 3240
"""C{usbip_port} in C{tools/usb/usbip/src/usbip_network.c}."""

RESET = 2.5
"""Seconds for the kernel to reset a device whose client has gone, before it shows it as free.
It takes about 0.2, but one after the other if several clients go at once."""

_ESTABLISHED = b"01"
"""C{TCP_ESTABLISHED} (C{include/net/tcp_states.h})."""


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """
    A TCP connection: it has these four things in common with no other.

    @ivar local: our address.
    @ivar remote: the client's; an IPv4 address as such, also on an IPv6 socket.
    """

    local: str
    localPort: int
    remote: str
    remotePort: int


def established(table: bytes, port: int = USBIPD_PORT) -> Iterator[Connection]:
    """
    The connections that clients have to a port of ours.

    @param table: C{/proc/net/tcp}, C{/proc/net/tcp6} or both, as C{get_tcp4_sock}
        (C{net/ipv4/tcp_ipv4.c}) and C{get_tcp6_sock} (C{net/ipv6/tcp_ipv6.c}) print them.
        What looks otherwise is left out.
    """
    for line in table.splitlines():
        fields = line.split()
        if len(fields) < 4 or fields[3] != _ESTABLISHED:
            continue
        try:
            local, localPort = _endpoint(fields[1])
            remote, remotePort = _endpoint(fields[2])
        except ValueError:
            continue
        if localPort == port:
            yield Connection(local=local, localPort=localPort, remote=remote, remotePort=remotePort)


def _endpoint(text: bytes) -> tuple[str, int]:
    """
    @raise ValueError: it is none.
    """
    words, _, port = text.partition(b":")
    if len(words) not in (8, 32) or len(port) != 4:
        raise ValueError(text)
    printed = bytes.fromhex(words.decode("ascii"))
    # Words in the network's byte order are printed as numbers in the machine's.
    step = -1 if sys.byteorder == "little" else 1
    packed = b"".join(printed[at : at + 4][::step] for at in range(0, len(printed), 4))
    return _plain(packed), int.from_bytes(bytes.fromhex(port.decode("ascii")), "big")


def _plain(packed: bytes) -> str:
    """
    An address. An IPv4 address as such, also on an IPv6 socket.
    """
    address = ipaddress.ip_address(packed)
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    return str(address)


def connectionOf(connected: socket.socket) -> Connection | None:
    """
    What a socket of ours is called there; C{None} if it is none of TCP, or has come apart.
    """
    if connected.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    try:
        ours, theirs = connected.getsockname(), connected.getpeername()
    except OSError:
        return None
    local, remote = (
        _plain(socket.inet_pton(connected.family, end[0].partition("%")[0]))
        for end in (ours, theirs)
    )
    return Connection(local=local, localPort=ours[1], remote=remote, remotePort=theirs[1])


class _HandOver(msgspec.Struct, frozen=True, eq=False):
    """
    We have given a connection to the kernel.

    @ivar connection: C{None} if it is none of TCP.
    """

    holder: Holder
    connection: Connection | None


class _Session(msgspec.Struct, frozen=True):
    """
    A device is in use.

    @ivar since: as in L{Holder}.
    @ivar handOver: how it came to that, if it was we.
    @ivar connection: whose; C{None} until it is certain.
    @ivar goneSince: when its connection was first seen to be gone.
    """

    since: float | None
    handOver: _HandOver | None = None
    connection: Connection | None = None
    goneSince: float | None = None


class Sessions:
    """
    The devices that are in use, and by whom. C{look} blocks: call it in a thread.
    """

    def __init__(self, system: ISystem, now: Callable[[], float] = time.time) -> None:
        """
        @param now: the time, in seconds since the epoch.
        """
        self._system = system
        self._now = now
        self._sessions: dict[Hashable, _Session] = {}
        self._hasLooked = False
        self._atFirst: set[Connection] | None = None  # when we began to look
        self._lock = threading.Lock()
        self._beginning: dict[Hashable, _HandOver] = {}
        self._begun: dict[Hashable, _HandOver] = {}
        self._refused: set[Connection] = set()

    def holder(self, stay: Hashable) -> Holder | None:
        """
        Who has a device, as of the last look; C{None} if it was not in use.
        """
        session = self._sessions.get(stay)
        if session is None:
            return None
        if session.handOver is not None:
            return session.handOver.holder
        address = session.connection.remote if session.connection is not None else None
        return Holder(address=address, since=session.since)

    @contextlib.contextmanager
    def handingOver(
        self, stay: Hashable, holder: Holder, connection: Connection | None
    ) -> Iterator[None]:
        """
        While a device is given to a client. If that goes well, the device is C{holder}'s
        until a look that is begun after it finds it not in use.

        @param stay: of the device.
        """
        handOver = _HandOver(holder, connection)
        with self._lock:
            self._beginning[stay] = handOver
        try:
            yield
        except BaseException:
            with self._lock:
                del self._beginning[stay]
                if connection is not None:
                    self._refused.add(connection)  # it may be open a little longer
            raise
        with self._lock:
            self._begun[stay] = self._beginning.pop(stay)

    def look(self, inUse: Callable[[], Set[Hashable]]) -> None:
        """
        Look who has what.

        @param inUse: reads which stays of devices are in use now, of all that there are.
        """
        with self._lock:
            before = self._begun.copy()
        stays = inUse()
        since = self._now() if self._hasLooked else None
        self._hasLooked = True
        with self._lock:
            for stay in before.keys() - stays:
                if self._begun[stay] is before[stay]:  # else it has begun since
                    del self._begun[stay]
            self._sessions = {stay: self._session(stay, since) for stay in stays}
        if all(session.handOver is not None for session in self._sessions.values()):
            with self._lock:
                self._refused.clear()
            return
        try:
            connections = self._connections()
        except OSError:
            return  # nothing can be said
        self._infer(connections, since, lambda: inUse() == stays)

    def _session(self, stay: Hashable, since: float | None) -> _Session:
        """
        The session of a device that is in use. Where a client is being given it, that may
        still be the last one's: its device is being reset.
        """
        last = self._sessions.get(stay)
        handOver = self._begun.get(stay)
        if handOver is None and (last is None or last.handOver is self._beginning.get(stay)):
            handOver = self._beginning.get(stay)
        if handOver is not None:
            return _Session(handOver.holder.since, handOver)
        return last if last is not None and last.handOver is None else _Session(since)

    def _infer(
        self, connections: set[Connection], since: float | None, isSame: Callable[[], bool]
    ) -> None:
        """
        @param since: when what has changed has begun.
        @param isSame: are the same devices still in use?
        """
        if self._atFirst is None:
            self._atFirst = connections
        free = connections - self._taken() - self._ours(connections)
        now = self._now()
        for stay, session in self._sessions.items():
            if session.connection is None:
                continue
            if session.connection in connections:
                goneSince = None
            else:
                goneSince = now if session.goneSince is None else session.goneSince
            if goneSince is not None and (free or now - goneSince > RESET):
                self._sessions[stay] = _Session(since)  # another client has it by now
            else:
                self._sessions[stay] = msgspec.structs.replace(session, goneSince=goneSince)
        unknown = [
            (stay, session)
            for stay, session in self._sessions.items()
            if session.handOver is None and session.connection is None
        ]
        if len(unknown) != 1:
            return
        stay, session = unknown[0]
        if session.since is None:
            free &= self._atFirst
        # The list was read after the devices: it says nothing if they have changed since.
        if len(free) == 1 and isSame():
            self._sessions[stay] = msgspec.structs.replace(session, connection=free.pop())

    def _connections(self) -> set[Connection]:
        """
        The kernel hands the list out in pieces, and finds by counting where it left off
        (C{tcp_seek_last_pos}): it can miss one. So what was there the last time is gone
        only if a second reading misses it too.

        @raise OSError: the list cannot be read.
        """
        found = set(established(self._system.connections()))
        if not self._taken() <= found:
            found.update(established(self._system.connections()))
        return found

    def _taken(self) -> set[Connection]:
        return {
            session.connection
            for session in self._sessions.values()
            if session.connection is not None
        }

    def _ours(self, connections: set[Connection]) -> set[Connection]:
        """
        Those that have come through our hands: they belong to no other device.
        """
        with self._lock:
            self._refused &= connections
            handOvers = *self._beginning.values(), *self._begun.values()
            return self._refused | {h.connection for h in handOvers if h.connection is not None}
