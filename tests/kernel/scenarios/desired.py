"""The reconciler on real kernels: devices are bound again after replugs, after a client's session,
and after the daemon was killed; and reload, mounted disks, hooks."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.kernel import guest
from tests.kernel.daemoncase import BUS_IDS, DISK, SERIAL, TABLET, DaemonCase, summary
from tests.kernel.inside.uevents import Binding, Uevents

ROUNDS = 2
"""Of replugs: with two more of the disk, and the first plug, three would count as flapping."""

PARTITION_START = 2048
"""In sectors."""

NOTE = 'line=$(cat); printf "%s\\n" "$line" >> {file}'
"""A hook that appends each event to a file, as a line."""

EVENTS = ["added", "removed", "bound", "unbound", "imported", "released", "failed"]


class DesiredTests(DaemonCase):
    """With the sysfs backend."""

    def test_boundAgain(self) -> None:
        """A device with C{share: always}, and one that was attached, is bound whenever it is
        plugged in: also if a client has it when it is unplugged, and if the daemon was killed
        before. One that was detached stays unbound. Hooks receive the events."""
        folder = Path.cwd() / "always"
        folder.mkdir()
        notes = folder / "notes"
        hook = {"events": EVENTS, "command": ["sh", "-c", NOTE.format(file=notes)]}
        rule = {"match": {"serial": "DISK42"}, "name": "disk", "share": "always"}
        more = f"devices: {json.dumps([rule])}\nhooks: {json.dumps([hook])}\n"
        daemon = self.daemon(self.config(f"{{file: {folder}/state.json}}", more))
        guest.waitPresent(DISK, "usbip-host")
        for busId in BUS_IDS:
            self.succeeds(daemon.ask("attach", id=busId))

        with Uevents() as uevents:
            devices = [device for device in guest.DEVICES if device.busId in BUS_IDS]
            delays = [self.replug(uevents, each) for _ in range(ROUNDS) for each in devices]
            print(f"\nbound again after a replug: {summary(delays)} after the kernel's bind@")

            for busId in (SERIAL, DISK):
                self.succeeds(daemon.ask("detach", id=busId))
            before = len(uevents.bindings(SERIAL))
            replugged(guest.SERIAL)
            self.assertEqual(guest.driverOf(DISK), "usb")
            self.replug(uevents, guest.DISK)
            drivers = [binding.driver for binding in uevents.bindings(SERIAL)[before:]]
            self.assertEqual(drivers, ["usb"])
            self.assertEqual(self.state(daemon, SERIAL), "free")

        self.awaitState(daemon, "bound")
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
            guest.stockDetach(port, imported)
            watcher.told("released", DISK)
            session = ["imported", "released"]
            self.assertEqual(watcher.kinds(DISK), [*session, "removed", "added", "bound", *session])

        daemon.kill()
        for device in (guest.DISK, guest.TABLET, guest.SERIAL):
            replugged(device)
        daemon.start()
        for busId in (DISK, TABLET):
            guest.waitPresent(busId, "usbip-host")
            self.awaitState(daemon, "bound", busId)
        self.assertEqual(guest.driverOf(SERIAL), "usb")

        events = [json.loads(line) for line in notes.read_text().splitlines()]
        seen = [(each["event"], each["data"]["bus_id"], each["data"]["name"]) for each in events]
        for kind in EVENTS[:-1]:
            self.assertIn((kind, DISK, "disk"), seen)
        holders = {each["holder"]["address"] for each in events if each["event"] == "imported"}
        self.assertEqual(holders, {"127.0.0.1"})
        self.assertEqual([each for each in events if each["event"] == "failed"], [])

    def replug(self, uevents: Uevents, device: guest.Device) -> float:
        """Unplug a device, plug it in, and wait until it is bound.

        @return: how many seconds after it was bound to its own driver."""
        busId = device.busId
        before = len(uevents.bindings(busId))
        guest.unplug(device)
        guest.waitGone(busId)
        guest.plug(device)

        def bound() -> list[Binding]:
            new = uevents.bindings(busId)[before:]
            return new if new and new[-1].driver == "usbip-host" else []

        bindings = guest.waitUntil(bound, f"{busId} is bound again")
        self.assertEqual([binding.driver for binding in bindings], ["usb", "usbip-host"])
        return bindings[-1].time - bindings[0].time

    def test_authorizedLater(self) -> None:
        """A device with C{share: always} that is not authorized when it is plugged in is bound as
        soon as it is authorized."""
        rule = {"match": {"serial": "DISK42"}, "share": "always"}
        guest.unplug(guest.DISK)
        guest.waitGone(DISK)
        default = guest.DEVICES_FOLDER / f"usb{guest.DISK.bus}" / "authorized_default"
        self.addCleanup(default.write_text, default.read_text())
        default.write_text("0")
        daemon = self.daemon(self.config(more=f"devices: {json.dumps([rule])}\n"))
        guest.plug(guest.DISK)
        self.awaitState(daemon, "error")
        time.sleep(16)  # the pause after failures is longer now
        (guest.DEVICES_FOLDER / DISK / "authorized").write_text("1")
        began = time.monotonic()
        guest.waitPresent(DISK, "usbip-host")
        took = time.monotonic() - began
        print(f"\nbound {took:.1f} s after it is authorized")
        self.assertLess(took, 10)
        self.awaitState(daemon, "bound")

    def test_reload(self) -> None:
        """SIGHUP disturbs neither a session nor a watcher. With C{on_stop: unbind}, which is read
        then, all devices are unbound when the daemon stops."""
        daemon = self.sharing(DISK, SERIAL)
        _, imported = self.importDisk()
        node = guest.waitBlockDevice(imported)
        rule = {"match": {"id": TABLET}, "share": "never"}
        with daemon.watch(detail=True) as watcher, guest.diskReader(node) as reader:
            reader.awaitRead()
            more = f"on_stop: unbind\ndevices: {json.dumps([rule])}\n"
            daemon.reload(self.config(more=more))
            watcher.told("removed", TABLET)
            self.awaitListed(daemon, without=TABLET)
            self.assertEqual(self.state(daemon), "in_use")
            reader.awaitRead()
            kinds = [kind for busId in BUS_IDS for kind in watcher.kinds(busId)]
            self.assertEqual(kinds, ["removed"])
        daemon.child.terminate()
        self.assertEqual(daemon.child.wait(guest.DEADLINE), -signal.SIGTERM)
        guest.waitGone(imported)
        for busId in (DISK, SERIAL, TABLET):
            self.assertEqual(guest.driverOf(busId), "usb")

    def test_mounted(self) -> None:
        """The attach of a disk with a mounted file system, or with active swap, fails with a
        message that names the use. It succeeds after that use has ended, and with
        C{allow_mounted}."""
        daemon = self.sharedDaemon()
        mkfs(self.partition())
        self.addCleanup(guest.waitGone, DISK)
        self.addCleanup(guest.unplug, guest.DISK)  # its content has changed

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
        """The disk's one partition, which is made if there is none.

        @return: C{/dev/sda1}"""
        node = Path(guest.waitBlockDevice(DISK))
        part = node.with_name(f"{node.name}1")
        if not part.exists():
            # https://en.wikipedia.org/wiki/Master_boot_record: one entry of type Linux, with the
            # number of its first sector and the count of its sectors.
            count = len(guest.diskBytes()) // 512 - PARTITION_START
            entry = bytes(4) + b"\x83" + bytes(3)
            entry += PARTITION_START.to_bytes(4, "little") + count.to_bytes(4, "little")
            with node.open("r+b") as disk:
                disk.write(bytes(446) + entry + bytes(48) + b"\x55\xaa")
            guest.check("blockdev", "--rereadpt", str(node))
        guest.waitUntil(part.exists, f"{part} exists")
        return str(part)


def replugged(device: guest.Device) -> None:
    """Unplug a device, plug it in, and wait until its own driver has it."""
    guest.unplug(device)
    guest.waitGone(device.busId)
    guest.plug(device)
    guest.waitPresent(device.busId)


def mkfs(node: str) -> None:
    """Make a file system with a file in it."""
    guest.modprobe("ext4")
    guest.check("mke2fs", "-q", "-F", node)
    with mounted(node, "rw") as place:
        (place / "file").write_text("content")


@contextmanager
def mounted(node: str, options: str = "ro") -> Iterator[Path]:
    """Mount a file system until the C{with} ends."""
    place = Path("/run/mounted disk")  # the blank is escaped in mountinfo
    place.mkdir(exist_ok=True)
    guest.check("mount", "-t", "ext2", "-o", options, node, str(place))
    try:
        yield place
    finally:
        guest.check("umount", "--lazy", str(place))


del DaemonCase  # base classes are not run
