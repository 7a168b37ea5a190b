"""
USB/IP over TLS: encrypted by the kernel against encrypted by the daemon, and against plain, on
the same disk in the same boot of user-mode Linux. Run it with C{python -m tests.kernel
benchmarks.secured}; it prints its figures and asserts none.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence

from twisted.trial.unittest import SynchronousTestCase

from benchmarks.procfs import cpuSeconds
from benchmarks.rivals import FAST, HOST, rates, speedOf
from tests.kernel import guest
from tests.kernel.inside.tlsimport import OP_ENABLE_KTLS, TlsImport
from tests.support.certificates import signed, trusting
from tests.support.childdaemon import ChildDaemon

KTLS = (sys.executable, "-m", "twisted")
RELAY = (sys.executable, "-m", "tests.kernel.inside.withoutktls")
PORTS: dict[Sequence[str], tuple[int, int]] = {KTLS: (3240, 3241), RELAY: (3242, 3243)}

ROUNDS = 3
PASSES = 8


class SecuredTests(SynchronousTestCase):
    """
    Rounds of each in turn, and the medians. The client's kernel encrypts in all of them, with
    the same cipher: AES-128-GCM and TLS 1.2.
    """

    def setUp(self) -> None:
        guest.awaitDevices()
        for module in ("usbip-host", "vhci-hcd", "tls"):
            guest.modprobe(module)
        self.addCleanup(guest.resetUsb)
        certificate, key = signed("server").write(self.mktemp(), "server")
        self.tls = json.dumps({"certificate": certificate, "key": key})

    def daemon(self, command: Sequence[str]) -> ChildDaemon:
        """One that encrypts in its way."""
        plain, secured = PORTS[command]
        daemon = ChildDaemon(
            f"backend: {{type: sysfs}}\ntls: {self.tls}\n"
            f"export: {{listen: [tcp:{plain}, tls:{secured}]}}\n",
            command,
        )
        daemon.__enter__()
        self.addCleanup(daemon.__exit__, None, None, None)
        return daemon

    def test_throughput(self) -> None:
        """C{dd} of an imported disk."""
        guest.plug(guest.FAST_DISK)
        self.addCleanup(guest.waitGone, FAST)
        self.addCleanup(guest.unplug, guest.FAST_DISK)
        guest.waitBlockDevice(FAST)
        ktls, relay = self.daemon(KTLS), self.daemon(RELAY)
        self.assertEqual(ktls.ask("attach", id=FAST)["status"], "success")
        speeds: dict[str, list[float]] = {"plain": [], "ktls": [], "relay": []}
        used = dict.fromkeys(speeds, 0.0)
        for _ in range(ROUNDS):
            for way, daemon in (("plain", ktls), ("ktls", ktls), ("relay", relay)):
                before = cpuSeconds(daemon.child.pid)
                speeds[way].append(self.speed(way))
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

    def speed(self, way: str) -> float:
        """
        Import the fast disk, and read it.

        @return: bytes in a second.
        """
        if way == "plain":
            port = PORTS[KTLS][0]
            guest.check("usbip", "--tcp-port", str(port), "attach", "-r", HOST, "-b", FAST)
        else:
            context = trusting()
            context.options |= OP_ENABLE_KTLS
            client = TlsImport(PORTS[KTLS if way == "ktls" else RELAY][1], FAST, context)
            self.assertTrue(client.isKeyed)
            client.attach()
        vhciPort, imported = guest.waitImport()
        speed = speedOf(guest.waitBlockDevice(imported), PASSES)
        guest.check("usbip", "detach", "-p", str(vhciPort))
        guest.waitGone(imported)
        guest.waitUntil(lambda: guest.usbipStatus(FAST) == 1, "it can be imported again")
        return speed
