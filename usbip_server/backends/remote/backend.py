"""
Devices of other servers: a daemon with this backend is a gateway to them.

Their servers bind and unbind them, and tell what happens to them; USB traffic passes through
here::

    RemoteBackend
     |-- remotemirror.py       the devices of all servers, in one inventory
     |     |-- remotehosts.py        which servers; what their buses are called here
     |     |-- remotefollowing.py    what is known of the devices of one
     |     |-- remoterequests.py     what is asked of one
     |     `-- remotesessions.py     which client has a device
     |-- remoteoperations.py   attach, detach and kick
     `-- remoteexports.py      imports from there, in a thread (importing.py)
           `-- remoterelay.py        between a client and the server of its device
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
from usbip_server.backends.remote.operations import RemoteOperations, RemoteWork
from usbip_server.backends.remote.replica import RemoteReplica
from usbip_server.interfaces import IUsbBackend
from usbip_server.model.device import Holder, Traffic, UsbDevice
from usbip_server.model.errors import ShareError
from usbip_server.model.options import convert
from usbip_server.runtime.backoff import Chance
from usbip_server.runtime.threads import TookTooLong

FIRST_SECONDS = 2.0
"""For the servers to answer when the daemon starts; it goes on without those that have not."""

LOOK_SECONDS = 5.0
"""For a server to tell how a device is."""


def makeBackend(options: Mapping[str, Any], reactor: Any) -> RemoteBackend:
    """
    See L{usbip_server.interfaces.IUsbBackendMaker}.
    """
    return RemoteBackend(reactor, hostsIn(convert(options, Options)))


@implementer(IUsbBackend)
class RemoteBackend:
    """
    Puts the parts together.
    """

    def __init__(
        self,
        reactor: Any,
        hosts: Sequence[Host],
        chance: Chance = random.random,
    ) -> None:
        """
        @param reactor: provides C{IReactorTime}, C{IReactorFDSet}, C{IReactorFromThreads} and
            what endpoints need.
        @param chance: see L{usbip_server.runtime.backoff.Pauses}.
        """
        self._mirror = RemoteReplica(hosts, reactor, chance)
        self._work = RemoteWork(reactor)
        self._operations = RemoteOperations(self._mirror, self._work)
        self._exports = RemoteExports(self._mirror, self._work, reactor)
        self.inventory = self._mirror.inventory

    async def start(self) -> None:
        first = [far.following.start() for far in self._mirror.servers]

        async def all_() -> None:
            await gatherResults(first, consumeErrors=True)

        with contextlib.suppress(TookTooLong, CancelledError):
            await self._work.within(FIRST_SECONDS, all_(), lambda outcome: None)
        self._mirror.judge()

    async def stop(self) -> None:
        for far in self._mirror.servers:
            far.following.stop()
        self._work.stop()
        self._exports.stop()

    async def bind(
        self, device: UsbDevice, deadline: float, evenMounted: bool = False
    ) -> UsbDevice:
        # What is mounted there is for that server's own configuration to allow.
        return await self._operations.attach(device, deadline)

    async def unbind(self, device: UsbDevice, deadline: float) -> UsbDevice:
        return await self._operations.detach(device, deadline)

    async def release(self, device: UsbDevice, deadline: float) -> UsbDevice:
        return await self._operations.kick(device, deadline)

    async def export(
        self, device: UsbDevice, connection: socket.socket, holder: Holder, deadline: float
    ) -> UsbDevice:
        return await self._exports.export(device, connection, holder, deadline)

    async def look(self, device: UsbDevice) -> None:
        for far in self._mirror.servers:
            there = far.there(device)
            if there is not None and far.following.trouble is None:
                # If there is no answer, whoever follows that server sees that it is gone.
                with contextlib.suppress(ShareError, TookTooLong, CancelledError):
                    await self._work.within(LOOK_SECONDS, far.requests.look(there.busId))

    def traffic(self, device: UsbDevice) -> Traffic | None:
        ours = self._mirror.sessions.traffic(device)
        return self._mirror.traffic(device) if ours is None else ours
