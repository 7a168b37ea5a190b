"""
Devices that misbehave: nobody but their own users may suffer from them.
"""

from __future__ import annotations

import contextlib
import errno
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.childdaemon import EXPORT, ChildDaemon
from tests.kernel import guest
from tests.kernel.daemoncase import DaemonCase
from tests.kernel.guest import PluggedIn, RawDevice, UsbNode, models

HOST = "127.0.0.1"

BAD, OTHER = 10, 11
"""The controllers of the device that misbehaves, and of one beside it."""

AT_ONCE = 1.8
"""Seconds: the default of C{timeouts.answer}."""

STOP = 5.0
"""Seconds: the default of C{timeouts.stop}."""

INTERFACES_AT_MOST = 32
"""C{USB_MAXINTERFACES} (C{include/linux/usb.h})."""


class MisbehavingCase(DaemonCase):
    """
    A daemon with the sysfs backend, and the usual timeouts, that also serves USB/IP.
    """

    backend = "{type: sysfs}"
    timeouts = "{}"

    def setUp(self) -> None:
        if not Path("/sys/module/dummy_hcd").exists():
            guest.modprobe("dummy_hcd", "num=20", "is_super_speed=1")
        for module in ("raw_gadget", "usbtest", "usbip-host", "vhci-hcd"):
            guest.modprobe(module)
        self.addCleanup(leaveNoPlace)

    def config(self, state: str = "{file: null, remember: false}", more: str = "") -> str:
        return f"backend: {self.backend}\ntimeouts: {self.timeouts}\nstate: {state}\n{EXPORT}{more}"

    def plugged(self, device: RawDevice, controller: int = BAD) -> PluggedIn:
        """A device that is plugged in until the test ends."""
        plugged = PluggedIn(device, controller)
        plugged.__enter__()
        self.addCleanup(plugged.unplug)
        return plugged

    def lists(self, daemon: ChildDaemon, *busIds: str) -> None:
        """These are the devices of ours that it lists before long."""
        guest.waitUntil(
            lambda: [each for each in self.listed(daemon) if each in OUR_BUS_IDS] == [*busIds],
            f"{busIds} are listed",
        )

    def detail(self, daemon: ChildDaemon, busId: str) -> Any:
        """All that it says of a device."""
        return self.succeeds(self.atOnce(daemon, "find", id=busId, detail=True))

    def atOnce(self, daemon: ChildDaemon, command: str, **more: object) -> dict[str, Any]:
        """The answer to a request, which has to come in time for the oldest of clients."""
        began = time.monotonic()
        answer = daemon.ask(command, **more)
        took = time.monotonic() - began
        self.assertLess(took, AT_ONCE, (command, more, answer))
        return answer

    def importable(self, daemon: ChildDaemon) -> str:
        """What stock C{usbip} says that it can import."""
        return guest.check("usbip", "--tcp-port", str(daemon.exportPort), "list", "-r", HOST)

    @contextlib.contextmanager
    def imported(self, daemon: ChildDaemon, busId: str) -> Iterator[str]:
        """
        Have stock C{usbip} import a device for as long as a C{with} lasts, or until it is
        unplugged. Gives the bus id of the imported one.
        """
        before = guest.imports()
        port = str(daemon.exportPort)
        guest.check("usbip", "--tcp-port", port, "attach", "-r", HOST, "-b", busId)

        def new() -> list[tuple[int, str]]:
            return [each for each in guest.imports().items() if each[0] not in before]

        ((vhciPort, imported),) = guest.waitUntil(new, f"{busId} is imported")
        guest.waitPresent(imported)
        self.assertEqual(self.detail(daemon, busId)["state"], "in_use")
        try:
            yield imported
        finally:
            guest.run("usbip", "detach", "-p", str(vhciPort))
            guest.waitGone(imported)


