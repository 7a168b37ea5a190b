"""
Exit codes of the commands, and the word for each in JSON.
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
    An exit code.
    """

    DONE = 0
    """Success."""

    USAGE = 2
    """The command line or client.yaml is wrong."""

    NOT_FOUND = 3
    """No device matches, or no device is attached at the port."""

    SEVERAL = 4
    """Several devices match."""

    REFUSED = 5
    """A server refuses, or another client uses the device."""

    UNREACHABLE = 6
    """No server answers."""

    TROUBLE = 7
    """This machine's kernel refuses or fails, or permission is missing."""

    @property
    def word(self) -> str:
        """The C{status} in JSON."""
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

EXIT_OF: dict[type[ShareError], Exit] = {
    ShareError: Exit.REFUSED,
    DeviceNotFound: Exit.NOT_FOUND,
    SeveralFound: Exit.SEVERAL,
    SeveralMatch: Exit.SEVERAL,
    Unreachable: Exit.UNREACHABLE,
    LocalTrouble: Exit.TROUBLE,
}
"""The exit code for each error; a subclass has that of its base."""

EXIT_AFTER: dict[Status, Exit] = {
    Status.SUCCESS: Exit.DONE,
    Status.FAILURE: Exit.REFUSED,
    Status.ERROR: Exit.REFUSED,
    Status.NOT_FOUND: Exit.NOT_FOUND,
    Status.MULTIPLE_MATCHES: Exit.SEVERAL,
}
"""The exit code for each status of a server's reply."""


def exitFor(error: ShareError) -> Exit:
    """
    The exit code of a command that fails with an error.
    """
    if isinstance(error, Refused):
        return EXIT_AFTER[error.status]
    return next(EXIT_OF[kind] for kind in type(error).__mro__ if kind in EXIT_OF)
