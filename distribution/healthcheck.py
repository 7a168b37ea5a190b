#!/usr/bin/env python3
"""
The health check of the container: does the server, or the client service, answer a request?

With an argument, a port or the path of a socket, it asks there; otherwise on port 5055, or on the
socket of the client service if there is one.
"""

import os
import socket
import sys

PORT = "5055"
SOCKET = "/run/usbipshare/client.sock"
SECONDS = 8


def answer(place: str) -> bytes:
    """The beginning of the answer to a request."""
    if place.isdigit():
        connection = socket.create_connection(("localhost", int(place)), SECONDS)
    else:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(SECONDS)
        connection.connect(place)
    with connection:
        connection.sendall(b'{"command":"list"}\n')
        return connection.recv(64)


def main() -> None:
    """Exit with status 0 if there is an answer, also one that refuses."""
    place = sys.argv[1] if len(sys.argv) > 1 else SOCKET if os.path.exists(SOCKET) else PORT
    try:
        begins = answer(place)
    except OSError as error:
        sys.exit(f"{place}: {error}")
    if not begins.startswith(b'{"status":'):
        sys.exit(f"{place}: unexpected answer {begins!r}")


if __name__ == "__main__":
    main()
