"""
From the bytes of a request to the bytes of its answer, the same for every protocol.
"""

from __future__ import annotations

import msgspec
from twisted.logger import Logger

from usbip_server.commands import Command, decode
from usbip_server.device import UsbDevice
from usbip_server.errors import ShareError
from usbip_server.policy import Principal
from usbip_server.replies import Devices, Reply, Status, encodeDevices, failed
from usbip_server.sharing import Sharing


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """
    What a protocol has to send, and what becomes of the connection.

    @ivar status: for a protocol that has status codes of its own.
    @ivar encoded: the JSON, with a line feed.
    @ivar keepAlive: may the next request follow on this connection?
    @ivar broken: there is a bug here; nothing more is to be trusted on this connection.
    """

    status: Status
    encoded: bytes
    keepAlive: bool = False
    broken: bool = False


class Answers:
    """
    Answers requests with the help of a L{Sharing}.
    """

    _log = Logger()

    def __init__(self, sharing: Sharing) -> None:
        self._sharing = sharing
        self._lists: dict[bool, tuple[tuple[UsbDevice, ...], msgspec.Raw]] = {}

    async def to(self, raw: bytes, principal: Principal) -> Answer:
        """
        Answer one request. Never fails: whatever goes wrong is an answer too.
        """
        command: Command | None = None
        try:
            command = decode(raw)
            devices = await self._sharing.perform(command, principal)
            reply = Reply(status=Status.SUCCESS, data=self._encode(devices, bool(command.detail)))
        except ShareError as error:
            self._log.debug("told {principal}: {error}", principal=str(principal), error=str(error))
            reply = failed(error, command is not None and bool(command.detail))
        except Exception:
            self._log.failure(
                "a bug in answering {raw!r} from {principal}",
                raw=raw[:200],
                principal=str(principal),
            )
            return refusal("the daemon failed on this request: its log says more", broken=True)
        return Answer(
            status=reply.status,
            encoded=reply.encode(),
            keepAlive=command is not None and bool(command.keep_alive),
        )

    def _encode(self, devices: Devices, detail: bool) -> msgspec.Raw:
        """
        The JSON of a list is made once for each state of the inventory, which hands out
        the same tuple until something changes.
        """
        if not isinstance(devices, tuple):
            return encodeDevices(devices, detail)
        known = self._lists.get(detail)
        if known is None or known[0] is not devices:
            known = self._lists[detail] = (devices, encodeDevices(devices, detail))
        return known[1]


def refusal(message: str, broken: bool = False) -> Answer:
    """
    The C{error} for what never became a request.
    """
    reply = Reply(status=Status.ERROR, message=message)
    return Answer(status=reply.status, encoded=reply.encode(), broken=broken)
