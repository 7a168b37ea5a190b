"""
The gateway: a backend whose devices are those of other servers. These bind and unbind them, and
report changes; USB traffic is relayed by this process::

    RemoteBackend
     |-- RemoteReplica         replica.py: one inventory of all servers
     |     |-- Host                  config.py: bus ids here and there
     |     |-- RemoteWatch           watch.py: the devices of one server
     |     |-- RemoteRequests        requests.py: requests to one server
     |     `-- RemoteSessions        sessions.py: which client has imported a device
     |-- RemoteOperations      operations.py: attach, detach and kick, with deadlines
     `-- RemoteExports         exports.py: imports from servers, and relays
"""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from twisted.internet.defer import CancelledError, gatherResults
from zope.interface import implementer

from usbip_server.backends.remote.config import Host, Options, hostsIn
from usbip_server.backends.remote.exports import RemoteExports
from usbip_server.backends.remote.operations import RemoteOperations, RemoteTasks
from usbip_server.backends.remote.replica import RemoteReplica
from usbip_server.interfaces import IUsbBackend
from usbip_server.model.device import Holder, Traffic, UsbDevice
from usbip_server.model.errors import ShareError
from usbip_server.model.options import convert
from usbip_server.runtime.backoff import Random
from usbip_server.runtime.threads import CallTimedOut

FIRST_SECONDS = 2.0
"""For the servers to answer when the daemon starts; it does not wait longer for the others."""

LOOK_SECONDS = 5.0
"""For a server to report the state of a device."""


def makeBackend(options: Mapping[str, Any], reactor: Any) -> RemoteBackend:
    """
    See L{usbip_server.interfaces.IUsbBackendMaker}.
    """
    return RemoteBackend(reactor, hostsIn(convert(options, Options)))


@implementer(IUsbBackend)
class RemoteBackend:
    """
    Implements the interface with the parts of this folder.
    """

    def __init__(
        self,
        reactor: Any,
        hosts: Sequence[Host],
        chance: Random = random.random,
    ) -> None:
        """
        @param reactor: provides C{IReactorTime}, C{IReactorFDSet}, C{IReactorFromThreads} and
            what endpoints need.
        @param chance: see L{usbip_server.runtime.backoff.Backoff}.
        """
        self._replica = RemoteReplica(hosts, reactor, chance)
        self._tasks = RemoteTasks(reactor)
        self._operations = RemoteOperations(self._replica, self._tasks)
        self._exports = RemoteExports(self._replica, self._tasks, reactor)
        self.inventory = self._replica.inventory

    async def start(self) -> None:
        first = [server.watch.start() for server in self._replica.servers]

        async def all_() -> None:
            await gatherResults(first, consumeErrors=True)

        with contextlib.suppress(CallTimedOut, CancelledError):
            await self._tasks.within(FIRST_SECONDS, all_(), lambda outcome: None)
        self._replica.updateTrouble()

    async def stop(self) -> None:
        for server in self._replica.servers:
            server.watch.stop()
        self._tasks.stop()
        self._exports.stop()

    async def bind(
        self, device: UsbDevice, deadline: float, allowMounted: bool = False
    ) -> UsbDevice:
        # Whether a mounted disk may be bound is for the server's configuration to say.
        return await self._operations.attach(device, deadline)

    async def unbind(self, device: UsbDevice, deadline: float) -> UsbDevice:
        return await self._operations.detach(device, deadline)

    async def release(self, device: UsbDevice, deadline: float) -> UsbDevice:
        return await self._operations.kick(device, deadline)

    async def export(
        self, device: UsbDevice, connection: socket.socket, holder: Holder, deadline: float
    ) -> UsbDevice:
        return await self._exports.export(device, connection, holder, deadline)

    async def refresh(self, device: UsbDevice) -> None:
        for server in self._replica.servers:
            there = server.there(device)
            if there is not None and server.watch.trouble is None:
                # Without an answer, the watch of the server notices that it is gone.
                with contextlib.suppress(ShareError, CallTimedOut, CancelledError):
                    await self._tasks.within(LOOK_SECONDS, server.requests.look(there.busId))

    def traffic(self, device: UsbDevice) -> Traffic | None:
        own = self._replica.sessions.traffic(device)
        return self._replica.traffic(device) if own is None else own
