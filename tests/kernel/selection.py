"""Which tests run on which machine, and which of them share a boot."""

from __future__ import annotations

import unittest
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from twisted.trial.runner import ErrorHolder, TestLoader

from tests.kernel.machine import Machine
from tests.kernel.needs import deathOf, needsOf, optionsOf
from tests.kernel.tools import HarnessError

SCENARIOS = "tests.kernel.scenarios"


@dataclass(frozen=True, slots=True)
class Job:
    """What one boot of a machine is for.

    @ivar name: of the test case, or of the test.
    @ivar tests: what trial runs.
    @ivar death: what the console shows at the end; none for a kernel that has to live.
    @ivar options: further options of the kernel."""

    name: str
    tests: tuple[str, ...]
    death: str | None = None
    options: tuple[str, ...] = ()


def scenarioModules() -> list[str]:
    """The names of all modules of scenarios."""
    modules = sorted((Path(__file__).parent / "scenarios").glob("[!_]*.py"))
    return [f"{SCENARIOS}.{module.stem}" for module in modules]


def fullName(name: str) -> str:
    """C{stock}, C{stock.ImportTests} or C{stock.ImportTests.test_disk} written out."""
    return name if name.startswith(("tests.", "benchmarks.")) else f"{SCENARIOS}.{name}"


SMOKE = [
    fullName(name)
    for name in (
        # The machine itself, its hub, its modules.
        "stock",
        # List, attach, import, detach, with both backends; unplug and replug; kill -9.
        "sharing.SysfsTests.test_listsDevicesWithDescriptionsOfLsusb",
        "sharing.SysfsTests.test_share",
        "sharing.SysfsTests.test_stress",
        "sharing.UsbipToolTests.test_share",
        "sharing.SysfsTests.test_hotplug",
        "sharing.SysfsTests.test_killed",
        # The exporter with a stock client, TLS with and without the kernel's help.
        "exporting.ExportingTests.test_killed",
        "secured.KtlsTests.test_ktls",
        # The command and the client service.
        "typed.TypedTests.test_session",
        "clientservice.ClientServiceTests.test_request",
        # A network adapter.
        "network",
        # systemd, udev, the packaged units.
        "service",
        "clientservice.UnitTests",
    )
]
"""
What runs on Debian's own kernels in QEMU, where everything takes ten times as long: the scenarios
that need such a machine, and of the others a smoke test of each feature.
"""


def jobsFor(machine: Machine, names: Sequence[str]) -> list[Job]:
    """Distribute what a machine can run over boots: the tests of a test case share one where a boot
    is quick, else all tests do. A test that the kernel does not survive has a boot of its own.

    @param names: full names of modules, cases or methods.
    @raise HarnessError: a name is wrong."""
    jobs: list[Job] = []
    boots: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    tests = {test.id(): test for name in names for test in _testsOf(name)}
    for name, test in tests.items():
        if not needsOf(test) <= machine.offers:
            continue
        death = deathOf(test)
        if death is not None:
            jobs.append(Job(_shortName(name), (name,), death))
        else:
            case = _shortName(name.rpartition(".")[0])
            key = case if machine.isQuick else "all in one boot", optionsOf(test)
            boots.setdefault(key, []).append(name)
    return [*jobs, *(Job(n, tuple(boot), None, more) for (n, more), boot in boots.items())]


def unmet(machine: Machine, names: Sequence[str]) -> set[str]:
    """The needs of these tests that a machine does not meet, in words."""
    tests = (test for name in names for test in _testsOf(name))
    return {need.value for test in tests for need in needsOf(test) - machine.offers}


def _shortName(name: str) -> str:
    return name.removeprefix(f"{SCENARIOS}.").removeprefix("tests.")


def _testsOf(name: str) -> Iterator[unittest.TestCase]:
    for test in _flat(TestLoader().loadByName(name, recurse=True)):
        if isinstance(test, ErrorHolder):
            # A Failure, or what sys.exc_info() returns.
            error = test.error[1] if isinstance(test.error, tuple) else test.error.value
            raise HarnessError(f"{name} cannot be loaded: {error}")
        yield test


def _flat(suite: unittest.TestSuite | unittest.TestCase) -> Iterator[unittest.TestCase]:
    if isinstance(suite, unittest.TestSuite):
        for inner in suite:
            yield from _flat(inner)
    else:
        yield suite