class HangingCase(MisbehavingCase):
    """
    A device that answers no control request any more, while a program waits for one and has
    the device locked: whatever is written to or read from the kernel about it blocks, and no
    signal ends that.
    """

    def setUp(self) -> None:
        super().setUp()
        self.bad = self.plugged(models.Hanging())
        self.other = self.plugged(models.plain(), OTHER)

    def hang(self) -> None:
        """From now on it hangs, until it is unplugged."""
        locked = guest.Locked(self.bad.busId)
        locked.__enter__()
        self.addCleanup(locked.__exit__, None, None, None)
        self.addCleanup(self.bad.unplug)

    def otherIsWell(self, daemon: ChildDaemon) -> None:
        """All is possible with the other device, and at once."""
        self.assertIn(self.other.busId, [d["bus_id"] for d in self.atOnce(daemon, "list")["data"]])
        self.succeeds(self.atOnce(daemon, "list", detail=True))
        self.succeeds(self.atOnce(daemon, "find", serial="PLAIN1"))
        self.succeeds(self.atOnce(daemon, "attach", serial="PLAIN1"))
        self.assertEqual(guest.driverOf(self.other.busId), "usbip-host")
        self.assertIn(f"{self.other.busId}:", self.importable(daemon))
        self.succeeds(self.atOnce(daemon, "detach", serial="PLAIN1"))
        self.assertEqual(guest.driverOf(self.other.busId), "usb")

    def attachHangs(self, daemon: ChildDaemon) -> dict[str, Any]:
        """
        The attach of the device that hangs is answered in time, and goes on in the kernel.
        """
        began = time.monotonic()
        answer = daemon.ask("attach", serial="HANG1")
        self.assertLess(time.monotonic() - began, 2.0, answer)  # when old clients give up
        guest.waitUntil(lambda: guest.isStuck(daemon.child.pid), "the daemon's thread is stuck")
        return answer

    def wellAgain(self, daemon: ChildDaemon) -> None:
        """What is plugged in where the device was can be attached and detached."""
        self.bad.unplug()
        self.lists(daemon, self.other.busId)
        fresh = self.plugged(models.plain("FRESH1"))
        self.assertEqual(fresh.busId, self.bad.busId)
        self.lists(daemon, fresh.busId, self.other.busId)
        self.succeeds(daemon.ask("attach", serial="FRESH1"))
        self.assertIn(f"{fresh.busId}:", self.importable(daemon))
        self.succeeds(daemon.ask("detach", serial="FRESH1"))
        self.assertEqual(self.detail(daemon, fresh.busId)["state"], "free")
        self.otherIsWell(daemon)


