"""
The requests of the JSON contract, and how bytes become one (docs/protocol.md).
"""

from __future__ import annotations

import msgspec

from usbip_server.errors import InvalidRequest
from usbip_server.matching import CRITERIA, given


class Request(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="command"
):
    """
    What every request may say; C{null} is as good as nothing.

    @ivar detail: answer with all that is known of a device, not only what fits old clients.
    @ivar keep_alive: leave the connection open after the answer.
    """

    detail: bool | None = False
    keep_alive: bool | None = False


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


class AttachDevice(DeviceRequest, frozen=True, kw_only=True, tag="attach"):
    """
    Bind it to C{usbip-host}, so that a client can import it.
    """


class DetachDevice(DeviceRequest, frozen=True, kw_only=True, tag="detach"):
    """
    Unbind it: this machine's own drivers take it back.
    """


Command = ListDevices | FindDevice | AttachDevice | DetachDevice

COMMANDS: tuple[str, ...] = ("list", "find", "attach", "detach")

_decoder: msgspec.json.Decoder[Command] = msgspec.json.Decoder(Command)


def decode(raw: bytes) -> Command:
    """
    Make a command of one JSON object.

    @raise InvalidRequest: it is none; the message names the key that is wrong.
    """
    try:
        return _decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"invalid request: {_inOurWords(str(error))}") from None
    except UnicodeDecodeError:
        raise InvalidRequest("invalid request: it is not UTF-8") from None
    except RecursionError:
        raise InvalidRequest("invalid request: it is nested too deeply") from None
    except msgspec.DecodeError as error:
        raise InvalidRequest(
            f"invalid request: {error}. A request is one JSON object on one line, such as "
            '{"command":"list"}'
        ) from None


def _inOurWords(problem: str) -> str:
    """
    msgspec's text, with the key where a reader looks for it and the commands there are.
    """
    what, _, where = problem.partition(" - at `$.")
    key = where.rstrip("`")
    if key == "command" or what.endswith("required field `command`"):
        return f"{what}: `command` is one of {', '.join(COMMANDS)}"
    return f"`{key}`: {what}" if key else what
