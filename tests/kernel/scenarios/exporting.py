"""The daemon's own USB/IP server, with Debian's C{usbip} as its client."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import time
from functools import partial
from pathlib import Path

from tests.kernel import guest
from tests.kernel.daemoncase import (
    DISK,
    HOST,
    OTHER_STOCK_PORT,
    PATIENCE,
    SERIAL,
    TABLET,
    DaemonCase,
    summary,
    timestamp,
)
from tests.support.childdaemon import ChildDaemon
from tests.support.scriptedserver import received

CYCLES = 10

VANISHED = 15.0
"""Seconds until a device is free whose client has vanished, as the documents promise."""

SERIAL_CLASS = "ff/ff/ff" if guest.MACHINE == "qemu" else "02/02/01"
"""Of the serial port's first interface."""

OK, BUSY = 0, 2
"""C{ST_OK}, C{ST_DEV_BUSY} (C{tools/usb/usbip/libsrc/usbip_common.h})."""

BUSY_TEXT = "Device busy (exported)"
NODEV_TEXT = "Device not found"


class ExportingTests(DaemonCase):
    """With the sysfs backend, at the usual port."""

    more = "export: {listen: [tcp:3240]}\n"

    def test_clients(self) -> None:
        """Bound devices are listed, and can be imported by one client at a time, and again as soon
        as the session has ended. Client and traffic are shown."""
        daemon = self.daemon()
        self.assertIn("no exportable devices", "".join(guest.run("usbip", "list", "-r", HOST)[1:]))
        for busId in (DISK, SERIAL):
            self.succeeds(daemon.ask("attach", id=busId))
        self.compareLists()
        self.refused(TABLET, NODEV_TEXT)  # not attached
        self.refused("9-9", NODEV_TEXT)
        self.importDiskWatched(daemon)
        self.importSerial(daemon)
        self.importRepeatedly(daemon)
        self.importConcurrently(daemon)
        self.assertNothingLogged(daemon)

    def compareLists(self) -> None:
        """The daemon's list contains all lines of C{usbipd}'s list, and the interfaces, which
        C{usbipd} lists only after a first import."""
        ours = guest.check("usbip", "list", "-r", HOST)
        with guest.stockUsbipd(OTHER_STOCK_PORT):
            stock = guest.check("usbip", "--tcp-port", str(OTHER_STOCK_PORT), "list", "-r", HOST)
        lines = ours.splitlines()
        self.assertEqual([line for line in stock.splitlines() if line not in lines], [], ours)
        found = [line.split(":")[0].strip() for line in lines if "(46f4" in line or "(0403" in line]
        self.assertEqual(sorted(found), [SERIAL, DISK])
        self.assertIn("(46f4:0001)", ours)
        self.assertIn("FT232 Serial (UART) IC (0403:6001)", ours)
        self.assertRegex(ours, r":  0 - Mass Storage / SCSI / Bulk-Only \(08/06/50\)")
        self.assertRegex(ours, rf":  0 - .*\({SERIAL_CLASS}\)")

    def importDiskWatched(self, daemon: ChildDaemon) -> None:
        """A client imports the disk, reads it, and detaches; another client is refused."""
        size = len(guest.diskBytes())
        with daemon.watch(id=DISK, detail=True) as watcher:
            began = time.time()
            port, imported = guest.stockAttach(DISK)
            event = watcher.told("imported", DISK)
            self.assertEqual(event["holder"]["address"], HOST)
            self.assertLess(abs(timestamp(event["holder"]["since"]) - began), PATIENCE)
            self.assertIn(f"usbip://{HOST}:3240/{DISK}", guest.check("usbip", "port"))
            node = guest.waitBlockDevice(imported)
            before = self.holder(daemon)
            guest.checkDiskBytes(node)
            after = self.holder(daemon)
            self.assertEqual(after["since"], event["holder"]["since"])
            self.assertGreater(after["bytes_in"], before["bytes_in"])
            self.assertGreaterEqual(after["bytes_out"] - before["bytes_out"], size // 2)
            self.refused(DISK, BUSY_TEXT)
            self.assertIn(f"{DISK}:", guest.check("usbip", "list", "-r", HOST))
            left = time.time()
            guest.check("usbip", "detach", "-p", str(port))
            released = watcher.told("released", DISK)
            took = timestamp(released["time"]) - left
            print(f"\nthe release by a stock client is seen after {1000 * took:.0f} ms")
            self.assertEqual(released["holder"]["address"], HOST)
            self.assertGreaterEqual(released["holder"]["bytes_in"], after["bytes_in"])
            self.assertGreater(released["holder"]["bytes_out"], size)
        guest.waitGone(imported)

    def importSerial(self, daemon: ChildDaemon) -> None:
        """The serial port becomes a tty at its client."""
        port, imported = guest.stockAttach(SERIAL)
        node = str(guest.waitUntil(partial(guest.ttyDevice, imported), "it has a tty"))
        guest.check("stty", "-F", node, "115200", "raw")
        self.assertEqual(self.state(daemon, SERIAL), "in_use")
        guest.stockDetach(port, imported)

    def importRepeatedly(self, daemon: ChildDaemon) -> None:
        """Imports without a pause between them all succeed, and leave no descriptor open."""
        self.awaitState(daemon, "bound", SERIAL)  # the earlier session has ended
        before = openDescriptors(daemon)
        imported, answered, released = [], [], []
        for _ in range(CYCLES):
            began = time.monotonic()
            port, busId = guest.stockAttach(SERIAL)
            imported.append(time.monotonic() - began)
            guest.waitUntil(partial(guest.ttyDevice, busId), "it has a tty")
            guest.stockDetach(port, busId)
        with daemon.watch(id=SERIAL) as watcher:
            for _ in range(CYCLES):
                began = time.monotonic()
                connection = self.granted(SERIAL)
                answered.append(time.monotonic() - began)
                watcher.told("imported", SERIAL)
                left = time.time()
                connection.close()
                event = watcher.told("released", SERIAL)
                released.append(timestamp(event["time"]) - left)
            for _ in range(CYCLES):
                self.granted(SERIAL).close()
            guest.waitUntil(lambda: guest.usbipStatus(SERIAL) == 1, "the last session has ended")
        self.awaitState(daemon, "bound", SERIAL)
        guest.waitUntil(
            lambda: len(openDescriptors(daemon)) <= len(before),
            lambda: f"all is closed, open before: {before}, now: {openDescriptors(daemon)}",
        )
        print(
            f"a stock client has imported after {summary(imported)}; an import just after the last "
            f"is answered after {summary(answered)}; a release is seen after {summary(released)}"
        )

    def importConcurrently(self, daemon: ChildDaemon) -> None:
        """Of three clients that ask at the same time one gets the device, and keeps it."""
        for _ in range(CYCLES):
            clients = [self.request(SERIAL) for _ in range(3)]
            statuses = [self.status(SERIAL, client) for client in clients]
            self.assertEqual(sorted(statuses), [OK, BUSY, BUSY])
            self.assertEqual(self.state(daemon, SERIAL), "in_use")
            for client in clients:
                client.close()
        self.awaitState(daemon, "bound", SERIAL)

    def test_sessionsEnded(self) -> None:
        """A kick, an unbind and an unplug take the device from its client, after which it can be
        imported again. A device with C{share: on_import} is bound by an import."""
        daemon = self.daemon()
        self.kick(daemon)
        self.unbind(daemon)
        self.unplug(daemon)
        self.bindOnImport(daemon)
        self.assertNothingLogged(daemon)

    def kick(self, daemon: ChildDaemon) -> None:
        """A kick ends the session; the device stays bound."""
        self.succeeds(daemon.ask("attach", id=DISK))
        _, imported, _ = guest.attachDisk(DISK)
        with daemon.watch(id=DISK) as watcher:
            self.succeeds(daemon.ask("kick", id=DISK))
            watcher.told("released", DISK)
        self.assertEqual(self.state(daemon), "bound")
        guest.waitGone(imported)

    def unbind(self, daemon: ChildDaemon) -> None:
        """C{usbip unbind} and detach end the session; after the former it is bound again."""
        for isStock in (True, False):
            _, imported, _ = guest.attachDisk(DISK)
            with daemon.watch(id=DISK) as watcher:
                if isStock:
                    guest.check("usbip", "unbind", "-b", DISK)
                else:
                    self.succeeds(daemon.ask("detach", id=DISK))
                    self.assertEqual(guest.driverOf(DISK), "usb")
                watcher.told("unbound", DISK)
                guest.waitGone(imported)
                if isStock:
                    watcher.told("bound", DISK)
                self.assertEqual(watcher.kinds(DISK)[:2], ["released", "unbound"])
        guest.waitBlockDevice(DISK)

    def unplug(self, daemon: ChildDaemon) -> None:
        """Unplugging ends the session."""
        self.succeeds(daemon.ask("attach", id=DISK))
        _, imported, _ = guest.attachDisk(DISK)
        with daemon.watch(id=DISK) as watcher:
            guest.unplug(guest.DISK)
            watcher.told("removed", DISK)
            guest.waitGone(imported)
            # The driver may be seen to go before the device itself.
            kinds = [kind for kind in watcher.kinds(DISK) if kind != "unbound"]
            self.assertEqual(kinds, ["released", "removed"])
            self.refused(DISK, NODEV_TEXT)
            guest.plug(guest.DISK)
            watcher.told("added", DISK)
        guest.waitBlockDevice(DISK)

    def bindOnImport(self, daemon: ChildDaemon) -> None:
        """C{share: on_import} binds at the import; C{unbind_released} unbinds after it."""
        rules = [
            {"match": {"id": DISK}, "share": "on_import", "unbind_released": True},
            {"match": {"id": TABLET}, "share": "on_import"},
        ]
        daemon.reload(self.config(more=f"devices: {json.dumps(rules)}\n"))
        listed = guest.check("usbip", "list", "-r", HOST)
        self.assertIn("Mass Storage / SCSI / Bulk-Only", listed)
        self.assertIn(f"{TABLET}:", listed)
        self.assertEqual(guest.driverOf(DISK), "usb")
        session = ["imported", "released"]
        for _ in range(2):
            with daemon.watch() as watcher:
                port, imported, node = guest.attachDisk(DISK)
                guest.checkDiskBytes(node)
                guest.stockDetach(port, imported)
                watcher.told("unbound", DISK)
                self.assertEqual(watcher.kinds(DISK), ["bound", *session, "unbound"])
            guest.waitBlockDevice(DISK)
        with daemon.watch() as watcher:
            for _ in range(2):
                self.granted(TABLET).close()
                watcher.told("released", TABLET)
            self.assertEqual(watcher.kinds(TABLET), ["bound", *session, *session])
        self.assertEqual(guest.driverOf(TABLET), "usbip-host")

    def test_killed(self) -> None:
        """A session goes on when the daemon is killed or stopped. The started daemon refuses other
        clients and can end the session."""
        daemon = self.sharing(DISK)
        _, imported = guest.stockAttach(DISK)
        self.assertSessionSurvives(daemon, guest.waitBlockDevice(imported))
        self.refused(DISK, BUSY_TEXT)
        self.succeeds(daemon.ask("kick", id=DISK))
        guest.waitGone(imported)
        port, imported, _ = guest.attachDisk(DISK)
        guest.stockDetach(port, imported)
        self.awaitState(daemon, "bound")

    def test_vanished(self) -> None:
        """The device of a client that has vanished from the network, reading or not, is freed."""
        daemon = self.sharing(DISK)
        for isReading in (False, True):
            with guest.Elsewhere() as client, daemon.watch(id=DISK) as watcher:
                client.check("usbip", "attach", "-r", client.server, "-b", DISK)
                port, imported = guest.waitImport()
                node = guest.waitBlockDevice(imported)
                self.assertEqual(self.holder(daemon)["address"], client.address)
                reader = guest.diskReader(node, 0.0)  # without a pause: a read is in progress
                with reader if isReading else contextlib.nullcontext():
                    if isReading:
                        reader.awaitRead()
                    client.vanish()
                    began, now = time.time(), time.monotonic()
                    self.refused(DISK, BUSY_TEXT)
                    unsent = client.unsent()
                    seen = timestamp(watcher.told("released", DISK)["time"]) - began
                    connection = self.granted(DISK)
                    took = time.monotonic() - now
                    connection.close()
                    guest.stockDetach(port, imported)
            print(
                f"\na client that {'reads' if isReading else 'is idle'} vanishes, {unsent} bytes "
                f"unacknowledged: seen after {seen:.1f} s, imported by another after {took:.1f} s"
            )
            self.assertLess(took, VANISHED)
            self.awaitState(daemon, "bound")
        self.assertNothingLogged(daemon)

    def refused(self, busId: str, text: str) -> None:
        """Debian's C{usbip} cannot import a device, and prints why."""
        result = guest.run("usbip", "attach", "-r", HOST, "-b", busId)
        self.assertNotEqual(result.rc, 0)
        self.assertIn(f"Attach Request for {busId} failed - {text}", result.err)

    def granted(self, busId: str) -> socket.socket:
        """Import a device without attaching it to vhci."""
        connection = self.request(busId)
        self.assertEqual(self.status(busId, connection), OK)
        return connection

    def request(self, busId: str) -> socket.socket:
        """Send C{OP_REQ_IMPORT}."""
        connection = socket.create_connection((HOST, 3240), guest.DEADLINE)
        self.addCleanup(connection.close)
        connection.sendall(struct.pack(">HHI32s", 0x0111, 0x8003, 0, busId.encode()))
        return connection

    def status(self, busId: str, connection: socket.socket) -> int:
        """Read C{OP_REP_IMPORT}; returns the status."""
        answer = received(connection, 8)
        version, code, status = struct.unpack(">HHI", answer)
        self.assertEqual((version, code), (0x0111, 0x0003))
        if status == OK:
            device = received(connection, 312)
            self.assertEqual(device[256:288].rstrip(b"\0"), busId.encode())
        return int(status)


def openDescriptors(daemon: ChildDaemon) -> list[str]:
    """What each of the daemon's file descriptors refers to."""
    found = []
    for link in Path(f"/proc/{daemon.child.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed in the meantime
            found.append(os.readlink(link))
    return sorted(found)


del DaemonCase  # base classes are not run
