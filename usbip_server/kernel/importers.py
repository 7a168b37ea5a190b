"""
Which client has imported which device.

For devices that this process has exported the client is known. For devices that were exported by
a stock C{usbipd}, or by this daemon before a restart, the kernel provides no such information. But
the kernel has the client's TCP connection, which is listed in C{/proc/net/tcp} for as long as the
session lasts. The list does not contain which connection belongs to which device: so a client is
assigned to a device only if there is exactly one possibility.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Set

import msgspec

from usbip_server.kernel.system import ISystem
from usbip_server.model.device import Holder, PlugId

USBIPD_PORT = 3240
"""C{usbip_port} in C{tools/usb/usbip/src/usbip_network.c}."""

RESET = 2.5
"""Seconds that the kernel may need to reset a device at the end of a session, before it shows the
device as bound. A reset takes about 0.2 s, and several are done one after the other."""

_ESTABLISHED = b"01"
"""C{TCP_ESTABLISHED} (C{include/net/tcp_states.h})."""


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """
    A TCP connection, identified by its addresses and ports. An IPv4 address on an IPv6 socket is
    written as an IPv4 address.

    @ivar local: the address of this machine.
    @ivar remote: the address of the client.
    """

    local: str
    localPort: int
    remote: str
    remotePort: int


def established(table: bytes, port: int | None = USBIPD_PORT) -> Iterator[Connection]:
    """
    The established connections to a local port, or (C{None}) all.

    @param table: the content of C{/proc/net/tcp}, C{/proc/net/tcp6} or both, as
        C{get_tcp4_sock} (C{net/ipv4/tcp_ipv4.c}) and C{get_tcp6_sock}
        (C{net/ipv6/tcp_ipv6.c}) print them. Lines in any other format are skipped.
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
        if port is None or localPort == port:
            yield Connection(local=local, localPort=localPort, remote=remote, remotePort=remotePort)


def _endpoint(text: bytes) -> tuple[str, int]:
    """
    The address and the port in a field such as C{0100007F:0CA8}.

    @raise ValueError: the field has another format.
    """
    words, _, port = text.partition(b":")
    if len(words) not in (8, 32) or len(port) != 4:
        raise ValueError(text)
    printed = bytes.fromhex(words.decode("ascii"))
    # Each 32-bit word, which is in network byte order, is printed as a number of the host.
    step = -1 if sys.byteorder == "little" else 1
    packed = b"".join(printed[at : at + 4][::step] for at in range(0, len(printed), 4))
    return _plain(packed), int.from_bytes(bytes.fromhex(port.decode("ascii")), "big")


def _plain(packed: bytes) -> str:
    """
    An address as text; an IPv4-mapped IPv6 address as an IPv4 address.
    """
    address = ipaddress.ip_address(packed)
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    return str(address)


def connectionOf(connected: socket.socket) -> Connection | None:
    """
    The connection of a socket; C{None} if it is not a TCP socket, or is not connected any more.
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
    An export by this process: a client's connection was given to the kernel.

    @ivar connection: C{None} if it is not a TCP connection.
    """

    holder: Holder
    connection: Connection | None


class _Session(msgspec.Struct, frozen=True):
    """
    The session of a client that has imported a device.

    @ivar since: as in L{Holder}.
    @ivar handOver: the export, if this process has made it.
    @ivar connection: the client's connection, if it was inferred.
    @ivar goneSince: when that connection was first missing from the kernel's list.
    """

    since: float | None
    handOver: _HandOver | None = None
    connection: Connection | None = None
    goneSince: float | None = None


