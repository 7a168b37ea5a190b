"""
Exports devices of other servers: imports a device from its server, and relays between it and the
client.
"""

from __future__ import annotations

import socket
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError

from usbip_server.backends.remote.operations import RemoteTasks, asOperationFailed
from usbip_server.backends.remote.replica import RemoteReplica, RemoteServer
from usbip_server.backends.remote.sessions import RemoteSession
from usbip_server.client.imports import Imported, importDevice
from usbip_server.model.device import DeviceState, Holder, UsbDevice
from usbip_server.model.errors import DeviceInUse, OperationFailed, OperationTimedOut, ShareError
from usbip_server.model.usbip import NotGiven, OpStatus
from usbip_server.net.relay import SocketRelay
from usbip_server.runtime.threads import BlockingCalls, CallPending, CallTimedOut


class RemoteExports:
    """
    Begins sessions of clients, and ends them when the daemon stops.
    """

    def __init__(self, replica: RemoteReplica, tasks: RemoteTasks, reactor: Any) -> None:
        """
        @param reactor: provides C{IReactorFDSet}, C{IReactorTime} and C{IReactorFromThreads}.
        """
        self._replica = replica
        self._tasks = tasks
        self._reactor = reactor
        self._calls = BlockingCalls(reactor)

    def stop(self) -> None:
        """End all sessions: their traffic passes through this process."""
        self._calls.stop()
        self._replica.sessions.endAll()

    async def export(
        self, device: UsbDevice, connection: socket.socket, holder: Holder, deadline: float
    ) -> UsbDevice:
        """
        See L{usbip_server.interfaces.IUsbBackend}.
        """
        server, there = self._replica.at(device)
        try:
            client = socket.fromfd(
                connection.fileno(), connection.family, connection.type, connection.proto
            )
        except OSError as error:
            raise OperationFailed(device, f"cannot export {device}: {error}") from None
        self._replica.sessions.reserve(device.busId)
        try:
            beginning = self._begin(server, device, there, client, holder, deadline)
            await self._tasks.within(deadline, beginning)
        except BaseException as error:
            client.close()
            self._replica.sessions.cancel(device.busId)
            self._replica.update(device.busId)
            if isinstance(error, CallTimedOut):
                raise OperationTimedOut(
                    self._replica.now(device),
                    f"{device}: its server has not answered the import within {deadline:g} s",
                ) from None
            if isinstance(error, ShareError | CancelledError):
                raise asOperationFailed(self._replica.now(device), error) from error
            raise
        return self._replica.require(device)

    async def _begin(
        self,
        server: RemoteServer,
        device: UsbDevice,
        there: UsbDevice,
        client: socket.socket,
        holder: Holder,
        deadline: float,
    ) -> None:
        """
        Import a device, and begin to relay.
        """
        before = await server.requests.require(there)
        if before.state is DeviceState.IN_USE:
            raise DeviceInUse(self._inUse(device, before.holder))
        if before.state is not DeviceState.BOUND:
            raise OperationFailed(device, f"{device} cannot be imported: it is not bound")
        try:
            imported = await self._imported(server, device, there.busId, deadline)
        except (NotGiven, CallPending, RuntimeError) as error:  # the last: no more threads
            raise self._failure(device, error) from error
        try:
            now = await server.requests.require(there)
            if now.state is not DeviceState.IN_USE:
                raise OperationFailed(device, f"{device} was taken away again at once")
        except BaseException:
            imported.connection.close()
            raise
        busId = device.busId
        relay = SocketRelay(
            client, imported.connection, self._reactor, lambda: self._replica.update(busId)
        )
        session = RemoteSession(
            deviceNumber=device.deviceNumber,
            holder=holder,
            since=None if now.holder is None else now.holder.since,
            exported=imported.device,
            relay=relay,
        )
        self._replica.sessions.add(busId, session)
        self._replica.update(busId)
        relay.begin()

    async def _imported(
        self, server: RemoteServer, device: UsbDevice, busId: str, deadline: float
    ) -> Imported:
        """
        Import a device in a thread. What arrives after the deadline is closed.
        """
        results: list[Imported] = []
        isWanted = True

        def run() -> Imported:
            results.append(importDevice(server.host.server, busId, deadline))
            if not isWanted:
                close()
            return results[0]

        def close() -> None:
            for imported in results:
                imported.connection.close()

        try:
            return await self._calls.call(device.busId, deadline, run)
        except BaseException:
            isWanted = False
            close()
            raise

    def _failure(self, device: UsbDevice, error: Exception) -> OperationFailed:
        """
        The error for an import that has failed.
        """
        if isinstance(error, NotGiven) and error.status == OpStatus.DEV_BUSY:
            return DeviceInUse(self._inUse(device, None))
        if isinstance(error, CallPending):
            reason = "its server has not answered an earlier import yet: try again later"
            return OperationFailed(device, f"cannot export {device}: {reason}")
        return OperationFailed(device, f"cannot export {device}: {error}")

    def _inUse(self, device: UsbDevice, holder: Holder | None) -> UsbDevice:
        """
        A device that another client has imported, even if its server has not reported it yet.
        """
        now = self._replica.now(device)
        if now.state is DeviceState.IN_USE:
            return now
        return msgspec.structs.replace(now, state=DeviceState.IN_USE, holder=holder)
