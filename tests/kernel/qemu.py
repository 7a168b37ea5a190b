"""
QEMU, with one of Debian's kernels as it is packaged.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, ServerFactory

from tests.kernel.devices import BORN_WITH, EMULATED, Kind
from tests.kernel.guestsettings import settingsScript
from tests.kernel.initrd import buildInitrd
from tests.kernel.machine import CONSOLE, Boot, Ending, GuestProcess, IMachineReactor
from tests.kernel.monitor import Monitor, deviceProperties, driveOptions, ignoreRefusal
from tests.kernel.needs import Need
from tests.kernel.relay import GuestRelay
from tests.kernel.requests import MONITOR_PORT, TRIAL_PORT
from tests.kernel.stockkernel import StockKernel
from tests.kernel.tools import tool
from tests.kernel.trouble import HarnessError

_MONITOR_FD = 3
_RELAY_FD = 4

# Seconds for KVM to get as far as the tests. There are computers whose /dev/kvm can be opened and
# boots nothing; where it works it takes about two.
_KVM_BOOT_LIMIT = 10.0

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


class Qemu:
    """
    An L{tests.kernel.machine.IMachine}: a computer with an xhci controller and emulated USB
    devices, that boots a kernel of Debian's as it is packaged.
    """

    kind = "qemu"
    offers = frozenset({Need.FTDI, Need.HUB, Need.SMP, Need.STOCK_KERNEL, Need.SYSTEMD})
    isQuick = False

    def __init__(self, reactor: IMachineReactor, kernel: StockKernel) -> None:
        """@raise HarnessError: C{USBIPSHARE_VM_ACCEL} is wrong."""
        self.kernel = kernel
        self._reactor = reactor
        self._accelerators = _accelerators()

    async def run(self, boot: Boot) -> Ending:
        """
        See L{tests.kernel.machine.IMachine.run}. With the first accelerator that this computer
        can boot the kernel with.
        """
        while len(self._accelerators) > 1:
            ending = await self._once(boot, _KVM_BOOT_LIMIT)
            if ending.bootSeconds is not None or ending.interrupted:
                return ending
            print(f"{self._accelerators[0]} does not boot this kernel here", flush=True)
            del self._accelerators[0]
        return await self._once(boot, None)

    async def _once(self, boot: Boot, bootLimit: float | None) -> Ending:
        initrd = buildInitrd(self.kernel, settingsScript(self.kernel, boot, "", ""), boot.folder)
        (boot.folder / CONSOLE).touch()
        accelerator = self._accelerators[0]
        return await _Run(self._reactor, self.kernel, accelerator, initrd, boot).result(bootLimit)


def _accelerators() -> list[str]:
    """What to try, in order."""
    chosen = os.environ.get("USBIPSHARE_VM_ACCEL")
    if chosen:
        if chosen not in ("kvm", "tcg"):
            raise HarnessError(f"USBIPSHARE_VM_ACCEL is {chosen!r}, not tcg or kvm")
        return [chosen]
    return ["kvm", "tcg"] if os.access("/dev/kvm", os.R_OK | os.W_OK) else ["tcg"]


class _Run:
    """One boot."""

    def __init__(
        self,
        reactor: IMachineReactor,
        kernel: StockKernel,
        accelerator: str,
        initrd: Path,
        boot: Boot,
    ) -> None:
        self._reactor = reactor
        self._kernel = kernel
        self._accelerator = accelerator
        self._initrd = initrd
        self._boot = boot
        self._folder = boot.folder
        self._interactive = boot.isInteractive
        self._timedOut = False
        self._interrupted = False

    async def result(self, bootLimit: float | None) -> Ending:
        """
        Boot, and wait for the end. QEMU is gone when this returns, whatever has happened.

        @param bootLimit: seconds until the tests must have begun.
        """
        started = self._reactor.seconds()
        monitor = Monitor(self._reactor)
        relay = GuestRelay(monitor, self._reactor)
        booted: list[float] = []
        relay.booted.addCallback(booted.append)
        statuses: list[int] = []
        relay.finished.addCallback(statuses.append)
        self._spawn(monitor, relay)
        shutdown = self._reactor.addSystemEventTrigger("before", "shutdown", self._interrupt)
        timers = [
            self._reactor.callLater(seconds, expire)
            for seconds, expire in (
                (bootLimit, lambda: None if booted else self._expire()),
                (self._boot.limit, lambda: self._askAndExpire(monitor)),
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
            seconds=self._reactor.seconds() - started,
            timedOut=self._timedOut,
            interrupted=self._interrupted,
        )

    def _spawn(self, monitor: Monitor, relay: GuestRelay) -> None:
        # The kernel kills QEMU when this process dies of what it cannot catch.
        command = [tool("setpriv"), "--pdeathsig", "KILL", tool("qemu-system-x86_64")]
        self._qemu = GuestProcess({1: self._boot.emit})
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
        """Connect a protocol to one end of a new pair of sockets, and return the other."""
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
        gone = self._qemu.gone()
        self._kill()
        return gone

    def _expire(self) -> None:
        self._timedOut = True
        self._kill()

    def _askAndExpire(self, monitor: Monitor) -> None:
        """Make a guest that hangs panic: the console then shows where."""
        self._timedOut = True
        asked = Deferred.fromCoroutine(monitor.execute("inject-nmi"))
        asked.addErrback(ignoreRefusal)
        killing = self._reactor.callLater(_LAST_WORDS, self._kill)
        self._qemu.gone().addBoth(lambda result: killing.cancel() if killing.active() else None)

    def _kill(self) -> None:
        self._qemu.kill()


def _usbOptions() -> list[str]:
    options = [
        *("-device", "qemu-xhci,id=xhci,p2=8,p3=8"),
        *("-chardev", "null,id=serial0"),
        *("-drive", driveOptions("disk0")),
    ]
    for name in BORN_WITH:
        device = EMULATED[name]
        properties = deviceProperties(device)
        if device.kind is Kind.SERIAL:
            properties["chardev"] = "serial0"
        elif device.kind is Kind.DISK:
            properties["drive"] = "disk0"
        options += ["-device", json.dumps(properties)]
    return options
