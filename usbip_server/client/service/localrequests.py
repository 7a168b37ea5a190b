"""
The requests to the client service (docs/client_service_api.md): those to a server, and at which
server it is to be.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from usbip_server.commands import (
    AttachDevice,
    DetachDevice,
    FindDevice,
    ListDevices,
    Request,
    WatchDevices,
    decodeAs,
)
from usbip_server.errors import InvalidRequest

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
