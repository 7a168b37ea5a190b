"""
Fetching a device: from the connection to a server's export port until it is ours. Everything
here blocks, for as long as it is told to: call it in a thread.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Iterator

import msgspec

from usbip_server.client.blocking import connected, received, shareOf, why
from usbip_server.client.servers import Server
from usbip_server.client.tls import exportContext
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
from usbip_server.net import ktls
from usbip_server.net.keepalive import KeepAlive

AT_ONCE = 65536

LONGEST_LIST = 1024 * 1024
"""Bytes: of thousands of devices."""

DEFAULT = KeepAlive()


class Imported(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """
    A device that a server has given us. Nobody has read anything of its traffic yet.

    @ivar device: as the server describes it.
    @ivar connection: what the traffic goes over.
    @ivar encryption: C{RELAY}: the kernel cannot read C{connection}, and somebody has to carry
        between the two.
    """

    device: Exported
    connection: socket.socket
    encryption: Encryption


def importDevice(
    server: Server, busId: str, seconds: float, keepAlive: KeepAlive = DEFAULT
) -> Imported:
    """
    Fetch a device.

    @param seconds: how long that may take.
    @param keepAlive: how it is noticed later that the server has vanished.
    @raise NotGiven: the server does not give it to us.
    @raise Unreachable: it is not there, or speaks something else.
    """
    with _connected(server, seconds, seconds) as (connection, until):
        keepAlive.apply(connection)
        connection.sendall(encodeRequest(ImportRequest(busId)))
        answer = b""
        device = None
        while device is None:
            # Not a byte more than the answer: what comes behind it is USB traffic.
            wanted = REPLY_HEAD if len(answer) < REPLY_HEAD else IMPORT_REPLY
            answer += _more(connection, wanted - len(answer), until)
            device = decodeImport(answer)
        if device.busId != busId:
            raise NotUsbIp(f"it was asked for {busId}, and gives {device.busId}")
        connection.settimeout(None)
        return Imported(device=device, connection=connection, encryption=_encryption(connection))


def listDevices(server: Server, seconds: float) -> tuple[Exported, ...]:
    """
    What a server has to give away. All that a stock C{usbipd} tells of its devices. Parameters
    and errors as of L{importDevice}; connecting has its share of the time (L{shareOf}).
    """
    with _connected(server, seconds, shareOf(seconds)) as (connection, until), connection:
        connection.sendall(encodeRequest(ListRequest()))
        answer = b""
        devices = None
        while devices is None:
            answer += _more(connection, AT_ONCE, until)
            if len(answer) > LONGEST_LIST:
                raise NotUsbIp("its list has no end")
            devices = decodeList(answer)
        return devices


@contextlib.contextmanager
def _connected(
    server: Server, seconds: float, connecting: float
) -> Iterator[tuple[socket.socket, float]]:
    """
    A connection to the export port, and until when everything has to be done. It is closed if
    anything goes wrong.

    @param connecting: how many of the seconds it may take until the machine is there.
    """
    begin = time.monotonic()
    until = begin + seconds
    connection: socket.socket | None = None
    try:
        connection = connected(server, server.exportPort, exportContext, begin + connecting, until)
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
    if not isinstance(connection, ssl.SSLSocket):
        return Encryption.NONE
    if connection.pending() or ktls.missing(connection, connection.version()) is not None:
        return Encryption.RELAY
    return Encryption.KTLS


def _close(connection: socket.socket | None) -> None:
    if connection is not None:
        connection.close()
