"""
The audit trail: a line in the log for each decision that changes something or refuses
something.
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
"""What is told of however it ends; of the others only that they are refused."""

WHO = ("address", "uid", "certificate", "token")
"""What is known of whoever asked. Of a token its name."""

ASKED = ("id", "bus", "serial", "desc", "first", "force", "wait", "owner", "lease")
"""What a request can say of which device is meant, and how. Not its token."""


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
"""What an error comes to. Any other: C{"failed"}."""


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    One decision.

    @ivar who: the C{address}, C{uid}, C{certificate} and C{token} (its name) of whoever asked.
    @ivar command: for what.
    @ivar asked: of which device, in their words, and how.
    @ivar device: its bus id.
    @ivar serial: its serial number.
    @ivar result: C{"done"}, or one of L{RESULT_OF}.
    @ivar reason: why not.
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
    Writes it.
    """

    _log = Logger()

    def done(self, principal: Principal, right: Right, request: object, device: UsbDevice) -> None:
        """Somebody was given what they asked for."""
        if right in CHANGING:
            self._write(principal, right, request, device, "done", None)

    def failed(self, principal: Principal, right: Right, request: object, error: Exception) -> None:
        """Somebody was not."""
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
        # All that is not ASCII is escaped: a device's string, or a name, can hold half a
        # surrogate pair, or what some program takes for the end of a line.
        line = json.dumps(msgspec.to_builtins(entry), separators=(",", ":"))
        self._log.info("audit {entry}", entry=line, audit=entry)
