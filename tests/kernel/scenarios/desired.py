"""
Devices are as they are wanted, whatever happens to them, to their clients and to the daemon.
"""

from __future__ import annotations

import json
import signal
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.kernel import guest
from tests.kernel.daemoncase import BUS_IDS, DISK, DaemonCase

SERIAL = guest.SERIAL.busId
TABLET = guest.TABLET.busId

ROUNDS = 2
"""Of replugs: with two more for the disk, and the first plug, three could be flapping."""

PATIENCE = 10.0
"""Seconds for a device to be bound again on an emulated machine; the documents promise one."""

PART_AT = 2048
"""Where the partition begins, in sectors."""

NOTE = 'line=$(cat); printf "%s\\n" "$line" >> {file}'
"""A hook: each event becomes a line."""

EVENTS = ["added", "removed", "bound", "unbound", "imported", "released", "failed"]


class DesiredTests(DaemonCase):
    """
    With the sysfs backend: what is wanted is none of a backend's business.
    """

    backend = "{type: sysfs}"

    def test_always(self) -> None:
        """
        What is shared always, and what a client has attached, is bound whenever it is plugged
        in: also when its client has it just then, and when the daemon was dead. What was
        detached is left alone. Hooks are told.
        """
        folder = Path.cwd() / "always"
        folder.mkdir()
        notes = folder / "notes"
        hook = {"events": EVENTS, "command": ["sh", "-c", NOTE.format(file=notes)]}
        rule = {"match": {"serial": "DISK42"}, "name": "disk", "share": "always"}
        daemon = self.daemon(
            self.config(
                f"{{file: {folder}/state.json}}",
                f"devices: {json.dumps([rule])}\nhooks: {json.dumps([hook])}\n",
            )
        )
        guest.waitPresent(DISK, "usbip-host")
        for busId in BUS_IDS:
            self.succeeds(daemon.ask("attach", id=busId))

        with guest.Uevents() as uevents:
            delays = [
                self.replug(uevents, device)
                for _ in range(ROUNDS)
                for device in guest.DEVICES
                if device.busId in BUS_IDS
            ]
            print(
                f"\nbound again after a replug: {1000 * statistics.median(delays):.0f} ms "
                f"(median), {1000 * max(delays):.0f} ms (worst of {len(delays)}) after the "
                f"kernel's bind@: {[round(1000 * delay) for delay in delays]}"
            )
            self.assertLess(max(delays), PATIENCE)

            for busId in (SERIAL, DISK):
                self.succeeds(daemon.ask("detach", id=busId))
            before = len(uevents.bindings(SERIAL))
            guest.unplug(guest.SERIAL)
            guest.waitGone(SERIAL)
            guest.plug(guest.SERIAL)
            guest.waitPresent(SERIAL)
            self.assertEqual(guest.driverOf(DISK), "usb")
            self.replug(uevents, guest.DISK)
            found = [binding.driver for binding in uevents.bindings(SERIAL)[before:]]
            self.assertEqual(found, ["usb"])
            self.assertEqual(self.state(daemon, SERIAL), "free")

        self.stateSoon(daemon, "bound")
        with daemon.watch(id="disk") as watcher:
            _, imported = self.importDisk()
            watcher.told("imported", DISK)
            guest.unplug(guest.DISK)
            guest.waitGone(imported)
            watcher.told("removed", DISK)
            guest.plug(guest.DISK)
            watcher.told("bound", DISK)
            port, imported = self.importDisk()
            watcher.told("imported", DISK)
            guest.check("usbip", "detach", "-p", str(port))
            guest.waitGone(imported)
            watcher.told("released", DISK)
            self.assertEqual(
                watcher.kinds(DISK),
                ["imported", "released", "removed", "added", "bound", "imported", "released"],
            )

        daemon.kill()
        for device in (guest.DISK, guest.TABLET, guest.SERIAL):
            guest.unplug(device)
            guest.waitGone(device.busId)
            guest.plug(device)
            guest.waitPresent(device.busId)
        daemon.start()
        for busId in (DISK, TABLET):
            guest.waitPresent(busId, "usbip-host")
            self.stateSoon(daemon, "bound", busId)
        self.assertEqual(guest.driverOf(SERIAL), "usb")

        noted = [json.loads(line) for line in notes.read_text().splitlines()]
        for kind in EVENTS[:-1]:
            self.assertIn((kind, DISK, "disk"), [*map(_gist, noted)])
        (held,) = {event["holder"]["address"] for event in noted if event["event"] == "imported"}
        self.assertEqual(held, "127.0.0.1")
        self.assertEqual([event for event in noted if event["event"] == "failed"], [])

    def replug(self, uevents: guest.Uevents, device: guest.Device) -> float:
        """
        Unplug a device, plug it in, and wait until it is bound.

        @return: how many seconds after the kernel's own driver had it.
        """
        busId = device.busId
        before = len(uevents.bindings(busId))
        guest.unplug(device)
        guest.waitGone(busId)
        guest.plug(device)

        def bound() -> list[guest.Binding]:
            new = uevents.bindings(busId)[before:]
            return new if new and new[-1].driver == "usbip-host" else []

        bindings = guest.waitUntil(bound, f"{busId} is bound again")
        self.assertEqual([binding.driver for binding in bindings], ["usb", "usbip-host"])
        return bindings[-1].time - bindings[0].time

    def test_reload(self) -> None:
        """
        SIGHUP: what the file says by now is true, and neither a session nor a watcher notices
        more of it than that. A wrong file is said to be wrong, where it is, and changes
        nothing. With C{on_stop: unbind} all is given back when the daemon stops.
        """
        daemon = self.daemon()
        for busId in (DISK, SERIAL):
            self.succeeds(daemon.ask("attach", id=busId))
        _, imported = self.importDisk()
        node = guest.waitBlockDevice(imported)
        rules: list[dict[str, Any]] = [
            {"match": {"serial": "DISK42"}, "name": "backup-disk"},
            {"match": {"id": TABLET}, "share": "never"},
        ]
        with (
            daemon.watch(detail=True) as watcher,
            guest.DiskReader(node, guest.diskBytes(), Path.cwd()) as reader,
        ):
            reader.readsOn()
            said = daemon.reload(
                self.config(more=f"on_stop: unbind\ndevices: {json.dumps(rules)}\n")
            )
            self.assertIn("read anew", said["log_format"])
            watcher.told("removed", TABLET)
            names = [e["data"]["name"] for e in watcher.events if e["data"]["bus_id"] == DISK]
            self.assertIn("backup-disk", names)
            self.listsSoon(daemon, without=TABLET)
            self.assertEqual(self.state(daemon, "backup-disk"), "in_use")
            self.assertEqual(daemon.ask("attach", id=TABLET)["status"], "not_found")

            said = daemon.reload(self.config(more="devices:\n  - {match: {id: 1-1}, nam: x}\n"))
            self.assertIn("nothing is changed", said["log_format"])
            self.assertRegex(said["error"], r"\.yaml:\d+: devices\.0\.nam: ")
            self.assertEqual(self.state(daemon, "backup-disk"), "in_use")
            self.listsSoon(daemon, without=TABLET)
            reader.readsOn()
            self.succeeds(daemon.ask("detach", id=SERIAL))
            self.succeeds(daemon.ask("attach", id=SERIAL))
            watcher.told("bound", SERIAL)  # still there, and nothing between
            self.assertEqual(
                [kind for busId in BUS_IDS for kind in watcher.kinds(busId)],
                ["unbound", "bound", "removed"],
            )

        daemon.child.terminate()
        self.assertEqual(daemon.child.wait(guest.DEADLINE), -signal.SIGTERM)
        guest.waitGone(imported)
        for busId in (DISK, SERIAL, TABLET):
            self.assertEqual(guest.driverOf(busId), "usb")

    def test_mounted(self) -> None:
        """
        A disk with a file system that is mounted here, or that is swapped to, is not taken
        away: the message names the use. Not used any more it is, and with C{allow_mounted}
        in any case.
        """
        daemon = self.shared()
        mkfs(self.partition())
        self.addCleanup(guest.waitGone, DISK)
        self.addCleanup(guest.unplug, guest.DISK)  # it has another content now

        with mounted(self.partition()) as place:
            answer = daemon.ask("attach", id=DISK)
            self.fails(answer, f"1 is mounted on {place}")
            self.assertIn("in use by the server itself", answer["message"])
            self.assertEqual(guest.driverOf(DISK), "usb")
            self.assertEqual((place / "file").read_text(), "content")
        swap = self.partition()
        guest.check("mkswap", "--force", swap)
        guest.check("swapon", swap)
        try:
            self.fails(daemon.ask("attach", id=DISK), f"{swap} is used for swap")
        finally:
            guest.check("swapoff", swap)
        self.succeeds(daemon.ask("attach", id=DISK))
        self.succeeds(daemon.ask("detach", id=DISK))

        mkfs(self.partition())
        rule = {"match": {"serial": "DISK42"}, "name": "disk", "allow_mounted": True}
        daemon.reload(self.config(more=f"devices: {json.dumps([rule])}\n"))
        self.addCleanup(daemon.reload, self.config())
        with mounted(self.partition()):
            self.succeeds(daemon.ask("attach", id=DISK))
            self.assertEqual(guest.driverOf(DISK), "usbip-host")

    def partition(self) -> str:
        """
        The disk's one partition, which is made if there is none.

        @return: C{/dev/sda1}
        """
        node = Path(guest.waitBlockDevice(DISK))
        part = node.with_name(f"{node.name}1")
        if not part.exists():
            # https://en.wikipedia.org/wiki/Master_boot_record: one entry, Linux, addressed
            # by the number of its first sector and of all its sectors.
            count = len(guest.diskBytes()) // 512 - PART_AT
            entry = bytes(4) + b"\x83" + bytes(3)
            entry += PART_AT.to_bytes(4, "little") + count.to_bytes(4, "little")
            with node.open("r+b") as disk:
                disk.write(bytes(446) + entry + bytes(48) + b"\x55\xaa")
            guest.check("blockdev", "--rereadpt", str(node))
        guest.waitUntil(part.exists, f"{part} is there")
        return str(part)


def mkfs(node: str) -> None:
    """Make a file system with a file in it."""
    guest.modprobe("ext4")
    guest.check("mke2fs", "-q", "-F", node)
    with mounted(node, "rw") as place:
        (place / "file").write_text("content")


@contextmanager
def mounted(node: str, how: str = "ro") -> Iterator[Path]:
    """A file system is mounted."""
    place = Path("/run/mounted disk")  # mountinfo has the blank in a code
    place.mkdir(exist_ok=True)
    guest.check("mount", "-t", "ext2", "-o", how, node, str(place))
    try:
        yield place
    finally:
        guest.check("umount", "--lazy", str(place))


def _gist(event: dict[str, Any]) -> tuple[str, str, str | None]:
    return event["event"], event["data"]["bus_id"], event["data"]["name"]


del DaemonCase  # it is not to be run itself
