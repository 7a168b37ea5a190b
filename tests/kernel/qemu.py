"""QEMU, with one of Debian's kernels as it is packaged."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
from pathlib import Path

from tests.kernel.devices import BORN_WITH, EMULATED, Kind, qemuDrive, qemuProperties
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
from tests.kernel.stockkernel import buildInitrd
from tests.kernel.tools import HarnessError, tool

_MONITOR_FD, _QMP_FD, _GUEST_QMP_FD, _NOTES_FD = 3, 4, 5, 6

# Seconds for KVM to get as far as the tests. There are computers whose /dev/kvm can be opened and
# boots nothing; where it works it takes about two.
_KVM_BOOT_LIMIT = 10.0

# Seconds for a guest that panics to write its console.
_LAST_WORDS = 60.0

_KERNEL_OPTIONS = (
    "console=ttyS0",
    # After an oops the kernel panics, and QEMU (-no-reboot) ends ...
    "oops=panic",
    "panic=-1",
    # ... after the traces of all tasks. An NMI has the same effect.
    "panic_print=1",
    "unknown_nmi_panic",
    # A slow host is not a bug of the kernel.
    "nowatchdog",
    "rcupdate.rcu_cpu_stall_suppress=1",
    "log_buf_len=4M",
)


class Qemu(Machine):
    """An emulated computer with an xhci controller and USB devices."""

    kind = "qemu"
    offers = frozenset({Need.HUB, Need.STOCK_KERNEL, Need.SYSTEMD})
    isQuick = False

    def __init__(self, reactor: IMachineReactor, kernel: Kernel) -> None:
        """@raise HarnessError: C{USBIPSHARE_VM_ACCEL} is wrong."""
        super().__init__(reactor, kernel)
        self._accelerators = _accelerators()

    async def run(self, boot: Boot) -> Ending:
        """See L{Machine.run}. Uses the first accelerator that this computer can boot the kernel
        with."""
        while len(self._accelerators) > 1:
            ending = await self._once(boot, _KVM_BOOT_LIMIT)
            if ending.bootSeconds is not None or ending.interrupted:
                return ending
            print(f"{self._accelerators[0]} does not boot this kernel here", flush=True)
            del self._accelerators[0]
        return await self._once(boot, None)

    async def _once(self, boot: Boot, bootLimit: float | None) -> Ending:
        settings = settingsScript(self.kernel, boot, "", "")
        initrd = buildInitrd(self.kernel, settings, boot.folder)
        (boot.folder / CONSOLE).touch()
        # QEMU ends when the harness is killed.
        command = [tool("setpriv"), "--pdeathsig", "KILL", tool("qemu-system-x86_64")]
        command += self._options(boot, initrd)
        descriptors: dict[int, int | str] = {0: "w", 1: "r", 2: 2, _NOTES_FD: "r"}
        if boot.isInteractive:
            descriptors |= {0: 0, 1: 1}
        with contextlib.ExitStack() as stack:
            pairs = [socket.socketpair() for _ in range(2)]
            for end in itertools.chain(*pairs):
                stack.enter_context(end)
            (guestEnd, qmp), (ours, monitor) = pairs
            for number, end in ((_GUEST_QMP_FD, guestEnd), (_QMP_FD, qmp), (_MONITOR_FD, monitor)):
                descriptors[number] = end.fileno()
            run = _Run(self._reactor, boot, ours)
            # TMPDIR: where QEMU keeps what is written to the disk.
            environment = {**os.environ, "TMPDIR": str(boot.folder)}
            return await run.result(command, descriptors, environment, bootLimit)

    def _options(self, boot: Boot, initrd: Path) -> list[str]:
        """QEMU's command line. Paths in it are relative to its folder, or arguments of their own,
        so that no comma in one is taken for a separator."""
        if boot.isInteractive:
            console = ["-chardev", "stdio,id=console,signal=off,logfile=console.log"]
            trial = ["-chardev", "null,id=trial"]
            kernelOptions = [*_KERNEL_OPTIONS, "quiet"]
        else:
            console = ["-chardev", "file,id=console,path=console.log"]
            trial = ["-chardev", "stdio,id=trial,signal=off"]
            kernelOptions = [*_KERNEL_OPTIONS]
        ports = ("trial", "notes", "guestqmp")
        return [
            *("-machine", f"q35,accel={self._accelerators[0]}", "-cpu", "max"),
            *("-smp", "2", "-m", "1536", "-nodefaults", "-display", "none", "-no-reboot"),
            *("-kernel", str(self.kernel.image), "-initrd", str(initrd)),
            *("-append", " ".join(kernelOptions)),
            *console,
            *("-serial", "chardev:console"),
            *("-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"),
            *("-device", "virtio-9p-pci,fsdev=root,mount_tag=host"),
            *("-chardev", f"socket,id=monitor,fd={_MONITOR_FD}"),
            *("-mon", "chardev=monitor,mode=readline"),
            # The guest plugs devices: one of its ports is connected to QEMU's own control socket.
            *("-chardev", f"socket,id=qmp,fd={_QMP_FD}", "-mon", "chardev=qmp,mode=control"),
            *("-chardev", f"socket,id=guestqmp,fd={_GUEST_QMP_FD}", *trial),
            # append: a pipe cannot be truncated.
            *("-add-fd", f"fd={_NOTES_FD},set=1"),
            *("-chardev", "file,id=notes,path=/dev/fdset/1,append=on"),
            *("-device", "virtio-serial-pci"),
            *(
                option
                for port in ports
                for option in ("-device", f"virtserialport,chardev={port},name=usbipshare.{port}")
            ),
            *_usbOptions(),
        ]


class _Run(GuestRun):
    """A boot of QEMU. A guest that still runs at its deadline is made to panic: its console then
    shows the tasks that hang."""

    def __init__(self, reactor: IMachineReactor, boot: Boot, monitor: socket.socket) -> None:
        """@param monitor: takes commands of QEMU's monitor for people."""
        super().__init__(reactor, boot, _NOTES_FD, {1: boot.emit})
        self._monitor = monitor
        self._later = reactor.callLater

    def onTimeout(self) -> None:
        with contextlib.suppress(OSError):
            self._monitor.sendall(b"nmi\n")
        self._later(_LAST_WORDS, self.kill)


def _accelerators() -> list[str]:
    """What to try, in order."""
    chosen = os.environ.get("USBIPSHARE_VM_ACCEL")
    if chosen:
        if chosen not in ("kvm", "tcg"):
            raise HarnessError(f"USBIPSHARE_VM_ACCEL is {chosen!r}, not tcg or kvm")
        return [chosen]
    return ["kvm", "tcg"] if os.access("/dev/kvm", os.R_OK | os.W_OK) else ["tcg"]


def _usbOptions() -> list[str]:
    options = [
        *("-device", "qemu-xhci,id=xhci,p2=8,p3=8"),
        *("-chardev", "null,id=serial0"),
        *("-drive", qemuDrive("disk0")),
    ]
    for name in BORN_WITH:
        device = EMULATED[name]
        properties = qemuProperties(device)
        if device.kind is Kind.SERIAL:
            properties["chardev"] = "serial0"
        elif device.kind is Kind.DISK:
            properties["drive"] = "disk0"
        options += ["-device", json.dumps(properties)]
    return options
