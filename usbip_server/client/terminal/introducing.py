"""
Which version of the program a server runs, as it says in HTTP::

    client: HEAD / HTTP/1.0
    server: HTTP/1.1 200 OK
            Server: usbipshare/0.1.0

"""

from __future__ import annotations

import time

from usbip_server.client.core.answers import NO_ANSWER
from usbip_server.client.core.reaching import received
from usbip_server.client.core.servers import Server
from usbip_server.client.terminal.asking import talking
from usbip_server.versions import versionIn

LONGEST = 16 * 1024
"""Bytes: the head of an answer."""


def versionOf(server: Server, seconds: float) -> str | None:
    """
    Ask a server for it. It tells everybody, so no token goes along.

    @param seconds: how long that may take.
    @return: C{None}: it does not say. It is no usbipshare, or one that is older than that.
    @raise Unreachable: there is no connection, or no answer in time.
    """
    until = time.monotonic() + seconds
    with talking(server, seconds, seconds) as connection:
        # Not 1.1: that wants to know by which of its names the server is meant.
        connection.sendall(b"HEAD / HTTP/1.0\r\n\r\n")
        head = b""
        while b"\r\n\r\n" not in head and len(head) < LONGEST:
            more = received(connection, LONGEST, until)
            if not more:
                break
            head += more
        if not head:
            raise ConnectionError(NO_ANSWER)
    for line in head.partition(b"\r\n\r\n")[0].split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"server":
            return versionIn(value.decode("latin-1").strip())
    return None
