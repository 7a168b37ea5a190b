"""
The client on real kernels: devices are plugged into C{vhci_hcd} and pulled out, beside stock
C{usbip}, from our daemon and from a stock C{usbipd}.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import statistics
import threading
import time
from functools import partial
from pathlib import Path

import msgspec

from tests.kernel import guest
from tests.kernel.daemoncase import DISK, DaemonCase
from tests.support.certificates import LAB, authority, signed
from tests.support.childdaemon import ChildDaemon
from usbip_server.client.attach import Attached, Attaching
from usbip_server.client.blockingrelay import relay
from usbip_server.client.imports import listDevices
from usbip_server.client.servers import ClientTls, Server
from usbip_server.kernel.system import System
from usbip_server.kernel.vhci.devnodes import Nodes
from usbip_server.kernel.vhci.ports import Port, PortState, Vhci
from usbip_server.kernel.vhci.records import FOLDER, Record, Records
from usbip_server.model.device import Encryption
from usbip_server.model.errors import LocalTrouble
from usbip_server.model.usbip import NotGiven, OpStatus

SERIAL = guest.SERIAL.busId

HOST = "127.0.0.1"

STOCK_PORT = 3241
TLS_PORT = 3242

CYCLES = 50

MANY = 20
"""More than one controller has ports for."""

VANISHED = 15.0
"""Seconds until a server is known to have vanished."""

SCANNED = (0, 300, 500, 600, 700, 800, 900, 1000)
"""Milliseconds after which a disk is lost again: about a second after it has come it is looked at,
and what is asked then may never be answered."""

HELLO = b"Hello, USB!"

NOBODY = 65534


class CarefulVhci(Vhci):
    """
    Notes whether anything was ever plugged in where an old device was still there.

    @ivar careless: the ports.
    """

    def __init__(self) -> None:
        super().__init__(System())
        self.careless: list[int] = []

    def attach(self, port: Port, descriptor: int, deviceId: int, speed: int) -> bool:
        if self.folderOf(port) is not None:
            self.careless.append(port.number)
        return super().attach(port, descriptor, deviceId, speed)


class AttachingCase(DaemonCase):
    """
    With the sysfs backend, and with what attaches.
    """

    backend = "{type: sysfs}"

    def setUp(self) -> None:
        super().setUp()
        self.vhci = CarefulVhci()
        self.attaching = Attaching(self.vhci, Nodes(System()), Records(), _carry)
        self.server = Server(name="here", host=HOST)
        self.addCleanup(lambda: self.assertEqual(self.vhci.careless, []))

    def config(self, state: str = "{file: null, remember: false}", more: str = "") -> str:
        return super().config(state, f"export: {{listen: [tcp:3240]}}\n{more}")

    def take(self, busId: str, server: Server | None = None) -> tuple[Attached, socket.socket]:
        """Attach a device, until the test is over at the latest."""
        attached, kept = self.attaching.attach(server or self.server, busId, guest.DEADLINE)
        self.addCleanup(kept.close)
        assert attached.localBusId is not None
        return attached, kept

    def giveBack(self, attached: Attached) -> None:
        """Detach it."""
        self.assertTrue(self.attaching.detach(attached.port))
        self.gone(attached)

    def gone(self, attached: Attached) -> None:
        """It goes, and its port is free."""
        guest.waitGone(str(attached.localBusId))
        guest.waitUntil(lambda: attached.port not in self.used(), "its port is free")

    def used(self) -> list[int]:
        """The ports where there is something."""
        return [port.number for port in self.vhci.ports() if port.state is not PortState.FREE]

    def compare(self, attached: Attached) -> str:
        """A disk is what it should be: its node."""
        node = next(node for node in attached.nodes if node.startswith("/dev/sd"))
        guest.check("cmp", node, os.environ["USBIPSHARE_GUEST_DISK"])
        return node

    def saidNothing(self, daemon: ChildDaemon) -> None:
        """The daemon has not logged anything that is worth a look."""
        said = [e for e in daemon.events if e["log_level"]["name"] not in ("debug", "info")]
        self.assertEqual(said, [])


class AttachingTests(AttachingCase):
    """
    From our daemon.
    """

    def test_attach(self) -> None:
        """A serial converter and two disks, one fast and one not, come with their nodes, are what
        they are, are known to stock C{usbip}, and leave nothing behind. What is not given or
        cannot be had disturbs nothing."""
        self.addCleanup(self.unplugFast)  # when the daemon has ended
        daemon = self.daemon()
        guest.plug(guest.FAST_DISK)
        fast = str(guest.waitUntil(lambda: self.busIdOf("FAST7"), "the fast disk is there"))
        guest.waitBlockDevice(fast)
        for busId in (SERIAL, DISK, fast):
            self.succeeds(daemon.ask("attach", id=busId))
        taken = {}
        for busId in (SERIAL, DISK, fast):
            began = time.monotonic()
            taken[busId] = self.take(busId)
            print(f"\n{busId} is attached after {time.monotonic() - began:.2f} s", end="")
        [serial, disk, other] = [attached for attached, _ in taken.values()]
        self.assertIn(
            f"/dev/{os.path.basename(str(guest.ttyDevice(_local(serial))))}", serial.nodes
        )
        for attached in (disk, other):
            self.compare(attached)
        kinds = {port.number: port.isSuper for port in self.vhci.ports()}
        self.assertEqual([kinds[each.port] for each in (serial, disk, other)], [False, False, True])
        shown = guest.check("usbip", "port")
        for busId in (SERIAL, DISK, fast):
            self.assertIn(f"usbip://{HOST}:3240/{busId}", shown)
            self.assertEqual(self.state(daemon, busId), "in_use")
        self.refused(daemon)
        self.assertEqual(
            {(each.port, each.localBusId, each.record) for each in self.attaching.attached()},
            {(each.port, each.localBusId, each.record) for each in (serial, disk, other)},
        )
        for attached, kept in taken.values():
            self.giveBack(attached)
            self.assertTrue(isOver(kept))
            self.assertFalse(self.attaching.detach(attached.port))
        self.assertFalse(os.path.exists(FOLDER))
        for busId in (SERIAL, DISK, fast):
            self.stateSoon(daemon, "bound", busId)
        self.saidNothing(daemon)

    def refused(self, daemon: ChildDaemon) -> None:
        """What somebody has, what there is not, and whoever may not."""
        for busId, status in ((DISK, OpStatus.DEV_BUSY), ("9-9", OpStatus.NODEV)):
            error = self.assertRaises(NotGiven, self.take, busId)
            self.assertEqual(error.status, status)
        os.seteuid(NOBODY)
        try:
            for call in (partial(self.take, SERIAL), partial(self.attaching.detach, 0)):
                self.assertIn("sudo", str(self.assertRaises(LocalTrouble, call)))
        finally:
            os.seteuid(0)
        self.assertEqual(len(self.used()), 3)
        self.assertEqual(self.state(daemon, SERIAL), "in_use")

    def busIdOf(self, serial: str) -> str | None:
        """Where a device of this machine's is."""
        for path in Path("/sys/bus/usb/devices").glob("*/serial"):
            with contextlib.suppress(OSError):
                if path.read_text().strip() == serial and "vhci" not in str(path.resolve()):
                    return path.parent.name
        return None

    def unplugFast(self) -> None:
        """Make all as it was."""
        busId = self.busIdOf("FAST7")
        if busId is not None:
            guest.forget(busId)
            guest.unplug(guest.FAST_DISK)
            guest.waitGone(busId)

    def test_beside(self) -> None:
        """Stock C{usbip} detaches what we have attached, and we what it has."""
        daemon = self.daemon()
        for busId in (SERIAL, DISK):
            self.succeeds(daemon.ask("attach", id=busId))
        ours, kept = self.take(SERIAL)
        guest.check("usbip", "attach", "-r", HOST, "-b", DISK)
        guest.waitUntil(lambda: len(guest.imports()) == 2, "both are there")
        [theirs] = [each for each in self.attaching.attached() if each.port != ours.port]
        self.assertEqual(theirs.record, Record(host=HOST, service="3240", busId=DISK))
        guest.check("usbip", "detach", "-p", str(ours.port))
        self.assertTrue(isOver(kept))
        self.gone(ours)
        self.giveBack(theirs)
        self.assertEqual(self.attaching.attached(), ())
        self.assertFalse(os.path.exists(FOLDER))
        self.saidNothing(daemon)

    def test_stock(self) -> None:
        """A stock C{usbipd} gives its devices just the same, and refuses as it does."""
        daemon = self.daemon()
        server = Server(name="stock", host=HOST, exportPort=STOCK_PORT)
        for busId in (SERIAL, DISK):
            self.succeeds(daemon.ask("attach", id=busId))
        with guest.StockUsbipd(STOCK_PORT):
            listed = listDevices(server, guest.DEADLINE)
            self.assertEqual(sorted(each.busId for each in listed), [SERIAL, DISK])
            attached, _ = self.take(DISK, server)
            self.compare(attached)
            self.assertIn(f"usbip://{HOST}:{STOCK_PORT}/{DISK}", guest.check("usbip", "port"))
            for busId, status in ((DISK, OpStatus.DEV_BUSY), ("9-9", OpStatus.NODEV)):
                error = self.assertRaises(NotGiven, self.take, busId, server)
                self.assertEqual(error.status, status)
            self.giveBack(attached)

    def test_vanished(self) -> None:
        """A server on another machine vanishes, without a word: the port is free before long,
        whether somebody was just reading or not."""
        config = self.config(more=f"devices: [{{match: {{id: {DISK}}}, share: always}}]\n")
        for isReading in (False, True):
            with (
                guest.Elsewhere() as there,
                ChildDaemon(config, prefix=there.prefix, listen=["tcp:0"]),
            ):
                server = Server(name="there", host=there.address)
                guest.waitUntil(partial(listDevices, server, guest.DEADLINE), "it has the disk")
                attached, kept = self.take(DISK, server)
                node = self.compare(attached)
                reader = guest.DiskReader(node, guest.diskBytes(), Path.cwd())
                with reader if isReading else contextlib.nullcontext():
                    if isReading:
                        reader.readsOn()
                    there.vanish()
                    began = time.monotonic()
                    self.assertTrue(isOver(kept, 1000 * VANISHED))
                    took = time.monotonic() - began
                    self.gone(attached)
                print(
                    f"\na server that {'is read from' if isReading else 'is idle'} "
                    f"vanishes: seen after {took:.1f} s",
                    end="",
                )
            guest.resetUsb()


