"""
The client side of USB/IP until the traffic of a device begins: OP_REQ_DEVLIST and OP_REQ_IMPORT
on a server's export port. All functions block, up to the time that they are given.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import msgspec

from usbip_server.client.blocking import connected, received, why
from usbip_server.client.jsonclient import shareOf
from usbip_server.client.servers import Server
from usbip_server.model.device import Encryption
from usbip_server.model.errors import Unreachable
from usbip_server.model.replies import NO_ANSWER
from usbip_server.model.usbip import (
    IMPORT_REPLY,
    REPLY_HEAD,
    Exported,
    ImportRequest,
    ListRequest,
    NotUsbIp,
    decodeImport,
    decodeList,
    encodeRequest,
)
from usbip_server.net.keepalive import KeepAlive

CHUNK = 65536
"""Bytes that are read at once."""

LONGEST_LIST = 1024 * 1024
"""Bytes of a list of devices: enough for thousands."""

DEFAULT = KeepAlive()


class Imported(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """
    A device that a server has exported to this client. None of its traffic has been read yet.

    @ivar device: as the server describes it.
    @ivar connection: carries the traffic.
    @ivar encryption: C{RELAY}: the kernel cannot decrypt C{connection} itself: a relay is needed.
    """

    device: Exported
    connection: socket.socket
    encryption: Encryption


def importDevice(
    server: Server, busId: str, seconds: float, keepAlive: KeepAlive = DEFAULT
) -> Imported:
    """
    Import a device from a server, which has it bound.

    @param seconds: how long that may take.
    @param keepAlive: of the connection, for the whole session.
    @raise NotGiven: the server refuses.
    @raise Unreachable: the server does not reply, or its reply is not USB/IP.
    """
    with _connected(server, seconds, seconds) as (connection, until):
        keepAlive.apply(connection)
        connection.sendall(encodeRequest(ImportRequest(busId)))
        answer = b""
        device = None
        while device is None:
            # Not a byte more than the reply: the bytes after it are USB traffic, for the kernel.
            wanted = REPLY_HEAD if len(answer) < REPLY_HEAD else IMPORT_REPLY
            answer += _more(connection, wanted - len(answer), until)
            device = decodeImport(answer)
        if device.busId != busId:
            raise NotUsbIp(f"the reply to a request for {busId} is for {device.busId}")
        connection.settimeout(None)
        return Imported(device=device, connection=connection, encryption=_encryption(connection))


def listDevices(server: Server, seconds: float) -> tuple[Exported, ...]:
    """
    The devices that a server exports (OP_REQ_DEVLIST). Parameters and errors as of
    L{importDevice}; connecting has its share of the time (L{shareOf}).
    """
    with _connected(server, seconds, shareOf(seconds)) as (connection, until), connection:
        connection.sendall(encodeRequest(ListRequest()))
        answer = b""
        devices = None
        while devices is None:
            answer += _more(connection, CHUNK, until)
            if len(answer) > LONGEST_LIST:
                raise NotUsbIp("the list of devices is longer than any valid list")
            devices = decodeList(answer)
        return devices


@contextlib.contextmanager
def _connected(
    server: Server, seconds: float, connecting: float
) -> Iterator[tuple[socket.socket, float]]:
    """
    A connection to the export port, and the deadline of everything. It is closed after an error.

    @param connecting: how many of the seconds the TCP connection may take.
    """
    begin = time.monotonic()
    until = begin + seconds
    connection: socket.socket | None = None
    try:
        connection = connected(server, server.exportPort, begin + connecting, until, True)
        yield connection, until
    except (OSError, ValueError, NotUsbIp) as error:
        _close(connection)
        raise Unreachable(f"{server.called(server.exportAddress)}: {why(error)}") from error
    except BaseException:
        _close(connection)
        raise


def _more(connection: socket.socket, size: int, until: float) -> bytes:
    data = received(connection, size, until)
    if not data:
        raise ConnectionError(NO_ANSWER)
    return data


def _encryption(connection: socket.socket) -> Encryption:
    if type(connection) is socket.socket:
        return Encryption.NONE
    import ssl

    from usbip_server.net import ktls

    assert isinstance(connection, ssl.SSLSocket)
    if connection.pending() or ktls.missing(connection, connection.version()) is not None:
        return Encryption.RELAY
    return Encryption.KTLS


def _close(connection: socket.socket | None) -> None:
    if connection is not None:
        connection.close()
