"""
The audit log: one line for each request that changes something, and for each refusal. Refusals
that are repeated are counted, and get one line together.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from usbip_server.model.device import UsbDevice
from usbip_server.model.errors import (
    DeviceAwaited,
    DeviceInUse,
    DeviceLeased,
    DeviceMounted,
    DeviceNotFound,
    NotAllowed,
    NotLeased,
    OperationFailed,
    SeveralMatch,
    ShareError,
    StillWorking,
)
from usbip_server.model.policy import Principal, Right
from usbip_server.runtime.repeats import Repeats
from usbip_server.server.access.ratelimit import siteOf

CHANGING = frozenset({Right.ATTACH, Right.DETACH, Right.KICK, Right.RENEW, Right.IMPORT})
"""Rights whose use is logged whatever the outcome; of the others only refusals are logged."""

WHO = ("address", "uid", "certificate", "token")
"""What identifies the client. Of a token its name, not its value."""

ASKED = ("id", "bus", "serial", "desc", "path", "first", "force", "wait", "owner", "lease")
"""The keys of a request that are logged. Not its token."""

PENDING = "pending"

RESULT_OF: dict[type[ShareError], str] = {
    StillWorking: PENDING,
    NotAllowed: "refused",
    DeviceInUse: "refused",
    DeviceLeased: "refused",
    DeviceAwaited: "refused",
    DeviceMounted: "refused",
    NotLeased: "refused",
    DeviceNotFound: "not_found",
    SeveralMatch: "multiple_matches",
}
"""The result logged for an error. Any other error: C{"failed"}."""

Kind = tuple[str, str, str]
"""The site of the client, the name of the command, and the result."""

OTHERS: Kind = ("others", "any", "failed")
"""The kind of a failed request if there are too many kinds."""


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    One line of the audit log.

    @ivar who: the C{address}, C{uid}, C{certificate} and C{token} (its name) of the client.
    @ivar command: the name of the command, C{import}, or C{http} for a request that was refused
        before it was read.
    @ivar asked: the criteria and options of the request.
    @ivar device: the bus id.
    @ivar serial: the serial number.
    @ivar result: C{"done"}, or a value of L{RESULT_OF}.
    @ivar reason: why it was not done.
    @ivar more: how many further requests of this kind had the same result within a minute; the
        rest of the line is that of the last one.
    """

    who: dict[str, Any]
    command: str
    asked: dict[str, Any] = {}
    device: str | None = None
    serial: str | None = None
    result: str
    reason: str | None = None
    more: int | None = None


class _Failure(msgspec.Struct, frozen=True):
    """
    A failed request, as far as it is logged.
    """

    principal: Principal
    command: str
    request: object
    error: Exception

    @property
    def result(self) -> str:
        kinds = RESULT_OF.items()
        return next((it for kind, it in kinds if isinstance(self.error, kind)), "failed")


class Audit:
    """
    Writes the audit log.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._failures = Repeats[_Failure](clock, self._writeFailure, OTHERS)

    def done(self, principal: Principal, right: Right, request: object, device: UsbDevice) -> None:
        """A request was carried out."""
        if right in CHANGING:
            self._write(principal, right.value, request, device, "done")

    def failed(self, principal: Principal, right: Right, request: object, error: Exception) -> None:
        """A request was refused or has failed."""
        if right in CHANGING or isinstance(error, NotAllowed):
            self._failed(_Failure(principal, right.value, request, error))

    def refused(self, principal: Principal, error: NotAllowed) -> None:
        """An HTTP request was refused before it was read: its C{Host} or C{Origin} is foreign."""
        self._failed(_Failure(principal, "http", None, error))

    def stop(self) -> None:
        """Write the counts of the failed requests that have no line yet."""
        self._failures.stop()

    def _failed(self, failure: _Failure) -> None:
        result = failure.result
        if result == PENDING:  # not a refusal: an operation has begun
            self._writeFailure(failure)
        else:
            kind: Kind = siteOf(failure.principal), failure.command, result
            self._failures.add(kind, failure)

    def _writeFailure(self, failure: _Failure, more: int | None = None) -> None:
        error = failure.error
        device = error.device if isinstance(error, OperationFailed | NotAllowed) else None
        self._write(
            *(failure.principal, failure.command, failure.request, device, failure.result),
            str(error),
            more,
        )

    def _write(
        self,
        principal: Principal,
        command: str,
        request: object,
        device: UsbDevice | None,
        result: str,
        reason: str | None = None,
        more: int | None = None,
    ) -> None:
        entry = Entry(
            who={key: it for key in WHO if (it := getattr(principal, key)) is not None},
            command=command,
            asked={
                key: msgspec.to_builtins(value)
                for key in ASKED
                if (value := getattr(request, key, None)) is not None and value is not False
            },
            device=None if device is None else device.busId,
            serial=None if device is None else device.serial,
            result=result,
            reason=reason,
            more=more,
        )
        # ASCII only: a device's string can contain half a surrogate pair, or a character that
        # some programs take for the end of a line.
        line = json.dumps(msgspec.to_builtins(entry), separators=(",", ":"))
        self._log.info("audit {entry}", entry=line, audit=entry)
