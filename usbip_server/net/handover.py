"""
The hand-over of a client's connection to a device: checks before it, and what the device gets.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

import msgspec

from usbip_server.model.device import Encryption
from usbip_server.model.errors import InvalidRequest


class NotEncrypted(Exception):
    """
    The kernel cannot encrypt a connection, and the configuration requires it. The text states why,
    and what to do.
    """


class SessionSocket(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """
    A socket for USB traffic.

    @ivar given: the socket that the device gets.
    @ivar connection: the client's connection; its end is the end of the session. The same as
        C{given}, unless the traffic is relayed.
    @ivar encryption: how the traffic is encrypted.
    @ivar begin: called when the device has the socket, and the client has its reply.
    @ivar drop: called instead if the hand-over has failed.
    """

    given: socket.socket
    connection: socket.socket
    encryption: Encryption = Encryption.NONE
    begin: Callable[[], None] = lambda: None
    drop: Callable[[], None] = lambda: None


def requireSilence(connection: socket.socket) -> None:
    """
    Check that nothing was received after the import request: it would be taken for USB traffic.

    @raise InvalidRequest: data was received, or the connection has ended.
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
