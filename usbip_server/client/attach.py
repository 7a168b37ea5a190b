"""
Plugging a device of another machine into this one, and pulling it out. Everything here blocks,
for as long as it is told to: call it in a thread.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import time
from collections.abc import Callable

import msgspec

from usbip_server.client.blockingrelay import socketPair
from usbip_server.client.imports import Imported, importDevice
from usbip_server.client.servers import Server
from usbip_server.kernel.vhci.devnodes import Nodes
from usbip_server.kernel.vhci.ports import SUPER_SPEED, Port, PortState, Vhci
from usbip_server.kernel.vhci.records import Record, Records
from usbip_server.model.device import Encryption
from usbip_server.model.errors import LocalTrouble
from usbip_server.model.usbip import Exported
from usbip_server.net.keepalive import KeepAlive

LOOK_AGAIN = 0.02
"""Seconds."""

SETTLED = 0.2
"""Seconds without another node, after which a device is taken to have all it will have."""

NODES = 1.0
"""Seconds for the first node to come: many devices have none."""

DISK = 2.5
"""Likewise, of a disk: it is scanned a second after it is there (C{delay_use} of
C{usb-storage})."""

FREED = 2.0
"""Seconds for the kernel to free a port: it does it at once, but not within the write."""

DEFAULT = KeepAlive()


class Attached(msgspec.Struct, frozen=True, kw_only=True):
    """
    A device that is plugged in.

    @ivar port: of C{vhci_hcd}.
    @ivar localBusId: where it is on this machine.
    @ivar nodes: what programs can open.
    @ivar record: where it came from, if that is known.
    @ivar encryption: of its traffic; C{None} where it is not known.
    @ivar deviceId: what its server calls it, in its traffic; 0 where it does not work yet.
    """

    port: int
    localBusId: str | None = None
    nodes: tuple[str, ...] = ()
    record: Record | None = None
    encryption: Encryption | None = None
    deviceId: int = 0


class Attaching:
    """
    Does both.
    """

    def __init__(
        self,
        vhci: Vhci,
        nodes: Nodes,
        records: Records,
        relay: Callable[[ssl.SSLSocket, socket.socket], None],
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """
        @param relay: has somebody carry between a connection and the kernel from now on, where
            it cannot encrypt that itself, and close both in the end: see
            L{usbip_server.client.blockingrelay.relay}.
        """
        self._vhci = vhci
        self._nodes = nodes
        self._records = records
        self._relay = relay
        self._now = now
        self._sleep = sleep

    def attach(
        self, server: Server, busId: str, seconds: float, keepAlive: KeepAlive = DEFAULT
    ) -> tuple[Attached, socket.socket]:
        """
        Fetch a device and plug it in.

        @param seconds: how long that may take; the nodes come on top.
        @return: besides, a duplicate of the connection, which shows when the session ends, and
            does not keep it from ending.
        @raise NotGiven: the server does not give it to us.
        @raise Unreachable: it is not there.
        @raise LocalTrouble: this machine's kernel does not take it.
        """
        until = self._now() + seconds
        self._vhci.require()  # before anything is taken from anybody
        imported = importDevice(server, busId, seconds, keepAlive)
        kept = _duplicate(imported.connection)
        try:
            port = self._enumerated(self._plug(imported, until), until)
            record = Record(host=server.host, service=str(server.exportPort), busId=busId)
            with contextlib.suppress(OSError):  # it is only a hint
                self._records.write(port.number, record)
            attached = Attached(
                port=port.number,
                localBusId=port.busId,
                nodes=self._settled(port),
                record=record,
                encryption=imported.encryption,
                deviceId=port.deviceId,
            )
        except BaseException:
            with contextlib.suppress(OSError):
                kept.shutdown(socket.SHUT_RDWR)  # whoever has the connection: it is over
            kept.close()
            raise
        return attached, kept

    def detach(self, port: int) -> bool:
        """
        Pull the device at a port out.

        @return: was there one?
        @raise LocalTrouble: the kernel does not let us.
        """
        there = self._vhci.detach(port)
        self._records.remove(port)
        until = self._now() + FREED
        while there and not self._isFree(port) and self._now() < until:
            self._sleep(LOOK_AGAIN)
        return there

    def attached(self) -> tuple[Attached, ...]:
        """
        What is plugged in now, by whomever.

        @raise LocalTrouble: the kernel does not tell.
        """
        return tuple(
            Attached(
                port=port.number,
                localBusId=port.busId,
                nodes=self._nodesOf(port),
                record=self._records.of(port.number),
                deviceId=port.deviceId,
            )
            for port in self._vhci.ports()
            if port.state is not PortState.FREE
        )

    def _plug(self, imported: Imported, until: float) -> Port:
        """
        The connection is not ours any more after that.
        """
        with contextlib.ExitStack() as ours:
            connection = given = ours.enter_context(imported.connection)
            if imported.encryption is Encryption.RELAY:
                given, end = map(ours.enter_context, _pair())
            port = self._give(given, imported.device, until)
            if imported.encryption is Encryption.RELAY:
                assert isinstance(connection, ssl.SSLSocket)
                self._relay(connection, end)
                ours.pop_all()
                given.close()
        return port

    def _give(self, connection: socket.socket, device: Exported, until: float) -> Port:
        """
        Find a port for it.
        """
        while True:
            for port in self._vhci.candidates(device.speed):
                if self._vhci.attach(port, connection.fileno(), device.deviceId, device.speed):
                    return port
            if self._now() > until or not self._isAnyFree(device):
                kind = "fast (SuperSpeed)" if device.speed >= SUPER_SPEED else "slower"
                raise LocalTrouble(
                    f"no port of vhci_hcd is free for {kind} devices: detach one "
                    "(usbipshare ports shows them)"
                )
            self._sleep(LOOK_AGAIN)

    def _isAnyFree(self, device: Exported) -> bool:
        """
        Is there a port for it that is only still busy with an earlier one?
        """
        isSuper = device.speed >= SUPER_SPEED
        return any(
            port.state is PortState.FREE and port.isSuper is isSuper for port in self._vhci.ports()
        )

    def _enumerated(self, port: Port, until: float) -> Port:
        """
        The port, when its device has a bus id on this machine.
        """
        while True:
            now = self._vhci.port(port.number)
            if now is None or now.state is PortState.FREE:
                raise LocalTrouble(
                    "the device went away at once: its server's log, and this machine's dmesg, "
                    "say why"
                )
            if now.state is PortState.USED and now.busId is not None:
                return now
            if now.state is PortState.ERROR or self._now() > until:
                with contextlib.suppress(LocalTrouble):
                    self._vhci.detach(port.number)
                raise LocalTrouble("the kernel does not get to know the device in time: see dmesg")
            self._sleep(LOOK_AGAIN)

    def _settled(self, port: Port) -> tuple[str, ...]:
        """
        The device's nodes, when no more seem to come.
        """
        begin = last = self._now()
        nodes: tuple[str, ...] = ()
        while True:
            found = self._nodesOf(port)
            now = self._now()
            if found != nodes:
                nodes, last = found, now
            if now - last > SETTLED if nodes else now - begin > self._patience(port):
                return nodes
            self._sleep(LOOK_AGAIN)

    def _patience(self, port: Port) -> float:
        folder = self._vhci.folderOf(port)
        return DISK if folder is not None and self._nodes.isDisk(folder) else NODES

    def _nodesOf(self, port: Port) -> tuple[str, ...]:
        folder = self._vhci.folderOf(port)
        return () if folder is None else self._nodes.of(folder)

    def _isFree(self, number: int) -> bool:
        port = self._vhci.port(number)
        return port is None or port.state is PortState.FREE


def _duplicate(connection: socket.socket) -> socket.socket:
    """
    @raise LocalTrouble: there is no descriptor left; it is closed.
    """
    try:
        # Not dup(): a connection with TLS does not let us.
        return socket.socket(fileno=os.dup(connection.fileno()))
    except OSError as error:
        connection.close()
        raise _exhausted(error) from error


def _pair() -> tuple[socket.socket, socket.socket]:
    try:
        return socketPair()
    except OSError as error:
        raise _exhausted(error) from error


def _exhausted(error: OSError) -> LocalTrouble:
    return LocalTrouble(f"nothing more can be attached: {error.strerror}")
