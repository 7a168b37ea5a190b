"""User-mode Linux: a kernel that is an ordinary program of this computer.

Its root file system is this computer's own, read-only, with a writable layer in memory. The
console is its standard output; the tests' output and the guest's notes come over two serial lines
that are pipes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tests.kernel.machine import (
    CONSOLE,
    Boot,
    Ending,
    GuestRun,
    IMachineReactor,
    Kernel,
    Machine,
    settingsScript,
)
from tests.kernel.needs import Need
from tests.kernel.tools import tool

_TERMINAL_FD = 3
_NOTES_FD = 4

_INIT = Path(__file__).with_name("uml-init.sh")

_KERNEL_OPTIONS = (
    "mem=1024M",
    "root=/dev/root",
    "rootfstype=hostfs",
    "rootflags=/",
    "ro",
    "con=null",
    "ssl=null",
    "oops=panic",
    "panic=-1",
    "log_buf_len=4M",
    # The kernel's "sysrq" keeps each keyboard open, and dummy_hcd has a timer of 125 us for as long
    # as a device is waited for: 6500 interrupts a second, of which each stops the guest's process.
    # /proc/sysrq-trigger works nevertheless.
    "sysctl.kernel.sysrq=0",
)


# Memory that was freed is overwritten, so that a kernel that uses it crashes. Only where it has to
# crash: usbip-host reads a request after it was freed when a client cancels it
# (stub_recv_cmd_unlink, drivers/usb/usbip/stub_rx.c), which is harmless otherwise.
_POISON = "slub_debug=P"


class Processors:
    """The processors of this computer, and how many machines run on each.

    Every system call and page fault in a guest is a switch between two processes of this
    computer, the kernel and the guest's process. On one processor that takes a quarter of the
    time that it takes across two."""

    def __init__(self) -> None:
        self._loads = dict.fromkeys(sorted(os.sched_getaffinity(0)), 0)

    @contextlib.contextmanager
    def one(self) -> Iterator[int]:
        """The one with the fewest machines: it has one more while this lasts."""
        processor = min(self._loads, key=lambda it: self._loads[it])
        self._loads[processor] += 1
        try:
            yield processor
        finally:
            self._loads[processor] -= 1


class UserModeLinux(Machine):
    """Runs the kernel as a process."""

    kind = "uml"
    offers = frozenset({Need.GADGETS})
    isQuick = True

    def __init__(self, reactor: IMachineReactor, kernel: Kernel, processors: Processors) -> None:
        """@param processors: shared by all machines."""
        super().__init__(reactor, kernel)
        self._processors = processors

    async def run(self, boot: Boot) -> Ending:
        """See L{Machine.run}."""
        folder = boot.folder
        terminal = "/dev/tty0" if boot.isInteractive else "/dev/ttyS1"
        settings = settingsScript(self.kernel, boot, terminal, "/dev/ttyS2")
        (folder / "settings").write_text(settings)
        descriptors: dict[int, int | str] = {0: "w", 1: "r", 2: "r"}
        if boot.isInteractive:
            descriptors = {0: 0, 1: 1, 2: 2}
        descriptors |= {_TERMINAL_FD: "r", _NOTES_FD: "r"}
        with (
            self._processors.one() as processor,
            (folder / CONSOLE).open("wb", buffering=0) as console,
        ):
            readers = {1: console.write, 2: console.write, _TERMINAL_FD: boot.emit}
            run = GuestRun(self._reactor, boot, _NOTES_FD, readers)
            path = {"PATH": os.environ.get("PATH", os.defpath)}
            return await run.result(self._command(boot, processor), descriptors, path)

    def _command(self, boot: Boot, processor: int) -> list[str]:
        # The processes of the guest are children of the kernel: in a process namespace all of them
        # end with it, and it ends with the harness.
        isolate = [tool("prlimit"), "--core=0", tool("setpriv"), "--pdeathsig", "KILL"]
        isolate += [tool("taskset"), "--cpu-list", str(processor), tool("unshare")]
        isolate += [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        # A shell is process 1 there: for process 1 the kernel's abort() at a panic has no effect.
        isolate += ["--pid", "--fork", "--kill-child", "sh", "-c", '"$0" "$@"; exit $?']
        return [
            *isolate,
            str(self.kernel.image),
            *_KERNEL_OPTIONS,
            *([_POISON] if boot.isFatal else []),
            *boot.options,
            f"init={_INIT}",
            f"RUN_FOLDER={boot.folder}",
            f"uml_dir={boot.folder}",  # for the control socket
            "umid=guest",
            # Not "fd:0" for input: the console would be closed at its end.
            f"con0={'fd:0' if boot.isInteractive else 'null'},fd:1",
            f"ssl1=null,fd:{_TERMINAL_FD}",
            f"ssl2=null,fd:{_NOTES_FD}",
            *(["quiet"] if boot.isInteractive else []),
        ]
