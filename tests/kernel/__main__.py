"""C{python -m tests.kernel}: run the scenarios on real kernels."""

from __future__ import annotations

import argparse
import compileall
import os
import time

from twisted.internet import task

from tests.kernel.cache import PROJECT, Cache
from tests.kernel.campaign import Campaign, Task
from tests.kernel.machine import IMachineReactor, Machine
from tests.kernel.qemu import Qemu
from tests.kernel.selection import SMOKE, fullName, jobsFor, scenarioModules, unmet
from tests.kernel.stockkernel import fetchKernel
from tests.kernel.tools import HarnessError, requireTools
from tests.kernel.uml import Processors, UserModeLinux
from tests.kernel.umlkernel import SERIES, umlKernel
from tests.support.timetable import TimeTable
from tests.support.trialcounts import Counts

# Seconds for a boot and all its tests.
_LIMITS = {"uml": 600.0, "qemu": 2400.0}

_TOOLS = {
    "uml": ("busybox", "prlimit", "setpriv", "taskset", "unshare"),
    "qemu": ("busybox", "cpio", "depmod", "dpkg", "modprobe", "qemu-system-x86_64", "setpriv"),
}

# A machine waits most of the time: for devices, for deadlines.
_MACHINES_PER_CPU = {"uml": 4, "qemu": 1}


def main() -> None:
    """Entry point."""
    task.react(run, (_parser().parse_args(), time.monotonic()))


async def run(reactor: IMachineReactor, options: argparse.Namespace, began: float) -> None:
    """Carry out the command line.

    @raise SystemExit: with the exit status, or with a message."""
    try:
        await _run(reactor, options, began)
    except HarnessError as error:
        raise SystemExit(str(error)) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.kernel",
        description="Run the scenarios on real kernels: in user-mode Linux, or in QEMU. Without "
        "names, all that user-mode Linux can run, or in QEMU what needs a stock kernel and a "
        "smoke test of the rest.",
        epilog="Environment: USBIPSHARE_KERNEL_CACHE, the folder for kernels (default: "
        "~/.cache/usbipshare/kernels); USBIPSHARE_VM_ACCEL, tcg or kvm, how QEMU runs.",
    )
    add = parser.add_argument
    text = "uml: user-mode Linux, built from Debian's sources (default). "
    text += "qemu: Debian's kernels in an emulated computer"
    add("--machine", choices=sorted(_LIMITS), default="uml", help=text)
    text = "a kernel series; may be repeated (default: all)"
    add("--kernel", action="append", choices=SERIES, help=text)
    add("--jobs", type=int, metavar="N", help="how many machines run at the same time")
    text = "for one boot and all its tests"
    add("--time-limit", type=float, metavar="SECONDS", help=text)
    add("--verbose", action="store_true", help="show the output of what passes, too")
    add("--build", action="store_true", help="only build or download the kernels")
    add("--shell", action="store_true", help="a shell in the guest, instead of the tests")
    text = "a module of tests.kernel.scenarios, or a test case or method in one"
    add("scenario", nargs="*", help=text)
    return parser


async def _run(reactor: IMachineReactor, options: argparse.Namespace, began: float) -> None:
    cache = Cache.default()
    table = TimeTable()
    requireTools(_TOOLS[options.machine])
    for name in ("usbip_server", "twisted", "tests", "benchmarks"):
        # What a guest compiles is lost with it.
        compileall.compile_dir(str(PROJECT / name), quiet=1)
    machines = _machines(reactor, options, cache, table)
    if options.build:
        print(table)
        return
    campaign = Campaign(cache, options.time_limit or _LIMITS[options.machine], options.verbose)
    if options.shell:
        command = ["setsid", "--ctty", "--wait", "bash", "--norc", "-i"]
        await campaign.shell(machines[0], command)
        return
    names = [fullName(name) for name in options.scenario]
    names = names or (scenarioModules() if machines[0].isQuick else [*SMOKE])
    tasks = [Task(machine, job) for machine in machines for job in jobsFor(machine, names)]
    if not tasks:
        wanting = ", ".join(sorted(unmet(machines[0], names)))
        raise HarnessError(f"{machines[0].kind} does not have what is needed: {wanting}")
    atOnce = options.jobs or _MACHINES_PER_CPU[options.machine] * (os.cpu_count() or 1)
    counts = await campaign.run(tasks, atOnce, table)
    table.add("all", time.monotonic() - began)
    print(f"\n{table}\n\n{counts}", flush=True)
    raise SystemExit(1 if counts.failed or counts == Counts() else 0)


def _machines(
    reactor: IMachineReactor, options: argparse.Namespace, cache: Cache, table: TimeTable
) -> list[Machine]:
    """A machine for each kernel; kernels that are missing are built or downloaded first."""
    machines: list[Machine] = []
    processors = Processors()
    for series in options.kernel or SERIES:
        if options.machine == "qemu":
            machines.append(Qemu(reactor, fetchKernel(series, cache)))
        else:
            kernel, took = umlKernel(series, cache)
            machines.append(UserModeLinux(reactor, kernel, processors))
            if took is not None:
                table.add(f"building Linux {kernel.release}", took)
    return machines


if __name__ == "__main__":
    main()
