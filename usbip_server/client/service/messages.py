"""
The JSON messages of the client service's socket (docs/reference/client_service_api.md): the
requests of a server with a C{host} key, and the replies and notices with C{server} and
C{local_devices}.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from usbip_server.client.selection import SeveralFound
from usbip_server.model.device import UsbDevice
from usbip_server.model.errors import NAMED_AT_MOST, InvalidRequest, ShareError, distinct
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
from usbip_server.model.timestamps import timestamp

Host = Annotated[str, msgspec.Meta(min_length=1, max_length=256)] | None
"""Restricts a request to one server: its name, or its address as configured."""


class LocalList(ListDevices, frozen=True, kw_only=True, tag="list"):
    """
    List the devices of all servers.
    """

    host: Host = None

    def __post_init__(self) -> None:
        if self.away:
            raise ValueError("`away` is a key of servers: ask the server itself")


class LocalFind(FindDevice, frozen=True, kw_only=True, tag="find"):
    """
    Find one device.
    """

    host: Host = None


class LocalAttach(AttachDevice, frozen=True, kw_only=True, tag="attach"):
    """
    Attach a device to this machine, and keep it attached; with a lease, while the lease lasts.
    """

    host: Host = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lease is not None and self.lease.ttl == "connection":
            raise ValueError(
                '`lease.ttl`: "connection" is for connections to a server: say for how many seconds'
            )

    @property
    def owner(self) -> str | None:
        """The owner of the requested lease."""
        return None if self.lease is None else self.lease.owner


class LocalDetach(DetachDevice, frozen=True, kw_only=True, tag="detach"):
    """
    Detach a device from this machine, and do not keep it attached any more.
    """

    host: Host = None


class LocalPorts(Request, frozen=True, kw_only=True, tag="ports"):
    """
    List the ports of vhci_hcd in use, including those of other programs.
    """

    host: Host = None


class LocalWatch(WatchDevices, frozen=True, kw_only=True, tag="watch"):
    """
    List the devices, then send each event.
    """

    host: Host = None


LocalCommand = LocalList | LocalFind | LocalAttach | LocalDetach | LocalPorts | LocalWatch

COMMANDS = ("list", "find", "attach", "detach", "ports", "watch")

NARROW = 'Narrow the criteria, name the "host", or say "first": true.'

_decoder: msgspec.json.Decoder[LocalCommand] = msgspec.json.Decoder(LocalCommand)


def decode(raw: bytes) -> LocalCommand:
    """
    Decode one JSON object.

    @raise InvalidRequest: it is no valid command; the message names the key.
    """
    command = decodeAs(_decoder, COMMANDS, raw)
    if command.token is not None:
        raise InvalidRequest(
            "invalid request: `token`: the service identifies a program by the socket: remove it"
        )
    return command


class LocalReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    The reply to a request.

    @ivar seq: for C{watch}: the number of the last event that C{data} includes.
    @ivar data: the device, or a list of devices or ports.
    @ivar message: what is wrong and what to do, for people.
    @ivar server: the name of the device's server.
    @ivar local_devices: the device nodes on this machine.
    """

    status: Status
    seq: int | None = None
    data: msgspec.Raw | list[dict[str, Any]] | None = None
    message: str | None = None
    server: str | None = None
    local_devices: tuple[str, ...] | None = None

    def encode(self) -> bytes:
        """Encode as compact JSON, with a line feed."""
        return msgspec.json.encode(self) + b"\n"


def encodeNotice(event: str, time: float, seq: int | None = None, **keys: Any) -> bytes:
    """
    Encode an event, a heartbeat, or a place in a queue, with a line feed.

    @param time: seconds since the epoch.
    @param seq: the number of an event.
    @param keys: of the contract; those that are C{None} are left out.
    """
    fields = {"event": event, "seq": seq, "time": timestamp(time), **keys}
    present = {key: value for key, value in fields.items() if value is not None}
    return msgspec.json.encode(present) + b"\n"


def listItem(device: UsbDevice, server: str, nodes: Sequence[str], detail: bool) -> dict[str, Any]:
    """
    A device in a list.
    """
    fields: dict[str, Any] = msgspec.json.decode(encodeDevices(device, detail))
    return {**fields, "server": server, "local_devices": list(nodes)}


def deviceReply(
    device: UsbDevice,
    server: str,
    nodes: tuple[str, ...],
    detail: bool,
    error: Exception | None = None,
) -> LocalReply:
    """
    The reply about one device: C{success}, or C{failure} with the text of an error.
    """
    return LocalReply(
        status=Status.SUCCESS if error is None else Status.FAILURE,
        data=encodeDevices(device, detail),
        message=None if error is None else _clean(str(error)),
        server=server,
        local_devices=nodes,
    )


def errorReply(error: ShareError) -> LocalReply:
    """
    The reply to a request that does not select one device.
    """
    if not isinstance(error, SeveralFound):
        reply = failed(error)
        return LocalReply(status=reply.status, message=reply.message)
    named = [f"{distinct(found.device)} at {found.server}" for found in error.found[:NAMED_AT_MOST]]
    if len(error.found) > NAMED_AT_MOST:
        named.append(f"and {len(error.found) - NAMED_AT_MOST} more")
    message = _clean(f"{error}: {'; '.join(named)}. {NARROW}")
    return LocalReply(status=Status.MULTIPLE_MATCHES, message=message)


def _clean(text: str) -> str:
    """
    Escape lone surrogates, which file names and string descriptors can contain.
    """
    return text.encode("utf-8", "backslashreplace").decode()
