"""Events of devices that C{usbipd} exports: the daemon polls C{usbip_status} to see their
clients."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor

from tests.kernel import guest
from tests.kernel.daemoncase import DISK, HOST, PATIENCE, DaemonCase, summary, timestamp
from tests.support.childdaemon import ChildDaemon
from tests.support.watchclient import WatchClient

ROUNDS = 3


class Scenarios(DaemonCase):
    """What both backends have to do."""

    def test_events(self) -> None:
        """A watcher receives one event for each plug, unplug, bind, import, release and unbind, in
        order and numbered without a gap. Import and release have the client's address."""
        daemon = self.sharedDaemon()
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
            events = watcher.events
            sessions = ["bound", "imported", "released", "unbound"] * ROUNDS
            self.assertEqual(
                watcher.kinds(DISK), ["removed", "added", *sessions, "removed", "added"]
            )
        numbers = [*range(before + 1, before + 1 + len(events))]
        self.assertEqual([event["seq"] for event in events], numbers)
        print(f"\n{self.backend}: import or release is seen after {summary(delays)}")

    def session(self, daemon: ChildDaemon, watcher: WatchClient) -> tuple[float, float]:
        """Attach the disk, import it, end that, and detach.

        @return: how many seconds after the kernel the events of import and release are, at most."""
        self.succeeds(daemon.ask("attach", id=DISK))
        watcher.told("bound", DISK)
        began = statusTime(2)
        port, imported = self.importDisk()
        event = watcher.told("imported", DISK)
        self.assertEqual(event["holder"]["address"], HOST)
        self.assertLess(abs(timestamp(event["holder"]["since"]) - began.result()), PATIENCE)
        ended = statusTime(1)
        guest.stockDetach(port, imported)
        released = watcher.told("released", DISK)
        self.assertEqual(released["holder"], event["holder"])
        self.succeeds(daemon.ask("detach", id=DISK))
        watcher.told("unbound", DISK)
        guest.waitBlockDevice(DISK)
        return timestamp(event["time"]) - began.result(), timestamp(
            released["time"]
        ) - ended.result()

    def test_leaseEnds(self) -> None:
        """A lease forbids others to kick and detach. At its end the client loses the device, which
        is unbound."""
        daemon = self.sharedDaemon()
        lease = {"owner": "ci-job-81", "ttl": 15}
        with daemon.watch(id=DISK, detail=True) as watcher:
            leased = self.succeeds(daemon.ask("attach", id=DISK, lease=lease, detail=True))
            _, imported = self.importDisk()
            for command in ("kick", "detach"):
                self.fails(daemon.ask(command, id=DISK), "leased by ci-job-81")
            guest.waitGone(imported)
            guest.waitPresent(DISK, "usb")
            ended = watcher.told("unbound", DISK)
            self.assertEqual(
                watcher.kinds(DISK), ["lease", "bound", "imported", "lease", "released", "unbound"]
            )
        late = timestamp(ended["time"]) - timestamp(leased["lease"]["until"])
        print(f"\n{self.backend}: unbound {1000 * late:.0f} ms after the end of the lease")
        self.assertLess(0.0, late)
        guest.waitBlockDevice(DISK)


class SysfsTests(Scenarios):
    """With the sysfs backend."""


class UsbipToolTests(Scenarios):
    """With the usbip backend."""

    backend = "{type: usbip}"


def statusTime(status: int) -> Future[float]:
    """Begin to poll C{usbip_status} of the disk, as the kernel does not announce it.

    @param status: what is waited for.
    @return: when it is seen, in seconds since the epoch."""

    def look() -> float:
        guest.waitUntil(lambda: guest.usbipStatus(DISK) == status, f"its status is {status}")
        return time.time()

    return ThreadPoolExecutor().submit(look)


del Scenarios, DaemonCase  # base classes are not run
