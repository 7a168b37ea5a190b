"""
The requests to the client service (docs/reference/client_service_api.md): those to a server, and
at which server it is to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from usbip_server.client.devices import RemoteDevice
from usbip_server.client.selection import SeveralFound
from usbip_server.model.device import UsbDevice
from usbip_server.model.errors import NAME_AT_MOST, NAMED_AT_MOST, InvalidRequest, ShareError
from usbip_server.model.replies import Status, encodeDevices, failed
from usbip_server.model.requests import (
    AttachDevice,
    DetachDevice,
    FindDevice,
    ListDevices,
    Request,
    WatchDevices,
    decodeAs,
)

Host = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class LocalList(ListDevices, frozen=True, kw_only=True, tag="list"):
    """
    All devices of all servers.

    @ivar host: of this one only: its name, or its address as it is configured.
    """

    host: Host | None = None


class LocalFind(FindDevice, frozen=True, kw_only=True, tag="find"):
    """
    Which device is it?
    """

    host: Host | None = None


class LocalAttach(AttachDevice, frozen=True, kw_only=True, tag="attach"):
    """
    Plug it in here, and keep it so: with a lease as long as that lasts.
    """

    host: Host | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lease is not None and self.lease.ttl == "connection":
            raise ValueError(
                "`lease.ttl`: a connection to this service is none to a server: say for how many "
                "seconds"
            )

    @property
    def owner(self) -> str | None:
        """Who leases it, if somebody does."""
        return None if self.lease is None else self.lease.owner


class LocalDetach(DetachDevice, frozen=True, kw_only=True, tag="detach"):
    """
    Pull it out, and let it be.
    """

    host: Host | None = None


class LocalPorts(Request, frozen=True, kw_only=True, tag="ports"):
    """
    What is plugged in here, by whomever.
    """

    host: Host | None = None


class LocalWatch(WatchDevices, frozen=True, kw_only=True, tag="watch"):
    """
    Tell what there is, and then what happens.
    """

    host: Host | None = None


LocalCommand = LocalList | LocalFind | LocalAttach | LocalDetach | LocalPorts | LocalWatch

COMMANDS = ("list", "find", "attach", "detach", "ports", "watch")

_decoder: msgspec.json.Decoder[LocalCommand] = msgspec.json.Decoder(LocalCommand)


def decode(raw: bytes) -> LocalCommand:
    """
    Make a command of one JSON object.

    @raise InvalidRequest: it is none; the message names the key that is wrong.
    """
    command = decodeAs(_decoder, COMMANDS, raw)
    if command.token is not None:
        raise InvalidRequest("invalid request: `token`: who asks is known from the socket")
    return command


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


def _named(found: RemoteDevice) -> str:
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
