"""
The daemon serves USB/IP itself: with stock C{usbip} as client, which knows nothing of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import statistics
import struct
import time
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from tests.kernel import guest
from tests.kernel.daemoncase import DISK, DaemonCase
from tests.support.childdaemon import ChildDaemon

SERIAL = guest.SERIAL.busId
TABLET = guest.TABLET.busId

HOST = "127.0.0.1"
OTHER = "10.99.0.1"
"""Somebody else: an address that this machine has besides, and that is none of loopback."""

STOCK_PORT = 3241
"""Of a stock C{usbipd}, to compare with."""

CYCLES = 10

PATIENCE = 10.0
"""Seconds that things may take on an emulated machine; the documents promise less."""

VANISHED = 15.0
"""Seconds until a device is free again whose client has vanished; as the documents promise."""

SERIAL_CLASS = "ff/ff/ff" if guest.MACHINE == "qemu" else "02/02/01"
"""Of the serial port's first interface."""

OK, BUSY, NODEV = 0, 2, 4
"""C{ST_OK}, C{ST_DEV_BUSY}, C{ST_NODEV} (C{tools/usb/usbip/libsrc/usbip_common.h})."""

BUSY_TEXT = "Device busy (exported)"
NODEV_TEXT = "Device not found"


class ExportingTests(DaemonCase):
    """
    With the sysfs backend, on the port that everybody expects.
    """

    backend = "{type: sysfs}"

    def config(self, state: str = "{file: null, remember: false}", more: str = "") -> str:
        return super().config(state, f"export: {{listen: [tcp:3240]}}\n{more}")

    def test_clients(self) -> None:
        """
        What is bound is listed, can be imported by one client at a time, is what it is, and
        can be imported anew as soon as it has been given back. It is shown who has it, and
        how much has moved.
        """
        daemon = self.daemon()
        self.assertIn("no exportable devices", "".join(guest.run("usbip", "list", "-r", HOST)[1:]))
        for busId in (DISK, SERIAL):
            self.succeeds(daemon.ask("attach", id=busId))
        self.compareLists()
        self.refused(TABLET, NODEV_TEXT)  # not attached
        self.refused("9-9", NODEV_TEXT)
        self.useDisk(daemon)
        self.useSerial(daemon)
        self.cycle(daemon)
        self.fight(daemon)
        self.saidNothing(daemon)

    def compareLists(self) -> None:
        """
        Our list says all that stock C{usbipd} says, and which interfaces there are: that one
        knows of none until somebody has imported the device.
        """
        ours = guest.check("usbip", "list", "-r", HOST)
        with guest.StockUsbipd(STOCK_PORT):
            stock = guest.check("usbip", "--tcp-port", str(STOCK_PORT), "list", "-r", HOST)
        lines = ours.splitlines()
        self.assertEqual([line for line in stock.splitlines() if line not in lines], [], ours)
        found = [line.split(":")[0].strip() for line in lines if "(46f4" in line or "(0403" in line]
        self.assertEqual(sorted(found), [SERIAL, DISK])
        self.assertIn("(46f4:0001)", ours)
        self.assertIn("FT232 Serial (UART) IC (0403:6001)", ours)
        self.assertRegex(ours, r":  0 - Mass Storage / SCSI / Bulk-Only \(08/06/50\)")
        self.assertRegex(ours, rf":  0 - .*\({SERIAL_CLASS}\)")

    def useDisk(self, daemon: ChildDaemon) -> None:
        """A client comes, reads the disk, and goes; another is told that it is busy."""
        content = guest.diskBytes()
        with daemon.watch(id=DISK, detail=True) as watcher:
            began = time.time()
            port, imported = self.take(DISK)
            came = watcher.told("imported", DISK)
            self.assertEqual(came["holder"]["address"], HOST)
            self.assertLess(abs(seconds(came["holder"]["since"]) - began), PATIENCE)
            self.assertIn(f"usbip://{HOST}:3240/{DISK}", guest.check("usbip", "port"))
            node = guest.waitBlockDevice(imported)
            before = self.holder(daemon)
            self.assertTrue(content == guest.readBlockDevice(node))
            after = self.holder(daemon)
            self.assertEqual(after["since"], came["holder"]["since"])
            self.assertGreater(after["bytes_in"], before["bytes_in"])
            self.assertGreaterEqual(after["bytes_out"] - before["bytes_out"], len(content) // 2)
            self.refused(DISK, BUSY_TEXT)
            self.assertIn(f"{DISK}:", guest.check("usbip", "list", "-r", HOST))
            left = time.time()
            guest.check("usbip", "detach", "-p", str(port))
            gone = watcher.told("released", DISK)
            took = seconds(gone["time"]) - left
            print(f"\na stock client detaches, and is seen to be gone after {1000 * took:.0f} ms")
            self.assertEqual(gone["holder"]["address"], HOST)
            self.assertGreaterEqual(gone["holder"]["bytes_in"], after["bytes_in"])
            self.assertGreater(gone["holder"]["bytes_out"], len(content))
            self.assertLess(took, PATIENCE)
        guest.waitGone(imported)

    def useSerial(self, daemon: ChildDaemon) -> None:
        """The serial converter becomes a tty at its client."""
        port, imported = self.take(SERIAL)
        node = str(guest.waitUntil(partial(guest.ttyDevice, imported), "it has a tty"))
        guest.check("stty", "-F", node, "115200", "raw")
        self.assertEqual(self.state(daemon, SERIAL), "in_use")
        self.giveBack(port, imported)

    def cycle(self, daemon: ChildDaemon) -> None:
        """Clients come and go without a pause, none is refused, and nothing is left of them."""
        self.stateSoon(daemon, "bound", SERIAL)  # the session before this has ended
        before = openDescriptors(daemon)
        took = []
        for _ in range(CYCLES):
            began = time.monotonic()
            port, imported = self.take(SERIAL)
            took.append(time.monotonic() - began)
            guest.waitUntil(partial(guest.ttyDevice, imported), "it has a tty")
            self.giveBack(port, imported)
        print(f"a stock client has it after {median(took)}; {CYCLES} times at once after the last")
        took, seen = [], []
        with daemon.watch(id=SERIAL) as watcher:
            for _ in range(CYCLES):
                began = time.monotonic()
                status, connection = self.asked(SERIAL)
                self.assertEqual(status, OK)
                took.append(time.monotonic() - began)
                watcher.told("imported", SERIAL)
                left = time.time()
                connection.close()
                seen.append(seconds(watcher.told("released", SERIAL)["time"]) - left)
            for _ in range(CYCLES):
                status, connection = self.asked(SERIAL)
                self.assertEqual(status, OK)
                connection.close()
            guest.waitUntil(lambda: guest.usbipStatus(SERIAL) == 1, "the last is gone")
        self.stateSoon(daemon, "bound", SERIAL)
        guest.waitUntil(
            lambda: len(openDescriptors(daemon)) <= len(before),
            lambda: f"all is closed, open before: {before}, now: {openDescriptors(daemon)}",
        )
        print(
            f"an import that comes just after the last is answered after {median(took)}; a client "
            f"that has closed is seen to be gone after {median(seen)}"
        )

    def fight(self, daemon: ChildDaemon) -> None:
        """Of several clients that come at the same time one gets it, and it stays that one's."""
        for _ in range(CYCLES):
            clients = [self.request(SERIAL) for _ in range(3)]
            statuses = [self.status(SERIAL, client) for client in clients]
            self.assertEqual(sorted(statuses), [OK, BUSY, BUSY])
            self.assertEqual(self.state(daemon, SERIAL), "in_use")
            for client in clients:
                client.close()
        self.stateSoon(daemon, "bound", SERIAL)

    def test_claims(self) -> None:
        """
        Leases hold for imports too; what is shared on import is bound for its client, and
        given back after it if that is wished; a kick, an unplug and an unbind take a device
        from its client, and whatever is there then can be imported again.
        """
        daemon = self.daemon()
        self.lease(daemon)
        self.kick(daemon)
        self.unbind(daemon)
        self.unplug(daemon)
        self.bindOnImport(daemon)
        self.saidNothing(daemon)

    def lease(self, daemon: ChildDaemon) -> None:
        """Only whoever has leased the disk can import it, by its address."""
        guest.check("ip", "address", "replace", f"{OTHER}/32", "dev", "lo")
        lease = {"owner": "ci-job-81", "ttl": 600}
        self.succeeds(askFrom(OTHER, daemon, "attach", id=DISK, lease=lease))
        self.refused(DISK, BUSY_TEXT)
        status, connection = self.asked(DISK, OTHER)
        self.assertEqual(status, OK)
        with connection:
            self.assertEqual(self.holder(daemon)["address"], OTHER)
            self.succeeds(askFrom(OTHER, daemon, "detach", id=DISK, owner="ci-job-81"))
            self.assertEqual(connection.recv(1), b"")
        guest.waitBlockDevice(DISK)

    def kick(self, daemon: ChildDaemon) -> None:
        """A kick ends the session, and the next client can have it at once."""
        self.succeeds(daemon.ask("attach", id=DISK))
        _, imported = self.take(DISK)
        guest.waitBlockDevice(imported)
        with daemon.watch(id=DISK) as watcher:
            self.succeeds(daemon.ask("kick", id=DISK))
            watcher.told("released", DISK)
        self.assertEqual(self.state(daemon), "bound")
        guest.waitGone(imported)

    def unbind(self, daemon: ChildDaemon) -> None:
        """An unbind takes it from its client, ours or a stock one; we bind it again if it is
        wanted."""
        for command in (["usbip", "unbind", "-b", DISK], None):
            _, imported = self.take(DISK)
            guest.waitBlockDevice(imported)
            with daemon.watch(id=DISK) as watcher:
                if command is None:
                    self.succeeds(daemon.ask("detach", id=DISK))
                    self.assertEqual(guest.driverOf(DISK), "usb")
                else:
                    guest.check(*command)
                watcher.told("unbound", DISK)
                guest.waitGone(imported)
                if command is not None:
                    watcher.told("bound", DISK)
                self.assertEqual(watcher.kinds(DISK)[:2], ["released", "unbound"])
        guest.waitBlockDevice(DISK)

    def unplug(self, daemon: ChildDaemon) -> None:
        """An unplug takes it from its client; plugged in again it can be had again."""
        self.succeeds(daemon.ask("attach", id=DISK))
        _, imported = self.take(DISK)
        guest.waitBlockDevice(imported)
        with daemon.watch(id=DISK) as watcher:
            guest.unplug(guest.DISK)
            watcher.told("removed", DISK)
            guest.waitGone(imported)
            # Its driver may be seen to go before the device itself.
            kinds = [kind for kind in watcher.kinds(DISK) if kind != "unbound"]
            self.assertEqual(kinds, ["released", "removed"])
            self.refused(DISK, NODEV_TEXT)
            guest.plug(guest.DISK)
            watcher.told("added", DISK)
        guest.waitBlockDevice(DISK)

    def bindOnImport(self, daemon: ChildDaemon) -> None:
        """Bound when a client imports it; unbound after that where that is said."""
        rules = [
            {"match": {"id": DISK}, "share": "on_import", "unbind_released": True},
            {"match": {"id": TABLET}, "share": "on_import"},
        ]
        daemon.reload(self.config(more=f"devices: {json.dumps(rules)}\n"))
        listed = guest.check("usbip", "list", "-r", HOST)
        self.assertIn("Mass Storage / SCSI / Bulk-Only", listed)
        self.assertIn(f"{TABLET}:", listed)
        self.assertEqual(guest.driverOf(DISK), "usb")
        for _ in range(2):
            with daemon.watch() as watcher:
                port, imported = self.take(DISK)
                node = guest.waitBlockDevice(imported)
                self.assertTrue(guest.diskBytes() == guest.readBlockDevice(node))
                self.giveBack(port, imported)
                watcher.told("unbound", DISK)
                kinds = ["bound", "imported", "released", "unbound"]
                self.assertEqual(watcher.kinds(DISK), kinds)
            guest.waitBlockDevice(DISK)
        with daemon.watch() as watcher:
            for _ in range(2):
                status, connection = self.asked(TABLET)
                self.assertEqual(status, OK)
                connection.close()
                watcher.told("released", TABLET)
            self.assertEqual(
                watcher.kinds(TABLET), ["bound", "imported", "released", "imported", "released"]
            )
        self.assertEqual(guest.driverOf(TABLET), "usbip-host")

    def test_killed(self) -> None:
        """
        Neither a daemon that is killed nor one that stops takes a session with it, and whoever
        reads from the device notices nothing. Started again it knows who has it, and can end
        that.
        """
        daemon = self.daemon()
        self.succeeds(daemon.ask("attach", id=DISK))
        _, imported = self.take(DISK)
        node = guest.waitBlockDevice(imported)
        with guest.DiskReader(node, guest.diskBytes(), Path.cwd()) as reader:
            reader.readsOn()
            for end in (signal.SIGKILL, signal.SIGTERM):
                daemon.child.send_signal(end)
                self.assertEqual(daemon.child.wait(guest.DEADLINE), -end)
                reader.readsOn()
                daemon.start()
                self.assertEqual(self.state(daemon), "in_use")
                holder = self.holder(daemon)
                self.assertEqual((holder["address"], holder["since"]), (HOST, None))
                self.refused(DISK, BUSY_TEXT)
                reader.readsOn()
        self.succeeds(daemon.ask("kick", id=DISK))
        guest.waitGone(imported)
        port, imported = self.take(DISK)
        guest.waitBlockDevice(imported)
        self.giveBack(port, imported)
        self.stateSoon(daemon, "bound")

    def test_vanished(self) -> None:
        """
        A client vanishes, without a word: its device is free again before long, whether it was
        just reading or not.
        """
        daemon = self.daemon()
        self.succeeds(daemon.ask("attach", id=DISK))
        for isReading in (False, True):
            with guest.Elsewhere() as client, daemon.watch(id=DISK) as watcher:
                client.check("usbip", "attach", "-r", client.server, "-b", DISK)
                port, imported = guest.waitImport()
                node = guest.waitBlockDevice(imported)
                self.assertEqual(self.holder(daemon)["address"], client.address)
                reader = guest.DiskReader(node, guest.diskBytes(), Path.cwd())
                with reader if isReading else contextlib.nullcontext():
                    if isReading:
                        reader.readsOn()
                    client.vanish()
                    began, now = time.time(), time.monotonic()
                    self.refused(DISK, BUSY_TEXT)
                    unsent = client.unsent()
                    seen = seconds(watcher.told("released", DISK)["time"]) - began
                    status, connection = self.asked(DISK)
                    took = time.monotonic() - now
                    self.assertEqual(status, OK)
                    connection.close()
                    guest.check("usbip", "detach", "-p", str(port))
                    guest.waitGone(imported)
            print(
                f"\na client that {'reads' if isReading else 'is idle'} vanishes, {unsent} bytes "
                f"unacknowledged: seen after {seen:.1f} s, somebody else's after {took:.1f} s"
            )
            self.assertLess(took, VANISHED)
            self.stateSoon(daemon, "bound")
        self.saidNothing(daemon)

    def saidNothing(self, daemon: ChildDaemon) -> None:
        """
        The daemon has not logged anything that is worth a look. What stock C{usbip unbind} takes
        away the daemon binds again, which the kernel may refuse until the program has ended.
        """
        daemon.reload(self.config())
        said = [e for e in daemon.events if e["log_level"]["name"] not in ("debug", "info")]
        self.assertEqual([e for e in said if not isOwnAttach(e)], [])

    def take(self, busId: str) -> tuple[int, str]:
        """
        Import a device with stock C{usbip}.

        @return: vhci's port, and the bus id there.
        """
        guest.check("usbip", "attach", "-r", HOST, "-b", busId)
        return guest.waitImport()

    def giveBack(self, port: int, imported: str) -> None:
        """Give it back with stock C{usbip}."""
        guest.check("usbip", "detach", "-p", str(port))
        guest.waitGone(imported)

    def refused(self, busId: str, text: str) -> None:
        """Stock C{usbip} cannot import a device, and says why."""
        result = guest.run("usbip", "attach", "-r", HOST, "-b", busId)
        self.assertNotEqual(result.rc, 0)
        self.assertIn(f"Attach Request for {busId} failed - {text}", result.err)

    def asked(self, busId: str, source: str = HOST) -> tuple[int, socket.socket]:
        """
        Import a device without giving it to vhci.

        @param source: whence.
        @return: the status, and the connection.
        """
        connection = self.request(busId, source)
        return self.status(busId, connection), connection

    def request(self, busId: str, source: str = HOST) -> socket.socket:
        """Ask for a device."""
        connection = socket.create_connection((HOST, 3240), guest.DEADLINE, (source, 0))
        self.addCleanup(connection.close)
        connection.sendall(struct.pack(">HHI32s", 0x0111, 0x8003, 0, busId.encode()))
        return connection

    def status(self, busId: str, connection: socket.socket) -> int:
        """The answer to that, of which nothing is left unread."""
        answer = connection.recv(8, socket.MSG_WAITALL)
        version, code, status = struct.unpack(">HHI", answer)
        self.assertEqual((version, code), (0x0111, 0x0003))
        if status == OK:
            told = connection.recv(312, socket.MSG_WAITALL)
            self.assertEqual(told[256:288].rstrip(b"\0"), busId.encode())
        return int(status)

    def holder(self, daemon: ChildDaemon) -> dict[str, Any]:
        """Who has the disk."""
        holder: dict[str, Any] = self.succeeds(daemon.ask("find", id=DISK, detail=True))["holder"]
        return holder


def askFrom(address: str, daemon: ChildDaemon, command: str, **more: object) -> dict[str, Any]:
    """Send a request from another address, and return the answer."""
    with socket.create_connection((HOST, daemon.port), guest.DEADLINE, (address, 0)) as connection:
        connection.sendall(json.dumps({"command": command, **more}).encode() + b"\n")
        with connection.makefile("rb") as lines:
            answer: dict[str, Any] = json.loads(lines.readline())
            return answer


def isOwnAttach(event: dict[str, Any]) -> bool:
    """
    Does the daemon speak of an attach that nobody has asked it for?
    """
    return (event.get("verb"), event.get("principal")) == ("attach", "usbipshare")


def openDescriptors(daemon: ChildDaemon) -> list[str]:
    """What each of the daemon's file descriptors refers to."""
    found = []
    for link in Path(f"/proc/{daemon.child.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed in the meantime
            found.append(os.readlink(link))
    return sorted(found)


def seconds(timestamp: Any) -> float:
    """The seconds since the epoch."""
    return datetime.fromisoformat(timestamp.replace("Z", "+00:00")).timestamp()


def median(took: list[float]) -> str:
    """How long it took in the middle, and at worst."""
    return f"{1000 * statistics.median(took):.0f} ms (median; worst {1000 * max(took):.0f} ms)"


del DaemonCase  # it is not to be run itself
