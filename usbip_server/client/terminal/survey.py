"""
What all servers have, be it ours or a stock C{usbipd}, which knows of bus ids only.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence

import msgspec

from usbip_server.client.core.answers import Refused
from usbip_server.client.core.devices import Found
from usbip_server.client.core.importing import listDevices
from usbip_server.client.core.servers import Server
from usbip_server.client.terminal.asking import devicesOf
from usbip_server.client.terminal.everywhere import everywhere
from usbip_server.device import DeviceState, UsbDevice
from usbip_server.errors import ShareError, Unreachable
from usbip_server.opcodec import SPEED_OF, Exported, NotGiven
from usbip_server.replies import Status, encodeDevices

_SPEEDS = {number: speed for speed, number in reversed(SPEED_OF.items())}


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """
    What has come of asking.

    @ivar found: all devices, in the servers' order.
    @ivar answered: the servers that have answered.
    @ivar stock: those of them that have no control port: nothing can be asked of them but a
        list and an import.
    @ivar troubles: the others, and what is wrong with them.
    """

    found: tuple[Found, ...] = ()
    answered: tuple[Server, ...] = ()
    stock: tuple[Server, ...] = ()
    troubles: tuple[tuple[Server, ShareError], ...] = ()

    def isStock(self, server: Server) -> bool:
        """Has it no control port?"""
        return server in self.stock

    def requireControl(self, found: Found) -> None:
        """
        @raise Refused: the server of a device cannot be asked for anything about it.
        """
        if self.isStock(found.server):
            raise Refused(
                Status.FAILURE,
                f"{found}: a stock usbipd can be asked for a list and for an import only",
            )


def survey(servers: Sequence[Server], seconds: float, known: Collection[Server] = ()) -> Survey:
    """
    Ask all servers at once what they have.

    @param seconds: for each.
    @param known: those that are known to have no control port. Others may have none either,
        which is seen if their machine refuses the connection.
    """
    stock: list[Server] = []

    def ask(server: Server) -> tuple[Found, ...]:
        refused: Unreachable | None = None
        if server not in known:
            try:
                return devicesOf(server, seconds)
            except Unreachable as error:
                if not isRefused(error):
                    raise
                refused = error
        found = _exported(server, seconds, refused)
        stock.append(server)
        return found

    heard = everywhere(servers, ask)
    return Survey(
        found=tuple(each for _, found in heard.answers for each in found),
        answered=tuple(server for server, _ in heard.answers),
        stock=tuple(stock),
        troubles=tuple(heard.troubles),
    )


def isRefused(error: ShareError) -> bool:
    """
    Is there a machine, but nobody at the control port?
    """
    return isinstance(error.__cause__, ConnectionRefusedError)


def _exported(server: Server, seconds: float, refused: Unreachable | None) -> tuple[Found, ...]:
    """
    What stands in the list of a stock C{usbipd}.

    @param refused: what is wrong with the server if it is none either; C{None}: that.
    """
    try:
        listed = listDevices(server, seconds)
    except (Unreachable, NotGiven) as error:
        if refused is not None:
            raise refused from refused.__cause__
        if isinstance(error, Unreachable):
            raise
        raise Unreachable(f"{server.called(server.exportAddress)}: {error}") from error
    return tuple(exported(server, each) for each in listed)


def exported(server: Server, listed: Exported) -> Found:
    """
    A device as far as USB/IP tells of it: whether somebody has it, it does not.
    """
    ids = f"{listed.vendorId}:{listed.productId}"
    device = UsbDevice(
        busId=listed.busId,
        vendorId=listed.vendorId,
        productId=listed.productId,
        description=f"USB device {ids}",
        deviceNumber=listed.deviceNumber,
        path=listed.path,
        speed=_SPEEDS.get(listed.speed),
        deviceClass=listed.deviceClass,
        interfaces=listed.interfaces,
        state=DeviceState.BOUND,
    )
    raw = json.loads(bytes(encodeDevices(device, detail=True)))
    return Found(server=server, device=device, raw=raw)
