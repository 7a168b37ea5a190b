"""Listing, binding and unbinding devices, with each of the backends. Clients import them with
Debian's C{usbipd} and C{usbip}."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.kernel import guest
from tests.kernel.daemoncase import BUS_IDS, CARD_READER, DISK, TABLET, DaemonCase
from tests.kernel.verdict import complaintsOf
from tests.support.childdaemon import ChildDaemon

SUDOERS = "nobody ALL=(root) NOPASSWD: /usr/sbin/usbip bind -b *, /usr/sbin/usbip unbind -b *\n"

HUB = "1-2"
"""Of QEMU."""

FORBIDDEN = Path("/etc/modprobe.d/no-usbip-host.conf")


class SharingCase(DaemonCase):
    """What every backend has to do, whichever user it runs as."""

    def share(self, daemon: ChildDaemon) -> None:
        """Attach and detach a disk, twice each, with a client in between. An attach while the
        client has the disk fails and does not disturb the client. The message of an attach of the
        imported disk, or of a hub, contains the reason."""
        for _ in range(2):
            self.succeeds(daemon.ask("attach", serial="DISK42"))
            self.assertEqual(guest.driverOf(DISK), "usbip-host")
        with guest.stockUsbipd():
            self.assertIn(DISK, guest.check("usbip", "list", "-r", "127.0.0.1"))
            port, imported, node = guest.attachDisk(DISK)
            self.fails(daemon.ask("attach", id=DISK), "in use")
            guest.checkDiskBytes(node)
            self.assertEqual(self.state(daemon), "in_use")
            self.assertEqual(self.listed(daemon), BUS_IDS)  # without the imported disk
            answer = daemon.ask("attach", id=imported)
            self.assertIn("was imported from another server", answer["message"])
            if guest.MACHINE == "qemu":
                answer = daemon.ask("attach", id=HUB)
                self.assertIn("is a hub", answer["message"])
            guest.stockDetach(port, imported)
        self.awaitState(daemon, "bound")
        for _ in range(2):
            self.succeeds(daemon.ask("detach", id=DISK))
        guest.checkDiskBytes(guest.waitBlockDevice(DISK))
        self.assertEqual(self.state(daemon), "free")

    def attachFails(self, daemon: ChildDaemon, text: str, busId: str = DISK) -> None:
        """Assert that an attach fails with a message, and that the device keeps its driver."""
        self.fails(daemon.ask("attach", id=busId), text)
        self.assertEqual(guest.driverOf(busId), "usb")


class Scenarios(SharingCase):
    """What both backends have to do as root."""

    def test_listsDevicesWithDescriptionsOfLsusb(self) -> None:
        """All devices but hubs are listed, with the descriptions that C{lsusb} prints, and the
        paths of their ports that udev computes."""
        devices = self.succeeds(self.sharedDaemon().ask("list", detail=True))
        self.assertEqual([device["bus_id"] for device in devices], BUS_IDS)
        for device in devices:
            numbers = f"{device['bus']:03d}:{int(device['device_name'][-3:]):03d}"
            line = guest.check("lsusb", "-s", numbers).strip()
            ids = f"{device['vendor_id']}:{device['product_id']}"
            self.assertEqual(line.partition(f"ID {ids} ")[2], device["description"])
            self.assertTrue(os.path.exists(device["device_name"]), device)
            folder = f"/sys/bus/usb/devices/{device['bus_id']}"
            path = guest.check("udevadm", "test-builtin", "path_id", folder)
            self.assertIn(f"ID_PATH={device['path']}\n", path)
            self.assertEqual((device["state"], device["driver"]), ("free", "usb"))
        disk = devices[BUS_IDS.index(DISK)]
        self.assertEqual((disk["serial"], disk["interfaces"]), ("DISK42", ["08/06/50"]))

    def test_share(self) -> None:
        """A disk is attached, imported, read, detached, and back at its own driver."""
        self.share(self.sharedDaemon())

    def test_hotplug(self) -> None:
        """A bound device that is unplugged leaves the list; replugged it can be attached."""
        daemon = self.sharedDaemon()
        self.succeeds(daemon.ask("attach", id=DISK))
        guest.unplug(guest.DISK)
        self.awaitListed(daemon, without=DISK)
        guest.plug(guest.DISK.withSerial("DISK43"))
        self.awaitListed(daemon)
        self.succeeds(daemon.ask("attach", serial="DISK43"))
        self.assertEqual(self.state(daemon), "bound")

    def test_unplugDuringAttach(self) -> None:
        """The attach of a device that is unplugged meanwhile succeeds or fails; the replugged
        device can be attached."""
        daemon = self.sharedDaemon()
        for serial in ("DISK50", "DISK51", "DISK52"):
            attach = ThreadPoolExecutor().submit(daemon.ask, "attach", id=DISK)
            guest.unplug(guest.DISK)
            self.assertIn(attach.result()["status"], ("success", "failure", "not_found"))
            self.awaitListed(daemon, without=DISK)
            guest.plug(guest.DISK.withSerial(serial))
            self.awaitListed(daemon)
        self.succeeds(daemon.ask("attach", id=DISK))

    def test_boundByStockUsbip(self) -> None:
        """A device that Debian's C{usbip} binds is shown as bound, and as free when it is unbound.
        One that was attached is bound again after each C{usbip unbind}."""
        daemon = self.sharedDaemon()
        guest.check("usbip", "bind", "-b", DISK)
        self.awaitState(daemon, "bound")
        guest.check("usbip", "unbind", "-b", DISK)
        self.awaitState(daemon, "free")
        guest.waitBlockDevice(DISK)
        self.succeeds(daemon.ask("attach", id=DISK))
        for _ in range(5):
            guest.check("usbip", "unbind", "-b", DISK)
            guest.waitPresent(DISK, "usbip-host")
            self.awaitState(daemon, "bound")

    def test_unboundSlowlyByOthers(self) -> None:
        """Between the writes of another program that unbinds a device as C{usbip unbind} does, the
        daemon does not bind it, however often that happens, not on request either: C{rebind} of a
        bound device loses its entry, and the kernel crashes at the next unbind (D1)."""
        daemon = self.sharing(DISK)
        for isRequested in (False, False, False, True, True):
            if isRequested:
                self.succeeds(daemon.ask("detach", id=DISK))
                guest.check("usbip", "bind", "-b", DISK)
            unbinding = ThreadPoolExecutor().submit(unbindSlowly, DISK)
            if isRequested:
                guest.waitUntil(lambda: guest.driverOf(DISK) is None, "its driver has left")
                self.succeeds(daemon.ask("attach", id=DISK))
            unbinding.result()
            guest.waitPresent(DISK, "usbip-host")
            self.awaitState(daemon, "bound")
            self.assertEqual(guest.matchBusIds(), [DISK])

    def test_notAuthorized(self) -> None:
        """A device that is not authorized, as USBGuard leaves those that it does not know, is shown
        as C{error} with the reason, and cannot be attached until it is authorized."""
        daemon = self.sharedDaemon()
        authorized = guest.DEVICES_FOLDER / DISK / "authorized"
        self.addCleanup(authorized.write_text, "1")
        authorized.write_text("0")
        self.awaitState(daemon, "error")
        self.assertIn("authorized", self.detail(daemon)["trouble"])
        self.fails(daemon.ask("attach", id=DISK), "authorized")
        self.assertNotEqual(guest.driverOf(DISK), "usbip-host")
        authorized.write_text("1")
        self.awaitState(daemon, "free")
        self.succeeds(daemon.ask("attach", id=DISK))
        for value, state in (("0", "error"), ("1", "bound")):
            authorized.write_text(value)
            self.awaitState(daemon, state)
        port, imported = self.importDisk()
        guest.stockDetach(port, imported)

    def test_killed(self) -> None:
        """A session of C{usbipd} goes on when the daemon is killed or stopped."""
        daemon = self.sharing(DISK)
        _, imported = self.importDisk()
        self.assertSessionSurvives(daemon, guest.waitBlockDevice(imported))
        self.fails(daemon.ask("attach", id=DISK), "in use by 127.0.0.1")
        self.succeeds(daemon.ask("detach", id=DISK))
        guest.waitGone(imported)

    def test_moduleNotLoaded(self) -> None:
        """The daemon loads usbip-host; where it cannot, attach fails with what to do."""
        unloadHost()
        daemon = self.daemon()
        FORBIDDEN.write_text("install usbip-host /bin/false\n")
        self.addCleanup(FORBIDDEN.unlink, missing_ok=True)
        self.attachFails(daemon, "modprobe usbip-host")
        FORBIDDEN.unlink()
        self.succeeds(daemon.ask("attach", id=DISK))

    def test_notRoot(self) -> None:
        """A daemon without rights lists devices; attach fails with what is needed."""
        self.prefix = asNobody()
        daemon = self.daemon()
        self.assertEqual(self.listed(daemon), BUS_IDS)
        self.attachFails(daemon, "root")

    def test_stoppedDuringAttach(self) -> None:
        """A daemon that is stopped during an attach ends it and answers first."""
        daemon = self.daemon()
        attach = ThreadPoolExecutor().submit(daemon.ask, "attach", id=DISK)
        daemon.logged("{device} {kind}")
        daemon.child.terminate()
        self.succeeds(attach.result())
        self.assertEqual(daemon.child.wait(guest.DEADLINE), -15)
        self.assertEqual(guest.driverOf(DISK), "usbip-host")


class SysfsTests(Scenarios):
    """With the sysfs backend."""

    def test_tableFilledByOthers(self) -> None:
        """With 15 entries of other programs in usbip-host's table, the daemon uses its one entry
        for one device after the other. The attach of a second device fails."""
        unloadHost()
        daemon = self.daemon()
        for _ in range(2):
            self.succeeds(daemon.ask("attach", id=TABLET))
            self.succeeds(daemon.ask("detach", id=TABLET))
        table = guest.DRIVERS_FOLDER / "usbip-host" / "match_busid"
        for port in range(1, 16):
            table.write_text(f"add 99-{port}")
        self.succeeds(daemon.ask("attach", id=DISK))  # in the tablet's entry
        self.assertNotIn(TABLET, guest.matchBusIds())
        self.attachFails(daemon, "all 16 places", CARD_READER)
        self.succeeds(daemon.ask("detach", id=DISK))
        unloadHost()

    def test_stress(self) -> None:
        """All devices are attached and detached concurrently; the kernel does not complain."""
        daemon = self.sharedDaemon()
        before = complaintsOf(guest.dmesg())

        def work(busId: str) -> None:
            for _ in range(10):
                daemon.ask("attach", id=busId)
                daemon.ask("detach", id=busId)

        with ThreadPoolExecutor() as pool:
            [*pool.map(work, BUS_IDS)]
        for busId in BUS_IDS:
            guest.waitPresent(busId)
        self.assertEqual(complaintsOf(guest.dmesg()), before)


class UsbipToolTests(Scenarios):
    """With the usbip backend."""

    backend = "{type: usbip}"


class SudoTests(SharingCase):
    """With the usbip backend as a user with sudo, as described in docs/howto/server_setup.md."""

    backend = "{type: usbip, command: [sudo, -n, usbip]}"

    def setUp(self) -> None:
        super().setUp()
        self.prefix = asNobody()
        self.sudoers = Path("/etc/sudoers.d/usbipshare")
        self.sudoers.write_text(SUDOERS)
        self.sudoers.chmod(0o440)

    def test_share(self) -> None:
        """A disk is attached, imported, read, detached, and back at its own driver."""
        self.share(self.daemon())

    def test_noSudoersLine(self) -> None:
        """Attach fails with the line that is missing from sudoers."""
        self.sudoers.write_text("")
        self.attachFails(self.daemon(), "NOPASSWD")

    def test_moduleNotLoaded(self) -> None:
        """Attach fails with what to do: the user may not load usbip-host."""
        unloadHost()
        self.attachFails(self.daemon(), "modprobe usbip-host")


def unbindSlowly(busId: str) -> None:
    """Write what C{usbip unbind} writes, with pauses."""
    for write in (f"unbind={busId}", f"match_busid=del {busId}", f"rebind={busId}"):
        name, _, text = write.partition("=")
        (guest.DRIVERS_FOLDER / "usbip-host" / name).write_text(text)
        time.sleep(0.3)


def unloadHost() -> None:
    """Unload usbip-host. That follows the pointers in its table, which may lead to devices that
    were unplugged since they were bound: binding the present devices replaces those pointers."""
    for busId in guest.matchBusIds():
        if busId in BUS_IDS:
            for step in ("usb/unbind", "usbip-host/bind", "usbip-host/unbind", "usb/bind"):
                (guest.DRIVERS_FOLDER / step).write_text(busId)
    guest.rmmod("usbip-host")


def asNobody() -> list[str]:
    """The prefix of a command that runs as C{nobody}. Makes the interpreter, which may lie in a
    home folder, accessible."""
    for start in (sys.executable, os.path.realpath(sys.executable), __file__):
        for folder in Path(start).parents:
            folder.chmod(folder.stat().st_mode | 0o055)
    return ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]


del Scenarios, SharingCase, DaemonCase  # base classes are not run
