"""
The requests of the JSON contract, and how bytes become one (docs/reference/protocol.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from usbip_server.model.device import LONGEST_LEASE
from usbip_server.model.errors import InvalidRequest
from usbip_server.model.selector import CRITERIA, given

LONGEST_WAIT = 86400
"""Seconds."""

LONGEST_TOKEN = 1024
"""Characters."""

LONGEST_SHOWN = 200
"""Characters of a request that a message repeats."""

T = TypeVar("T")

Owner = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class Request(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="command"
):
    """
    What every request may say; C{null} is as good as nothing.

    @ivar detail: answer with all that is known of a device, not only what fits old clients.
    @ivar keep_alive: leave the connection open after the answer.
    @ivar token: proves who asks.
    """

    detail: bool | None = False
    keep_alive: bool | None = False
    token: Annotated[str, msgspec.Meta(max_length=LONGEST_TOKEN)] | None = None


class ListDevices(Request, frozen=True, kw_only=True, tag="list"):
    """
    All devices.
    """


class DeviceRequest(Request, frozen=True, kw_only=True):
    """
    A request about the one device that meets all the criteria given.

    @ivar id: a bus id, a name, or a glob of one; with a colon, C{vid:pid} or a glob of that.
    @ivar bus: a bus number; anything else is a bus id or a glob of one.
    @ivar serial: the serial number, or a glob of it.
    @ivar desc: part of the description, in any case, or a glob.
    @ivar first: of several devices take the first in bus order.
    """

    id: str | None = None
    bus: str | int | None = None
    serial: str | None = None
    desc: str | None = None
    first: bool | None = False

    def __post_init__(self) -> None:
        if not given(self):
            names = ", ".join(f"`{name}`" for name in CRITERIA)
            raise ValueError(f"no criterion: say which device with at least one of {names}")


class FindDevice(DeviceRequest, frozen=True, kw_only=True, tag="find"):
    """
    Which device is it?
    """


class LeaseRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    To have a device for oneself for a time.

    @ivar owner: what the owner calls itself.
    @ivar ttl: for how many seconds; or C{"connection"}, as long as this connection lasts.
    """

    owner: Owner
    ttl: Annotated[float, msgspec.Meta(gt=0, le=LONGEST_LEASE)] | Literal["connection"] | None = (
        None
    )

    def __post_init__(self) -> None:
        if not self.owner.isprintable():  # it is shown to others, and stands in the log
            raise ValueError("`owner` has characters that cannot be shown")


class AttachDevice(DeviceRequest, frozen=True, kw_only=True, tag="attach"):
    """
    Bind it to C{usbip-host}, so that a client can import it.

    @ivar lease: and have it for oneself.
    @ivar wait: for how many seconds to wait for one that is not there, or that somebody
        else has.
    @ivar force: take it from whoever has it.
    """

    lease: LeaseRequest | None = None
    wait: Annotated[float, msgspec.Meta(ge=0, le=LONGEST_WAIT)] | None = None
    force: bool | None = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lease is not None and self.lease.ttl is None:
            raise ValueError('`lease`: for how long? "ttl": seconds, or "connection"')


class DetachDevice(DeviceRequest, frozen=True, kw_only=True, tag="detach"):
    """
    Unbind it: this machine's own drivers take it back.

    @ivar owner: whoever has leased it.
    @ivar force: even if somebody else has leased it.
    """

    owner: Owner | None = None
    force: bool | None = False


class KickClient(DeviceRequest, frozen=True, kw_only=True, tag="kick"):
    """
    End the session of the client that has imported it; it stays bound. As L{DetachDevice}.
    """

    owner: Owner | None = None
    force: bool | None = False


class RenewLease(DeviceRequest, frozen=True, kw_only=True, tag="renew"):
    """
    Let a lease last longer.

    @ivar lease: whose, and for how long from now; the same time as before if that is not
        said.
    """

    lease: LeaseRequest


class WatchDevices(Request, frozen=True, kw_only=True, tag="watch"):
    """
    Tell what there is, and then what happens. Criteria as in L{DeviceRequest}; none means
    all devices.

    @ivar since: go on behind the event with this number.
    """

    id: str | None = None
    bus: str | int | None = None
    serial: str | None = None
    desc: str | None = None
    since: Annotated[int, msgspec.Meta(ge=0)] | None = None

    def __post_init__(self) -> None:
        given(self)


Command = (
    ListDevices | FindDevice | AttachDevice | DetachDevice | KickClient | RenewLease | WatchDevices
)

COMMANDS: tuple[str, ...] = ("list", "find", "attach", "detach", "kick", "renew", "watch")

_decoder: msgspec.json.Decoder[Command] = msgspec.json.Decoder(Command)


def decode(raw: bytes) -> Command:
    """
    Make a command of one JSON object.

    @raise InvalidRequest: it is none; the message names the key that is wrong.
    """
    return decodeAs(_decoder, COMMANDS, raw)


def decodeAs(decoder: msgspec.json.Decoder[T], names: Sequence[str], raw: bytes) -> T:
    """
    The same for other commands.

    @param names: what they are called.
    """
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"invalid request: {_inOurWords(str(error), names)}") from None
    except UnicodeDecodeError:
        raise InvalidRequest("invalid request: it is not UTF-8") from None
    except RecursionError:
        raise InvalidRequest("invalid request: it is nested too deeply") from None
    except msgspec.DecodeError as error:
        raise InvalidRequest(
            f"invalid request: {error}. A request is one JSON object on one line, such as "
            '{"command":"list"}'
        ) from None


def watching(query: dict[str, Any], kind: type[WatchDevices] = WatchDevices) -> WatchDevices:
    """
    Make a command of what a query string says.

    @param kind: of which kind.
    @raise InvalidRequest: it is none; the message names the key that is wrong.
    """
    try:
        return msgspec.convert(query, kind, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"invalid request: {_inOurWords(str(error))}") from None


def _inOurWords(problem: str, names: Sequence[str] = COMMANDS) -> str:
    """
    msgspec's text, with the key where a reader looks for it and the commands there are.
    """
    what, _, where = problem.partition(" - at `$.")
    key = where.rstrip("`")
    if key == "command" or what.endswith("required field `command`"):
        return f"{shown(what)}: `command` is one of {', '.join(names)}"
    return f"`{key}`: {shown(what)}" if key else shown(what)


def shown(text: str) -> str:
    """
    A text with a client's own words in it, for a message: not too long for one, and nothing
    that does something to a terminal or a log.
    """
    harmless = "".join(it if it.isprintable() else ascii(it)[1:-1] for it in text)
    return harmless if len(harmless) <= LONGEST_SHOWN else f"{harmless[:LONGEST_SHOWN]}…"
