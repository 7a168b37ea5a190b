"""Devices with unusual descriptors, and devices that stall, fall silent or vanish: other devices
are not affected."""

from __future__ import annotations

import contextlib
import errno
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.kernel import guest
from tests.kernel.daemoncase import HOST
from tests.kernel.inside.comparingreader import ComparingReader
from tests.kernel.inside.rawgadget import models
from tests.kernel.inside.rawgadget.device import RawDevice
from tests.kernel.inside.rawgadget.plugged import PluggedIn
from tests.kernel.inside.usbfs import UsbNode
from tests.kernel.misbehavingcase import OTHER, MisbehavingCase

INTERFACES_AT_MOST = 32
"""C{USB_MAXINTERFACES} (C{include/linux/usb.h})."""

PAUSE = 0.05
"""Seconds between two reads of the other device: the test needs the processor in between."""

GONE = {errno.ENODEV, errno.EPROTO, errno.ESHUTDOWN, errno.EPIPE, errno.ECONNRESET, errno.EIO}
"""The errnos of a transfer whose device is unplugged: at once, or when it is cancelled."""


class BesideCase(MisbehavingCase):
    """A device that a client can read all the time, beside the one that misbehaves."""

    timeouts = "{answer: 60, bind: 60}"

    def setUp(self) -> None:
        super().setUp()
        self.other = self.plugged(models.Counting(), OTHER)
        self.server = self.daemon()
        self.succeeds(self.server.ask("attach", id=self.other.busId))

    @contextlib.contextmanager
    def beside(self) -> Iterator[None]:
        """Have a client read from the other device until the C{with} ends."""
        with self.imported(self.server, self.other.busId) as imported, UsbNode(imported) as node:
            node.claim()
            with countReader(node) as reader:
                reader.awaitRead()
                yield
                reader.awaitRead()

    def attached(self, device: RawDevice) -> PluggedIn:
        """Plug in a device and attach it; Debian's C{usbip} lists it, and the other one."""
        plugged = self.plugged(device)
        self.awaitRawListed(self.server, plugged.busId, self.other.busId)
        # Many devices one after the other at one bus id: the daemon takes them for one that flaps.
        self.awaitState(self.server, "free", plugged.busId)
        self.succeeds(self.server.ask("attach", id=plugged.busId))
        found = self.importable(self.server)
        for busId in (plugged.busId, self.other.busId):
            self.assertIn(f"{busId}:", found)
        return plugged

    def detach(self, plugged: PluggedIn) -> None:
        """Detach a device: its own driver has it again."""
        self.awaitState(self.server, "bound", plugged.busId)
        self.succeeds(self.server.ask("detach", id=plugged.busId))
        self.assertEqual(self.detail(self.server, plugged.busId)["state"], "free")
        guest.waitPresent(plugged.busId)

    def sameDescriptors(self, plugged: PluggedIn, imported: str) -> None:
        """Assert that the client's kernel has the descriptors that the server's has."""
        self.assertEqual(descriptors(imported), descriptors(plugged.busId))


