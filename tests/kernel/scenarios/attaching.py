"""The client library on real kernels: attaching devices to C{vhci_hcd} and detaching them, together
with Debian's C{usbip} and C{usbipd}."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import threading
import time
from functools import partial

import msgspec

from tests.kernel import guest
from tests.kernel.daemoncase import DISK, HOST, OTHER_STOCK_PORT, SERIAL, DaemonCase, summary
from tests.kernel.inside.tlsimport import NO_TLS_MODULE
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
from usbip_server.model.usbip import NotGiven, OpStatus

TLS_PORT = 3242

CYCLES = 50

MANY = 20
"""More devices than one controller has ports."""

VANISHED = 15.0
"""Seconds until the loss of a server that has vanished is noticed."""

SCANNED = (0, 300, 500, 600, 700, 800, 900, 1000)
"""Milliseconds after which a disk is lost again. About a second after it was attached it is
scanned, and a request that is lost then may never be answered."""


class CheckedVhci(Vhci):
    """Records attaches to a port whose earlier device is still there: write sequence D12 of the
    kernel facts, which can block the port for good.

    @ivar unsafe: the ports."""

    def __init__(self) -> None:
        super().__init__(System())
        self.unsafe: list[int] = []

    def attach(self, port: Port, descriptor: int, deviceId: int, speed: int) -> bool:
        if self.folderOf(port) is not None:
            self.unsafe.append(port.number)
        return super().attach(port, descriptor, deviceId, speed)


class AttachingCase(DaemonCase):
    """A server, and the client library. No attach may be unsafe."""

    more = "export: {listen: [tcp:3240]}\n"

    def setUp(self) -> None:
        super().setUp()
        self.vhci = CheckedVhci()
        self.attaching = Attaching(self.vhci, Nodes(System()), Records(), startRelay)
        self.server = Server(name="here", host=HOST)
        self.addCleanup(lambda: self.assertEqual(self.vhci.unsafe, []))

    def attach(self, busId: str, server: Server | None = None) -> tuple[Attached, socket.socket]:
        """Attach a device; the kept connection is closed at the end of the test."""
        attached, kept = self.attaching.attach(server or self.server, busId, guest.DEADLINE)
        self.addCleanup(kept.close)
        assert attached.localBusId is not None
        return attached, kept

    def detach(self, attached: Attached) -> None:
        """Detach a device."""
        self.assertTrue(self.attaching.detach(attached.port))
        self.awaitGone(attached)

    def awaitGone(self, attached: Attached) -> None:
        """Wait until a device is gone, and its port is free."""
        guest.waitGone(str(attached.localBusId))
        guest.waitUntil(lambda: attached.port not in self.used(), "its port is free")

    def used(self) -> list[int]:
        """The numbers of the ports that are not free."""
        return [port.number for port in self.vhci.ports() if port.state is not PortState.FREE]

    def checkDisk(self, attached: Attached) -> str:
        """Check the content of an attached disk; returns its node."""
        node = next(node for node in attached.nodes if node.startswith("/dev/sd"))
        guest.checkDiskBytes(node)
        return node


class AttachingTests(AttachingCase):
    """Devices of a daemon, and of C{usbipd}."""

    def test_withStockUsbip(self) -> None:
        """C{usbip detach} detaches what the library has attached, and the library what C{usbip
        attach} has; the records in C{/run/vhci_hcd} are shared."""
        daemon = self.sharing(SERIAL, DISK)
        ours, kept = self.attach(SERIAL)
        guest.check("usbip", "attach", "-r", HOST, "-b", DISK)
        guest.waitUntil(lambda: len(guest.imports()) == 2, "both are attached")
        shown = guest.check("usbip", "port")
        for busId in (SERIAL, DISK):
            self.assertIn(f"usbip://{HOST}:3240/{busId}", shown)
        [theirs] = [each for each in self.attaching.attached() if each.port != ours.port]
        self.assertEqual(theirs.record, Record(host=HOST, service="3240", busId=DISK))
        guest.check("usbip", "detach", "-p", str(ours.port))
        self.assertTrue(hasEnded(kept))
        self.awaitGone(ours)
        self.detach(theirs)
        self.assertFalse(self.attaching.detach(theirs.port))
        self.assertEqual(self.attaching.attached(), ())
        self.assertFalse(os.path.exists(FOLDER))
        self.assertNothingLogged(daemon)

    def test_refused(self) -> None:
        """A device in use and an unknown one are refused by the daemon and by C{usbipd} with the
        same status; a device of C{usbipd} is attached like one of the daemon."""
        self.sharing(SERIAL, DISK)
        stock = Server(name="stock", host=HOST, exportPort=OTHER_STOCK_PORT)
        with guest.stockUsbipd(OTHER_STOCK_PORT):
            listed = listDevices(stock, guest.DEADLINE)
            self.assertEqual(sorted(each.busId for each in listed), [SERIAL, DISK])
            for server in (stock, self.server):
                attached, _ = self.attach(DISK, server)
                self.checkDisk(attached)
                port = 3240 if server is self.server else OTHER_STOCK_PORT
                self.assertIn(f"usbip://{HOST}:{port}/{DISK}", guest.check("usbip", "port"))
                for busId, status in ((DISK, OpStatus.DEV_BUSY), ("9-9", OpStatus.NODEV)):
                    error = self.assertRaises(NotGiven, self.attach, busId, server)
                    self.assertEqual(error.status, status)
                self.detach(attached)
                guest.waitUntil(lambda: guest.usbipStatus(DISK) == 1, "it can be imported again")

    def test_serverVanishes(self) -> None:
        """The port of a server that has vanished from the network, reading or not, is freed."""
        config = self.config(more=f"devices: [{{match: {{id: {DISK}}}, share: always}}]\n")
        for isReading in (False, True):
            with (
                guest.Elsewhere() as there,
                ChildDaemon(config, prefix=there.prefix, listen=["tcp:0"]),
            ):
                server = Server(name="there", host=there.address)
                guest.waitUntil(partial(listDevices, server, guest.DEADLINE), "the disk is listed")
                attached, kept = self.attach(DISK, server)
                node = self.checkDisk(attached)
                reader = guest.diskReader(node, 0.0)  # without a pause: a read is in progress
                with reader if isReading else contextlib.nullcontext():
                    if isReading:
                        reader.awaitRead()
                    there.vanish()
                    began = time.monotonic()
                    self.assertTrue(hasEnded(kept, 1000 * VANISHED))
                    took = time.monotonic() - began
                    self.awaitGone(attached)
                reading = "is read from" if isReading else "is idle"
                print(f"\na server that {reading} vanishes: seen after {took:.1f} s", end="")
            guest.resetUsb()


class EnduranceTests(AttachingCase):
    """The same device again and again."""

    def test_cycles(self) -> None:
        """Attaching and detaching 50 times leaves no used port, no record and no descriptor."""
        daemon = self.sharing(SERIAL)
        before = len(os.listdir("/proc/self/fd"))
        durations = []
        for _ in range(CYCLES):
            began = time.monotonic()
            attached, kept = self.attaching.attach(self.server, SERIAL, guest.DEADLINE)
            durations.append(time.monotonic() - began)
            with kept:
                self.assertTrue(any(guest.SERIAL_NODES in node for node in attached.nodes))
                self.assertTrue(self.attaching.detach(attached.port))
                self.assertTrue(hasEnded(kept))
            guest.waitUntil(lambda: guest.usbipStatus(SERIAL) == 1, "it can be imported again")
        self.assertEqual(self.used(), [])
        self.assertFalse(os.path.exists(FOLDER))
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)
        print(f"\nattached, with its tty, after {summary(durations)}", end="")
        self.awaitState(daemon, "bound", SERIAL)
        self.assertNothingLogged(daemon)

    def test_lost(self) -> None:
        """An unplugged device, and one that the server takes back at any time of its scan, leaves
        its port; it can be attached again at once."""
        daemon = self.sharing(DISK)
        attached, kept = self.attach(DISK)
        guest.unplug(guest.DISK)
        self.assertTrue(hasEnded(kept))
        self.awaitGone(attached)
        self.assertRaises(NotGiven, self.attach, DISK)
        guest.plug(guest.DISK)
        guest.waitBlockDevice(DISK)
        self.succeeds(daemon.ask("attach", id=DISK))
        ports = []
        quick = Attaching(self.vhci, NoNodes(System()), Records(), startRelay)
        for milliseconds in SCANNED:
            attached, kept = quick.attach(self.server, DISK, guest.DEADLINE)
            ports.append(attached.port)
            with kept:
                self.assertFalse(hasEnded(kept, milliseconds))
                self.succeeds(daemon.ask("kick", id=DISK))
                self.assertTrue(hasEnded(kept))
        print(f"\nattached again at once, at ports {ports}", end="")
        attached, _ = self.attach(DISK)
        self.checkDisk(attached)
        self.detach(attached)
        guest.waitUntil(lambda: self.used() == [], "all ports are free")


class VirtualTests(AttachingCase):
    """Serial ports of the virtual backend, in another network namespace."""

    def setUp(self) -> None:
        super().setUp()
        guest.modprobe("cdc-acm")
        files = self.mktemp()
        self.ca, _ = authority(LAB).write(files, "ca")
        there = self.enter(guest.Elsewhere())
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
        self.enter(self.virtual)
        self.virtual.host = there.address
        self.server = Server(name="virtual", host=there.address)

    def checkEcho(self, attached: Attached) -> None:
        """An attached serial port echoes."""
        [node] = [node for node in attached.nodes if node.startswith("/dev/ttyACM")]
        guest.checkEcho(node)

    def test_moreThanPortsOfController(self) -> None:
        """20 devices are attached at the ports of two controllers, work, and are detached."""
        began = time.monotonic()
        taken = [self.attach(f"1-{number}")[0] for number in range(1, MANY + 1)]
        print(f"\n{MANY} attached in {time.monotonic() - began:.1f} s", end="")
        controllers = {port.number: port.controller for port in self.vhci.ports()}
        self.assertEqual({controllers[each.port] for each in taken}, {0, 1})
        self.assertEqual(len({node for each in taken for node in each.nodes}), MANY)
        for attached in (taken[0], taken[-1]):
            self.checkEcho(attached)
        self.assertEqual(len(self.attaching.attached()), MANY)
        self.assertEqual(guest.check("usbip", "port").count("usbip://"), MANY)
        for attached in taken:
            self.detach(attached)
        self.assertEqual(self.used(), [])

    def test_tls(self) -> None:
        """A device is attached over TLS without the kernel's module for it, and with it."""
        server = msgspec.structs.replace(
            self.server, exportPort=TLS_PORT, tls=ClientTls(ca=self.ca, serverName="localhost")
        )
        for hasModule, encryption in ((False, Encryption.RELAY), (True, Encryption.KTLS)):
            if hasModule:
                NO_TLS_MODULE.unlink()
                guest.modprobe("tls")
            else:
                NO_TLS_MODULE.write_text("install tls /bin/false\n")
                guest.rmmod("tls")
            attached, kept = self.attach("1-1", server)
            self.assertEqual(attached.encryption, encryption)
            self.checkEcho(attached)
            self.detach(attached)
            self.assertTrue(hasEnded(kept))
            attached, kept = self.attach("1-1", server)
            self.succeeds(self.virtual.ask("kick", id="1-1"))
            self.assertTrue(hasEnded(kept))
            self.awaitGone(attached)


class NoNodes(Nodes):
    """Returns at once: device nodes are not waited for."""

    def of(self, path: str) -> tuple[str, ...]:
        return ("/dev/null",)


def hasEnded(kept: socket.socket, milliseconds: float = 1000 * guest.DEADLINE) -> bool:
    """Wait until a connection is closed by its peer; returns whether it was in time."""
    poll = select.poll()
    poll.register(kept, select.POLLRDHUP)
    return poll.poll(milliseconds) != []


def startRelay(secured: ssl.SSLSocket, ours: socket.socket) -> None:
    """Relay in a thread."""
    threading.Thread(target=relay, args=(secured, ours), daemon=True).start()


del DaemonCase, AttachingCase  # base classes are not run
