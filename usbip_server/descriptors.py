"""
How many file descriptors a process may have.
"""

from __future__ import annotations

import contextlib
import resource

SPARE = 96
"""Those that are not connections: listening sockets, sysfs, the log, child processes
(hooks have three pipes each), and those who are just being turned away."""


def affordable(connections: int) -> int:
    """
    Make room for connections, as far as the system lets us.

    @return: for how many of those wanted there is room.
    """
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
