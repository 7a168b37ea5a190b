"""The kernel's figures about a process (proc(5))."""

from __future__ import annotations

import os
from pathlib import Path

_UTIME = 11
"""C{utime} among the fields of C{/proc/PID/stat} behind the program's name; C{stime} is
the next one."""


def cpuSeconds(pid: int) -> float:
    """The CPU seconds that all threads of a process have used, to 1/100 s."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[_UTIME : _UTIME + 2])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> int:
    """The memory that a process uses, in KiB: C{VmRSS}."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(dict(line.split(":") for line in lines)["VmRSS"].split()[0])


def takeCore(pid: int, number: int) -> None:
    """Let a process run on one core only, if there are as many.

    @param pid: 0 for this process.
    @param number: 0 for the first core that this process may use."""
    cores = sorted(os.sched_getaffinity(0))
    if number < len(cores):
        os.sched_setaffinity(pid, {cores[number]})


def readCalls(pid: int) -> int:
    """How often a process has called C{read}, which it does for attributes of sysfs. Sockets are
    read by C{recv}, which is not counted here."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["syscr"])
