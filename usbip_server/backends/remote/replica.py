"""
The devices of all servers of a gateway, in one inventory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from twisted.logger import Logger

from usbip_server.backends.remote.config import BUSES, Host
from usbip_server.backends.remote.requests import RemoteRequests
from usbip_server.backends.remote.sessions import RemoteSessions
from usbip_server.backends.remote.watch import RemoteFollowing
from usbip_server.model.device import DeviceState, Traffic, UsbDevice
from usbip_server.model.errors import OperationFailed
from usbip_server.model.inventory import Inventory
from usbip_server.runtime.backoff import Chance

NOBODY = "no server is there"
ITSELF = "it is a gateway that reaches no server itself, or this one"


class RemoteServer(msgspec.Struct, frozen=True, eq=False):
    """
    A server, and what we have to do with it.
    """

    host: Host
    following: RemoteFollowing
    requests: RemoteRequests

    def there(self, device: UsbDevice) -> UsbDevice | None:
        """A device as this server calls it; C{None}: it is none of its."""
        busId = self.host.busIdThere(device.busId)
        return None if busId is None else msgspec.structs.replace(device, busId=busId)


class RemoteReplica:
    """
    Keeps the inventory in step with what the servers tell.

    @ivar inventory: their devices.
    @ivar sessions: those of our clients.
    @ivar stuck: devices to which something is still being done, by their bus ids: which it is,
        and what is the matter. Say C{showAgain} after a change.
    """

    _log = Logger()

    def __init__(self, hosts: Sequence[Host], reactor: Any, chance: Chance) -> None:
        """
        @param chance: see L{usbip_server.runtime.backoff.Pauses}.
        """
        self.inventory = Inventory()
        self.sessions = RemoteSessions()
        self.stuck: dict[str, tuple[int, str]] = {}
        self.servers = tuple(self._far(host, reactor, chance) for host in hosts)
        self._tooHigh: set[tuple[str, str]] = set()

    def at(self, device: UsbDevice) -> tuple[RemoteServer, UsbDevice]:
        """
        Where a device is, and what it is called there.

        @raise OperationFailed: it is gone.
        """
        for far in self.servers:
            there = far.there(device)
            if there is not None and self.inventory.same(device) is not None:
                return far, there
        raise OperationFailed(device, f"{device} is gone: it was unplugged")

    def here(self, device: UsbDevice) -> UsbDevice:
        """
        A device as it is now.

        @raise OperationFailed: it is gone.
        """
        self.at(device)
        return self.now(device)

    def now(self, device: UsbDevice) -> UsbDevice:
        """A device as it is now, or was."""
        return self.inventory.same(device) or device

    def traffic(self, device: UsbDevice) -> Traffic | None:
        """What a device's last holder has moved, as far as its server has told."""
        for far in self.servers:
            there = far.there(device)
            known = None if there is None else far.following.known.get(there.busId)
            if known is not None and known.device.deviceNumber == device.deviceNumber:
                return known.traffic
        return None

    def showAgain(self, busId: str) -> None:
        """What we know of a device besides has changed."""
        for far in self.servers:
            there = far.host.busIdThere(busId)
            if there is not None:
                self._show(far, there)

    def judge(self) -> None:
        """Can there be devices at all?"""
        troubles = [far.following.trouble for far in self.servers]
        # A gateway that reaches nobody, and be it we ourselves, says it in these words too.
        told = [
            trouble if NOBODY not in trouble else f"{trouble.partition(': ')[0]}: {ITSELF}"
            for trouble in troubles
            if trouble is not None
        ]
        isNone = len(told) == len(troubles)
        self.inventory.trouble = f"{NOBODY}: {'; '.join(told)}" if isNone else None

    def _far(self, host: Host, reactor: Any, chance: Chance) -> RemoteServer:
        following = RemoteFollowing(
            host.server, reactor, lambda busId: self._told(far, busId), chance
        )
        far = RemoteServer(host, following, RemoteRequests(host.server, reactor, following))
        return far

    def _told(self, far: RemoteServer, busId: str | None) -> None:
        """
        A server has told something of a device, or of all.
        """
        self.judge()
        if busId is not None:
            self._show(far, busId)
            return
        host = far.host
        ours = (device.busId for device in self.inventory.snapshot.devices)
        there = {busId for here in ours if (busId := host.busIdThere(here)) is not None}
        self._show(far, *(there | far.following.known.keys()))

    def _show(self, far: RemoteServer, *busIds: str) -> None:
        """
        @param busIds: those there.
        """
        found: list[UsbDevice] = []
        among: set[str] = set()
        for there in busIds:
            busId = far.host.busIdHere(there)
            known = far.following.known.get(there)
            if busId is None:
                self._leaveOut(far, there)
                continue
            device = None if known is None else far.host.here(known.device, busId)
            before = self.inventory.get(busId)
            isSame = device is not None and before is not None
            if self.sessions.isBeginning(busId) and isSame:
                continue
            among.add(busId)
            if device is not None:
                found.append(self._shown(device))
        self.inventory.replace(found, among)

    def _shown(self, device: UsbDevice) -> UsbDevice:
        number, trouble = self.stuck.get(device.busId, (None, None))
        if number == device.deviceNumber:
            return msgspec.structs.replace(
                device, state=DeviceState.ERROR, holder=None, trouble=trouble
            )
        return self.sessions.shown(device)

    def _leaveOut(self, far: RemoteServer, there: str) -> None:
        key = far.host.server.name, there.partition("-")[0]
        if key not in self._tooHigh:
            self._tooHigh.add(key)
            self._log.warn(
                "bus {bus} of {server} is left out: there is room for those below {most} only. "
                "A server that is a gateway itself cannot be one of a gateway's",
                bus=key[1],
                server=key[0],
                most=BUSES,
            )