class Importers:
    """
    The devices in use, and the client that has each. L{refresh} blocks: call it in a thread.
    """

    def __init__(
        self,
        system: ISystem,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        @param now: returns the time, in seconds since the epoch.
        @param monotonic: returns a time for measuring durations, in seconds.
        """
        self._system = system
        self._now = now
        self._monotonic = monotonic
        self._sessions: dict[PlugId, _Session] = {}
        self._hasRefreshed = False
        self._atFirst: set[Connection] | None = None  # those at the first refresh
        self._lock = threading.Lock()
        self._beginning: dict[PlugId, _HandOver] = {}
        self._begun: dict[PlugId, _HandOver] = {}
        self._refused: set[Connection] = set()

    def holder(self, plugId: PlugId) -> Holder | None:
        """
        The client that had a device at the last refresh; C{None} if it was not in use.
        """
        session = self._sessions.get(plugId)
        if session is None:
            return None
        if session.handOver is not None:
            return session.handOver.holder
        address = session.connection.remote if session.connection is not None else None
        return Holder(address=address, since=session.since)

    @contextlib.contextmanager
    def handingOver(
        self, plugId: PlugId, holder: Holder, connection: Connection | None
    ) -> Iterator[None]:
        """
        A context in which a device is exported to a client. If it is left without an exception,
        C{holder} is returned for the device until a refresh that begins later finds the device not
        in use.
        """
        handOver = _HandOver(holder, connection)
        with self._lock:
            self._beginning[plugId] = handOver
        try:
            yield
        except BaseException:
            with self._lock:
                del self._beginning[plugId]
                if connection is not None:
                    self._refused.add(connection)  # the connection may stay open a little longer
            raise
        with self._lock:
            self._begun[plugId] = self._beginning.pop(plugId)

    def refresh(self, inUse: Callable[[], Set[PlugId]]) -> None:
        """
        Find out which client has which device.

        @param inUse: reads which devices are in use now, of all devices.
        """
        with self._lock:
            before = self._begun.copy()
        plugIds = inUse()
        since = self._now() if self._hasRefreshed else None
        self._hasRefreshed = True
        with self._lock:
            for plugId in before.keys() - plugIds:
                if self._begun[plugId] is before[plugId]:  # else another export has been made since
                    del self._begun[plugId]
            self._sessions = {plugId: self._session(plugId, since) for plugId in plugIds}
        if all(session.handOver is not None for session in self._sessions.values()):
            with self._lock:
                self._refused.clear()
            return
        try:
            connections = self._connections()
        except OSError:
            return  # nothing can be inferred
        self._infer(connections, since, lambda: inUse() == plugIds)

    def _session(self, plugId: PlugId, since: float | None) -> _Session:
        """
        The session of a device that is in use. While an export is in progress this may still be
        the session before it, whose device is being reset.
        """
        last = self._sessions.get(plugId)
        handOver = self._begun.get(plugId)
        if handOver is None and (last is None or last.handOver is self._beginning.get(plugId)):
            handOver = self._beginning.get(plugId)
        if handOver is not None:
            return _Session(handOver.holder.since, handOver)
        return last if last is not None and last.handOver is None else _Session(since)

    def _infer(
        self, connections: set[Connection], since: float | None, isSame: Callable[[], bool]
    ) -> None:
        """
        Assign connections to the sessions that this process has not begun.

        @param since: the begin of sessions that are new.
        @param isSame: returns whether the same devices are still in use.
        """
        if self._atFirst is None:
            self._atFirst = connections
        free = connections - self._taken() - self._ours(connections)
        now = self._monotonic()
        for plugId, session in self._sessions.items():
            if session.connection is None:
                continue
            if session.connection in connections:
                goneSince = None
            else:
                goneSince = now if session.goneSince is None else session.goneSince
            if goneSince is not None and (free or now - goneSince > RESET):
                self._sessions[plugId] = _Session(since)  # that of another client
            else:
                self._sessions[plugId] = msgspec.structs.replace(session, goneSince=goneSince)
        unknown = [
            (plugId, session)
            for plugId, session in self._sessions.items()
            if session.handOver is None and session.connection is None
        ]
        if len(unknown) != 1:
            return
        plugId, session = unknown[0]
        if session.since is None:
            free &= self._atFirst
        # The list was read after the devices: it is of no use if they have changed since.
        if len(free) == 1 and isSame():
            self._sessions[plugId] = msgspec.structs.replace(session, connection=free.pop())

    def _connections(self) -> set[Connection]:
        """
        The connections to L{USBIPD_PORT}.

        The kernel returns its list in pieces and counts entries to find where the next piece
        begins (C{tcp_seek_last_pos}), so it can skip an entry. A connection that is known is taken
        to be gone only if a second read does not contain it either.

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
        The connections that this process has exported devices on: they belong to no other
        device.
        """
        with self._lock:
            self._refused &= connections
            handOvers = *self._beginning.values(), *self._begun.values()
            return self._refused | {h.connection for h in handOvers if h.connection is not None}
