"""
JSON requests: their structure, and decoding (docs/reference/protocol.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, TypeVar

import msgspec

from usbip_server.model.criteria import CRITERIA, given
from usbip_server.model.device import LONGEST_LEASE
from usbip_server.model.durations import seconds
from usbip_server.model.errors import InvalidRequest
from usbip_server.model.options import keysAt, nearest
from usbip_server.model.selector import Selector

LONGEST_WAIT = 86400
"""The longest C{wait}, in seconds."""

LONGEST_TOKEN = 1024
"""Characters of a token."""

LONGEST_SHOWN = 200
"""Characters of a request that a message quotes."""

UNKNOWN_FIELD = "Object contains unknown field `"

T = TypeVar("T")

Owner = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class Request(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="command"
):
    """
    The keys that every request may have. C{null} means that a key is absent.

    @ivar detail: reply with all fields of a device, not only those that old clients know.
    @ivar keep_alive: leave the connection open after the reply.
    @ivar token: authenticates the client.
    """

    detail: bool | None = False
    keep_alive: bool | None = False
    token: Annotated[str, msgspec.Meta(max_length=LONGEST_TOKEN)] | None = None


class ListDevices(Request, frozen=True, kw_only=True, tag="list"):
    """
    Lists all devices.

    @ivar away: list those instead that are to be bound when they are plugged in again.
    """

    away: bool | None = False


class DeviceRequest(Request, frozen=True, kw_only=True, dict=True):
    """
    A request for one device: the one that matches all criteria that are given.

    @ivar id: a bus id, a name, or a glob of one; with a colon, C{vid:pid} or a glob of that.
    @ivar bus: a bus number; anything else is a bus id or a glob of one.
    @ivar serial: the serial number, or a glob of it.
    @ivar desc: a part of the description, ignoring case, or a glob.
    @ivar path: the path of a physical port (L{UsbDevice<usbip_server.model.device.UsbDevice>}), or
        a glob of it.
    @ivar first: if several devices match, select the first in bus order.
    """

    id: str | None = None
    bus: str | int | None = None
    serial: str | None = None
    desc: str | None = None
    path: str | None = None
    first: bool | None = False

    def __post_init__(self) -> None:
        if not given(self):
            names = ", ".join(f"`{name}`" for name in CRITERIA)
            raise ValueError(f"no criterion: select a device with at least one of {names}")
        self.selector  # noqa: B018 - raises ValueError if a criterion is malformed

    @cached_property
    def selector(self) -> Selector:
        """The criteria, compiled."""
        return Selector(self)


class FindDevice(DeviceRequest, frozen=True, kw_only=True, tag="find"):
    """
    Finds one device.
    """


class LeaseRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    Reserves a device for one owner.

    @ivar owner: the name of the owner.
    @ivar ttl: the duration in seconds, or C{"connection"}: until this connection ends. A text with
        units, C{"10m"}, is converted.
    """

    owner: Owner
    ttl: Annotated[float, msgspec.Meta(gt=0, le=LONGEST_LEASE)] | str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.ttl, str) and self.ttl != "connection":
            msgspec.structs.force_setattr(self, "ttl", _duration("ttl", self.ttl, LONGEST_LEASE))
        if not self.owner.isprintable():  # it is displayed and logged
            raise ValueError("`owner` contains characters that are not printable")


def _duration(key: str, text: str, longest: float) -> float:
    """
    @raise ValueError: it is not a duration, or out of range.
    """
    try:
        duration = seconds(text.strip())
    except ValueError as error:
        raise ValueError(f"`{key}`: {error}") from None
    if not 0 < duration <= longest:
        raise ValueError(f"`{key}`: {text!r} is not between 0 and {longest} seconds")
    return duration


class AttachDevice(DeviceRequest, frozen=True, kw_only=True, tag="attach"):
    """
    Binds a device to C{usbip-host}, so that a client can import it.

    @ivar lease: a lease to grant on the device.
    @ivar wait: seconds to wait for a device that is not plugged in, or that another client has. A
        text with units, C{"5m"}, is converted.
    @ivar force: end the session and the lease of another client.
    """

    lease: LeaseRequest | None = None
    wait: Annotated[float, msgspec.Meta(ge=0, le=LONGEST_WAIT)] | str | None = None
    force: bool | None = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.wait, str):
            msgspec.structs.force_setattr(self, "wait", _duration("wait", self.wait, LONGEST_WAIT))
        if self.lease is not None and self.lease.ttl is None:
            raise ValueError('`lease` requires "ttl": a number of seconds, or "connection"')

    @property
    def waitSeconds(self) -> float:
        """C{wait}; 0: do not wait."""
        return self.wait if isinstance(self.wait, float) else 0.0


