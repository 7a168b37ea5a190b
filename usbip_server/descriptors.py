"""
How many file descriptors a process may have.
"""

from __future__ import annotations

import contextlib
import resource

from twisted.logger import Logger

SPARE = 96
"""Those that are not connections: listening sockets, sysfs, the log, child processes
(hooks have three pipes each), and those who are just being turned away."""


_log = Logger()


def affordable(wanted: int, files: int = 1) -> int:
    """
    Make room for connections, as far as the system lets us, and warn if that is not enough.

    @param files: how many each one takes.
    @return: for how many of those wanted there is room.
    """
    room = max(1, _room(files * wanted) // files)
    if room < wanted:
        _log.warn(
            "room for {room} connections only, not {wanted}: the limit on open files is too "
            "low (LimitNOFILE= in the systemd unit, or ulimit -n)",
            room=room,
            wanted=wanted,
        )
    return room


def _room(connections: int) -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + SPARE
    if soft != resource.RLIM_INFINITY and soft < needed:
        wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY:
        return connections
    return max(1, min(connections, soft - SPARE))
