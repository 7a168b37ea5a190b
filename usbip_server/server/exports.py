"""
Who may import a device, and how its connection comes to it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from usbip_server.interfaces import IUsbBackend
from usbip_server.model.device import DeviceState, Encryption, Holder, UsbDevice
from usbip_server.model.errors import DeviceInUse, DeviceLeased, DeviceNotFound, OperationFailed
from usbip_server.model.inventory import Change, ChangeKind
from usbip_server.model.policy import Principal, Right, sameHost
from usbip_server.model.rules import Rules, Share
from usbip_server.net.caller import Caller
from usbip_server.net.handover import SessionSocket, requireSilence
from usbip_server.server.access.authorizer import Authorizer
from usbip_server.server.devices.desired import DesiredState
from usbip_server.server.devices.operations import Operation, Operations
from usbip_server.server.devices.reconciler import Reconciler
from usbip_server.server.devices.view import DeviceView
from usbip_server.server.sessions import Session, SessionTable

AFTERWARDS = (0.0, 0.1, 0.2, 0.3, 0.5, 1.0)
"""Seconds after the end of a session at which to look what has become of the device: the
kernel resets it, which takes about 0.2 s, and more if several end at once."""

JUST_FREED = 1.0
"""Seconds that a device may be shown as in use though its session is over."""

LOOK_AGAIN = 0.2
"""Seconds."""

EXPORT_SECONDS = 5.0
"""For the kernel to take a connection."""

HOW = {
    Encryption.NONE: "plain",
    Encryption.KTLS: "encrypted by the kernel (ktls)",
    Encryption.RELAY: "encrypted by this daemon (relay)",
}
"""How USB traffic goes, for the log."""


class Exports:
    """
    Hands devices out.
    """

    _log = Logger()

    def __init__(
        self,
        backend: IUsbBackend,
        access: Authorizer,
        catalogue: DeviceView,
        rules: Rules,
        wishes: DesiredState,
        operations: Operations,
        keeper: Reconciler,
        reactor: Any,
        now: Callable[[], float],
    ) -> None:
        """
        @param reactor: provides C{IReactorTime} and C{IReactorFDSet}.
        @param now: the time, in seconds since the epoch.
        """
        self.handoffs = SessionTable(reactor)
        self._backend = backend
        self._access = access
        self._catalogue = catalogue
        self._rules = rules
        self._wishes = wishes
        self._operations = operations
        self._keeper = keeper
        self._reactor = reactor
        self._now = now
        self._stopped = False
        catalogue.inventory.subscribe(self._changed)

    def stop(self) -> None:
        """Look no more; all sessions go on."""
        self._stopped = True
        self.handoffs.stop()

    def importable(self, principal: Principal) -> tuple[UsbDevice, ...]:
        """The devices that somebody can import, or could, if nobody had them."""
        devices = self._catalogue.inventory.snapshot.devices
        return tuple(
            device
            for device in self._access.of(principal).among(Right.IMPORT, devices)
            if device.state in (DeviceState.BOUND, DeviceState.IN_USE) or self._isOnImport(device)
        )

    async def handOver(
        self, busId: str, caller: Caller, carrier: SessionSocket, ended: Callable[[], None]
    ) -> UsbDevice:
        """
        Give a device to a client: from now on USB traffic goes over this.

        @param carrier: what it gives is the device's if this succeeds, see
            L{IUsbBackend.export}; its functions are the caller's to call.
        @param ended: called when the session has ended.
        @raise ShareError: it is not to be had.
        """
        device = await self._chosen(busId, caller)
        return await self._operations.perform(
            "import",
            device,
            lambda: self._find(busId, caller),
            caller.principal,
            self._reactor.seconds() + self._operations.timeouts.bind + EXPORT_SECONDS,
            work=lambda operation: self._give(operation, carrier, ended),
        )

    async def _give(
        self, operation: Operation, carrier: SessionSocket, ended: Callable[[], None]
    ) -> UsbDevice:
        """
        Bind a device, if it is to be bound on import, and export it. All in one operation, so
        that nobody unbinds it in between.
        """
        device = operation.device
        try:
            # Whatever becomes of the other meanwhile, this one stays the client's connection.
            kept = carrier.connection.dup()
        except OSError as error:
            raise OperationFailed(device, f"cannot export {device}: {error}") from error
        given = kept if carrier.given is carrier.connection else carrier.given
        holder = Holder(
            address=operation.principal.address,
            since=self._now(),
            encryption=carrier.encryption,
        )
        handoff = Session(device, kept, holder, partial(self._ended, device, ended))
        try:
            if device.state is DeviceState.FREE:
                device = await self._operations.bind(operation)
            requireSilence(kept)
            self.handoffs.begin(handoff)
            exported = await self._backend.export(device, given, holder, EXPORT_SECONDS)
        except BaseException:
            self.handoffs.drop(handoff)
            if operation.device.state is DeviceState.FREE:
                self._release(device)
            raise
        self._keeper.taken(exported)
        self.handoffs.add(handoff)
        self._log.info(
            "{principal} has {device}: {encryption}",
            principal=str(operation.principal),
            device=str(exported),
            encryption=HOW[carrier.encryption],
        )
        return exported

    async def _chosen(self, busId: str, caller: Caller) -> UsbDevice:
        """
        The device, also if it has only just been given back.
        """
        until = self._reactor.seconds() + JUST_FREED
        while True:
            try:
                return self._find(busId, caller)
            except DeviceInUse as error:
                if self.handoffs.isOpen(error.device) or self._reactor.seconds() >= until:
                    raise
                await deferLater(self._reactor, LOOK_AGAIN)
                await self._backend.refresh(error.device)

    def _find(self, busId: str, caller: Caller) -> UsbDevice:
        """
        @raise ShareError: there is none, or it is somebody else's.
        """
        device = self._catalogue.inventory.get(busId)
        if device is None:
            raise DeviceNotFound(f"there is no device {busId}")
        self._access.of(caller.principal).require(Right.IMPORT, device)
        lease = device.lease
        if lease is not None and not sameHost(lease.address, caller.principal.address):
            raise DeviceLeased(device, lease, self._wishes.left(lease))
        if device.state is DeviceState.IN_USE:
            raise DeviceInUse(device, self.handoffs.traffic(device))
        if device.state is DeviceState.FREE and not self._isOnImport(device):
            raise DeviceNotFound(f"{device} is not attached: attach it first")
        return device

    def _isOnImport(self, device: UsbDevice) -> bool:
        return self._rules.of(device).share is Share.ON_IMPORT

    def _ended(self, device: UsbDevice, ended: Callable[[], None]) -> None:
        ended()
        self._release(device)
        if self._catalogue.inventory.same(device) is None:
            self.handoffs.forget(device)
        for seconds in AFTERWARDS:
            self._reactor.callLater(seconds, self._look, device)

    def _release(self, device: UsbDevice) -> None:
        if self._rules.of(device).unbind_released:
            self._keeper.letGo(device)

    def _changed(self, changes: tuple[Change, ...]) -> None:
        for change in changes:
            if change.kind is ChangeKind.REMOVED:
                self.handoffs.forget(change.device)

    def _look(self, device: UsbDevice) -> None:
        if self._stopped:
            return
        Deferred.fromCoroutine(self._backend.refresh(device)).addErrback(
            lambda failure: self._log.failure("cannot refresh {device}", failure, device=device)
        )
