"""USB/IP over TLS: encrypted by the kernel, encrypted by the daemon, and plain, on the same disk in
the same boot of user-mode Linux. Run it with C{python -m tests.kernel benchmarks.secured}; it
prints its figures and asserts none."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from functools import partial

from benchmarks.procfs import cpuSeconds
from benchmarks.rivals import ThroughputCase, rates
from tests.kernel import guest
from tests.kernel.daemoncase import FAST
from tests.kernel.inside.tlsimport import OP_ENABLE_KTLS, TlsImport
from tests.support.certificates import signed, trusting
from tests.support.childdaemon import ChildDaemon

KTLS = (sys.executable, "-m", "twisted")
RELAY = (sys.executable, "-m", "tests.kernel.inside.withoutktls")
PORTS: dict[Sequence[str], tuple[int, int]] = {KTLS: (3240, 3241), RELAY: (3242, 3243)}

ROUNDS = 3
PASSES = 8


class SecuredTests(ThroughputCase):
    """Medians of alternating rounds. The client's kernel encrypts in all of them, with the same
    cipher: AES-128-GCM and TLS 1.2."""

    modules = ("usbip-host", "vhci-hcd", "tls")

    def setUp(self) -> None:
        super().setUp()
        certificate, key = signed("server").write(self.mktemp(), "server")
        self.tls = json.dumps({"certificate": certificate, "key": key})

    def started(self, command: Sequence[str]) -> ChildDaemon:
        """Run a daemon.

        @param command: L{KTLS} or L{RELAY}."""
        plain, secured = PORTS[command]
        export = f"export: {{listen: [tcp:{plain}, tls:{secured}]}}\n"
        config = f"backend: {{type: sysfs}}\ntls: {self.tls}\n{export}"
        return self.enter(ChildDaemon(config, command))

    def test_throughput(self) -> None:
        """C{dd} of an imported disk."""
        self.plugFastDisk()
        ktls, relay = self.started(KTLS), self.started(RELAY)
        self.succeeds(ktls.ask("attach", id=FAST))
        speeds: dict[str, list[float]] = {"plain": [], "ktls": [], "relay": []}
        used = dict.fromkeys(speeds, 0.0)
        for _ in range(ROUNDS):
            for way, daemon in (("plain", ktls), ("ktls", ktls), ("relay", relay)):
                before = cpuSeconds(daemon.child.pid)
                speeds[way].append(self.speed(partial(self.attach, way), PASSES))
                used[way] += cpuSeconds(daemon.child.pid) - before
        megabytes = ROUNDS * PASSES * len(guest.diskBytes()) / 1e6
        for way, measured in speeds.items():
            print(
                f"\n{way}: dd {rates(measured)}; the daemon used {used[way]:.2f} s of a core for "
                f"{megabytes:.0f} MB and {ROUNDS} imports"
            )
        medians = {way: statistics.median(measured) for way, measured in speeds.items()}
        print(
            f"ktls: {medians['ktls'] / medians['relay']:.2f} times as fast as relay, and "
            f"{medians['ktls'] / medians['plain']:.2f} times as fast as plain (medians)"
        )
        ktls.ask("detach", id=FAST)

    def attach(self, way: str) -> None:
        """Import the fast disk.

        @param way: C{plain}, C{ktls} or C{relay}."""
        if way == "plain":
            guest.stockAttach(FAST, port=PORTS[KTLS][0])
            return
        context = trusting()
        context.options |= OP_ENABLE_KTLS
        client = TlsImport(PORTS[KTLS if way == "ktls" else RELAY][1], FAST, context)
        self.assertTrue(client.isKeyed)
        client.attach()


del ThroughputCase  # base classes are not run
