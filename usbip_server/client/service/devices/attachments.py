"""
The devices that this service has attached, until each session ends.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from usbip_server.client.attach import Attached
from usbip_server.client.devices import RemoteDevice
from usbip_server.client.servers import Server
from usbip_server.client.service.devices.desiredstate import DesiredAttachment, isLeasedBy
from usbip_server.kernel.vhci.ports import PortState, Vhci
from usbip_server.model.device import Holder, UsbDevice
from usbip_server.model.errors import LocalTrouble
from usbip_server.net.hangup import HangupWatcher
from usbip_server.runtime.threads import BlockingCalls, CallPending, CallTimedOut

POLL_SECONDS = 1.0
"""Between polls of the ports of adopted devices, whose connections this process does not have."""

STATUS_SECONDS = 10.0
"""For the kernel to report its ports."""

Place = tuple[str, str]
"""The name of a server, and a bus id there."""


def placeOf(found: RemoteDevice) -> Place:
    """
    The place of a device.
    """
    return found.server.name, found.device.busId


def deviceId(device: UsbDevice) -> int:
    """
    The number of a server's device in C{vhci_hcd} (C{devid}, C{drivers/usb/usbip/vhci_sysfs.c}).
    """
    return device.busNumber << 16 | device.deviceNumber


class Attachment(msgspec.Struct, kw_only=True, eq=False):
    """
    An attached device.

    @ivar desired: why it is attached.
    @ivar device: as its server last described it.
    @ivar attached: its port and device nodes.
    @ivar connection: a duplicate of its connection; C{None} if the device was adopted.
    @ivar bound: has the server bound it at our request?
    @ivar since: when it was attached, in seconds of the reactor's clock.
    @ivar holder: this machine, as the server reports it; C{None} until it does.
    """

    desired: DesiredAttachment
    server: Server
    device: UsbDevice
    attached: Attached
    connection: socket.socket | None = None
    bound: bool = False
    since: float
    holder: Holder | None = None

    @property
    def place(self) -> Place:
        """The place of the device."""
        return self.server.name, self.device.busId

    @property
    def nodes(self) -> tuple[str, ...]:
        """Its device nodes."""
        return self.attached.nodes

    @property
    def unbinds(self) -> bool:
        """
        Unbind the device at its server when it is detached? After the end of a lease the server
        does it.
        """
        owner = self.desired.owner
        return self.bound if owner is None else isLeasedBy(owner, self.device)

    def isAt(self, attached: Attached) -> bool:
        """Is this what a port has?"""
        return (attached.port, attached.deviceId) == (self.attached.port, self.attached.deviceId)

    def update(self, device: UsbDevice) -> None:
        """Take over the server's new description."""
        self.device = device
        self.holder = self.holder or device.holder


class Attachments:
    """
    The attachments, by the names of what desires them; reports the end of each session.
    """

    _log = Logger()

    def __init__(
        self, reactor: Any, vhci: Vhci, calls: BlockingCalls, lost: Callable[[Attachment], None]
    ) -> None:
        """
        @param reactor: provides C{IReactorTime} and C{IReactorFDSet}.
        @param lost: called with an attachment whose session has ended.
        """
        self._reactor = reactor
        self._vhci = vhci
        self._calls = calls
        self._lost = lost
        self._hangups = HangupWatcher(reactor)
        self._attachments: dict[str, Attachment] = {}
        self._timer: IDelayedCall | None = None
        self._isStopped = False

    def __iter__(self) -> Iterator[Attachment]:
        return iter(tuple(self._attachments.values()))

    def of(self, name: str) -> Attachment | None:
        """The attachment for a L{DesiredAttachment}, by its name."""
        return self._attachments.get(name)

    def at(self, place: Place) -> Attachment | None:
        """The attachment of a device."""
        return next((each for each in self._attachments.values() if each.place == place), None)

    def add(self, attachment: Attachment) -> None:
        """Add one, and report its end."""
        self._attachments[attachment.desired.name] = attachment
        if attachment.connection is not None:
            self._hangups.listen(attachment.connection, partial(self._ended, attachment))
        else:
            self._pollLater()

    def remove(self, attachment: Attachment) -> None:
        """Remove one without a report."""
        if self._attachments.get(attachment.desired.name) is attachment:
            del self._attachments[attachment.desired.name]
        if attachment.connection is not None:
            self._hangups.leave(attachment.connection)
            attachment.connection.close()
            attachment.connection = None

    def stop(self) -> None:
        """Stop to report ends; the sessions go on."""
        self._isStopped = True
        self._hangups.stop()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def _ended(self, attachment: Attachment) -> None:
        self.remove(attachment)
        self._lost(attachment)

    def _pollLater(self) -> None:
        if self._timer is None and not self._isStopped:
            self._timer = self._reactor.callLater(POLL_SECONDS, self._poll)

    def _poll(self) -> None:
        Deferred.fromCoroutine(self._pollNow()).addErrback(
            lambda failure: self._log.failure("bug while polling ports", failure)
        )

    async def _pollNow(self) -> None:
        try:
            ports = await self._calls.call("status", STATUS_SECONDS, self._vhci.ports)
        except (LocalTrouble, CallPending, CallTimedOut, RuntimeError):
            pass  # poll again later
        else:
            used = {(port.number, port.deviceId) for port in ports if port.state is PortState.USED}
            for each in self:
                port = each.attached.port, deviceId(each.device)
                if each.connection is None and port not in used:
                    self._ended(each)
        self._timer = None
        if any(each.connection is None for each in self):
            self._pollLater()