class TransferTests(BesideCase):
    """Devices whose transfers fail."""

    def test_silent(self) -> None:
        """A device that falls silent while a client has it is taken from the client by a detach.
        The reset at the end of the session fails, and the kernel drops the device. After a replug
        it can be shared again."""
        with self.beside():
            plugged = self.attached(models.Silent())
            with self.imported(self.server, plugged.busId) as imported:
                with UsbNode(imported) as node:
                    node.claim()
                    node.controlIn(0xC0, 1, 0, 0, 1)
                    with self.assertRaises(OSError) as caught:
                        node.controlIn(0xC0, 1, 0, 0, 1, seconds=0.5)
                    self.assertEqual(caught.exception.errno, errno.ETIMEDOUT)
                began = time.monotonic()
                self.server.ask("detach", id=plugged.busId)  # it may be gone by then
                guest.waitGone(imported)
                print(f"\nthe client has lost it {time.monotonic() - began:.1f} s after the detach")
            guest.waitGone(plugged.busId)
            self.awaitRawListed(self.server, self.other.busId)
            plugged.unplug()
            fresh = self.attached(models.plain("FRESH1"))
            self.assertEqual(fresh.busId, plugged.busId)
            self.detach(fresh)

    def test_stalling(self) -> None:
        """Transfers that stall at the device stall at the client."""
        with self.beside():
            plugged = self.attached(models.Stalling())
            with self.imported(self.server, plugged.busId) as imported:
                self.sameDescriptors(plugged, imported)
                with UsbNode(imported) as node:
                    node.claim()
                    for _ in range(2):
                        self.stalls(lambda: node.controlIn(0xC0, 1, 0, 0, 4))
                        self.stalls(lambda: node.controlIn(0xA1, 0xFE, 0, 0, 1))
                        self.stalls(lambda: node.bulkIn(models.SOURCE.address, 512))
                        self.stalls(lambda: node.bulkOut(models.SINK.address, b"anything"))
            self.detach(plugged)

    def test_stallingDisk(self) -> None:
        """A disk that stalls all requests of C{usb-storage} can be imported and detached."""
        guest.modprobe("usb-storage")
        plugged = self.attached(models.Stalling((8, 6, 0x50)))
        self.assertEqual(self.detail(self.server, plugged.busId)["interfaces"], ["08/06/50"])
        with self.imported(self.server, plugged.busId) as imported:
            self.sameDescriptors(plugged, imported)
            guest.waitPresent(f"{imported}:1.0", "usb-storage")
        self.detach(plugged)

    def stalls(self, transfer: Any) -> None:
        """Assert that a transfer fails because the device stalls."""
        error = self.assertRaises(OSError, transfer)
        self.assertEqual(error.errno, errno.EPIPE)

    def test_vanishing(self) -> None:
        """A device that is unplugged during a client's transfer ends the transfer with an error,
        and is gone at server and client. Another one can be shared in its place."""
        with self.beside():
            plugged = self.attached(models.Vanishing())
            with self.imported(self.server, plugged.busId) as imported, UsbNode(imported) as node:
                node.claim()
                size = 4 * models.Vanishing.sent
                error = self.assertRaises(OSError, lambda: node.bulkIn(models.SOURCE.address, size))
                self.assertIn(error.errno, GONE)
                guest.waitGone(imported)
                guest.waitGone(plugged.busId)
            self.awaitRawListed(self.server, self.other.busId)
            self.assertNotIn(f"{plugged.busId}:", self.importable(self.server))
            plugged.unplug()
            fresh = self.attached(models.plain("FRESH1"))
            self.assertEqual(fresh.busId, plugged.busId)
            with self.imported(self.server, fresh.busId) as imported:
                self.assertEqual(guest.attribute(imported, "serial"), "FRESH1")
            self.detach(fresh)


