"""
How commands end: exit codes for shells, and a word for each for programs that read JSON.
"""

from __future__ import annotations

import enum

from usbip_server.client.selection import SeveralFound
from usbip_server.model.errors import (
    DeviceNotFound,
    LocalTrouble,
    SeveralMatch,
    ShareError,
    Unreachable,
)
from usbip_server.model.replies import Refused, Status


class Exit(enum.IntEnum):
    """
    How a command has ended.
    """

    DONE = 0
    """It is done."""

    USAGE = 2
    """The command line or the file of servers makes no sense."""

    NOT_FOUND = 3
    """No device is meant, or nothing is plugged in there."""

    SEVERAL = 4
    """Several are."""

    REFUSED = 5
    """A server refuses, or somebody else has the device."""

    UNREACHABLE = 6
    """No server answers that could."""

    TROUBLE = 7
    """This machine's kernel does not do it, or does not let us."""

    @property
    def word(self) -> str:
        """What stands for it in JSON."""
        return WORD_OF[self]


WORD_OF = {
    Exit.DONE: "success",
    Exit.USAGE: "usage",
    Exit.NOT_FOUND: "not_found",
    Exit.SEVERAL: "multiple_matches",
    Exit.REFUSED: "failure",
    Exit.UNREACHABLE: "unreachable",
    Exit.TROUBLE: "local_trouble",
}

INTERRUPTED = 130
"""Somebody has ended it, with ctrl-C: as shells have it, 128 and the signal's number."""

EXIT_OF: dict[type[ShareError], Exit] = {
    ShareError: Exit.REFUSED,
    DeviceNotFound: Exit.NOT_FOUND,
    SeveralFound: Exit.SEVERAL,
    SeveralMatch: Exit.SEVERAL,
    Unreachable: Exit.UNREACHABLE,
    LocalTrouble: Exit.TROUBLE,
}
"""How a command ends that fails with an error; a subclass is as its base."""

EXIT_AFTER: dict[Status, Exit] = {
    Status.SUCCESS: Exit.DONE,
    Status.FAILURE: Exit.REFUSED,
    Status.ERROR: Exit.REFUSED,
    Status.NOT_FOUND: Exit.NOT_FOUND,
    Status.MULTIPLE_MATCHES: Exit.SEVERAL,
}
"""And one whose server has answered so."""


def exitFor(error: ShareError) -> Exit:
    """
    How a command ends that fails with this.
    """
    if isinstance(error, Refused):
        return EXIT_AFTER[error.status]
    return next(EXIT_OF[kind] for kind in type(error).__mro__ if kind in EXIT_OF)
