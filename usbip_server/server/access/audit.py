"""
The audit log: one line for each request that changes something, and for each refusal.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
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

CHANGING = frozenset({Right.ATTACH, Right.DETACH, Right.KICK, Right.RENEW, Right.IMPORT})
"""Rights whose use is logged whatever the outcome; of the others only refusals are logged."""

WHO = ("address", "uid", "certificate", "token")
"""What identifies the client. Of a token its name, not its value."""

ASKED = ("id", "bus", "serial", "desc", "first", "force", "wait", "owner", "lease")
"""The keys of a request that are logged. Not its token."""


RESULT_OF: dict[type[ShareError], str] = {
    StillWorking: "pending",
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


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    One line of the audit log.

    @ivar who: the C{address}, C{uid}, C{certificate} and C{token} (its name) of the client.
    @ivar command: the name of the command, or C{import}.
    @ivar asked: the criteria and options of the request.
    @ivar device: the bus id.
    @ivar serial: the serial number.
    @ivar result: C{"done"}, or a value of L{RESULT_OF}.
    @ivar reason: why it was not done.
    """

    who: dict[str, Any]
    command: str
    asked: dict[str, Any] = {}
    device: str | None = None
    serial: str | None = None
    result: str
    reason: str | None = None


class Audit:
    """
    Writes the audit log.
    """

    _log = Logger()

    def done(self, principal: Principal, right: Right, request: object, device: UsbDevice) -> None:
        """A request was carried out."""
        if right in CHANGING:
            self._write(principal, right, request, device, "done", None)

    def failed(self, principal: Principal, right: Right, request: object, error: Exception) -> None:
        """A request was refused or has failed."""
        if right not in CHANGING and not isinstance(error, NotAllowed):
            return
        result = next((it for kind, it in RESULT_OF.items() if isinstance(error, kind)), "failed")
        device = error.device if isinstance(error, OperationFailed | NotAllowed) else None
        self._write(principal, right, request, device, result, str(error))

    def _write(
        self,
        principal: Principal,
        right: Right,
        request: object,
        device: UsbDevice | None,
        result: str,
        reason: str | None,
    ) -> None:
        entry = Entry(
            who={key: it for key in WHO if (it := getattr(principal, key)) is not None},
            command=right.value,
            asked={
                key: msgspec.to_builtins(value)
                for key in ASKED
                if (value := getattr(request, key, None)) is not None and value is not False
            },
            device=None if device is None else device.busId,
            serial=None if device is None else device.serial,
            result=result,
            reason=reason,
        )
        # ASCII only: a device's string can contain half a surrogate pair, or a character that
        # some programs take for the end of a line.
        line = json.dumps(msgspec.to_builtins(entry), separators=(",", ":"))
        self._log.info("audit {entry}", entry=line, audit=entry)
