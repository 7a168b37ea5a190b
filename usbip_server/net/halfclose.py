"""
Closing a connection without losing what was just said.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import ISSLTransport, ITCPTransport, IUNIXTransport

LINGER = 2.0
"""
Seconds for the client to close its side after ours is closed. To close both at once would
make the kernel send a reset if anything of the client's is still under way, and a reset
can overtake the answer.
"""


def closeOurSide(transport: Any, theirsIsClosed: bool = False) -> None:
    """
    Send what is written, and then the end of the stream. The protocol goes on to read,
    and closes the connection when the client has closed its side or L{LINGER} is over.

    Where one direction cannot be closed both are: TLS would pass the call to the socket
    beneath it, to the other's surprise. A producer has to be unregistered before.

    @param theirsIsClosed: the client's side is closed already.
    """
    plain = ITCPTransport.providedBy(transport) or IUNIXTransport.providedBy(transport)
    if plain and not theirsIsClosed and not ISSLTransport.providedBy(transport):
        transport.resumeProducing()  # to see the client close its side
        transport.loseWriteConnection()
    else:
        transport.loseConnection()
