"""
The answers of the client service: those of a server (docs/protocol.md), and which server it is
about, and what programs of this machine can open.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from usbip_server.client.core.choosing import SeveralFound
from usbip_server.client.core.devices import Found
from usbip_server.device import UsbDevice
from usbip_server.errors import NAME_AT_MOST, NAMED_AT_MOST, ShareError
from usbip_server.replies import Status, encodeDevices, failed

NARROW = 'Narrow the criteria, name the "host", or say "first": true.'


class LocalReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    One answer.

    @ivar status: how it went.
    @ivar seq: of a watch: the number of the last event that C{data} knows of.
    @ivar data: the device, or the devices or ports.
    @ivar message: what is wrong and what to do, for a person.
    @ivar server: of the device.
    @ivar local_devices: what programs can open of it.
    """

    status: Status
    seq: int | None = None
    data: msgspec.Raw | list[dict[str, Any]] | None = None
    message: str | None = None
    server: str | None = None
    local_devices: tuple[str, ...] | None = None

    def encode(self) -> bytes:
        """The answer as it goes over the wire: compact JSON and a line feed."""
        return msgspec.json.encode(self) + b"\n"


class LocalNotice(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    A line that answers nothing: something has happened.

    @ivar event: what.
    @ivar seq: its number; C{None} for what is only told to one who waits.
    @ivar time: when.
    @ivar data: to which device.
    @ivar server: of it.
    @ivar local_devices: what programs can open of it.
    @ivar rule: the name of the rule by which it is kept.
    @ivar holder: who has imported it, or has given it back.
    @ivar lease: whose it is for a time.
    @ivar place: in the queue of those who wait for it.
    @ivar message: for a person.
    """

    event: str
    seq: int | None = None
    time: str
    data: msgspec.Raw | None = None
    server: str | None = None
    local_devices: tuple[str, ...] | None = None
    rule: str | None = None
    holder: dict[str, Any] | None = None
    lease: dict[str, Any] | None = None
    place: int | None = None
    message: str | None = None

    def encode(self) -> bytes:
        """The notice as it goes over the wire."""
        return msgspec.json.encode(self) + b"\n"


def deviceFields(
    device: UsbDevice, server: str, localDevices: Sequence[str], detail: bool
) -> dict[str, Any]:
    """
    A device among others, each of which may be of another server.
    """
    fields: dict[str, Any] = msgspec.json.decode(encodeDevices(device, detail))
    return {**fields, "server": server, "local_devices": list(localDevices)}


def aboutOne(
    device: UsbDevice, server: str, localDevices: Sequence[str], detail: bool
) -> LocalReply:
    """
    It is done, with this device.
    """
    return LocalReply(
        status=Status.SUCCESS,
        data=encodeDevices(device, detail),
        server=server,
        local_devices=tuple(localDevices),
    )


def refused(error: ShareError) -> LocalReply:
    """
    It cannot be done: no device is meant, or several are.
    """
    if isinstance(error, SeveralFound):
        named = [_named(each) for each in error.found[:NAMED_AT_MOST]]
        if len(error.found) > NAMED_AT_MOST:
            named.append(f"and {len(error.found) - NAMED_AT_MOST} more")
        message = f"{error}: {'; '.join(named)}. {NARROW}"
        return LocalReply(status=Status.MULTIPLE_MATCHES, message=_clean(message))
    reply = failed(error)
    return LocalReply(status=reply.status, message=reply.message)


def wentWrong(
    error: Exception, device: UsbDevice, server: str, localDevices: Sequence[str], detail: bool
) -> LocalReply:
    """
    The device was found, but what was to be done with it was not.
    """
    return LocalReply(
        status=Status.FAILURE,
        data=encodeDevices(device, detail),
        message=_clean(str(error)),
        server=server,
        local_devices=tuple(localDevices),
    )


def _named(found: Found) -> str:
    device = found.device
    serial = (device.serial or "-")[:NAME_AT_MOST]
    return (
        f"{device.busId} ({device.description[:NAME_AT_MOST]})"
        f" id={device.vendorId}:{device.productId} serial={serial} at {found.server}"
    )


def _clean(text: str) -> str:
    """
    A file name or a device's string in a message can hold half a surrogate pair.
    """
    return text.encode("utf-8", "backslashreplace").decode()
