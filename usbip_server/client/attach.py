"""
Attaches a device of another machine to this one: imports it, gives its connection to
C{vhci_hcd}, and waits for its device nodes; and detaches it. All of it blocks: call it in a thread.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import msgspec

from usbip_server.client.imports import Imported, importDevice
from usbip_server.client.servers import Server
from usbip_server.kernel.vhci.devnodes import Nodes
from usbip_server.kernel.vhci.ports import SUPER_SPEED, Port, PortState, Vhci
from usbip_server.kernel.vhci.records import Record, Records
from usbip_server.model.device import Encryption
from usbip_server.model.errors import LocalTrouble
from usbip_server.model.usbip import Exported
from usbip_server.net.keepalive import KeepAlive

if TYPE_CHECKING:  # loaded where a connection has TLS
    import ssl

LOOK_AGAIN = 0.02
"""Seconds between two looks at sysfs."""

SETTLED = 0.2
"""Seconds without a new node after which a device is taken to have all its nodes."""

PROBED = 0.04
"""The same where L{Nodes.isProbed}: the time that udev may need until its queue shows an event."""

NODES = 1.0
"""Seconds to wait for the first node: many devices have none."""

DISK = 2.5
"""The same for a disk, which the kernel scans after a second (C{delay_use} of C{usb-storage})."""

FREED = 2.0
"""Seconds to wait for the kernel to free a port, which it does soon after the write."""

DEFAULT = KeepAlive()


class Attached(msgspec.Struct, frozen=True, kw_only=True):
    """
    A device that is attached to this machine.

    @ivar port: of C{vhci_hcd}.
    @ivar localBusId: its bus id on this machine; C{None} until it is enumerated.
    @ivar nodes: its device nodes: paths that programs can open.
    @ivar record: the server that it came from; C{None} if that is not known.
    @ivar encryption: of its traffic; C{None} if that is not known.
    @ivar deviceId: its number in the USB/IP traffic; 0 until it is enumerated.
    """

    port: int
    localBusId: str | None = None
    nodes: tuple[str, ...] = ()
    record: Record | None = None
    encryption: Encryption | None = None
    deviceId: int = 0


class Attaching:
    """
    Attaches and detaches devices.
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
        @param relay: called for a TLS connection that the kernel cannot encrypt itself, with the
            connection and one end of a socket pair, of which the kernel has the other: has to
            start a relay between the two (L{usbip_server.client.blockingrelay.relay}), which
            closes them.
        @param now: a monotonic clock.
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
        Import a device and attach it to this machine.

        @param seconds: how long that may take; the wait for the nodes comes on top.
        @return: also a duplicate of the connection: it reports the end of the session, and does
            not keep the session from ending.
        @raise NotGiven: the server refuses.
        @raise Unreachable: the server does not reply.
        @raise LocalTrouble: this machine's kernel refuses the device.
        """
        until = self._now() + seconds
        self._vhci.require()  # before a server is asked for anything
        imported = importDevice(server, busId, seconds, keepAlive)
        kept = _duplicate(imported.connection)
        try:
            port = self._enumerated(self._plug(imported, until), until)
            record = Record(host=server.host, service=str(server.exportPort), busId=busId)
            with contextlib.suppress(OSError):  # the device works without a record
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
                kept.shutdown(socket.SHUT_RDWR)  # ends the session in the kernel, too
            kept.close()
            raise
        return attached, kept

    def detach(self, port: int) -> bool:
        """
        Detach the device at a port.

        @return: was there one?
        @raise LocalTrouble: the kernel refuses.
        """
        before = self._vhci.port(port)
        hasAppeared = before is not None and self._vhci.folderOf(before) is not None
        there = self._vhci.detach(port)
        self._records.remove(port)
        if there and not hasAppeared:
            self._records.giveUp(port)
        until = self._now() + FREED
        while there and not self._isFree(port) and self._now() < until:
            self._sleep(LOOK_AGAIN)
        return there

    def attached(self) -> tuple[Attached, ...]:
        """
        All devices that are attached now, by any program.

        @raise LocalTrouble: the kernel's list cannot be read.
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
        Give the connection to the kernel. It is closed in this process.
        """
        with contextlib.ExitStack() as ours:
            connection = given = ours.enter_context(imported.connection)
            if imported.encryption is Encryption.RELAY:
                given, end = map(ours.enter_context, _socketPair())
            port = self._give(given, imported.device, until)
            if imported.encryption is Encryption.RELAY:
                self._relay(cast("ssl.SSLSocket", connection), end)
                ours.pop_all()
                given.close()
        return port

    def _give(self, connection: socket.socket, device: Exported, until: float) -> Port:
        """
        Attach the device at a free port.
        """
        while True:
            for port in self._vhci.candidates(device.speed):
                if self._records.isGivenUp(port.number):
                    continue
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
        Is there a port of the right speed that is free, though an earlier device may still be
        in the hub's folder?
        """
        isSuper = device.speed >= SUPER_SPEED
        return any(
            port.state is PortState.FREE and port.isSuper is isSuper for port in self._vhci.ports()
        )

    def _enumerated(self, port: Port, until: float) -> Port:
        """
        The port, once its device has a bus id on this machine.
        """
        try:
            return self._untilEnumerated(port, until)
        except BaseException:
            self._records.giveUp(port.number)
            raise

    def _untilEnumerated(self, port: Port, until: float) -> Port:
        while True:
            now = self._vhci.port(port.number)
            if now is None or now.state is PortState.FREE:
                raise LocalTrouble(
                    "the device went away at once: see the server's log and this machine's dmesg"
                )
            if now.state is PortState.USED and now.busId is not None:
                return now
            if now.state is PortState.ERROR or self._now() > until:
                with contextlib.suppress(LocalTrouble):
                    self._vhci.detach(port.number)
                raise LocalTrouble("the kernel does not enumerate the device in time: see dmesg")
            self._sleep(LOOK_AGAIN)

    def _settled(self, port: Port) -> tuple[str, ...]:
        """
        The device's nodes, once no more are expected.
        """
        begin = last = self._now()
        nodes: tuple[str, ...] = ()
        while True:
            folder = self._vhci.folderOf(port)
            isDisk = folder is not None and self._nodes.isDisk(folder)
            isProbed = folder is not None and not isDisk and self._nodes.isProbed(folder)
            found = self._nodesOf(port)
            now = self._now()
            if found != nodes:
                nodes, last = found, now
            if nodes and now - last > (PROBED if isProbed else SETTLED):
                return nodes
            if not nodes and now - begin > (DISK if isDisk else NODES):
                return nodes
            self._sleep(LOOK_AGAIN)

    def _nodesOf(self, port: Port) -> tuple[str, ...]:
        folder = self._vhci.folderOf(port)
        return () if folder is None else self._nodes.of(folder)

    def _isFree(self, number: int) -> bool:
        port = self._vhci.port(number)
        return port is None or port.state is PortState.FREE


def _duplicate(connection: socket.socket) -> socket.socket:
    """
    @raise LocalTrouble: there is no descriptor left; C{connection} is closed.
    """
    try:
        # Not connection.dup(): ssl.SSLSocket does not support it.
        return socket.socket(fileno=os.dup(connection.fileno()))
    except OSError as error:
        connection.close()
        raise _exhausted(error) from error


def _socketPair() -> tuple[socket.socket, socket.socket]:
    from usbip_server.client.blockingrelay import socketPair

    try:
        return socketPair()
    except OSError as error:
        raise _exhausted(error) from error


def _exhausted(error: OSError) -> LocalTrouble:
    return LocalTrouble(f"nothing more can be attached: {error.strerror}")
