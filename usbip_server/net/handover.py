"""
A connection before it is handed to a device: as a socket that carries USB/IP.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

import msgspec

from usbip_server.model.device import Encryption
from usbip_server.model.errors import InvalidRequest


class NotEncrypted(Exception):
    """
    A connection is not encrypted as it has to be. The text says why, and what to do.
    """


class SessionSocket(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """
    What USB traffic goes over.

    @ivar given: what the device gets.
    @ivar connection: the client's, whose end is the end of the session: the same, unless
        somebody carries between the two.
    @ivar begin: called when the device has it and the client was answered.
    @ivar drop: called when it does not come to that.
    """

    given: socket.socket
    connection: socket.socket
    encryption: Encryption = Encryption.NONE
    begin: Callable[[], None] = lambda: None
    drop: Callable[[], None] = lambda: None


def requireSilence(connection: socket.socket) -> None:
    """
    A client says nothing more until it is answered: what it said would be taken for USB
    traffic.

    @raise InvalidRequest: it has, or it is gone.
    """
    try:
        more = connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return
    except OSError as error:
        raise InvalidRequest(f"the connection is gone: {error}") from error
    raise InvalidRequest(
        "unexpected data after the request" if more else "the client disconnected before the reply"
    )
