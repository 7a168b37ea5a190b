"""
Devices that answer, but not as one would like: nobody but their own users may suffer from
them.
"""

from __future__ import annotations

import contextlib
import errno
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.kernel import guest
from tests.kernel.guest import PluggedIn, RawDevice, UsbNode, models
from tests.kernel.misbehavingcase import HOST, OTHER, MisbehavingCase

INTERFACES_AT_MOST = 32
"""C{USB_MAXINTERFACES} (C{include/linux/usb.h})."""

PAUSE = 0.05
"""Seconds between two reads of the device beside: what is shown meanwhile needs the processor."""

GONE = {errno.ENODEV, errno.EPROTO, errno.ESHUTDOWN, errno.EPIPE, errno.ECONNRESET, errno.EIO}
"""What a transfer fails with whose device is unplugged: at once, or when it is taken back."""


class BesideCase(MisbehavingCase):
    """
    A device beside the one that misbehaves, which clients can use.
    """

    timeouts = "{answer: 60, bind: 60}"

    def setUp(self) -> None:
        super().setUp()
        self.other = self.plugged(models.Counting(), OTHER)
        self.server = self.daemon()
        self.succeeds(self.server.ask("attach", id=self.other.busId))

    @contextlib.contextmanager
    def beside(self) -> Iterator[None]:
        """
        A client reads from the other device again and again, and gets what it should.
        """
        with (
            self.imported(self.server, self.other.busId) as imported,
            UsbNode(imported) as node,
        ):
            node.claim()
            with Reader(node, PAUSE) as reader:
                reader.readsOn()
                yield
                reader.readsOn()

    def attached(self, device: RawDevice) -> PluggedIn:
        """Plug a device in and attach it; stock C{usbip} lists it, and the other one."""
        plugged = self.plugged(device)
        self.lists(self.server, plugged.busId, self.other.busId)
        self.succeeds(self.server.ask("attach", id=plugged.busId))
        found = self.importable(self.server)
        for busId in (plugged.busId, self.other.busId):
            self.assertIn(f"{busId}:", found)
        return plugged

    def givenBack(self, plugged: PluggedIn) -> None:
        """Detach it: its own driver has it again."""
        self.stateSoon(self.server, "bound", plugged.busId)
        self.succeeds(self.server.ask("detach", id=plugged.busId))
        self.assertEqual(self.detail(self.server, plugged.busId)["state"], "free")
        guest.waitPresent(plugged.busId)

    def sameDescriptors(self, plugged: PluggedIn, imported: str) -> None:
        """The client's kernel sees the descriptors that the server's does."""
        self.assertEqual(descriptors(imported), descriptors(plugged.busId))


