"""
Standard output and standard error, which may lead to a full disk, or nowhere.
"""

from __future__ import annotations

import io
import os
import sys

FAILED = 1
"""How a command ends whose results could not be written, as those of GNU do."""

_STREAMS = (("stdout", 1, os.O_RDONLY), ("stderr", 2, os.O_WRONLY))


class NotWritten(OSError):
    """
    Standard output does not take what is to be said.
    """


class Output(io.TextIOWrapper):
    """
    Standard output: what goes wrong with it is told from what goes wrong elsewhere.
    """

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            raise _notWritten(error) from error

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            raise _notWritten(error) from error


def prepare() -> None:
    """
    Let everything be written that devices may be called, and let there be something to write to.
    Where standard output is closed, writing to it is an error; what is said to a standard error
    that is closed is lost.
    """
    for name, number, mode in _STREAMS:
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, mode)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            made = open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, made)
            setattr(sys, f"__{name}__", made)
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if type(sys.stdout) is io.TextIOWrapper:
        sys.stdout = Output(
            sys.stdout.buffer,
            encoding=sys.stdout.encoding,
            errors=sys.stdout.errors,
            line_buffering=sys.stdout.line_buffering,
            write_through=sys.stdout.write_through,
        )


def giveUp() -> None:
    """
    Write no more to standard output: what could not be written would be tried once more at the
    end.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _notWritten(error: OSError) -> NotWritten:
    return NotWritten(error.errno, error.strerror)
