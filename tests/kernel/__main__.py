"""
C{python -m tests.kernel}: run the scenarios on real kernels.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from twisted.internet import task

from tests.kernel.cache import PROJECT, Cache
from tests.kernel.initrd import buildInitrd
from tests.kernel.kernels import META_PACKAGES, Kernel, fetchKernel
from tests.kernel.machine import Ending, IMachineReactor, Machine
from tests.kernel.trouble import HarnessError
from tests.kernel.verdict import Tally, complaintsOf, excerptOf, tallyOf

_SCENARIOS = "tests.kernel.scenarios"
_DISK_BYTES = 4 << 20

# Seconds for KVM to get as far as the first test. There are machines whose /dev/kvm works for
# a while and then no more; it takes about two where it works.
_KVM_BOOT_LIMIT = 20.0
_LIMITS = {"kvm": 900.0, "tcg": 2700.0}


def main() -> None:
    """
    Entry point.
    """
    options = _parser().parse_args()
    cache = Cache.default()
    try:
        kernels = [fetchKernel(series, cache) for series in options.kernel or META_PACKAGES]
        accelerators = _accelerators()
    except HarnessError as error:
        sys.exit(str(error))
    campaign = Campaign(cache, accelerators, options)
    task.react(campaign.run, (kernels,))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.kernel",
        description="Run the scenarios on real kernels, in virtual machines.",
        epilog="USBIPSHARE_VM_ACCEL=tcg or kvm chooses how QEMU runs, "
        "USBIPSHARE_KERNEL_CACHE where the kernels are kept.",
    )
    parser.add_argument(
        "--kernel",
        action="append",
        choices=list(META_PACKAGES),
        help="a kernel series; may be repeated (default: all)",
    )
    parser.add_argument(
        "--time-limit", type=float, metavar="SECONDS", help="for one boot and all its tests"
    )
    parser.add_argument(
        "--shell", action="store_true", help="a shell in the guest, instead of the tests"
    )
    parser.add_argument(
        "scenario",
        nargs="*",
        help=f"a module of {_SCENARIOS}, or a test case or method in one (default: all)",
    )
    return parser


def _accelerators() -> list[str]:
    """
    What to try, in order.
    """
    chosen = os.environ.get("USBIPSHARE_VM_ACCEL")
    if chosen:
        if chosen not in _LIMITS:
            raise HarnessError(f"USBIPSHARE_VM_ACCEL is {chosen!r}, not tcg or kvm")
        return [chosen]
    return ["kvm", "tcg"] if os.access("/dev/kvm", os.R_OK | os.W_OK) else ["tcg"]


def scenarioNames(chosen: Sequence[str]) -> list[str]:
    """
    What trial is to run, C{stock} or C{stock.ImportTests} written out. All modules if
    nothing is chosen.
    """
    if chosen:
        return [
            name if name.startswith(("tests.", "benchmarks.")) else f"{_SCENARIOS}.{name}"
            for name in chosen
        ]
    modules = sorted((Path(__file__).parent / "scenarios").glob("[!_]*.py"))
    return [f"{_SCENARIOS}.{module.stem}" for module in modules]


class Campaign:
    """
    The same scenarios on one kernel after the other.
    """

    def __init__(
        self, cache: Cache, accelerators: Sequence[str], options: argparse.Namespace
    ) -> None:
        self._cache = cache
        self._accelerators = list(accelerators)
        self._interactive: bool = options.shell
        self._limit: float | None = options.time_limit
        self._scenarios = scenarioNames(options.scenario)

    async def run(self, reactor: IMachineReactor, kernels: Sequence[Kernel]) -> None:
        """
        Run it all and print the outcome.

        @raise SystemExit: with the status for whoever started this.
        """
        total = Tally()
        for kernel in kernels:
            total += await self._runKernel(reactor, kernel)
            if self._interactive:
                raise SystemExit(0)
        print(total, flush=True)
        raise SystemExit(1 if total.failed else 0)

    async def _runKernel(self, reactor: IMachineReactor, kernel: Kernel) -> Tally:
        """
        Run on one kernel, with the first accelerator that this machine can boot it with.

        @return: the tests, and one more that failed if anything else went wrong.
        """
        while True:
            accelerator = self._accelerators[0]
            mayFallBack = len(self._accelerators) > 1
            heading = f"Linux {kernel.release}, {accelerator}"
            print(f"{heading}\n{'=' * len(heading)}", flush=True)
            output = bytearray()
            with self._cache.runFolder() as folder:
                ending = await self._boot(
                    reactor, kernel, folder, output, _KVM_BOOT_LIMIT if mayFallBack else None
                )
                console = (folder / "console.log").read_text("utf-8", "replace")
                kept = self._cache.folder / f"console-{kernel.series}.log"
                shutil.copy(folder / "console.log", kept)
            if ending.interrupted:
                raise SystemExit(130)
            if not mayFallBack or ending.bootSeconds is not None:
                break
            print(f"{accelerator} does not get this kernel up here", flush=True)
            del self._accelerators[0]
        return self._judge(ending, output.decode("utf-8", "replace"), console, kept)

    async def _boot(
        self,
        reactor: IMachineReactor,
        kernel: Kernel,
        folder: Path,
        output: bytearray,
        bootLimit: float | None,
    ) -> Ending:
        disk = folder / "disk.img"
        disk.write_bytes(random.Random(42).randbytes(_DISK_BYTES))
        (folder / "console.log").touch()
        settings: dict[str, str | Path] = {
            "KERNEL": kernel.folder,
            "RELEASE": kernel.release,
            "PROJECT": PROJECT,
            "GUEST_SCRIPT": Path(__file__).with_name("guest.sh"),
            "TERMINAL": "/dev/ttyS0" if self._interactive else "",
        }
        initrd = buildInitrd(kernel, settings, self._command(disk), folder)
        machine = Machine(reactor, kernel, self._accelerators[0], initrd, folder, self._interactive)

        def emit(data: bytes) -> None:
            output.extend(data)
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()

        limit = self._limit or _LIMITS[self._accelerators[0]]
        return await machine.run(emit, bootLimit, None if self._interactive else limit)

    def _command(self, disk: Path) -> list[str]:
        """
        What the guest runs: trial, or a shell.
        """
        environment = {
            "HOME": "/run/home",
            "LANG": "C.UTF-8",
            "PATH": f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin"
            ":/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONUNBUFFERED": "1",
            "TERM": os.environ.get("TERM", "dumb") if self._interactive else "dumb",
            "USBIPSHARE_GUEST_DISK": str(disk),
        }
        if self._interactive:
            command = ["setsid", "--ctty", "--wait", "bash", "--norc", "-i"]
        else:
            command = [sys.executable, "-m", "twisted.trial"]
            command += ["--temp-directory", "/tmp/kernel-trial", *self._scenarios]
        return ["env", "-i", *(f"{key}={value}" for key, value in environment.items()), *command]

    def _judge(self, ending: Ending, output: str, console: str, kept: Path) -> Tally:
        if self._interactive:
            return Tally()
        tally = tallyOf(output)
        troubles = [f"the kernel complained: {line}" for line in complaintsOf(console)]
        if ending.timedOut:
            troubles.append("the guest had not ended at its deadline")
        elif ending.status is None:
            troubles.append("the guest died before its tests had ended")
        if troubles:
            print(f"the console, all of it in {kept}:", flush=True)
            print("\n".join(excerptOf(console)), flush=True)
        elif tally == Tally():
            troubles.append("no test ran")
        elif ending.status != 0 and not tally.failed:
            troubles.append(f"trial ended with status {ending.status}")
        for trouble in troubles:
            print(f"FAILED: {trouble}", flush=True)
        print(
            f"booted: {_duration(ending.bootSeconds)}, first output: "
            f"{_duration(ending.speechSeconds)}, in all: {_duration(ending.seconds)}",
            flush=True,
        )
        return tally + Tally(failed=1 if troubles else 0)


def _duration(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.1f} s"


if __name__ == "__main__":
    main()