class TransferTests(BesideCase):
    """
    Devices that do not do what is asked of them.
    """

    def test_silent(self) -> None:
        """
        A device that falls silent while a client has it is taken from the client. The
        reset that ends the session fails then, and the kernel drops the device. It can be
        shared again after a replug.
        """
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
                print(f"\nits client lost it {time.monotonic() - began:.1f} s after the detach")
            guest.waitGone(plugged.busId)
            self.lists(self.server, self.other.busId)
            plugged.unplug()
            fresh = self.attached(models.plain("FRESH1"))
            self.assertEqual(fresh.busId, plugged.busId)
            self.givenBack(fresh)

    def test_stalling(self) -> None:
        """
        A device that stalls does so at its client as well, and is given back.
        """
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
            self.givenBack(plugged)

    def test_stallingDisk(self) -> None:
        """
        A disk that stalls whatever C{usb-storage} asks of it, at the server and at the client.
        """
        guest.modprobe("usb-storage")
        plugged = self.attached(models.Stalling((8, 6, 0x50)))
        self.assertEqual(self.detail(self.server, plugged.busId)["interfaces"], ["08/06/50"])
        with self.imported(self.server, plugged.busId) as imported:
            self.sameDescriptors(plugged, imported)
            guest.waitPresent(f"{imported}:1.0", "usb-storage")
        self.givenBack(plugged)

    def stalls(self, transfer: Any) -> None:
        """A transfer fails because the device stalls."""
        error = self.assertRaises(OSError, transfer)
        self.assertEqual(error.errno, errno.EPIPE)

    def test_vanishing(self) -> None:
        """
        A device that is pulled out in the middle of a client's transfer ends that with an
        error; it is gone at server and client, and another one can be shared in its place.
        """
        with self.beside():
            plugged = self.attached(models.Vanishing())
            with (
                self.imported(self.server, plugged.busId) as imported,
                UsbNode(imported) as node,
            ):
                node.claim()
                size = 4 * models.Vanishing.sent
                error = self.assertRaises(OSError, lambda: node.bulkIn(models.SOURCE.address, size))
                self.assertIn(error.errno, GONE)
                guest.waitGone(imported)
                guest.waitGone(plugged.busId)
            self.lists(self.server, self.other.busId)
            self.assertNotIn(f"{plugged.busId}:", self.importable(self.server))
            plugged.unplug()
            fresh = self.attached(models.plain("FRESH1"))
            self.assertEqual(fresh.busId, plugged.busId)
            with self.imported(self.server, fresh.busId) as imported:
                self.assertEqual(guest.attribute(imported, "serial"), "FRESH1")
            self.givenBack(fresh)

    def test_unplugWhileRead(self) -> None:
        """
        A device that is pulled out while a client reads from it without a pause.
        """
        plugged = self.attached(models.Counting())
        with (
            self.imported(self.server, plugged.busId) as imported,
            UsbNode(imported) as node,
        ):
            node.claim()
            with Reader(node) as reader:
                reader.readsOn()
                plugged.unplug()
                self.assertIn(reader.failure().errno, GONE)
            guest.waitGone(imported)
        self.lists(self.server, self.other.busId)

    def test_isochronous(self) -> None:
        """
        A device with an isochronous endpoint is imported with all its descriptors, and its
        setting with the endpoint can be chosen. C{dummy_hcd} does not move isochronous data:
        the transfer fails at the client with the error that it fails with at the server.
        """
        plugged = self.plugged(models.IsochronousSource())
        with UsbNode(plugged.busId) as node:
            local = self.isochronousError(node)
        self.assertEqual(local, errno.EPROTO)
        plugged.unplug()
        plugged = self.attached(models.IsochronousSource())
        with self.imported(self.server, plugged.busId) as imported:
            self.sameDescriptors(plugged, imported)
            with UsbNode(imported) as node:
                self.assertEqual(self.isochronousError(node), local)
        self.givenBack(plugged)

    def isochronousError(self, node: UsbNode) -> int | None:
        """The errno that an isochronous transfer fails with."""
        endpoint = models.IsochronousSource.endpoint
        node.claim()
        node.setInterface(0, 1)
        error: OSError = self.assertRaises(
            OSError, node.isochronousIn, endpoint.address, endpoint.packet, 8
        )
        return error.errno