class HangingTests(HangingCase):
    """
    What is said and done while a device hangs, with the usual timeouts.
    """

    def test_delaysNobody(self) -> None:
        """
        The attach of a device that hangs is answered in time: it goes on. Meanwhile everything
        else is answered at once, and when the device is unplugged all is as before.
        """
        daemon = self.daemon()
        self.hang()
        self.fails(self.attachHangs(daemon), "takes longer than 1.8 s and goes on")
        self.otherIsWell(daemon)
        detach = daemon.ask("detach", serial="HANG1")
        self.assertEqual(detach["status"], "error", detach)
        self.assertIn("still in progress", detach["message"])
        self.assertEqual(self.detail(daemon, self.bad.busId)["serial"], "HANG1")
        self.otherIsWell(daemon)
        self.wellAgain(daemon)

    def test_answersAfterAll(self) -> None:
        """
        When the device answers after all the attach comes to its end, and the device can be
        imported and detached.
        """
        daemon = self.daemon()
        self.hang()
        self.attachHangs(daemon)
        self.bad.wake()
        self.stateSoon(daemon, "bound", self.bad.busId)
        self.succeeds(self.atOnce(daemon, "attach", serial="HANG1"))
        with self.imported(daemon, self.bad.busId) as imported:
            self.assertEqual(guest.attribute(imported, "serial"), "HANG1")
        self.stateSoon(daemon, "bound", self.bad.busId)
        self.succeeds(daemon.ask("detach", serial="HANG1"))
        self.otherIsWell(daemon)

    def test_before(self) -> None:
        """
        A daemon that is started while a device hangs lists it, without its strings, and all
        the others.
        """
        self.hang()
        began = time.monotonic()
        daemon = self.daemon()
        print(f"\nready {time.monotonic() - began:.1f} s after the start, with a device that hangs")
        self.lists(daemon, self.bad.busId, self.other.busId)
        found = self.detail(daemon, self.bad.busId)
        self.assertEqual((found["vendor_id"], found["serial"]), ("0525", None))
        self.otherIsWell(daemon)
        self.wellAgain(daemon)

    def test_stop(self) -> None:
        """
        A daemon with a thread that is stuck in the kernel stops listening in time when it is
        told to stop, and another one can take its place: the same ports, the same state.
        """
        with socket.create_server((HOST, 0)) as probe:
            port = probe.getsockname()[1]
        self.listen = f"tcp:{port}:interface={HOST}"
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        config = self.config(state=f"{{file: {folder.name}/state}}")
        first = self.daemon(config)
        self.succeeds(first.ask("attach", serial="PLAIN1"))
        self.hang()
        self.attachHangs(first)
        began = time.monotonic()
        first.child.send_signal(signal.SIGTERM)
        guest.waitUntil(lambda: not guest.isListening(port), "it does not listen any more")
        guest.waitUntil(lambda: hasExited(first.child.pid), "it has ended, but for the thread")
        took = time.monotonic() - began
        print(f"\nstopped after {took:.1f} s, with a thread that is stuck")
        self.assertLess(took, STOP + AT_ONCE)
        second = self.daemon(config)
        self.assertEqual(second.port, port)
        self.assertEqual(self.detail(second, self.other.busId)["state"], "bound")
        self.otherIsWell(second)
        self.wellAgain(second)
        self.assertEqual(first.child.wait(guest.DEADLINE), -signal.SIGTERM)


class GivenUpTests(HangingCase):
    """
    What is said of a device that hangs when the time for a bind is over.
    """

    timeouts = "{bind: 3}"

    def test_givenUp(self) -> None:
        """
        When the time is over the device is shown as C{error}, with what is the matter and what
        to do; a further attach says the same at once. The other devices work all the time.
        """
        daemon = self.daemon()
        self.hang()
        self.attachHangs(daemon)
        self.stateSoon(daemon, "error", self.bad.busId)
        found = self.detail(daemon, self.bad.busId)
        self.assertIn("the kernel has not ended the attach within 3 s", found["trouble"])
        self.assertIn("Unplug the device", found["trouble"])
        self.fails(daemon.ask("attach", serial="HANG1"), "Unplug the device")
        again = self.atOnce(daemon, "attach", serial="HANG1")
        self.fails(again, "an earlier attach, detach, kick or export is still stuck in the kernel")
        self.otherIsWell(daemon)
        self.wellAgain(daemon)

    def test_answersLate(self) -> None:
        """
        When the device answers after the time is over it is shown as it is, and can be
        attached, as soon as somebody has been told that it could not.
        """
        daemon = self.daemon()
        self.hang()
        self.attachHangs(daemon)
        self.stateSoon(daemon, "error", self.bad.busId)
        self.bad.wake()
        guest.waitUntil(
            lambda: self.detail(daemon, self.bad.busId)["trouble"] is None, "the trouble is over"
        )
        self.assertIn(self.detail(daemon, self.bad.busId)["state"], ("bound", "free"))
        self.fails(daemon.ask("attach", serial="HANG1"), "has not ended the attach within 3 s")
        self.succeeds(daemon.ask("attach", serial="HANG1"))
        self.succeeds(daemon.ask("detach", serial="HANG1"))
        self.otherIsWell(daemon)


