"""
Who has imported a device that a stock C{usbipd} has handed out.

The kernel does not tell. But C{usbipd} gives it the connection that the client asked on and
leaves it alone, so the connection stays in the kernel's list of connections for as long as
the client has the device. Which one belongs to which device is not in the list: it is known
only if nothing else is possible.
"""

from __future__ import annotations

import ipaddress
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Set

import msgspec

from usbip_server.device import Holder
from usbip_server.kernel.system import ISystem

USBIPD_PORT = 3240
"""C{usbip_port} in C{tools/usb/usbip/src/usbip_network.c}."""

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
    address = ipaddress.ip_address(packed)
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    return str(address), int.from_bytes(bytes.fromhex(port.decode("ascii")), "big")


class _Session(msgspec.Struct, frozen=True):
    """
    A device is in use.

    @ivar since: as in L{Holder}.
    @ivar connection: whose; C{None} until it is certain.
    @ivar isEnding: was its connection gone when we looked the last time?
    """

    since: float | None
    connection: Connection | None = None
    isEnding: bool = False


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

    def holder(self, stay: Hashable) -> Holder | None:
        """
        Who has a device, as of the last look; C{None} if it was not in use.
        """
        session = self._sessions.get(stay)
        if session is None:
            return None
        address = session.connection.remote if session.connection is not None else None
        return Holder(address=address, since=session.since)

    def look(self, inUse: Callable[[], Set[Hashable]]) -> None:
        """
        Look who has what.

        @param inUse: reads which stays of devices are in use now, of all that there are.
        """
        stays = inUse()
        since = self._now() if self._hasLooked else None
        self._hasLooked = True
        self._sessions = {stay: self._sessions.get(stay, _Session(since)) for stay in stays}
        if not stays:
            return
        try:
            connections = self._connections()
        except OSError:
            return  # nothing can be said
        free = connections - self._taken()
        for stay, session in self._sessions.items():
            if session.connection is None:
                continue
            isGone = session.connection not in connections
            if isGone and (free or session.isEnding):
                self._sessions[stay] = _Session(since)  # another client has it by now
            else:
                # The kernel resets the device, for 0.2 s, before it shows it as free.
                self._sessions[stay] = _Session(session.since, session.connection, isGone)
        unknown = [stay for stay, session in self._sessions.items() if session.connection is None]
        # The list was read after the devices: it says nothing if they have changed since.
        if len(unknown) == 1 and len(free) == 1 and inUse() == stays:
            stay = unknown[0]
            self._sessions[stay] = _Session(self._sessions[stay].since, free.pop())

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
