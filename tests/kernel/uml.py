"""
User-mode Linux: a kernel that is an ordinary program of this computer.

Its root file system is this computer's own, read-only, with a writable layer in memory. The
console is its standard output; what the tests print, and how far the guest is, comes over two
serial lines that are pipes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from twisted.internet.defer import Deferred

from tests.kernel.guestsettings import settingsScript
from tests.kernel.machine import (
    CONSOLE,
    Boot,
    Ending,
    GuestProcess,
    IMachineReactor,
)
from tests.kernel.needs import Need
from tests.kernel.requests import Booted, Finished, Note
from tests.kernel.tools import tool
from tests.kernel.umlkernel import UmlKernel

_CONSOLE_FD = 1
_ERROR_FD = 2
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


# Memory that was freed is overwritten: a kernel that uses it dies, and does not go on by chance.
# Only where it has to die: usbip-host itself reads a request after it was freed when a client
# takes it back (stub_recv_cmd_unlink, drivers/usb/usbip/stub_rx.c), which is harmless without.
_POISON = "slub_debug=P"


class Processors:
    """
    The processors of this computer, and how many machines run on each.

    Every system call and page fault in a guest is a switch between two processes of this
    computer, the kernel and the guest's process. On one processor that takes a quarter of the
    time that it takes across two.
    """

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


class UserModeLinux:
    """An L{tests.kernel.machine.IMachine}."""

    kind = "uml"
    offers = frozenset({Need.GADGETS})
    isQuick = True

    def __init__(self, reactor: IMachineReactor, kernel: UmlKernel, processors: Processors) -> None:
        """@param processors: shared by all machines."""
        self.kernel = kernel
        self._reactor = reactor
        self._processors = processors

    async def run(self, boot: Boot) -> Ending:
        """See L{tests.kernel.machine.IMachine.run}."""
        with self._processors.one() as processor:
            return await _Run(self._reactor, self.kernel, boot, processor).result()


class _Run:
    """One boot."""

    def __init__(
        self, reactor: IMachineReactor, kernel: UmlKernel, boot: Boot, processor: int
    ) -> None:
        self._reactor = reactor
        self._processor = processor
        self._kernel = kernel
        self._boot = boot
        self._started = reactor.seconds()
        self._booted: float | None = None
        self._status: int | None = None
        self._timedOut = False
        self._interrupted = False
        self._notes = b""

    async def result(self) -> Ending:
        """Boot, and wait for the end."""
        folder = self._boot.folder
        terminal = "/dev/tty0" if self._boot.isInteractive else "/dev/ttyS1"
        settings = settingsScript(self._kernel, self._boot, terminal, "/dev/ttyS2")
        (folder / "settings").write_text(settings)
        with (folder / CONSOLE).open("wb", buffering=0) as console:
            hear: dict[int, Callable[[bytes], object]] = {
                _CONSOLE_FD: console.write,
                _ERROR_FD: console.write,
                _TERMINAL_FD: self._boot.emit,
                _NOTES_FD: self._note,
            }
            self._process = GuestProcess(hear)
            self._spawn()
            shutdown = self._reactor.addSystemEventTrigger("before", "shutdown", self._interrupt)
            limit = self._boot.limit
            timer = None if limit is None else self._reactor.callLater(limit, self._expire)
            try:
                await self._process.ended
            finally:
                if timer is not None and timer.active():
                    timer.cancel()
                if not self._interrupted:
                    self._reactor.removeSystemEventTrigger(shutdown)
        return Ending(
            status=self._status,
            bootSeconds=self._booted,
            seconds=self._reactor.seconds() - self._started,
            timedOut=self._timedOut,
            interrupted=self._interrupted,
        )

    def _spawn(self) -> None:
        folder = self._boot.folder
        options = [
            *_KERNEL_OPTIONS,
            *([_POISON] if self._boot.isFatal else []),
            f"init={_INIT}",
            f"RUN_FOLDER={folder}",
            # Where it keeps its control socket.
            f"uml_dir={folder}",
            "umid=guest",
            # Not "fd:0" for input: the console would be closed at its end.
            f"con0={'fd:0' if self._boot.isInteractive else 'null'},fd:1",
            f"ssl1=null,fd:{_TERMINAL_FD}",
            f"ssl2=null,fd:{_NOTES_FD}",
        ]
        # The processes of the guest are children of the kernel: in a namespace of their own all
        # of them end with it, and it ends with the harness.
        isolate = [tool("prlimit"), "--core=0", tool("setpriv"), "--pdeathsig", "KILL"]
        isolate += [tool("taskset"), "--cpu-list", str(self._processor), tool("unshare")]
        isolate += [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        # A shell is process 1 there: for process 1 the kernel's abort() at a panic has no effect.
        isolate += ["--pid", "--fork", "--kill-child", "sh", "-c", '"$0" "$@"; exit $?']
        descriptors: dict[int, int | str] = {0: "w", 1: "r", 2: "r"}
        if self._boot.isInteractive:
            descriptors = {0: 0, 1: 1, 2: 2}
            options.append("quiet")
        descriptors |= {_TERMINAL_FD: "r", _NOTES_FD: "r"}
        self._reactor.spawnProcess(
            self._process,
            isolate[0],
            [*isolate, str(self._kernel.program), *options],
            env={"PATH": os.environ.get("PATH", os.defpath)},
            path=str(folder),
            childFDs=descriptors,
        )
        if not self._boot.isInteractive and self._process.transport is not None:
            self._process.transport.closeStdin()

    def _note(self, data: bytes) -> None:
        *lines, self._notes = (self._notes + data).split(b"\n")
        for line in lines:
            self._heed(msgspec.json.decode(line, type=Note))

    def _heed(self, note: Note) -> None:
        """The guest has said how far it is."""
        if isinstance(note, Booted):
            self._booted = self._reactor.seconds() - self._started
        elif isinstance(note, Finished):
            self._status = note.status
            # Nothing of it is kept, so there is nothing to shut down; where a device hangs, a
            # shutdown would wait for it without end.
            self._process.kill()

    def _expire(self) -> None:
        self._timedOut = True
        self._process.kill()

    def _interrupt(self) -> Deferred[None]:
        self._interrupted = True
        gone = self._process.gone()
        self._process.kill()
        return gone