class DescriptorTests(BesideCase):
    """Devices with unusual descriptors."""

    def test_manyInterfaces(self) -> None:
        """Of 300 interface descriptors the kernel makes 32 interfaces, which the daemon and
        Debian's C{usbip} list."""
        with self.beside():
            plugged = self.attached(models.crowded())
            self.assertEqual(len(descriptors(plugged.busId)), 18 + 9 + 300 * 9)
            interfaces = self.detail(self.server, plugged.busId)["interfaces"]
            self.assertEqual(interfaces, ["ff/00/00"] * INTERFACES_AT_MOST)
            lines = self.importable(self.server).splitlines()
            numbers = [int(line.split()[1]) for line in lines if line.endswith("(ff/00/00)")]
            self.assertEqual(sorted(numbers), [0, *range(INTERFACES_AT_MOST)])
            with self.imported(self.server, plugged.busId) as imported:
                self.sameDescriptors(plugged, imported)
                claimed = guest.attribute(imported, "bNumInterfaces")
                self.assertEqual(claimed, str(INTERFACES_AT_MOST))
            self.detach(plugged)

    def test_manySettings(self) -> None:
        """A device with 200 settings of one interface has one interface. A client can choose each,
        also one with an isochronous endpoint, though C{dummy_hcd} has none."""
        plugged = self.attached(models.manySettings())
        self.assertEqual(self.detail(self.server, plugged.busId)["interfaces"], ["ff/00/00"])
        with self.imported(self.server, plugged.busId) as imported:
            self.sameDescriptors(plugged, imported)
            with UsbNode(imported) as node:
                node.claim()
                for setting in (100, models.ISOCHRONOUS_SETTING):
                    node.setInterface(0, setting)
        self.detach(plugged)

    def test_twoConfigurations(self) -> None:
        """The interfaces of the active configuration are shown. A client can choose the second
        configuration of a device. After a detach the device has the first one."""
        plugged = self.attached(models.twoConfigurations())
        found = self.detail(self.server, plugged.busId)
        self.assertEqual(found["interfaces"], ["fe/01/01"])
        with self.imported(self.server, plugged.busId) as imported:
            self.sameDescriptors(plugged, imported)
            self.assertEqual(chosen(imported), ("1", "1"))
            with UsbNode(imported) as node:
                node.setConfiguration(2)
            self.assertEqual(chosen(imported), ("2", "2"))
            self.assertEqual(chosen(plugged.busId), ("2", "2"))
            self.awaitInterfaces(plugged.busId, "fe/02/02", "fe/03/03")
        self.detach(plugged)
        self.awaitInterfaces(plugged.busId, "fe/01/01")
        self.assertEqual(chosen(plugged.busId), ("1", "1"))
        (guest.DEVICES_FOLDER / plugged.busId / "bConfigurationValue").write_text("2")
        self.awaitInterfaces(plugged.busId, "fe/02/02", "fe/03/03")

    def awaitInterfaces(self, busId: str, *interfaces: str) -> None:
        """Wait until the daemon shows these interfaces of a device."""
        guest.waitUntil(
            lambda: self.detail(self.server, busId)["interfaces"] == [*interfaces],
            lambda: f"interfaces {interfaces}: {self.detail(self.server, busId)}",
            30,
        )

    def test_hiddenDisk(self) -> None:
        """A rule C{never} for disks applies to a device that is a disk in its second configuration
        only, whether or not the kernel has chosen that."""
        for isActive, configuration, shown in ((True, "2", "08/06/50"), (False, "1", "fe/01/01")):
            self.server.reload(self.config())
            plugged = self.plugged(models.hiddenDisk(isActive))
            self.awaitRawListed(self.server, plugged.busId, self.other.busId)
            self.awaitInterfaces(plugged.busId, shown)
            self.assertEqual(chosen(plugged.busId), (configuration, "1"))
            rule = "devices: [{match: {device_class: storage}, share: never}]\n"
            self.server.reload(self.config(more=rule))
            self.awaitRawListed(self.server, self.other.busId)
            answer = self.server.ask("attach", id=plugged.busId)
            self.assertEqual(answer["status"], "not_found", answer)
            plugged.unplug()

    def test_serialNumbers(self) -> None:
        """Characters of a serial number that cannot be displayed are escaped. It may look like
        markup, be empty, or be of maximum length. The client's kernel has the serial number that
        the server's has."""
        plugged = self.attached(models.plain("\x1b[2J\x07A\tB\nC\x7f\x9b"))
        with self.imported(self.server, plugged.busId) as imported:
            paths = [guest.DEVICES_FOLDER / each / "serial" for each in (plugged.busId, imported)]
            self.assertEqual(paths[0].read_bytes(), paths[1].read_bytes())
        plugged.unplug()
        for serial, shown in (
            ("\x1b[2J\x07A\tB\nC\x7f\x9b", r"\x1b[2J\x07A\x09B\x0aC\x7f\x9b"),
            ("AB\x05C", r"AB\x05C"),
            ("AB\x06C", r"AB\x06C"),
            ("\u202eABC\u2028D\u00e9\U0001f600", "\\u202eABC\\u2028D\u00e9\U0001f600"),
            ("E\ud800F", "EF"),
            ("\x01\x02\x1b", r"\x01\x02\x1b"),
            ("<b onclick='x'>\"&amp;\\", r"""<b onclick='x'>"&amp;\x5c"""),
            ("", None),
            ("X" * 126, "X" * 126),
        ):
            self.assertSerialShown(serial, shown)

    def assertSerialShown(self, serial: str, shown: str | None) -> None:
        """Plug in a device: the daemon and the command show its serial number, and the daemon finds
        it by that.

        @param shown: what is shown; C{None} if there is no serial number."""
        plugged = self.attached(models.plain(serial))
        self.assertEqual(self.detail(self.server, plugged.busId)["serial"], shown)
        if shown is not None:
            found = self.succeeds(self.server.ask("find", serial=shown, id="1209:0001"))
            self.assertEqual(found["bus_id"], plugged.busId)
        command = Path(sys.executable).with_name("usbipshare")
        listed = guest.check(str(command), "list", "--host", f"{HOST}:{self.server.port}")
        self.assertTrue(all(line.isprintable() for line in listed.splitlines()), listed)
        self.assertIn(shown or plugged.busId, listed)
        self.detach(plugged)
        plugged.unplug()


def countReader(node: UsbNode) -> ComparingReader:
    """Reads from a L{models.Counting}, and compares."""
    packet = models.counted(models.SOURCE.packet)
    size = 4 * len(packet)
    return ComparingReader(lambda: node.bulkIn(models.SOURCE.address, size), 4 * packet, PAUSE)


def descriptors(busId: str) -> bytes:
    """All descriptors of a device, as the kernel has them."""
    return (guest.DEVICES_FOLDER / busId / "descriptors").read_bytes()


def chosen(busId: str) -> tuple[str | None, str | None]:
    """Which configuration a device has, and with how many interfaces."""
    value, interfaces = (
        guest.attribute(busId, name) for name in ("bConfigurationValue", "bNumInterfaces")
    )
    return value, interfaces


del MisbehavingCase, BesideCase  # base classes are not run
