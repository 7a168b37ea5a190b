"""
What this service has plugged in, until it ends.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from usbip_server.client.attach import Attached
from usbip_server.client.devices import RemoteDevice
from usbip_server.client.servers import Server
from usbip_server.client.service.devices.desired import DesiredAttachment, isLeasedBy
from usbip_server.kernel.vhci.ports import Port, PortState, Vhci
from usbip_server.model.device import UsbDevice
from usbip_server.model.errors import LocalTrouble
from usbip_server.net.hangup import HangupWatcher
from usbip_server.runtime.threads import BlockingCalls, StillOut, TookTooLong

LOOK_AGAIN = 1.0
"""Seconds between looks at what was adopted, whose end nothing announces."""

PATIENCE = 10.0
"""Seconds for the kernel to tell."""

Place = tuple[str, str]
"""The name of a server, and a bus id there."""


class Attachment:
    """
    A device that is plugged in here.

    @ivar want: why.
    @ivar server: where it is.
    @ivar device: as its server describes it, when it was plugged in.
    @ivar attached: what has become of it here.
    @ivar kept: a duplicate of its connection; C{None} where somebody else has plugged it in: an
        earlier service.
    @ivar bound: has its server bound it as we asked?
    @ivar since: when, by the reactor's clock.
    @ivar holder: we, as its server has us; C{None} until it has told.
    """

    def __init__(
        self,
        want: DesiredAttachment,
        server: Server,
        device: UsbDevice,
        attached: Attached,
        kept: socket.socket | None,
        bound: bool,
        since: float,
    ) -> None:
        self.want = want
        self.server = server
        self.device = device
        self.attached = attached
        self.kept = kept
        self.bound = bound
        self.since = since
        self.holder = device.holder

    @property
    def place(self) -> Place:
        """Where the device is."""
        return self.server.name, self.device.busId

    @property
    def unbinds(self) -> bool:
        """
        Is it for us to have it unbound, when it is pulled out? When a lease has ended its server
        does that.
        """
        owner = self.want.owner
        return self.bound if owner is None else isLeasedBy(owner, self.device)

    def isAt(self, attached: Attached) -> bool:
        """Is it what is plugged in there?"""
        return (attached.port, attached.deviceId) == (self.attached.port, self.attached.deviceId)

    def become(self, device: UsbDevice) -> None:
        """Its server describes it anew."""
        self.device = device
        self.holder = self.holder or device.holder

    @property
    def nodes(self) -> tuple[str, ...]:
        """What programs can open."""
        return self.attached.nodes


class Attachments:
    """
    All of them, each with its own want.
    """

    _log = Logger()

    def __init__(
        self, reactor: Any, vhci: Vhci, calls: BlockingCalls, lost: Callable[[Attachment], None]
    ) -> None:
        """
        @param reactor: provides C{IReactorTime} and C{IReactorFDSet}.
        @param lost: called with one that has ended of itself.
        """
        self._reactor = reactor
        self._vhci = vhci
        self._calls = calls
        self._lost = lost
        self._hangups = HangupWatcher(reactor)
        self._plugs: dict[str, Attachment] = {}
        self._timer: IDelayedCall | None = None
        self._isStopped = False

    def __iter__(self) -> Iterator[Attachment]:
        return iter(tuple(self._plugs.values()))

    def of(self, name: str) -> Attachment | None:
        """That of a want."""
        return self._plugs.get(name)

    def at(self, place: Place) -> Attachment | None:
        """That of a device."""
        return next((plug for plug in self._plugs.values() if plug.place == place), None)

    def add(self, plug: Attachment) -> None:
        """One more; from now on its end is told."""
        self._plugs[plug.want.name] = plug
        if plug.kept is not None:
            self._hangups.listen(plug.kept, partial(self._over, plug))
        else:
            self._lookLater()

    def remove(self, plug: Attachment) -> None:
        """It is pulled out: its end is not told."""
        if self._plugs.get(plug.want.name) is plug:
            del self._plugs[plug.want.name]
        if plug.kept is not None:
            self._hangups.leave(plug.kept)
            plug.kept.close()
            plug.kept = None

    def stop(self) -> None:
        """Tell no more ends; all goes on."""
        self._isStopped = True
        self._hangups.stop()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def _over(self, plug: Attachment) -> None:
        self.remove(plug)
        self._lost(plug)

    def _lookLater(self) -> None:
        if self._timer is None and not self._isStopped:
            self._timer = self._reactor.callLater(LOOK_AGAIN, self._look)

    def _look(self) -> None:
        Deferred.fromCoroutine(self._lookNow()).addErrback(
            lambda failure: self._log.failure("a bug in looking at ports", failure)
        )

    async def _lookNow(self) -> None:
        """
        Are those still there that were adopted?
        """
        try:
            ports = await self._calls.call("status", PATIENCE, self._vhci.ports)
        except (LocalTrouble, StillOut, TookTooLong, RuntimeError):
            pass  # nothing is known
        else:
            there = {(port.number, port.deviceId) for port in ports if isUsed(port)}
            for plug in self:
                if plug.kept is None and (plug.attached.port, deviceId(plug.device)) not in there:
                    self._over(plug)
        self._timer = None
        if any(plug.kept is None for plug in self):
            self._lookLater()


def placeOf(found: RemoteDevice) -> Place:
    """
    Where a device is.
    """
    return found.server.name, found.device.busId


def isUsed(port: Port) -> bool:
    """
    Has it a device that works?
    """
    return port.state is PortState.USED


def deviceId(device: UsbDevice) -> int:
    """
    What C{vhci_hcd} calls a device of a server (C{devid}, C{drivers/usb/usbip/vhci_sysfs.c}).
    """
    return device.busNumber << 16 | device.deviceNumber