class EnduranceTests(AttachingCase):
    """
    From our daemon, again and again.
    """

    def test_cycles(self) -> None:
        """Devices are attached and detached again and again, as quickly as can be; no port, no
        note and no descriptor is left."""
        daemon = self.daemon()
        for busId in (SERIAL, DISK):
            self.succeeds(daemon.ask("attach", id=busId))
        before = len(os.listdir("/proc/self/fd"))
        took = []
        for _ in range(CYCLES):
            began = time.monotonic()
            attached, kept = self.attaching.attach(self.server, SERIAL, guest.DEADLINE)
            took.append(time.monotonic() - began)
            with kept:
                self.assertTrue(
                    any(guest.SERIAL_NODES in node for node in attached.nodes), attached
                )
                self.assertTrue(self.attaching.detach(attached.port))
                self.assertTrue(isOver(kept))
        self.assertEqual(self.used(), [])
        self.assertFalse(os.path.exists(FOLDER))
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)
        print(f"\n{CYCLES} times: attached, with its tty, after {_median(took)}", end="")
        self.stateSoon(daemon, "bound", SERIAL)
        self.compareStock()
        self.saidNothing(daemon)

    def compareStock(self) -> None:
        """How long the stock program needs, until the kernel has the device's tty."""
        took, whole = [], []
        for _ in range(5):
            began = time.monotonic()
            guest.check("usbip", "attach", "-r", HOST, "-b", SERIAL)
            took.append(time.monotonic() - began)
            port, busId = guest.waitImport()
            guest.waitUntil(partial(guest.ttyDevice, busId), "it has a tty")
            whole.append(time.monotonic() - began)
            guest.check("usbip", "detach", "-p", str(port))
            guest.waitGone(busId)
        print(f"\nthe stock program: {_median(took)}, its tty after {_median(whole)}", end="")

    def test_lost(self) -> None:
        """A device that is unplugged or taken back leaves its port; it can be attached again at
        once, and never where its old one is still there."""
        daemon = self.daemon()
        self.succeeds(daemon.ask("attach", id=DISK))
        attached, kept = self.take(DISK)
        guest.unplug(guest.DISK)
        self.assertTrue(isOver(kept))
        self.gone(attached)
        self.assertRaises(NotGiven, self.take, DISK)
        guest.plug(guest.DISK)
        guest.waitBlockDevice(DISK)
        self.succeeds(daemon.ask("attach", id=DISK))
        ports = []
        quick = Attaching(self.vhci, _NoNodes(System()), Records(), _carry)
        for milliseconds in SCANNED:
            attached, kept = quick.attach(self.server, DISK, guest.DEADLINE)
            ports.append(attached.port)
            with kept:
                self.assertFalse(isOver(kept, milliseconds))
                self.succeeds(daemon.ask("kick", id=DISK))
                self.assertTrue(isOver(kept))
        print(f"\nattached again at once, at ports {ports}", end="")
        attached, _ = self.take(DISK)
        self.compare(attached)
        self.giveBack(attached)
        guest.waitUntil(lambda: self.used() == [], "all ports are free")