class DetachDevice(DeviceRequest, frozen=True, kw_only=True, tag="detach"):
    """
    Unbinds a device: the machine's own drivers take it back.

    @ivar owner: the owner of the lease on the device.
    @ivar force: unbind it even if another owner has a lease.
    """

    owner: Owner | None = None
    force: bool | None = False


class KickClient(DeviceRequest, frozen=True, kw_only=True, tag="kick"):
    """
    Ends the session of the client that has imported a device, which stays bound. The fields are
    those of L{DetachDevice}.
    """

    owner: Owner | None = None
    force: bool | None = False


class RenewLease(DeviceRequest, frozen=True, kw_only=True, tag="renew"):
    """
    Extends a lease.

    @ivar lease: the owner, and the duration from now; without C{ttl}, the same duration as before.
    """

    lease: LeaseRequest


class WatchDevices(Request, frozen=True, kw_only=True, tag="watch", dict=True):
    """
    Subscribes to events: replies with the devices at present, and then sends an event for each
    change. The criteria are those of L{DeviceRequest}; without criteria, all devices.

    @ivar since: resume after the event with this number, instead of a list of the devices.
    """

    id: str | None = None
    bus: str | int | None = None
    serial: str | None = None
    desc: str | None = None
    path: str | None = None
    since: Annotated[int, msgspec.Meta(ge=0)] | None = None

    def __post_init__(self) -> None:
        given(self)
        self.selector  # noqa: B018 - raises ValueError if a criterion is malformed

    @cached_property
    def selector(self) -> Selector:
        """The criteria, compiled."""
        return Selector(self)


Command = (
    ListDevices | FindDevice | AttachDevice | DetachDevice | KickClient | RenewLease | WatchDevices
)

COMMANDS: tuple[str, ...] = ("list", "find", "attach", "detach", "kick", "renew", "watch")

_decoder: msgspec.json.Decoder[Command] = msgspec.json.Decoder(Command)


def decode(raw: bytes) -> Command:
    """
    Decode a request.

    @param raw: one JSON object.
    @raise InvalidRequest: it is not a valid request; the message contains the key that is wrong.
    """
    return decodeAs(_decoder, COMMANDS, raw)


def decodeAs(decoder: msgspec.json.Decoder[T], names: Sequence[str], raw: bytes) -> T:
    """
    Decode a request of another set of commands. Errors are those of L{decode}.

    @param names: the names of the commands, for messages.
    """
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        explained = _explain(str(error), names, decoder.type)
        raise InvalidRequest(f"invalid request: {explained}") from None
    except UnicodeDecodeError:
        raise InvalidRequest("invalid request: not UTF-8") from None
    except RecursionError:
        raise InvalidRequest("invalid request: nested too deeply") from None
    except msgspec.DecodeError as error:
        raise InvalidRequest(
            f'invalid request: {error}. A request is one JSON object, such as {{"command":"list"}}'
        ) from None


def watching(query: dict[str, Any], kind: type[WatchDevices] = WatchDevices) -> WatchDevices:
    """
    Decode the query string of a watch over HTTP.

    @param query: the parameters; their values may be strings where the field has another type.
    @param kind: the type of the request.
    @raise InvalidRequest: as L{decode}.
    """
    try:
        return msgspec.convert(query, kind, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"invalid request: {_explain(str(error), COMMANDS, kind)}") from None


def _explain(problem: str, names: Sequence[str], kind: Any) -> str:
    """
    Reword an error of msgspec: begin with the key, list the commands if C{command} is wrong, and
    suggest a key for one that is unknown.

    @param kind: the type of the request.
    """
    what, _, where = problem.partition(" - at `$.")
    key = where.rstrip("`")
    if key == "command" or what.endswith("required field `command`"):
        return f"{shown(what)}: `command` is one of {', '.join(names)}"
    suggestion = ""
    if what.startswith(UNKNOWN_FIELD):
        field = what.removeprefix(UNKNOWN_FIELD)[:-1]
        known = keysAt(kind, tuple(key.split(".") if key else ()))
        suggestion = "" if field in known else nearest(field, known)
    return (f"`{key}`: {shown(what)}" if key else shown(what)) + suggestion


def shown(text: str) -> str:
    """
    Prepare a text that quotes a client's request for a message: escape characters that are not
    printable, and cut it off after L{LONGEST_SHOWN} characters.
    """
    harmless = "".join(it if it.isprintable() else ascii(it)[1:-1] for it in text)
    return harmless if len(harmless) <= LONGEST_SHOWN else f"{harmless[:LONGEST_SHOWN]}…"
