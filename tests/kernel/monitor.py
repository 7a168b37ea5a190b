"""
QEMU's control connection.

QMP: JSON objects, one a line. QEMU greets, we answer C{qmp_capabilities}, and from then on
every C{{"execute":..., "id":...}} is answered by a C{return} or an C{error} with that id.
In between come events.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

from tests.kernel.devices import Device, Kind

_UNPLUG_SECONDS = 30.0

_DRIVERS = {
    Kind.CARD_READER: "usb-ccid",
    Kind.DISK: "usb-storage",
    Kind.HUB: "usb-hub",
    Kind.KEYBOARD: "usb-kbd",
    Kind.SERIAL: "usb-serial",
    Kind.TABLET: "usb-tablet",
}
"""QEMU's words for them."""


class MonitorError(Exception):
    """QEMU refused a command, or is no more. The message is QEMU's own."""


class Monitor(LineOnlyReceiver):
    """
    Plugs and unplugs devices.

    @ivar ready: fires when QEMU takes commands.
    """

    delimiter = b"\n"
    MAX_LENGTH = 1 << 20

    def __init__(self, clock: IReactorTime) -> None:
        self.ready: Deferred[None] = Deferred()
        self._clock = clock
        self._numbers = itertools.count()
        self._commands: dict[int, Deferred[Any]] = {}
        self._deletions: dict[str, Deferred[None]] = {}

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """
        Have a command done.

        @return: what QEMU returns.
        @raise MonitorError: QEMU refused.
        """
        number = next(self._numbers)
        answer: Deferred[Any] = Deferred()
        self._commands[number] = answer
        message = {"execute": command, "arguments": dict(arguments or {}), "id": number}
        assert self.transport is not None
        self.transport.write(json.dumps(message).encode("utf-8") + b"\n")
        return await answer

    async def unplug(self, name: str) -> None:
        """
        Pull a device out; returns when it is out.

        @raise MonitorError: there is none of that name, or it does not go.
        """
        deleted: Deferred[None] = Deferred()
        self._deletions[name] = deleted
        try:
            await self.execute("device_del", {"id": name})
            await deleted.addTimeout(
                _UNPLUG_SECONDS, self._clock, lambda result, seconds: _fail(name)
            )
        finally:
            self._deletions.pop(name, None)

    async def plug(self, device: Device) -> None:
        """
        Put a device in.

        A disk has the content of the image as it was at the start: whatever the guest
        wrote to an earlier one is lost.

        @raise MonitorError: the port or the name is in use, or QEMU knows no such device.
        """
        properties = deviceProperties(device)
        backing = f"plugged{next(self._numbers)}"
        if device.kind is Kind.DISK:
            # QEMU throws a drive away together with its device.
            added = await self.execute(
                "human-monitor-command", {"command-line": f"drive_add 0 {driveOptions(backing)}"}
            )
            if added.strip() != "OK":
                raise MonitorError(added.strip())
            properties["drive"] = backing
        elif device.kind is Kind.SERIAL:
            await self.execute("chardev-add", {"id": backing, "backend": _NULL_BACKEND})
            properties["chardev"] = backing
        await self.execute("device_add", properties)

    def lineReceived(self, line: bytes) -> None:
        """QEMU said something."""
        message = json.loads(line)
        if "QMP" in message:
            ready = Deferred.fromCoroutine(self.execute("qmp_capabilities"))
            ready.addCallback(lambda result: self.ready.callback(None))
            ready.addErrback(ignoreRefusal)
        elif "event" in message:
            if message["event"] == "DEVICE_DELETED":
                deleted = self._deletions.pop(message["data"].get("device"), None)
                if deleted is not None:
                    deleted.callback(None)
        elif "error" in message:
            self._commands.pop(message["id"]).errback(MonitorError(message["error"]["desc"]))
        else:
            self._commands.pop(message["id"]).callback(message["return"])

    def connectionLost(self, reason: Failure | None = None) -> None:
        """QEMU is no more."""
        waiting: list[Callable[[Exception], None]] = [
            *(answer.errback for answer in self._commands.values()),
            *(deleted.errback for deleted in self._deletions.values()),
        ]
        self._commands.clear()
        self._deletions.clear()
        for errback in waiting:
            errback(MonitorError("the virtual machine has ended"))


_NULL_BACKEND = {"type": "null", "data": {}}


def _fail(name: str) -> None:
    raise MonitorError(f"{name} was not unplugged within {_UNPLUG_SECONDS:.0f} s")


def ignoreRefusal(failure: Failure) -> None:
    """An errback for a command that may fail."""
    failure.trap(MonitorError)


def deviceProperties(device: Device) -> dict[str, object]:
    """What QEMU is told of a device, but for what stands behind it."""
    properties: dict[str, object] = {
        "driver": _DRIVERS[device.kind],
        "id": device.name,
        "bus": "xhci.0",
        "port": device.port,
    }
    if device.serial is not None and device.kind in (Kind.DISK, Kind.SERIAL):
        properties["serial"] = device.serial
    if device.kind is Kind.SERIAL:
        properties["always-plugged"] = True
    return properties


def driveOptions(driveId: str) -> str:
    """What QEMU is told of a disk. The image lies in the folder that QEMU runs in."""
    return f"if=none,id={driveId},file=disk.img,format=raw,snapshot=on"