class DescriptorTests(BesideCase):
    """
    Devices that say odd things of themselves.
    """

    def test_manyInterfaces(self) -> None:
        """
        Of 300 interface descriptors the kernel makes 32 interfaces, and those are listed: to
        clients of the daemon, and to stock C{usbip}, whose list stays readable.
        """
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
            self.givenBack(plugged)

    def test_manySettings(self) -> None:
        """
        A device with 200 settings of one interface has one interface.
        """
        plugged = self.attached(models.manySettings())
        self.assertEqual(self.detail(self.server, plugged.busId)["interfaces"], ["ff/00/00"])
        with self.imported(self.server, plugged.busId) as imported:
            self.sameDescriptors(plugged, imported)
            with UsbNode(imported) as node:
                node.claim()
                node.setInterface(0, 100)
        self.givenBack(plugged)

    def test_twoConfigurations(self) -> None:
        """
        A client can choose the second configuration of a device; when the device is given back
        it has its first one again.
        """
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
        self.givenBack(plugged)
        self.assertEqual(chosen(plugged.busId), ("1", "1"))

    def test_hiddenDisk(self) -> None:
        """
        A rule that never shares disks is about a device, too, that is a disk in its second
        configuration only.
        """
        plugged = self.plugged(models.hiddenDisk())
        guest.waitUntil(lambda: chosen(plugged.busId) == ("2", "1"), "the disk is chosen")
        self.lists(self.server, plugged.busId, self.other.busId)
        rule = "devices: [{match: {device_class: storage}, share: never}]\n"
        self.server.reload(self.config(more=rule))
        self.lists(self.server, self.other.busId)
        answer = self.server.ask("attach", id=plugged.busId)
        self.assertEqual(answer["status"], "not_found", answer)

    def test_unprintableSerial(self) -> None:
        """
        Of a serial number with control characters those that can be printed are shown. The
        client's kernel has it as the server's has.
        """
        plugged = self.attached(models.plain("\x1b[2J\x07A\tB\nC\x7f\x9b"))
        with self.imported(self.server, plugged.busId) as imported:
            paths = [guest.DEVICES_FOLDER / each / "serial" for each in (plugged.busId, imported)]
            self.assertEqual(paths[0].read_bytes(), paths[1].read_bytes())
        plugged.unplug()
        self.showsSerial("\x1b[2J\x07A\tB\nC\x7f\x9b", "[2JABC")
        self.showsSerial("\u202eABC\u2028D\u00e9\U0001f600", "ABCD\u00e9\U0001f600")
        self.showsSerial("E\ud800F", "EF")
        self.showsSerial("\x01\x02\x1b", None)

    def test_oddSerial(self) -> None:
        """
        A serial number may look like markup, be empty, or be as long as a descriptor can be.
        """
        self.showsSerial("<b onclick='x'>\"&amp;\\", "<b onclick='x'>\"&amp;\\")
        self.showsSerial("", None)
        self.showsSerial("X" * 126, "X" * 126)

    def showsSerial(self, serial: str, shown: str | None) -> None:
        """
        Daemon and command show a serial number, and find the device by what they show.

        @param shown: what they show of it; C{None}: nothing.
        """
        plugged = self.attached(models.plain(serial))
        self.assertEqual(self.detail(self.server, plugged.busId)["serial"], shown)
        if shown is not None:
            found = self.succeeds(self.server.ask("find", serial=shown, id="1209:0001"))
            self.assertEqual(found["bus_id"], plugged.busId)
        command = Path(sys.executable).with_name("usbipshare")
        listed = guest.check(str(command), "list", "--host", f"{HOST}:{self.server.port}")
        self.assertTrue(all(line.isprintable() for line in listed.splitlines()), listed)
        self.assertIn(shown or plugged.busId, listed)
        self.givenBack(plugged)
        plugged.unplug()


class Reader:
    """
    Reads from a L{models.Counting} for as long as a C{with} lasts, and compares.
    """

    def __init__(self, node: UsbNode, pause: float = 0.0) -> None:
        """
        @param pause: seconds between two reads.
        """
        self._node = node
        self._pause = pause
        self._ended = False
        self._blocks = 0
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *ignored: object) -> None:
        self._ended = True
        self._thread.join()

    def readsOn(self) -> None:
        """
        Wait until it has read something more.

        @raise AssertionError: it could not, or it was something else.
        """
        wanted = self._blocks + 2  # one is under way
        guest.waitUntil(lambda: self._blocks >= wanted or self._error, "it is read from")
        if self._error is not None:
            raise AssertionError(f"it cannot be read from: {self._error!r}")

    def failure(self) -> OSError:
        """Wait until it can read no more; returns why."""
        error = guest.waitUntil(lambda: self._error, "it cannot be read from any more")
        assert isinstance(error, OSError), error
        return error

    def _read(self) -> None:
        packet = models.counted(models.SOURCE.packet)
        try:
            while not self._ended:
                if self._node.bulkIn(models.SOURCE.address, 4 * len(packet)) != 4 * packet:
                    raise AssertionError("it is something else")
                self._blocks += 1
                time.sleep(self._pause)
        except (OSError, AssertionError) as error:
            self._error = error


def descriptors(busId: str) -> bytes:
    """
    All descriptors of a device, as the kernel has them.
    """
    return (guest.DEVICES_FOLDER / busId / "descriptors").read_bytes()


def chosen(busId: str) -> tuple[str | None, str | None]:
    """
    Which configuration a device has, and with how many interfaces.
    """
    value, interfaces = (
        guest.attribute(busId, name) for name in ("bConfigurationValue", "bNumInterfaces")
    )
    return value, interfaces


del MisbehavingCase, BesideCase  # they are not to be run themselves
