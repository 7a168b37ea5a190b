"""The system clock is set while both daemons run."""

from __future__ import annotations

import time

from tests.kernel import guest
from tests.kernel.daemoncase import DISK, SERIAL, ElsewhereCase, timestamp
from tests.support.childservice import REAL, ChildService

HOUR, DAY = 3600, 86400

HEARTBEAT, LEASE = 1, 20
"""Seconds."""

LATE = 15.0
"""Seconds by which something may be late on a busy machine."""

SERVICE = """
devices: [{name: disk, serial: DISK42}]
timeouts: {attach: 60, server: 20}
"""


class ClockTests(ElsewhereCase):
    """A server, and the client service in another network namespace."""

    timeouts = f"{{answer: 60, bind: 60, heartbeat: {HEARTBEAT}}}"

    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(self.setClock, time.time(), time.monotonic())
        servers = f"servers: {{here: {{host: {self.elsewhere.server}}}}}\n"
        self.service = ChildService(servers + SERVICE, REAL, self.elsewhere.prefix)

    def setClock(self, then: float, began: float) -> None:
        """Set the clock to a time, of which a time of the monotonic clock is known."""
        time.clock_settime(time.CLOCK_REALTIME, then + time.monotonic() - began)

    def shift(self, seconds: float) -> None:
        """Set the clock forward, or back."""
        time.clock_settime(time.CLOCK_REALTIME, time.time() + seconds)

    def test_clockSet(self) -> None:
        """When the clock is set back two hours, and forward a day, heartbeats go on, a lease ends
        after its time and not before, sessions go on, a disk that was kicked is attached again, and
        the service connects again to a server that was killed."""
        lease = {"owner": "ci", "ttl": LEASE}
        self.enter(self.service)
        guest.waitUntil(guest.imports, "it is attached")
        for seconds in (-2 * HOUR, DAY):
            with self.server.watch(id=SERIAL, detail=True) as watcher:
                began = time.monotonic()
                self.succeeds(self.server.ask("attach", id=SERIAL, lease=lease))
                self.shift(seconds)
                for _ in range(3):
                    sent = timestamp(watcher.awaitHeartbeat()["time"])
                self.assertLess(abs(sent - time.time()), LATE)
                self.assertLess(time.monotonic() - began, LATE)
                guest.checkDiskBytes(guest.waitBlockDevice(self.imported()))
                self.kick()
                self.assertEqual(self.detail(self.server, SERIAL)["lease"]["owner"], "ci")
                watcher.told("unbound", SERIAL)
                took = time.monotonic() - began
            print(f"the clock is set by {seconds} s: a lease of {LEASE} s lasts {took:.1f} s")
            self.assertGreater(took, LEASE - 1)
            self.assertLess(took, LEASE + LATE)
            self.restart()

    def imported(self) -> str:
        """The bus id of the only imported device."""
        (busId,) = guest.imports().values()
        return busId

    def kick(self) -> None:
        """Kick the service: the disk is attached again."""
        began = time.monotonic()
        self.succeeds(self.server.ask("kick", id=DISK))
        self.service.logged("{device} at {server} detached")
        guest.waitUntil(guest.imports, "it is attached again")
        guest.waitBlockDevice(self.imported())
        print(f"\nattached again {time.monotonic() - began:.1f} s after a kick")
        self.assertLess(time.monotonic() - began, LATE)

    def restart(self) -> None:
        """Kill the server and start it: the service connects again, and the session goes on."""
        self.server.kill()
        self.server.start()
        began = time.monotonic()
        self.service.logged("{server} connected")
        self.assertLess(time.monotonic() - began, LATE)
        self.assertEqual(self.state(self.server), "in_use")


del ElsewhereCase  # base classes are not run
