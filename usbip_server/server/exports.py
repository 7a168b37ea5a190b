"""
USB/IP imports by clients: who may import a device, and how its connection is handed over.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from usbip_server.model.device import DeviceState, Encryption, Holder, UsbDevice
from usbip_server.model.devicerules import Share
from usbip_server.model.errors import DeviceInUse, DeviceLeased, DeviceNotFound, OperationFailed
from usbip_server.model.policy import Principal, Right, sameHost
from usbip_server.net.caller import Caller
from usbip_server.net.handover import SessionSocket, requireSilence
from usbip_server.server.access.authorizer import Authorizer
from usbip_server.server.devices.operations import EXPORT_SECONDS, Action, Operation, Operations
from usbip_server.server.devices.reconciler import Reconciler
from usbip_server.server.devices.view import DeviceView
from usbip_server.server.sessions import Session

REFRESH_AFTER = (0.0, 0.1, 0.2, 0.3, 0.5, 1.0)
"""Seconds after the end of a session at which the device is refreshed: the kernel resets it,
which takes about 0.2 s, and longer if several sessions end at once."""

JUST_FREED = 1.0
"""Seconds for which a device may be shown as in use after its session has ended."""

REFRESH_PAUSE = 0.2
"""Seconds."""

ENCRYPTION = {
    Encryption.NONE: "plain",
    Encryption.KTLS: "encrypted by the kernel (ktls)",
    Encryption.RELAY: "encrypted by this daemon (relay)",
}
"""How the log describes the encryption of USB traffic."""


class Exports:
    """
    Hands clients' connections to devices.
    """

    _log = Logger()

    def __init__(
        self,
        authorizer: Authorizer,
        view: DeviceView,
        operations: Operations,
        reconciler: Reconciler,
        reactor: Any,
        now: Callable[[], float],
    ) -> None:
        """
        @param reactor: provides C{IReactorTime}.
        @param now: the time, in seconds since the epoch.
        """
        self._authorizer = authorizer
        self._view = view
        self._operations = operations
        self._reconciler = reconciler
        self._reactor = reactor
        self._now = now
        self._isStopped = False

    def stop(self) -> None:
        """Refresh no more devices; all sessions go on."""
        self._isStopped = True
        self._view.sessions.stop()

    def importable(self, principal: Principal) -> tuple[UsbDevice, ...]:
        """The devices that a client may import, including those that are in use."""
        return tuple(
            device
            for device in self._authorizer.of(principal).among(Right.IMPORT, self._view.devices)
            if device.state in (DeviceState.BOUND, DeviceState.IN_USE) or self._isOnImport(device)
        )

    async def handOver(
        self, busId: str, caller: Caller, carrier: SessionSocket, ended: Callable[[], None]
    ) -> UsbDevice:
        """
        Hand a client's connection to a device: USB traffic goes over it from then on.

        @param carrier: the socket that the device gets if this succeeds. C{begin} and C{drop}
            are the caller's to call.
        @param ended: called when the session has ended.
        @raise ShareError: the client cannot import the device.
        """
        device = await self._available(busId, caller)
        bindSeconds = self._view.settings.timeouts.bind
        return await self._operations.perform(
            Action.IMPORT,
            device,
            lambda: self._find(busId, caller),
            caller.principal,
            self._reactor.seconds() + bindSeconds + EXPORT_SECONDS,
            work=lambda operation: self._export(operation, carrier, ended),
        )

    async def _export(
        self, operation: Operation, carrier: SessionSocket, ended: Callable[[], None]
    ) -> UsbDevice:
        """
        Bind a device if its rule is C{share: on_import}, and export it: in one operation, so
        that no other client unbinds it in between.
        """
        device = operation.device
        try:
            # Whatever becomes of the original meanwhile, this stays the client's connection.
            duplicate = carrier.connection.dup()
        except OSError as error:
            raise OperationFailed(device, f"cannot export {device}: {error}") from error
        given = duplicate if carrier.given is carrier.connection else carrier.given
        holder = Holder(
            address=operation.principal.address,
            since=self._now(),
            encryption=carrier.encryption,
        )
        session = Session(device, duplicate, holder, partial(self._ended, device, ended))
        sessions = self._view.sessions
        try:
            if device.state is DeviceState.FREE:
                device = await self._operations.bind(operation)
            requireSilence(duplicate)
            sessions.begin(session)
            exported = await self._operations.export(device, given, holder)
        except BaseException:
            sessions.drop(session)
            if operation.device.state is DeviceState.FREE:
                self._release(device)
            raise
        self._reconciler.imported(exported)
        sessions.add(session)
        self._log.info(
            "{principal} has {device}: {encryption}",
            principal=str(operation.principal),
            device=str(exported),
            encryption=ENCRYPTION[carrier.encryption],
        )
        return exported

    async def _available(self, busId: str, caller: Caller) -> UsbDevice:
        """Return the device, also if its last session has only just ended."""
        until = self._reactor.seconds() + JUST_FREED
        while True:
            try:
                return self._find(busId, caller)
            except DeviceInUse as error:
                isOpen = self._view.sessions.isOpen(error.device)
                if isOpen or self._reactor.seconds() >= until:
                    raise
                await deferLater(self._reactor, REFRESH_PAUSE)
                await self._operations.refresh(error.device)

    def _find(self, busId: str, caller: Caller) -> UsbDevice:
        """
        @raise ShareError: there is no such device, or the client cannot import it.
        """
        device = self._view.inventory.get(busId)
        if device is None:
            raise DeviceNotFound(f"there is no device {busId}")
        self._authorizer.of(caller.principal).require(Right.IMPORT, device)
        lease = device.lease
        if lease is not None and not sameHost(lease.address, caller.principal.address):
            raise DeviceLeased(device, lease, self._view.desired.left(lease))
        if device.state is DeviceState.IN_USE:
            raise DeviceInUse(device, self._view.sessions.traffic(device))
        if device.state is DeviceState.FREE and not self._isOnImport(device):
            raise DeviceNotFound(f"{device} is not attached: attach it first")
        return device

    def _isOnImport(self, device: UsbDevice) -> bool:
        return self._view.rule(device).share is Share.ON_IMPORT

    def _ended(self, device: UsbDevice, ended: Callable[[], None]) -> None:
        ended()
        self._release(device)
        for seconds in REFRESH_AFTER:
            self._reactor.callLater(seconds, self._refresh, device)

    def _release(self, device: UsbDevice) -> None:
        if self._view.rule(device).unbind_released:
            self._reconciler.released(device)

    def _refresh(self, device: UsbDevice) -> None:
        if self._isStopped:
            return
        Deferred.fromCoroutine(self._operations.refresh(device)).addErrback(
            lambda failure: self._log.failure("cannot refresh {device}", failure, device=device)
        )