class VirtualTests(AttachingCase):
    """
    Devices of software, on another machine as far as the network goes: there can be many, and
    their serial ports echo.
    """

    def setUp(self) -> None:
        super().setUp()
        guest.modprobe("cdc-acm")
        files = f"{self.mktemp()}"
        self.ca, _ = authority(LAB).write(files, "ca")
        there = guest.Elsewhere()
        there.__enter__()
        self.addCleanup(there.__exit__, None, None, None)
        certificate, key = signed("server").write(files, "server")
        devices = [f"{{bus_id: 1-{number}, kind: serial}}" for number in range(1, MANY + 1)]
        self.virtual = ChildDaemon(
            f"backend: {{type: virtual, devices: [{', '.join(devices)}]}}\n"
            "devices: [{match: {id: '*'}, share: always}]\n"
            f"tls: {{certificate: {certificate}, key: {key}}}\n"
            f"export: {{listen: ['tcp:3240', 'tls:{TLS_PORT}']}}\n",
            prefix=there.prefix,
            listen=["tcp:5055"],
        )
        self.virtual.__enter__()
        self.addCleanup(self.virtual.__exit__, None, None, None)
        self.virtual.host = there.address
        self.server = Server(name="virtual", host=there.address)

    def echo(self, attached: Attached) -> None:
        """What is said to a port comes back."""
        [node] = [node for node in attached.nodes if node.startswith("/dev/ttyACM")]
        guest.check("stty", "-F", node, "raw", "-echo")
        port = os.open(node, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            os.write(port, HELLO)
            echo = b""
            end = time.monotonic() + guest.DEADLINE
            while len(echo) < len(HELLO) and time.monotonic() < end:
                if select.select([port], [], [], 1)[0]:
                    echo += os.read(port, 100)
        finally:
            os.close(port)
        self.assertEqual(echo, HELLO)

    def test_many(self) -> None:
        """More devices than one controller has ports for are attached, each does what it is for,
        and all can be detached."""
        began = time.monotonic()
        taken = [self.take(f"1-{number}")[0] for number in range(1, MANY + 1)]
        print(f"\n{MANY} attached in {time.monotonic() - began:.1f} s", end="")
        controllers = {port.number: port.controller for port in self.vhci.ports()}
        self.assertEqual({controllers[each.port] for each in taken}, {0, 1})
        self.assertEqual(len({node for each in taken for node in each.nodes}), MANY)
        for attached in (taken[0], taken[-1]):
            self.echo(attached)
        self.assertEqual(len(self.attaching.attached()), MANY)
        shown = guest.check("usbip", "port")
        self.assertEqual(shown.count("usbip://"), MANY)
        for attached in taken:
            self.giveBack(attached)
        self.assertEqual(self.used(), [])

    def test_tls(self) -> None:
        """With TLS too, whether the kernel encrypts or we carry."""
        server = msgspec.structs.replace(
            self.server, exportPort=TLS_PORT, tls=ClientTls(ca=self.ca, serverName="localhost")
        )
        for hasModule, encryption in ((False, Encryption.RELAY), (True, Encryption.KTLS)):
            if hasModule:
                NO_MODULE.unlink()
                guest.modprobe("tls")
            else:
                NO_MODULE.write_text("install tls /bin/false\n")
                guest.rmmod("tls")
            attached, kept = self.take("1-1", server)
            self.assertEqual(attached.encryption, encryption)
            self.echo(attached)
            self.giveBack(attached)
            self.assertTrue(isOver(kept))
            attached, kept = self.take("1-1", server)
            self.succeeds(self.virtual.ask("kick", id="1-1"))
            self.assertTrue(isOver(kept))
            self.gone(attached)


NO_MODULE = Path("/etc/modprobe.d/no-ktls.conf")


class _NoNodes(Nodes):
    """
    Nobody waits for nodes.
    """

    def of(self, path: str) -> tuple[str, ...]:
        return ("/dev/null",)


def isOver(kept: socket.socket, milliseconds: float = 1000 * guest.DEADLINE) -> bool:
    """Does a connection show in time that its session has ended?"""
    poll = select.poll()
    poll.register(kept, select.POLLRDHUP)
    return poll.poll(milliseconds) != []


def _carry(secured: ssl.SSLSocket, ours: socket.socket) -> None:
    threading.Thread(target=relay, args=(secured, ours), daemon=True).start()


def _local(attached: Attached) -> str:
    assert attached.localBusId is not None
    return attached.localBusId


def _median(took: list[float]) -> str:
    return f"{statistics.median(took):.2f} s (at most {max(took):.2f} s)"


del DaemonCase, AttachingCase  # they are not to be run themselves
