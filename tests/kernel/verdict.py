"""Reading the console of a kernel: complaints and crashes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

_PANIC = "Kernel panic"

_STAMP = re.compile(r"^\[\s*\d+\.\d+\](?:\[[^\]]*\])? ")
_COMPLAINT = re.compile(
    r"BUG: |kernel BUG at|\bOops\b|general protection fault|Kernel panic"
    r"|INFO: task .* blocked for more than"
)
_WARNING = re.compile(r"WARNING: ")
_OURS = re.compile(r"usbip|vhci")
_WARNING_LINES = 80

# What stands in the line before or after a warning that is about a client's request, not about
# usbip: an empty read where the device expects a write (drivers/usb/core/urb.c).
_CLIENTS_FAULT = "BOGUS control dir"

_LINES_BEFORE = 10
_LINES_AFTER = 50

# The harness makes a guest that does not end panic in this way.
_OUR_OWN_PANIC = "NMI received for unknown reason"


def complaintsOf(console: str) -> list[str]:
    """The lines with a bug, oops, panic or hanging task, and with a warning whose trace contains
    usbip or vhci and that is not about a client's request."""
    lines = [_STAMP.sub("", line) for line in console.splitlines()]
    return [lines[number] for number in _complaining(lines)]


def hasDied(console: str, pattern: str) -> bool:
    """Has the kernel died, of what was expected?

    @param pattern: a regular expression for a part of a line."""
    return _PANIC in console and re.search(pattern, console) is not None


def excerptOf(console: str) -> list[str]:
    """The part of a console worth showing: the first complaint and its trace. Else, of a guest that
    was made to panic, the tasks that hang in the kernel. Else the end."""
    lines = console.splitlines()
    for number in _complaining([_STAMP.sub("", line) for line in lines]):
        return lines[max(0, number - _LINES_BEFORE) : number + _LINES_AFTER]
    return list(_hanging(lines)) or lines[-_LINES_AFTER:]


def _hanging(lines: Iterable[str]) -> Iterator[str]:
    """The traces of the tasks in an uninterruptible sleep, from a list of all tasks."""
    shown = False
    for line in lines:
        if "</TASK>" in line:
            shown = False
        elif "task:" in line:
            shown = "state:D" in line
        if shown:
            yield line


def _complaining(lines: Sequence[str]) -> Iterator[int]:
    """The numbers of the lines that complain."""
    for number, line in enumerate(lines):
        if _OUR_OWN_PANIC in line:
            return
        if _COMPLAINT.search(line) or (
            _WARNING.search(line)
            and _CLIENTS_FAULT not in "".join(lines[max(0, number - 1) : number + 2])
            and any(_OURS.search(traced) for traced in _traceOf(lines[number:]))
        ):
            yield number


def _traceOf(lines: Iterable[str]) -> Iterator[str]:
    """The lines of the warning that begins in the first line, without the list of loaded modules,
    which always contains usbip's."""
    listing = False
    for number, line in enumerate(lines):
        if number == _WARNING_LINES or "---[ end trace" in line:
            return
        if "Modules linked in:" in line:
            listing = True
        elif line.startswith(("CPU: ", "RIP: ")):
            listing = False
        if not listing:
            yield line
