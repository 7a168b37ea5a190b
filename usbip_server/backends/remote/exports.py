"""
Giving devices of other servers to clients: the gateway imports them from there, and carries.
"""

from __future__ import annotations

import socket
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError

from usbip_server.backends.remote.operations import RemoteWork, inOurWords
from usbip_server.backends.remote.replica import RemoteReplica, RemoteServer
from usbip_server.backends.remote.sessions import RemoteSession
from usbip_server.client.imports import Imported, importDevice
from usbip_server.model.device import DeviceState, Holder, UsbDevice
from usbip_server.model.errors import DeviceInUse, OperationFailed, OperationTimedOut, ShareError
from usbip_server.model.usbip import NotGiven, OpStatus
from usbip_server.net.relay import RemoteRelay
from usbip_server.runtime.threads import BlockingCalls, StillOut, TookTooLong


class RemoteExports:
    """
    Does it.
    """

    def __init__(self, mirror: RemoteReplica, work: RemoteWork, reactor: Any) -> None:
        """
        @param reactor: provides C{IReactorFDSet}, C{IReactorTime} and C{IReactorFromThreads}.
        """
        self._mirror = mirror
        self._work = work
        self._reactor = reactor
        self._calls = BlockingCalls(reactor)

    def stop(self) -> None:
        """All sessions end: their traffic passes through here."""
        self._calls.stop()
        self._mirror.sessions.endAll()

    async def export(
        self, device: UsbDevice, connection: socket.socket, holder: Holder, deadline: float
    ) -> UsbDevice:
        """
        See L{usbip_server.interfaces.IUsbBackend}.
        """
        far, there = self._mirror.at(device)
        try:
            client = socket.fromfd(
                connection.fileno(), connection.family, connection.type, connection.proto
            )
        except OSError as error:
            raise OperationFailed(device, f"cannot export {device}: {error}") from None
        self._mirror.sessions.begins(device.busId)
        try:
            begun = self._begun(far, device, there, client, holder, deadline)
            await self._work.within(deadline, begun)
        except BaseException as error:
            client.close()
            self._mirror.sessions.fail(device.busId)
            self._mirror.showAgain(device.busId)
            if isinstance(error, TookTooLong):
                raise OperationTimedOut(
                    self._mirror.now(device),
                    f"{device}: its server has not given it to us within {deadline:g} s",
                ) from None
            if isinstance(error, ShareError | CancelledError):
                raise inOurWords(self._mirror.now(device), error) from error
            raise
        return self._mirror.here(device)

    async def _begun(
        self,
        far: RemoteServer,
        device: UsbDevice,
        there: UsbDevice,
        client: socket.socket,
        holder: Holder,
        deadline: float,
    ) -> None:
        """
        Import a device, and have its traffic carried from now on.
        """
        before = await far.requests.require(there)
        if before.state is DeviceState.IN_USE:
            raise DeviceInUse(self._taken(device, before.holder))
        if before.state is not DeviceState.BOUND:
            raise OperationFailed(device, f"{device} cannot be imported: it is not bound")
        try:
            imported = await self._imported(far, device, there.busId, deadline)
        except (NotGiven, StillOut, RuntimeError) as error:  # the last: no more threads
            raise self._why(device, error) from error
        try:
            now = await far.requests.require(there)
            if now.state is not DeviceState.IN_USE:
                raise OperationFailed(device, f"{device} was taken away again at once")
        except BaseException:
            imported.connection.close()
            raise
        busId = device.busId
        relay = RemoteRelay(
            client, imported.connection, self._reactor, lambda: self._mirror.showAgain(busId)
        )
        session = RemoteSession(
            deviceNumber=device.deviceNumber,
            holder=holder,
            since=None if now.holder is None else now.holder.since,
            exported=imported.device,
            relay=relay,
        )
        self._mirror.sessions.add(busId, session)
        self._mirror.showAgain(busId)
        relay.begin()

    async def _imported(
        self, far: RemoteServer, device: UsbDevice, busId: str, deadline: float
    ) -> Imported:
        """
        A thread does it. What it has got is closed if nobody waits for it any more.
        """
        got: list[Imported] = []
        isWanted = True

        def fetch() -> Imported:
            got.append(importDevice(far.host.server, busId, deadline))
            if not isWanted:
                drop()
            return got[0]

        def drop() -> None:
            for imported in got:
                imported.connection.close()

        try:
            return await self._calls.call(device.busId, deadline, fetch)
        except BaseException:
            isWanted = False
            drop()
            raise

    def _why(self, device: UsbDevice, error: Exception) -> OperationFailed:
        """
        What it means that an import has gone wrong.
        """
        if isinstance(error, NotGiven) and error.status == OpStatus.DEV_BUSY:
            return DeviceInUse(self._taken(device, None))
        if isinstance(error, StillOut):
            why = "its server does not answer an earlier import"
            return OperationFailed(device, f"cannot export {device}: {why}")
        return OperationFailed(device, f"cannot export {device}: {error}")

    def _taken(self, device: UsbDevice, holder: Holder | None) -> UsbDevice:
        """
        A device that somebody else has, though it is perhaps not shown yet.
        """
        now = self._mirror.now(device)
        if now.state is DeviceState.IN_USE:
            return now
        return msgspec.structs.replace(now, state=DeviceState.IN_USE, holder=holder)
