"""
Fetching a device: from the connection to a server's export port until it is ours. Everything
here blocks, for as long as it is told to: call it in a thread. Only looking up a name takes as
long as it takes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import time
from collections.abc import Iterator

import msgspec

from usbip_server.client.core.connecting import shareOf
from usbip_server.client.core.servers import Server
from usbip_server.client.core.trust import ALERT, LEAVES, SPEAKS_TLS, contextFor, nameOf, reasonOf
from usbip_server.device import Encryption
from usbip_server.errors import Unreachable
from usbip_server.handoff import KeepAlive
from usbip_server.opcodec import (
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
from usbip_server.protocols import ktls

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
        received = b""
        device = None
        while device is None:
            # Not a byte more than the answer: what comes behind it is USB traffic.
            wanted = REPLY_HEAD if len(received) < REPLY_HEAD else IMPORT_REPLY
            received += _more(connection, wanted - len(received), until)
            device = decodeImport(received)
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
        received = b""
        devices = None
        while devices is None:
            received += _more(connection, AT_ONCE, until)
            if len(received) > LONGEST_LIST:
                raise NotUsbIp("its list has no end")
            devices = decodeList(received)
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
        connection = _connection(server, begin + connecting, until)
        yield connection, until
    except (OSError, ValueError, NotUsbIp) as error:
        _close(connection)
        raise Unreachable(f"{server.called(server.exportAddress)}: {_why(error)}") from error
    except BaseException:
        _close(connection)
        raise


def _connection(server: Server, there: float, until: float) -> socket.socket:
    connection = _reached(server.host, server.exportPort, there)
    if server.tls is None:
        return connection
    try:
        connection.settimeout(_left(until))
        return contextFor(server.tls).wrap_socket(
            connection, server_hostname=nameOf(server.host, server.tls)
        )
    except ConnectionError:
        connection.close()
        raise ConnectionError(LEAVES) from None
    except BaseException:
        connection.close()
        raise


def _reached(host: str, port: int, until: float) -> socket.socket:
    """
    A connection to the first of a host's addresses that answers. None takes the time of those
    behind it.
    """
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    trouble: OSError = ConnectionError("it has no address")
    for index, (family, kind, protocol, _, address) in enumerate(addresses):
        made = None
        try:
            made = socket.socket(family, kind, protocol)
            made.settimeout(_left(until) / (len(addresses) - index))
            made.connect(address)
            return made
        except OSError as error:
            _close(made)
            trouble = error
        except BaseException:
            _close(made)
            raise
    raise trouble


def _more(connection: socket.socket, size: int, until: float) -> bytes:
    connection.settimeout(_left(until))
    data = connection.recv(size)
    if not data:
        raise ConnectionError("it closes without an answer")
    if data.startswith(ALERT) and not isinstance(connection, ssl.SSLSocket):
        raise NotUsbIp(SPEAKS_TLS)
    return data


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _encryption(connection: socket.socket) -> Encryption:
    if not isinstance(connection, ssl.SSLSocket):
        return Encryption.NONE
    if connection.pending() or ktls.missing(connection, connection.version()) is not None:
        return Encryption.RELAY
    return Encryption.KTLS


def _close(connection: socket.socket | None) -> None:
    if connection is not None:
        connection.close()


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, socket.gaierror):
        return "there is no machine of this name"
    if isinstance(error, ssl.SSLError):
        return reasonOf(error)
    if isinstance(error, UnicodeError):
        return "that is no name of a machine"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error)
