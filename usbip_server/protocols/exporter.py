"""
USB/IP: which devices can be imported, and the import of one.

A conversation (L{usbip_server.model.usbip} has the bytes)::

    client: OP_REQ_DEVLIST
    server: OP_REP_DEVLIST, closes

    client: OP_REQ_IMPORT
    server gives the connection to the device, and only then answers:
    server: OP_REP_IMPORT
    from now on USB traffic goes both ways, and not through here.

An import that fails is answered with its status, and the connection closed.
"""

from __future__ import annotations

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
from usbip_server.net.keepalive import KeepAlive
from usbip_server.protocols.interfaces import IImportHandler

REQUEST_SECONDS = 10.0
"""For a client to say what it wants."""

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
"""Which status tells of which error; a subclass has its base's."""


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
        @param carry: makes what carries USB traffic; C{None}: that is the connection as it is.
        """
        self._carry = carry
        self._caller = Caller(principal)
        self._received = b""
        self._asked = False
        self._answered = False
        self._handedOver = False

    def callLater(self, period: float, func: Any) -> IDelayedCall:
        """What C{TimeoutMixin} uses."""
        return self.factory.clock.callLater(period, func)

    def connectionMade(self) -> None:
        if self._carry is None:
            self._carry = self._plain
            self._caller = Caller(principalOf(self.transport))
        self.factory.connections.add(self)
        self.setTimeout(REQUEST_SECONDS)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.setTimeout(None)
        self.factory.connections.discard(self)
        if self._received and not self._asked:
            self._log.warn(
                "{principal} is no USB/IP client: it leaves in the middle of a request",
                principal=str(self._caller.principal),
            )
        self._caller.gone()

    def dataReceived(self, data: bytes) -> None:
        if self._asked:
            return
        self._received += data
        try:
            request = decode(self._received)
        except NotUsbIp as error:
            self._cutOff(error)
            return
        if request is None:
            return
        self._asked = True
        self.setTimeout(None)
        self.transport.pauseProducing()  # what comes from now on is not for us
        work = self._list(request) if isinstance(request, ListRequest) else self._import(request)
        Deferred.fromCoroutine(work).addErrback(self._failed)

    def timeoutConnection(self) -> None:
        if not self._asked:
            self._cutOff(f"no whole request within {REQUEST_SECONDS:g} s")
            return
        if self._answered:  # else it does not go though the daemon stops
            self._log.warn(
                "{principal} has not taken its answer within {seconds:g} s",
                principal=str(self._caller.principal),
                seconds=REQUEST_SECONDS,
            )
        self.transport.abortConnection()

    def close(self) -> None:
        """
        The daemon stops: USB traffic goes on without it, all else ends.
        """
        if not self._handedOver:
            self._asked = True
            self.transport.loseConnection()

    async def _list(self, request: ListRequest) -> None:
        try:
            devices = await self.factory.handler.importable(self._caller.principal)
        except ShareError:
            devices = ()  # there is no status for this
        self._answer(encodeList(devices))

    async def _import(self, request: ImportRequest) -> None:
        try:
            carrier = self._checked()
        except (OSError, InvalidRequest) as error:
            self._cutOff(error)
            return
        except NotEncrypted as error:
            self._log.warn(
                "{principal} is given no device: {reason}",
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
            # The transport stays as it is, reading nothing: to close it would shut the
            # connection down, which is not ours any more.
            self._handedOver = True
            self.factory.connections.discard(self)
            self.transport.write(encodeImport(device))
            carrier.begin()

    def _checked(self) -> SessionSocket:
        assert self._carry is not None, "there is no connection yet"
        carrier = self._carry()
        try:
            self.factory.keepAlive.apply(carrier.connection)
            requireSilence(carrier.connection)
        except BaseException:
            carrier.drop()
            raise
        return carrier

    def _plain(self) -> SessionSocket:
        connection = self.transport.getHandle()
        return SessionSocket(given=connection, connection=connection)

    def _ended(self) -> None:
        """
        The session has ended: the connection is ours again, to be closed.
        """
        self.transport.loseConnection()

    def _cutOff(self, reason: object) -> None:
        self._asked = True  # or something that cannot be answered
        self._log.warn(
            "{principal} is no USB/IP client: {reason}",
            principal=str(self._caller.principal),
            reason=str(reason),
        )
        self.transport.abortConnection()

    def _answer(self, answer: bytes) -> None:
        if self._caller.isGone:
            return
        self._answered = True
        self.transport.write(answer)
        self.setTimeout(REQUEST_SECONDS)  # to take it
        self.transport.loseConnection()

    def _failed(self, failure: Failure) -> None:
        self._log.failure("a bug in answering over USB/IP", failure)
        self.transport.abortConnection()


class ExporterFactory(Factory):
    """
    Makes the connections of the export port, and counts those that carry no traffic yet.

    @ivar connections: those, and others that come to be; each has C{close}.
    @ivar keepAlive: how a client that vanishes is noticed.
    """

    noisy = False
    _log = Logger()

    def __init__(
        self, handler: IImportHandler, keepAlive: KeepAlive, most: int, clock: IReactorTime
    ) -> None:
        """
        @param most: how many there may be at a time.
        """
        self.handler = handler
        self.keepAlive = keepAlive
        self.most = most
        self.clock = clock
        self.connections: set[Any] = set()
        self._full = False

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        principal = principalAt(addr)
        return self.make(principal) if self.admits(principal) else None

    def admits(self, principal: Principal) -> bool:
        """Is there room for one more?"""
        if len(self.connections) >= self.most:
            if not self._full:
                self._full = True
                self._log.warn(
                    "{most} USB/IP clients that have not said what they want: turning away "
                    "{principal} and others",
                    most=self.most,
                    principal=str(principal),
                )
            return False
        self._full = False
        return True

    def make(
        self, principal: Principal, carry: Callable[[], SessionSocket] | None = None
    ) -> Exporter:
        """
        Make the protocol for a connection, whatever it comes over.

        @param carry: as L{Exporter}.
        """
        exporter = Exporter(principal, carry)
        exporter.factory = self
        return exporter

    def close(self) -> None:
        """The daemon stops."""
        for connection in tuple(self.connections):
            connection.close()


def statusOf(error: ShareError) -> OpStatus:
    """
    The status that tells of an error.
    """
    return next(STATUS_OF[kind] for kind in type(error).__mro__ if kind in STATUS_OF)