class OddTests(MisbehavingCase):
    """
    Devices that answer, but not as one would like.
    """

    def setUp(self) -> None:
        super().setUp()
        self.other = self.plugged(models.Counting(), OTHER)
        self.server = self.daemon()
        self.succeeds(self.server.ask("attach", id=self.other.busId))

    @contextlib.contextmanager
    def beside(self) -> Iterator[None]:
        """
        A client reads from the other device all the time, and gets what it should.
        """
        with (
            self.imported(self.server, self.other.busId) as imported,
            UsbNode(imported) as node,
        ):
            node.claim()
            reader = Reader(node)
            with reader:
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

    def test_silent(self) -> None:
        """
        A device that falls silent while a client has it is taken from the client in time. The
        reset that ends the session fails then, and the kernel drops the device; plugged in anew
        it can be shared again.
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
                answer = self.server.ask("detach", id=plugged.busId)
                self.assertLess(time.monotonic() - began, 2.0, answer)
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
        with self.beside():
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
        with self.beside():
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

    def test_oddSerial(self) -> None:
        """
        Of a serial number with control characters and markup the printable characters are
        shown, and the device is found by them.
        """
        command = [str(Path(sys.executable).with_name("usbipshare"))]
        for number, (serial, shown) in enumerate(SERIALS):
            plugged = self.attached(models.plain(serial))
            self.assertEqual(self.detail(self.server, plugged.busId)["serial"], shown)
            if shown is not None:
                found = self.succeeds(self.server.ask("find", serial=shown, id="1209:0001"))
                self.assertEqual(found["bus_id"], plugged.busId)
            server = f"{HOST}:{self.server.port}"
            result = guest.run(*command, "list", "--host", server)
            self.assertEqual(result.rc, 0, result)
            lines = result.out.splitlines()
            self.assertTrue(all(line.isprintable() for line in lines), result)
            if shown is not None:
                self.assertIn(shown, result.out)
            if number == 0:
                self.sameSerial(plugged.busId)
            self.givenBack(plugged)
            plugged.unplug()

    def sameSerial(self, busId: str) -> None:
        """A client's kernel shows the same serial number as the server's."""
        with self.imported(self.server, busId) as imported:
            raw = [guest.attribute(each, "serial") for each in (busId, imported)]
            self.assertEqual(raw[0], raw[1])

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


SERIALS: tuple[tuple[str, str | None], ...] = (
    ("\x1b[2J\x07A\tB\nC\x7f\x9b", "[2JABC"),
    ("<b onclick='x'>\"&amp;\\", "<b onclick='x'>\"&amp;\\"),
    ("\u202eABC\u2028D\u00e9\U0001f600", "ABCD\u00e9\U0001f600"),
    ("E\ud800F", "EF"),
    ("\x01\x02\x1b", None),
    ("", None),
    ("X" * 126, "X" * 126),
)
"""Serial numbers, and what is to be shown of them."""

GONE = {errno.ENODEV, errno.EPROTO, errno.ESHUTDOWN, errno.EPIPE, errno.ECONNRESET, errno.EIO}
"""What a transfer fails with whose device is unplugged: at once, or when it is taken back."""

OUR_BUS_IDS = {f"{2 * controller + 1}-1" for controller in (BAD, OTHER)}
"""Each controller has two buses, the second one for super speed. See C{setUp}."""


class Reader:
    """
    Reads from a L{models.Counting} for as long as a C{with} lasts, and compares.
    """

    def __init__(self, node: UsbNode) -> None:
        self._node = node
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


def hasExited(process: int) -> bool:
    """
    Has a process ended, but for threads that the kernel does not let go? Its first thread then
    is in the state C{Z}.
    """
    stat = Path(f"/proc/{process}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "Z"


def leaveNoPlace() -> None:
    """
    Free the places in C{usbip-host}'s table. An entry points at the device that was bound last,
    which is gone: another one is bound in its place first.
    """
    for controller in (BAD, OTHER):
        if f"{2 * controller + 1}-1" in guest.matchBusIds():
            with PluggedIn(models.plain(), controller) as plugged:
                for step in ("usb/unbind", "usbip-host/bind"):
                    (guest.DRIVERS_FOLDER / step).write_text(plugged.busId)
                guest.forget(plugged.busId)


del MisbehavingCase, HangingCase  # they are not to be run themselves
