"""
What watchers are told of real devices, and who has them: the same with both backends.
"""

from __future__ import annotations

import statistics
import threading
import time
from datetime import datetime
from typing import Any

from tests.kernel import guest
from tests.kernel.daemoncase import DISK, DaemonCase
from tests.support.childdaemon import ChildDaemon
from tests.support.watchclient import WatchClient

HOST = "127.0.0.1"
ROUNDS = 3
PATIENCE = 10.0
"""Seconds that things may take on an emulated machine; the documents promise less."""

ROUND = ["bound", "imported", "released", "unbound"]


class Scenarios(DaemonCase):
    """
    What both backends have to show.
    """

    def test_events(self) -> None:
        """
        Plug, unplug, replug, attach, detach, and how a stock client comes and goes: a watcher
        is told of each once, in their order and without a gap, and of the client with its
        address; whoever comes back is told what it has missed.
        """
        daemon = self.shared()
        with daemon.watch() as watcher:
            before = watcher.answer["seq"]
            guest.unplug(guest.DISK)
            watcher.told("removed", DISK)
            guest.plug(guest.DISK.withSerial("DISK43"))
            added = watcher.told("added", DISK)
            self.assertEqual(added["data"]["serial"], "DISK43")
            guest.waitBlockDevice(DISK)
            delays = [delay for _ in range(ROUNDS) for delay in self.session(daemon, watcher)]
            guest.unplug(guest.DISK)
            watcher.told("removed", DISK)
            guest.plug(guest.DISK)
            watcher.told("added", DISK)
            told = watcher.events
            self.assertEqual(
                watcher.kinds(DISK),
                ["removed", "added", *ROUND * ROUNDS, "removed", "added"],
            )
        self.assertEqual(
            [event["seq"] for event in told], list(range(before + 1, before + 1 + len(told)))
        )
        for since in (before, told[len(told) // 2]["seq"]):
            with daemon.watch(since=since) as again:
                self.assertEqual(again.answer["seq"], since)
                self.assertEqual(again.upTo(told[-1]["seq"]), told[since - before :])
        print(
            f"\n{self.backend}: a client that has come or gone is seen after "
            f"{1000 * statistics.median(delays):.0f} ms (median), {1000 * max(delays):.0f} ms "
            f"(worst of {len(delays)})"
        )
        self.assertLess(max(delays), PATIENCE)

    def session(self, daemon: ChildDaemon, watcher: WatchClient) -> tuple[float, float]:
        """
        A client comes and goes.

        @return: how many seconds after the kernel knew it the watcher is told so, at the
            latest: of the coming and of the going.
        """
        self.succeeds(daemon.ask("attach", id=DISK))
        watcher.told("bound", DISK)
        with StatusTime(2) as came:
            port, imported = self.importDisk()
        event = watcher.told("imported", DISK)
        self.assertEqual(event["holder"]["address"], HOST)
        self.assertLess(abs(seconds(event["holder"]["since"]) - came.time), PATIENCE)
        with StatusTime(1) as left:
            guest.check("usbip", "detach", "-p", str(port))
            guest.waitGone(imported)
        gone = watcher.told("released", DISK)
        self.assertEqual(gone["holder"], event["holder"])
        self.succeeds(daemon.ask("detach", id=DISK))
        watcher.told("unbound", DISK)
        guest.waitBlockDevice(DISK)
        return seconds(event["time"]) - came.time, seconds(gone["time"]) - left.time

    def test_kick(self) -> None:
        """
        A kick, an attach by force and the end of a lease take the device from the client that
        has imported it. It stays bound, and can be imported again, unless nobody wants it any
        more when the lease ends.
        """
        daemon = self.shared()
        with daemon.watch(id=DISK, detail=True) as watcher:
            self.succeeds(daemon.ask("attach", id=DISK))
            for command in ({"command": "kick"}, {"command": "attach", "force": True}):
                _, imported = self.importDisk()
                watcher.told("imported", DISK)
                self.succeeds(daemon.ask(id=DISK, **command))
                guest.waitGone(imported)
                watcher.told("released", DISK)
                self.assertEqual(self.state(daemon), "bound")
                self.assertEqual(guest.usbipStatus(DISK), 1)
            self.succeeds(daemon.ask("detach", id=DISK))
            watcher.told("unbound", DISK)
            guest.waitBlockDevice(DISK)
            lease = {"owner": "ci-job-81", "ttl": 15}
            leased = self.succeeds(daemon.ask("attach", id=DISK, lease=lease, detail=True))
            _, imported = self.importDisk()
            self.fails(daemon.ask("kick", id=DISK), "leased by ci-job-81")
            self.fails(daemon.ask("detach", id=DISK), "leased by ci-job-81")
            guest.waitGone(imported)
            guest.waitPresent(DISK, "usb")
            ended = watcher.told("unbound", DISK)
            self.assertEqual(
                watcher.kinds(DISK),
                [
                    *("bound", "imported", "released", "imported", "released", "unbound"),
                    *("lease", "bound", "imported", "lease", "released", "unbound"),
                ],
            )
            late = seconds(ended["time"]) - seconds(leased["lease"]["until"])
            print(f"\n{self.backend}: a lease is over, device unbound: {1000 * late:.0f} ms late")
            self.assertLess(0.0, late)
            self.assertLess(late, PATIENCE)
        guest.waitBlockDevice(DISK)


class SysfsTests(Scenarios):
    """
    With the sysfs backend.
    """

    backend = "{type: sysfs}"


class UsbipToolTests(Scenarios):
    """
    With the usbip backend.
    """

    backend = "{type: usbip}"


class StatusTime:
    """
    Notes when the kernel shows a status of the disk. It says so to nobody, so it is asked.

    @ivar time: in seconds since the epoch, at the latest.
    """

    def __init__(self, status: int) -> None:
        self._status = status
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.time = 0.0

    def __enter__(self) -> StatusTime:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.join()

    def _look(self) -> None:
        guest.waitUntil(
            lambda: guest.usbipStatus(DISK) == self._status, f"it has status {self._status}"
        )
        self.time = time.time()


def seconds(timestamp: Any) -> float:
    """The seconds since the epoch."""
    return datetime.fromisoformat(timestamp.replace("Z", "+00:00")).timestamp()


del Scenarios, DaemonCase  # they are not to be run themselves
