"""
Which version of the program a server runs, as it says in HTTP::

    client: HEAD / HTTP/1.0
    server: HTTP/1.1 200 OK
            Server: usbipshare/0.1.0

"""

from __future__ import annotations

from http.client import HTTPException, HTTPResponse

from usbip_server.client.core.servers import Server
from usbip_server.client.terminal.asking import talking
from usbip_server.versions import versionIn


def versionOf(server: Server, seconds: float) -> str | None:
    """
    Ask a server for it.

    @param seconds: how long that may take.
    @return: C{None}: it does not say. It is no usbipshare, or one that is older than that.
    @raise Unreachable: there is no connection, or no answer in time.
    """
    token = "" if server.token is None else f"Authorization: Bearer {server.token}\r\n"
    with talking(server, seconds, seconds) as connection:
        connection.settimeout(seconds)
        # Not 1.1: that wants to know by which of its names the server is meant.
        connection.sendall(f"HEAD / HTTP/1.0\r\n{token}\r\n".encode())
        response = HTTPResponse(connection, method="HEAD")
        try:
            response.begin()
        except (HTTPException, ValueError, ConnectionError):
            return None
        finally:
            response.close()
        return versionIn(response.getheader("Server") or "")
