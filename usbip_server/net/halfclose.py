"""
Closes a connection without losing what was just sent: shutdown(2) with C{SHUT_WR}, then a wait for
the other end to close.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import ISSLTransport, ITCPTransport, IUNIXTransport

LINGER = 2.0
"""
Seconds for the client to close its side after this side is closed. If both were closed at once and
data of the client arrived afterwards, the kernel would send a reset, which can overtake the reply.
"""


def closeOurSide(transport: Any, theirsIsClosed: bool = False) -> None:
    """
    Send what was written, and then the end of the stream. The protocol keeps reading, and closes
    the connection when the client has closed its side or after L{LINGER}.

    A transport that cannot close one direction is closed: TLS would close that of the socket
    beneath it, without its close_notify. A producer has to be unregistered before.

    @param theirsIsClosed: whether the client's side is closed already.
    """
    plain = ITCPTransport.providedBy(transport) or IUNIXTransport.providedBy(transport)
    if plain and not theirsIsClosed and not ISSLTransport.providedBy(transport):
        transport.resumeProducing()  # to see the client close its side
        transport.loseWriteConnection()
    else:
        transport.loseConnection()
