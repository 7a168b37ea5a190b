"""
USB/IP: lists the devices that can be imported, and hands connections over to devices.

The conversations (L{usbip_server.model.usbip} encodes and decodes the messages)::

    client -> server   OP_REQ_DEVLIST
    client <- server   OP_REP_DEVLIST                 (closes)

    client -> server   OP_REQ_IMPORT, bus id
                       (hands the connection to the device, and replies only then)
    client <- server   OP_REP_IMPORT, status 0, device
    client <> device   USB traffic, not through this module

    client -> server   OP_REQ_IMPORT, bus id
    client <- server   OP_REP_IMPORT, status != 0     (closes)
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.protocols.policies import TimeoutMixin
from twisted.python.failure import Failure

from usbip_server.model.errors import (
    BackendUnavailable,
    DeviceAwaited,
    DeviceInUse,
    DeviceLeased,
    DeviceNotFound,
    InvalidRequest,
    LocalTrouble,
    NotAllowed,
    NotDone,
    OperationFailed,
    SeveralMatch,
    ShareError,
    SnapshotNeeded,
    StillWorking,
)
from usbip_server.model.policy import Principal
from usbip_server.model.usbip import (
    ImportRequest,
    ListRequest,
    NotUsbIp,
    OpStatus,
    decode,
    encodeImport,
    encodeList,
    encodeRefusal,
)
from usbip_server.net.caller import Caller, principalAt, principalOf
from usbip_server.net.handover import NotEncrypted, SessionSocket, requireSilence
from usbip_server.protocols.interfaces import ExportSettings, IImportHandler
from usbip_server.protocols.overflow import QUIET
from usbip_server.protocols.slots import NoPlace, Slot, Slots
from usbip_server.runtime.repeats import Warnings

REQUEST_SECONDS = 10.0
"""Time for a client to send its request."""

STATUS_OF: dict[type[ShareError], OpStatus] = {
    DeviceInUse: OpStatus.DEV_BUSY,
    DeviceLeased: OpStatus.DEV_BUSY,
    DeviceAwaited: OpStatus.DEV_BUSY,
    StillWorking: OpStatus.DEV_BUSY,
    NotDone: OpStatus.DEV_BUSY,
    DeviceNotFound: OpStatus.NODEV,
    NotAllowed: OpStatus.NODEV,
    SeveralMatch: OpStatus.ERROR,
    OperationFailed: OpStatus.DEV_ERR,
    BackendUnavailable: OpStatus.NA,
    InvalidRequest: OpStatus.ERROR,
    SnapshotNeeded: OpStatus.ERROR,
    LocalTrouble: OpStatus.ERROR,
}
"""The status of each error; a subclass has that of its base."""


class ExporterState(enum.Enum):
    """
    The states of a connection::

        READING -> WORKING -> ANSWERED      a list, or an import that was refused
        READING -> WORKING -> HANDED_OVER   an import
        READING, WORKING -> CLOSING         no valid request, or the daemon stops
    """

    READING = 1
    """The request has not arrived yet."""

    WORKING = 2
    ANSWERED = 3
    """The reply was written, and the connection closes when it is sent."""

    HANDED_OVER = 4
    """The device has the connection."""

    CLOSING = 5


class Exporter(Protocol, TimeoutMixin):
    """
    One connection, until it carries USB traffic.
    """

    factory: ExporterFactory
    transport: Any
    _log = Logger()

    def __init__(
        self, principal: Principal, carry: Callable[[], SessionSocket] | None = None
    ) -> None:
        """
        @param carry: makes the socket for the device; C{None}: it gets the connection itself.
        """
        self._carry = carry
        self._caller = Caller(principal)
        self._received = b""
        self._state = ExporterState.READING

    def callLater(self, period: float, func: Any) -> IDelayedCall:
        """The clock of C{TimeoutMixin}."""
        return self.factory.clock.callLater(period, func)

    def connectionMade(self) -> None:
        if self._carry is None:
            self._carry = self._plain
            self._caller = Caller(principalOf(self.transport))
        if not self.factory.add(self, self._caller.principal):
            self._state = ExporterState.CLOSING
            self.transport.abortConnection()
            return
        self.setTimeout(REQUEST_SECONDS)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.setTimeout(None)
        self.factory.remove(self)
        if self._received and self._state is ExporterState.READING:
            self.factory.warnings.warn(
                "{principal} is not a USB/IP client: it disconnected in the middle of a request",
                principal=str(self._caller.principal),
            )
        self._caller.gone()

    def dataReceived(self, data: bytes) -> None:
        if self._state is not ExporterState.READING:
            return
        self._received += data
        try:
            request = decode(self._received)
        except NotUsbIp as error:
            self._cutOff(error)
            return
        if request is None:
            return
        self._state = ExporterState.WORKING
        self.setTimeout(None)
        self.transport.pauseProducing()  # what comes from now on is USB traffic
        work = self._list(request) if isinstance(request, ListRequest) else self._import(request)
        Deferred.fromCoroutine(work).addErrback(self._failed)

    def timeoutConnection(self) -> None:
        if self._state is ExporterState.READING:
            self._cutOff(f"no complete request within {REQUEST_SECONDS:g} s")
            return
        if self._state is ExporterState.ANSWERED:  # otherwise the daemon is stopping
            self.factory.warnings.warn(
                "{principal} did not read its reply within {seconds:g} s",
                principal=str(self._caller.principal),
                seconds=REQUEST_SECONDS,
            )
        self.transport.abortConnection()

    def close(self) -> None:
        """Close the connection unless it carries USB traffic: the daemon stops."""
        if self._state is not ExporterState.HANDED_OVER:
            if self._state is not ExporterState.ANSWERED:
                self._state = ExporterState.CLOSING
            self.transport.loseConnection()

    async def _list(self, request: ListRequest) -> None:
        try:
            devices = await self.factory.handler.importable(self._caller.principal)
        except ShareError:
            devices = ()  # OP_REP_DEVLIST has no status for an error
        self._answer(encodeList(devices))

    async def _import(self, request: ImportRequest) -> None:
        try:
            carrier = self._checked()
        except (OSError, InvalidRequest) as error:
            self._cutOff(error)
            return
        except NotEncrypted as error:
            self.factory.warnings.warn(
                "{principal}: import refused: {reason}",
                principal=str(self._caller.principal),
                reason=str(error),
            )
            self._answer(encodeRefusal(OpStatus.NA))
            return
        try:
            device = await self.factory.handler.handOver(
                request.busId, self._caller, carrier, self._ended
            )
        except BaseException as error:
            carrier.drop()
            if not isinstance(error, ShareError):
                raise
            self._answer(encodeRefusal(statusOf(error)))
        else:
            # The transport stays open without reading: closing it would shut down the
            # connection that the device uses.
            self._state = ExporterState.HANDED_OVER
            self.factory.remove(self)
            self.transport.write(encodeImport(device))
            carrier.begin()

    def _checked(self) -> SessionSocket:
        assert self._carry is not None, "there is no connection yet"
        carrier = self._carry()
        try:
            self.factory.settings.keepalive.apply(carrier.connection)
            requireSilence(carrier.connection)
        except BaseException:
            carrier.drop()
            raise
        return carrier

    def _plain(self) -> SessionSocket:
        connection = self.transport.getHandle()
        return SessionSocket(given=connection, connection=connection)

    def _ended(self) -> None:
        """Close the connection: its session has ended."""
        self.transport.loseConnection()

    def _cutOff(self, reason: object) -> None:
        self._state = ExporterState.CLOSING
        self.factory.warnings.warn(
            "{principal} is not a USB/IP client: {reason}",
            principal=str(self._caller.principal),
            reason=str(reason),
        )
        self.transport.abortConnection()

    def _answer(self, answer: bytes) -> None:
        if self._caller.isGone:
            return
        self._state = ExporterState.ANSWERED
        self.transport.write(answer)
        self.setTimeout(REQUEST_SECONDS)  # for the client to read it
        self.transport.loseConnection()

    def _failed(self, failure: Failure) -> None:
        self._log.failure("a bug in answering over USB/IP", failure)
        self.transport.abortConnection()


class ExporterFactory(Factory):
    """
    Makes the connections for USB/IP, and limits the number of those that carry no USB traffic
    yet.

    @ivar connections: the connections that carry no USB traffic yet; each has a C{close}.
    @ivar warnings: about clients.
    """

    noisy = False
    _log = Logger()

    def __init__(
        self, handler: IImportHandler, settings: ExportSettings, clock: IReactorTime
    ) -> None:
        self.handler = handler
        self.settings = settings
        self.clock = clock
        self.connections: dict[Any, Slot] = {}
        self._slots = Slots(lambda: settings.limits.connections, handler.mayImport)
        self._warnAgain = 0.0
        self.warnings = Warnings(Exporter._log, clock)

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        return self.make(principalAt(addr))

    def add(self, connection: Any, principal: Principal) -> bool:
        """
        Take a place for a connection.

        @return: whether there is one; otherwise the connection is to be aborted.
        """
        try:
            self.connections[connection] = self._slots.take(principal)
        except NoPlace as error:
            now = self.clock.seconds()
            if now >= self._warnAgain:
                self._warnAgain = now + QUIET
                self._log.warn(
                    "USB/IP connection from {principal} refused: {reason}; others are not logged "
                    "for {seconds:g} s",
                    principal=str(principal),
                    reason=str(error),
                    seconds=QUIET,
                )
            return False
        return True

    def remove(self, connection: Any) -> None:
        """Free the place of a connection, if it has one."""
        slot = self.connections.pop(connection, None)
        if slot is not None:
            slot.free()

    def make(
        self, principal: Principal, carry: Callable[[], SessionSocket] | None = None
    ) -> Exporter:
        """
        Make the protocol for a client that is known already.

        @param carry: as L{Exporter}.
        """
        exporter = Exporter(principal, carry)
        exporter.factory = self
        return exporter

    def close(self) -> None:
        """Close the connections that carry no USB traffic: the daemon stops."""
        for connection in tuple(self.connections):
            connection.close()
        self.warnings.stop()


def statusOf(error: ShareError) -> OpStatus:
    """
    The status of an error.
    """
    return next(STATUS_OF[kind] for kind in type(error).__mro__ if kind in STATUS_OF)
