"""
The daemon on a stock kernel and emulated hardware, with stock C{usbip} as client: the same
with both backends.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from pathlib import Path
from typing import Any

from tests.kernel import guest
from tests.kernel.daemoncase import (
    BUS_IDS,
    CARD_READER,
    DISK,
    KEYBOARD,
    SERIAL,
    TABLET,
    DaemonCase,
)
from tests.support.childdaemon import ChildDaemon

HOST = "127.0.0.1"
SUDOERS = "nobody ALL=(root) NOPASSWD: /usr/sbin/usbip bind -b *, /usr/sbin/usbip unbind -b *\n"


class SharingCase(DaemonCase):
    """
    What every backend has to be able to do, whoever it runs as.
    """

    def share(self, daemon: ChildDaemon) -> None:
        """
        Attach, import with stock C{usbip}, read the true bytes; attach again disturbs
        nothing and says that it is in use; detach gives the disk back to usb-storage.
        """
        for _ in range(2):
            self.succeeds(daemon.ask("attach", serial="DISK42"))
            self.assertEqual(guest.driverOf(DISK), "usbip-host")
        with guest.StockUsbipd():
            self.assertIn(DISK, guest.check("usbip", "list", "-r", "127.0.0.1"))
            guest.check("usbip", "attach", "-r", "127.0.0.1", "-b", DISK)
            port, imported = guest.waitImport()
            node = guest.waitBlockDevice(imported)
            self.fails(daemon.ask("attach", id=DISK), "in use")
            self.assertTrue(guest.diskBytes() == guest.readBlockDevice(node))
            self.assertEqual(self.state(daemon), "in_use")
            self.assertEqual(self.listed(daemon), BUS_IDS)  # not the imported one
            guest.check("usbip", "detach", "-p", str(port))
            guest.waitGone(imported)
        self.stateSoon(daemon, "bound")
        for _ in range(2):
            self.succeeds(daemon.ask("detach", id=DISK))
        node = guest.waitBlockDevice(DISK)
        self.assertTrue(guest.diskBytes() == guest.readBlockDevice(node))
        self.assertEqual(self.state(daemon), "free")


class Scenarios(SharingCase):
    """
    What both backends have to show.
    """

    def test_list(self) -> None:
        """
        FTDI, keyboard, disk, tablet and card reader are listed, with the descriptions that
        lsusb prints, and no hub.
        """
        daemon = self.shared()
        devices = self.succeeds(daemon.ask("list", detail=True))
        self.assertEqual([device["bus_id"] for device in devices], BUS_IDS)
        for device in devices:
            numbers = f"{device['bus']:03d}:{int(device['device_name'][-3:]):03d}"
            line = guest.check("lsusb", "-s", numbers).strip()
            ids = f"{device['vendor_id']}:{device['product_id']}"
            self.assertEqual(line.partition(f"ID {ids} ")[2], device["description"])
            self.assertTrue(os.path.exists(device["device_name"]), device)
            self.assertEqual((device["state"], device["driver"]), ("free", "usb"))
        disk = devices[BUS_IDS.index(DISK)]
        self.assertEqual((disk["serial"], disk["interfaces"]), ("DISK42", ["08/06/50"]))

    def test_criteria(self) -> None:
        """
        Every criterion finds what it should.
        """
        daemon = self.shared()
        for busId, criteria in (
            (SERIAL, {"id": SERIAL}),
            (DISK, {"id": f"{DISK}*"}),
            (SERIAL, {"id": "0403:6001"}),
            (CARD_READER, {"id": "08E6:*"}),
            (DISK, {"bus": DISK}),
            (SERIAL, {"bus": "1", "first": True}),
            (SERIAL, {"bus": 1, "serial": "QSER1"}),
            (DISK, {"serial": "DISK42"}),
            (DISK, {"serial": "DISK*"}),
            (SERIAL, {"desc": "ft232"}),
            (DISK, {"desc": "*HARDDRIVE"}),
            (KEYBOARD, {"id": "0627:0001", "first": True}),
        ):
            found = self.succeeds(daemon.ask("find", **criteria))
            self.assertEqual(found["bus_id"], busId, criteria)
        several = daemon.ask("find", desc="QEMU")
        self.assertEqual(several["status"], "multiple_matches")
        for busId in (KEYBOARD, DISK, TABLET):
            self.assertIn(busId, several["message"])
        self.assertEqual(daemon.ask("find", serial="NONE")["status"], "not_found")
        without = [d["bus_id"] for d in self.succeeds(daemon.ask("list")) if d["serial"] is None]
        for busId in without:
            self.assertEqual(daemon.ask("find", id=busId, serial="*")["status"], "not_found")

    def test_share(self) -> None:
        """
        A disk goes to a client and comes back.
        """
        self.share(self.shared())

    def test_detachInUse(self) -> None:
        """
        Detach takes the device from its client.
        """
        daemon = self.shared()
        self.succeeds(daemon.ask("attach", id=DISK))
        _, imported = self.importDisk()
        guest.waitBlockDevice(imported)  # to pull it out while it is probed can take minutes
        self.succeeds(daemon.ask("detach", id=DISK))
        guest.waitGone(imported)
        guest.waitBlockDevice(DISK)

    def test_hotplug(self) -> None:
        """
        What is unplugged is gone from the list, what is plugged in is in it; a bound
        device that was unplugged comes back free and can be attached.
        """
        daemon = self.shared()
        self.succeeds(daemon.ask("attach", id=DISK))
        guest.unplug(guest.DISK)
        self.listsSoon(daemon, without=DISK)
        guest.plug(guest.DISK.withSerial("DISK43"))
        self.listsSoon(daemon)
        self.succeeds(daemon.ask("attach", serial="DISK43"))
        self.assertEqual(self.state(daemon), "bound")

    def test_unplugDuringAttach(self) -> None:
        """
        A device that is unplugged while it is attached is a success or a failure, and
        nothing is left of it.
        """
        daemon = self.shared()
        for serial in ("DISK50", "DISK51", "DISK52"):
            answers: list[dict[str, Any]] = []
            attach = threading.Thread(
                target=lambda heard=answers: heard.append(daemon.ask("attach", id=DISK))
            )
            attach.start()
            guest.unplug(guest.DISK)
            attach.join(guest.DEADLINE)
            self.assertIn(answers[0]["status"], ("success", "failure", "not_found"))
            self.listsSoon(daemon, without=DISK)
            guest.plug(guest.DISK.withSerial(serial))
            self.listsSoon(daemon)
        self.succeeds(daemon.ask("attach", id=DISK))

    def test_stockBind(self) -> None:
        """
        What another program binds and unbinds is seen, and left alone; what a client has
        attached is bound again.
        """
        daemon = self.shared()
        guest.check("usbip", "bind", "-b", DISK)
        self.stateSoon(daemon, "bound")
        guest.check("usbip", "unbind", "-b", DISK)
        self.stateSoon(daemon, "free")
        guest.waitBlockDevice(DISK)
        self.succeeds(daemon.ask("attach", id=DISK))
        guest.check("usbip", "unbind", "-b", DISK)
        guest.waitPresent(DISK, "usbip-host")
        self.stateSoon(daemon, "bound")

    def test_killed(self) -> None:
        """
        A daemon that was killed finds what it had bound, and who has it. A running import,
        and whoever reads from it, notices nothing.
        """
        daemon = self.daemon()
        self.succeeds(daemon.ask("attach", id=DISK))
        _, imported = self.importDisk()
        node = guest.waitBlockDevice(imported)
        with guest.DiskReader(node, guest.diskBytes(), Path.cwd()) as reader:
            reader.readsOn()
            daemon.kill()
            reader.readsOn()
            daemon.start()
            disk = self.succeeds(daemon.ask("find", id=DISK, detail=True))
            self.assertEqual(disk["state"], "in_use")
            self.assertEqual((disk["holder"]["address"], disk["holder"]["since"]), (HOST, None))
            self.fails(daemon.ask("attach", id=DISK), f"in use by {HOST}")
            reader.readsOn()
        self.succeeds(daemon.ask("detach", id=DISK))
        guest.waitGone(imported)

    def test_module(self) -> None:
        """
        Without usbip-host the daemon loads it; if that cannot be, it says what to do, and
        the device keeps its driver.
        """
        unloadHost()
        daemon = self.daemon()
        forbidden = Path("/etc/modprobe.d/no-usbip-host.conf")
        forbidden.write_text("install usbip-host /bin/false\n")
        self.addCleanup(forbidden.unlink, missing_ok=True)
        self.fails(daemon.ask("attach", id=DISK), "modprobe usbip-host")
        self.assertEqual(guest.driverOf(DISK), "usb")
        forbidden.unlink()
        self.succeeds(daemon.ask("attach", id=DISK))

    def test_permission(self) -> None:
        """
        Without the right to do so attach fails, says what is needed, and the device keeps
        its driver; to list needs no rights.
        """
        self.prefix = asNobody()
        daemon = self.daemon()
        self.assertEqual(self.listed(daemon), BUS_IDS)
        answer = daemon.ask("attach", id=DISK)
        self.fails(answer, "root")
        self.assertEqual(guest.driverOf(DISK), "usb")

    def test_stop(self) -> None:
        """
        A daemon that is told to end answers what is in progress, and leaves devices bound
        or free, nothing between.
        """
        daemon = self.daemon()
        answers: list[dict[str, Any]] = []
        attach = threading.Thread(target=lambda: answers.append(daemon.ask("attach", id=DISK)))
        attach.start()
        daemon.logged("{device} {kind}")
        daemon.child.terminate()
        attach.join(guest.DEADLINE)
        self.assertEqual(daemon.child.wait(guest.DEADLINE), -15)
        self.succeeds(answers[0])
        self.assertEqual(guest.driverOf(DISK), "usbip-host")


class SysfsTests(Scenarios):
    """
    With the sysfs backend.
    """

    backend = "{type: sysfs}"

    def test_full(self) -> None:
        """
        When others have taken all places in usbip-host's table the message says so, and
        the device keeps its driver; a place of our own is used again.
        """
        unloadHost()
        daemon = self.daemon()
        for _ in range(2):
            self.succeeds(daemon.ask("attach", id=TABLET))
            self.succeeds(daemon.ask("detach", id=TABLET))
        table = guest.DRIVERS_FOLDER / "usbip-host" / "match_busid"
        for port in range(1, 16):
            table.write_text(f"add 99-{port}")
        self.succeeds(daemon.ask("attach", id=DISK))  # in the place of the tablet
        self.assertNotIn(TABLET, guest.matchBusIds())
        self.fails(daemon.ask("attach", id=CARD_READER), "all 16 places")
        self.assertEqual(guest.driverOf(CARD_READER), "usb")
        self.succeeds(daemon.ask("detach", id=DISK))
        unloadHost()

    def test_stress(self) -> None:
        """
        Many attaches and detaches of all devices at the same time, and the kernel does
        not complain.
        """
        daemon = self.shared()
        before = complaints()

        def work(busId: str) -> None:
            for _ in range(10):
                daemon.ask("attach", id=busId)
                daemon.ask("detach", id=busId)

        threads = [threading.Thread(target=work, args=(busId,)) for busId in BUS_IDS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        guest.waitUntil(
            lambda: {guest.driverOf(busId) for busId in BUS_IDS} == {"usb"}, "all are free"
        )
        self.assertEqual(complaints(), before)


class UsbipToolTests(Scenarios):
    """
    With the usbip backend.
    """

    backend = "{type: usbip}"


class SudoTests(SharingCase):
    """
    With the usbip backend, without root, through sudo as docs/howto/server_setup.md says.
    """

    backend = "{type: usbip, command: [sudo, -n, usbip]}"

    def setUp(self) -> None:
        super().setUp()
        self.prefix = asNobody()
        self.sudoers = Path("/etc/sudoers.d/usbipshare")
        self.sudoers.write_text(SUDOERS)
        self.sudoers.chmod(0o440)

    def test_share(self) -> None:
        """
        A disk goes to a client and comes back.
        """
        self.share(self.daemon())

    def test_permission(self) -> None:
        """
        Without the line in sudoers attach fails, and says which line that is.
        """
        self.sudoers.write_text("")
        self.fails(self.daemon().ask("attach", id=DISK), "NOPASSWD")
        self.assertEqual(guest.driverOf(DISK), "usb")

    def test_module(self) -> None:
        """
        Without usbip-host, which it may not load, it says what to do.
        """
        unloadHost()
        self.fails(self.daemon().ask("attach", id=DISK), "modprobe usbip-host")
        self.assertEqual(guest.driverOf(DISK), "usb")


def complaints() -> list[str]:
    """
    What the kernel has complained of so far, in this scenario or in another one.
    """
    return [line for line in guest.dmesg().splitlines() if re.search("BUG|Oops|WARNING", line)]


def unloadHost() -> None:
    """
    Unload usbip-host. Its table may point at devices that were unplugged since they were
    bound, which its unloading would follow: bound again, they are those that are there.
    """
    for busId in guest.matchBusIds():
        if busId in BUS_IDS:
            for step in ("usb/unbind", "usbip-host/bind", "usbip-host/unbind", "usb/bind"):
                (guest.DRIVERS_FOLDER / step).write_text(busId)
    guest.rmmod("usbip-host")


def asNobody() -> list[str]:
    """
    The prefix of a command that is to run without any rights. Opens the way to the
    interpreter, which may be in somebody's home.
    """

    for start in (sys.executable, os.path.realpath(sys.executable), __file__):
        for folder in Path(start).parents:
            folder.chmod(folder.stat().st_mode | 0o055)
    return ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]


del Scenarios, SharingCase  # they are not to be run themselves
