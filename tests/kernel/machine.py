"""
A virtual machine, from its start to its end.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import (
    IReactorCore,
    IReactorProcess,
    IReactorSocket,
    IReactorTime,
)
from twisted.internet.protocol import ProcessProtocol, Protocol, ServerFactory
from twisted.python.failure import Failure

from tests.kernel.devices import DEVICES
from tests.kernel.kernels import Kernel
from tests.kernel.monitor import Monitor, deviceProperties, driveOptions, ignoreRefusal
from tests.kernel.relay import GuestRelay
from tests.kernel.requests import MONITOR_PORT, TRIAL_PORT
from tests.kernel.tools import tool

_MONITOR_FD = 3
_RELAY_FD = 4

# Seconds for a guest to say why it hangs, and to switch itself off after its tests.
_LAST_WORDS = 60.0
_SWITCHING_OFF = 20.0

_KERNEL_OPTIONS = (
    "console=ttyS0",
    # Dead is dead, and QEMU (-no-reboot) ends with it ...
    "oops=panic",
    "panic=-1",
    # ... after showing what every task was doing. An NMI has the same effect.
    "panic_print=1",
    "unknown_nmi_panic",
    # A slow host is not a bug of the kernel.
    "nowatchdog",
    "rcupdate.rcu_cpu_stall_suppress=1",
    "log_buf_len=4M",
)


class IMachineReactor(IReactorCore, IReactorProcess, IReactorSocket, IReactorTime):
    """
    What is wanted of a reactor here.
    """


@dataclass(frozen=True, slots=True)
class Ending:
    """
    How a guest ended.

    @ivar status: trial's exit status, or none if the guest never got so far.
    @ivar bootSeconds: until the guest began with its tests, or none if it never did.
    @ivar speechSeconds: until the first output of the tests, likewise.
    @ivar seconds: in all.
    @ivar timedOut: it was still running at its deadline.
    @ivar interrupted: the harness is shutting down.
    """

    status: int | None
    bootSeconds: float | None
    speechSeconds: float | None
    seconds: float
    timedOut: bool
    interrupted: bool


class Machine:
    """
    One boot of one kernel.

    The folder it runs in contains the disk's image C{disk.img} and gets the console's
    output, C{console.log}.
    """

    def __init__(
        self,
        reactor: IMachineReactor,
        kernel: Kernel,
        accelerator: str,
        initrd: Path,
        folder: Path,
        interactive: bool,
    ) -> None:
        self._reactor = reactor
        self._kernel = kernel
        self._accelerator = accelerator
        self._initrd = initrd
        self._folder = folder
        self._interactive = interactive
        self._timedOut = False
        self._interrupted = False

    async def run(
        self, emit: Callable[[bytes], None], bootLimit: float | None, limit: float | None
    ) -> Ending:
        """
        Boot, and wait for the end. QEMU is gone when this returns, whatever has happened.

        Called once.

        @param emit: called with what the tests print.
        @param bootLimit: seconds until the tests must have begun.
        @param limit: seconds until all must be over.
        """
        started = self._reactor.seconds()
        monitor = Monitor(self._reactor)
        relay = GuestRelay(monitor, self._reactor)
        booted: list[float] = []
        relay.booted.addCallback(booted.append)
        statuses: list[int] = []
        relay.finished.addCallback(statuses.append)

        spoken: list[float] = []

        def hear(data: bytes) -> None:
            spoken.append(self._reactor.seconds())
            emit(data)

        self._spawn(hear, monitor, relay)
        shutdown = self._reactor.addSystemEventTrigger("before", "shutdown", self._interrupt)
        timers = [
            self._reactor.callLater(seconds, expire)
            for seconds, expire in (
                (bootLimit, lambda: None if booted else self._expire()),
                (limit, lambda: self._askAndExpire(monitor)),
            )
            if seconds is not None
        ]
        relay.finished.addCallback(
            lambda result: timers.append(self._reactor.callLater(_SWITCHING_OFF, self._kill))
        )
        try:
            await self._qemu.ended
            await relay.lost
        finally:
            for timer in timers:
                if timer.active():
                    timer.cancel()
            if not self._interrupted:
                self._reactor.removeSystemEventTrigger(shutdown)
        return Ending(
            status=statuses[0] if statuses else None,
            bootSeconds=booted[0] - started if booted else None,
            speechSeconds=spoken[0] - started if spoken else None,
            seconds=self._reactor.seconds() - started,
            timedOut=self._timedOut,
            interrupted=self._interrupted,
        )

    def _spawn(self, emit: Callable[[bytes], None], monitor: Monitor, relay: GuestRelay) -> None:
        # The kernel kills QEMU when this process dies of what it cannot catch.
        command = [tool("setpriv"), "--pdeathsig", "KILL", tool("qemu-system-x86_64")]
        self._qemu = _Qemu(emit)
        with self._adopt(monitor) as monitorEnd, self._adopt(relay) as relayEnd:
            inherited = {_MONITOR_FD: monitorEnd.fileno(), _RELAY_FD: relayEnd.fileno()}
            standard: dict[int, int | str]
            standard = {0: 0, 1: 1, 2: 2} if self._interactive else {0: "w", 1: "r", 2: 2}
            self._reactor.spawnProcess(
                self._qemu,
                command[0],
                [*command, *self._options()],
                # Where QEMU keeps what is written to the disk.
                env={**os.environ, "TMPDIR": str(self._folder)},
                path=str(self._folder),
                childFDs={**standard, **inherited},
            )

    def _adopt(self, protocol: Protocol) -> socket.socket:
        """
        Connect a protocol to one end of a new pair of sockets, and return the other.
        """
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            factory: ServerFactory[Any] = ServerFactory()
            factory.protocol = lambda: protocol
            self._reactor.adoptStreamConnection(ours.fileno(), socket.AF_UNIX, factory)
        return theirs

    def _options(self) -> list[str]:
        """
        QEMU's command line. Paths in it are relative to its folder, or arguments of their
        own, so that no comma in one can be taken for a separator.
        """
        if self._interactive:
            console = ["-chardev", "stdio,id=console,signal=off,logfile=console.log"]
            trial = ["-chardev", "null,id=trial"]
            kernelOptions = [*_KERNEL_OPTIONS, "quiet"]
        else:
            console = ["-chardev", "file,id=console,path=console.log"]
            trial = ["-chardev", "stdio,id=trial,signal=off"]
            kernelOptions = list(_KERNEL_OPTIONS)
        return [
            *("-machine", f"q35,accel={self._accelerator}", "-cpu", "max"),
            *("-smp", "2", "-m", "1536", "-nodefaults", "-display", "none", "-no-reboot"),
            *("-kernel", str(self._kernel.image), "-initrd", str(self._initrd)),
            *("-append", " ".join(kernelOptions)),
            *console,
            *("-serial", "chardev:console"),
            *("-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"),
            *("-device", "virtio-9p-pci,fsdev=root,mount_tag=host"),
            *("-chardev", f"socket,id=qmp,fd={_MONITOR_FD}", "-mon", "chardev=qmp,mode=control"),
            *("-chardev", f"socket,id=relay,fd={_RELAY_FD}", *trial),
            *("-device", "virtio-serial-pci"),
            *("-device", f"virtserialport,chardev=relay,name={MONITOR_PORT}"),
            *("-device", f"virtserialport,chardev=trial,name={TRIAL_PORT}"),
            *_usbOptions(),
        ]

    def _interrupt(self) -> Deferred[None]:
        self._interrupted = True
        self._kill()
        return self._qemu.gone

    def _expire(self) -> None:
        self._timedOut = True
        self._kill()

    def _askAndExpire(self, monitor: Monitor) -> None:
        """
        Make a guest that hangs panic: the console then shows where.
        """
        self._timedOut = True
        asked = Deferred.fromCoroutine(monitor.execute("inject-nmi"))
        asked.addErrback(ignoreRefusal)
        killing = self._reactor.callLater(_LAST_WORDS, self._kill)
        self._qemu.ended.addBoth(lambda result: killing.cancel() if killing.active() else None)

    def _kill(self) -> None:
        self._qemu.kill()


class _Qemu(ProcessProtocol):
    """
    QEMU, seen from outside.

    @ivar ended: fires when it is gone.
    @ivar gone: the same, for somebody else.
    """

    def __init__(self, emit: Callable[[bytes], None]) -> None:
        self.ended: Deferred[None] = Deferred()
        self.gone: Deferred[None] = Deferred()
        self._emit = emit

    def kill(self) -> None:
        """
        End it, if it has not ended.
        """
        with contextlib.suppress(ProcessExitedAlready):
            assert self.transport is not None
            self.transport.signalProcess("KILL")

    def outReceived(self, data: bytes) -> None:
        """
        The tests have said something.
        """
        self._emit(data)

    def processEnded(self, reason: Failure) -> None:
        """
        It is gone, and all it said was heard.
        """
        self.ended.callback(None)
        self.gone.callback(None)


def _usbOptions() -> list[str]:
    options = [
        *("-device", "qemu-xhci,id=xhci,p2=8,p3=8"),
        *("-chardev", "null,id=serial0"),
        *("-drive", driveOptions("disk0")),
    ]
    for device in DEVICES:
        properties = deviceProperties(device)
        if device.driver == "usb-serial":
            properties["chardev"] = "serial0"
        elif device.driver == "usb-storage":
            properties["drive"] = "disk0"
        options += ["-device", json.dumps(properties)]
    return options
