"""
Telling systemd how the daemon is doing (sd_notify(3)).
"""

from __future__ import annotations

import os
import socket


def notify(state: str) -> None:
    """
    Tell whoever has started us, if it wants to know.

    @param state: C{"READY=1"}, C{"STOPPING=1"}, C{"STATUS=..."}, several on a line each.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # in the abstract namespace
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.sendto(state.encode(), socket.MSG_DONTWAIT, address)
        except OSError:
            return  # nobody there to hear it
