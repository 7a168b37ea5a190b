"""
A daemon that serves USB/IP, and clients that others wrote.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.support import serialclient
from tests.support.childdaemon import (
    EXPORT,
    PATIENT,
    PatientDaemon,
    withConstant,
)
from tests.support.serialclient import SerialClient
from tests.support.watchclient import WatchClient
from usbip_server.backends import softdevice

if softdevice.installed:
    from usbip import host  # type: ignore[import-untyped]
    from usbip.classes.host.cdc_acm import CDCDriver  # type: ignore[import-untyped]
    from usbip.core import NotFound, USBError  # type: ignore[import-untyped]

    from tests.support.usbclient import UsbTransport

VIRTUAL = (
    EXPORT
    + """
devices:
  - {match: {bus: 1-1}, share: always}
  - {match: {bus: 1-2}, share: on_import, unbind_released: true}
  - {match: {bus: 1-4}, share: never}
backend:
  type: virtual
  devices:
    - {bus_id: 1-1, kind: serial, product: Port}
    - {bus_id: 1-2, kind: serial, product: Lent}
    - {bus_id: 1-3, kind: serial, product: Asked For}
    - {bus_id: 1-4, kind: serial, product: Hidden}
"""
)

LIST = bytes.fromhex("0111 8005 00000000")
SECONDS = 60
IDLE = 1000
SLOW = 50


def importOf(busId: str) -> bytes:
    """A request."""
    return bytes.fromhex("0111 8003 00000000") + busId.encode().ljust(32, b"\0")


class ExportingTestCase(SynchronousTestCase):
    """
    A daemon with serial ports that send back what they receive.
    """

    if not softdevice.installed:
        skip = "the package usbip is not installed"

    config = VIRTUAL
    command: tuple[str, ...] = PATIENT

    def setUp(self) -> None:
        stack = contextlib.ExitStack()
        self.addCleanup(stack.close)
        self.daemon = stack.enter_context(PatientDaemon(self.config, self.command))
        self.watching: WatchClient = stack.enter_context(self.daemon.watch(detail=True))

    @property
    def port(self) -> int:
        """Where clients come to."""
        return self.daemon.exportPort

    def open(self, busId: str = "1-1") -> Any:
        """Import a port."""
        handle = host.open(busid=busId, transport=UsbTransport(self.port))
        self.addCleanup(handle.close)
        return CDCDriver(handle)

    def assertWorks(self, port: Any) -> None:
        """The port does what it is for."""
        port.write(b"ping")
        self.assertEqual(port.read(), b"ping")

    def assertOver(self, port: Any) -> None:
        """The port has been taken from its client."""
        with self.assertRaises((USBError, OSError)):
            self.assertWorks(port)

    def said(self, data: bytes) -> bytes:
        """What is answered on the export port, until the end."""
        with self.connect() as connection:
            connection.sendall(data)
            received = b""
            with contextlib.suppress(ConnectionResetError):
                while more := connection.recv(65536):
                    received += more
            return received

    def connect(self) -> socket.socket:
        """A connection to the export port."""
        return socket.create_connection(("127.0.0.1", self.port), SECONDS)

    def descriptors(self) -> int:
        """How many files the daemon has open."""
        return len(os.listdir(f"/proc/{self.daemon.child.pid}/fd"))

    def shown(self, busId: str = "1-1") -> Any:
        """A device as it is shown."""
        return self.daemon.ask("find", id=busId, detail=True)["data"]

    def warnings(self) -> list[str]:
        """What the daemon has logged that is worth a look, until it does what is asked now."""
        self.daemon.ask("kick", id="1-3")
        while self.daemon.logged("{verb} of {device} for {principal} is done")["verb"] != "kick":
            pass
        return [
            event["log_format"]
            for event in self.daemon.events
            if event["log_level"]["name"] not in ("debug", "info")
        ]


class SessionTests(ExportingTestCase):
    """
    Clients that import devices.
    """

    def test_session(self) -> None:
        """A client imports a port and uses it; it is shown who has it, and how much has moved;
        and that it has given it back."""
        port = self.open()
        self.watching.told("imported", "1-1")
        for _ in range(100):
            self.assertWorks(port)
        shown = self.shown()
        self.assertEqual(shown["state"], "in_use")
        self.assertEqual(shown["holder"]["address"], "127.0.0.1")
        self.assertIsInstance(shown["holder"]["since"], str)
        self.assertGreater(shown["holder"]["bytes_in"], 100 * (48 + 4 + 48))
        self.assertGreater(shown["holder"]["bytes_out"], 100 * (48 + 48 + 4))
        port.close()
        released = self.watching.told("released", "1-1")
        self.assertGreaterEqual(released["holder"]["bytes_in"], shown["holder"]["bytes_in"])
        self.assertEqual((self.shown()["state"], self.shown()["holder"]), ("bound", None))
        self.assertEqual(self.warnings(), [])

    def test_list(self) -> None:
        """Those that can be imported are listed, also those that somebody has."""
        transport = UsbTransport(self.port)
        before = host.list_devices(transport)
        self.assertEqual([device["busid"] for device in before], ["1-1", "1-2"])
        self.assertEqual(before[0]["interfaces"], [(2, 2, 1), (10, 0, 0)])
        self.open()
        self.assertEqual(host.list_devices(transport), before)

    def test_again(self) -> None:
        """Whoever gives a port back and wants it again at once gets it, each time."""
        for _ in range(50):
            port = self.open()
            self.assertWorks(port)
            port.close()
        self.assertEqual(self.warnings(), [])

    def test_kick(self) -> None:
        """To kick a client ends its session, and the next one gets the port at once."""
        for _ in range(20):
            port = self.open()
            self.assertEqual(self.daemon.ask("kick", id="1-1")["status"], "success")
            self.assertOver(port)
        self.assertWorks(self.open())

    def test_detach(self) -> None:
        """To detach a port takes it from its client."""
        self.daemon.ask("attach", id="1-3")
        port = self.open("1-3")
        self.assertEqual(self.daemon.ask("detach", id="1-3")["status"], "success")
        self.assertOver(port)
        self.assertRaises(NotFound, self.open, "1-3")


class SerialClientTests(ExportingTestCase):
    """
    A client that drives serial ports, and waits for nothing that it has not asked for.
    """

    if not serialclient.installed:
        skip = "the package serial-usbipclient is not installed"

    config = (
        EXPORT
        + """
devices:
  - {match: {bus: 1-2}, share: on_import, unbind_released: true}
backend:
  type: virtual
  devices:
    - {bus_id: 1-1, kind: serial, product: Port, vendor_id: "1209", product_id: "0001"}
    - {bus_id: 1-2, kind: serial, product: Lent, vendor_id: "1209", product_id: "0002"}
    - {bus_id: 1-3, kind: serial, product: Asked For, vendor_id: "1209", product_id: "0003"}
"""
    )

    def client(self, productId: int) -> SerialClient:
        """A client of one of the ports."""
        return SerialClient(self.daemon.exportPort, 0x1209, productId)

    def use(self, client: SerialClient) -> None:
        """Import a port, use it, and give it back."""
        client.attach()
        for number in range(30):
            line = b"ping %d\r\n" % number
            self.assertEqual(client.write(line), len(line))
            self.assertEqual(client.read(), line)
        client.close()

    def test_session(self) -> None:
        """A port is found, imported, used, and free after it, time and again."""
        self.daemon.ask("attach", id="1-1")
        for _ in range(3):
            client = self.client(1)
            self.assertEqual(client.busIds(), ["1-1", "1-2"])
            self.use(client)
            self.watching.told("imported", "1-1")
            self.watching.told("released", "1-1")
        self.assertEqual(self.shown()["state"], "bound")
        self.assertEqual(self.warnings(), [])

    def test_onImport(self) -> None:
        """So is one that is bound for it."""
        self.use(self.client(2))
        self.watching.told("unbound", "1-2")
        self.assertEqual(self.shown("1-2")["state"], "free")

    def test_refused(self) -> None:
        """It is not given one that another client has, nor one that is not bound."""
        self.daemon.ask("attach", id="1-1")
        first = self.client(1)
        first.attach()
        self.assertRaises(serialclient.USBAttachError, self.client(1).attach)
        first.write(b"ping\r\n")
        self.assertEqual(first.read(), b"ping\r\n")
        first.close()
        self.assertRaises(serialclient.USBIPValueError, self.client(3).attach)


class CrowdTests(ExportingTestCase):
    """
    Clients that are none.
    """

    def test_garbage(self) -> None:
        """Garbage, half a request and a request with something behind it are told of once
        each; nothing is left of them, and nobody is disturbed."""
        port = self.open()
        self.said(LIST)
        before = self.descriptors()
        bad = (b"GET / HTTP/1.1\r\n\r\n", importOf("1-2") + b"\0", LIST + LIST, 1000 * b"\xff")
        for data in bad:
            self.assertEqual(self.said(data), b"")
        with self.connect() as connection:
            connection.sendall(importOf("1-2")[:20])
        self.connect().close()
        while self.descriptors() > before:
            self.said(LIST)
        self.assertWorks(port)
        self.assertEqual(self.shown("1-2")["state"], "free")
        self.assertEqual(len(self.warnings()), len(bad) + 1)


class IdleTests(ExportingTestCase):
    """
    Clients that say nothing, and have time for that.
    """

    command = withConstant("usbip_server.protocols.exporter", "REQUEST_SECONDS", 600.0)
    config = VIRTUAL + f"limits: {{connections: {4 * IDLE}}}\n"  # half of them for one client

    def test_idle(self) -> None:
        """A thousand idle connections are in nobody's way, and nothing is left of them."""
        port = self.open()
        with contextlib.ExitStack() as crowd:
            for _ in range(IDLE):
                crowd.enter_context(self.connect())
            self.assertEqual(self.said(LIST)[:8], bytes.fromhex("0111 0005 00000000"))
            self.assertWorks(self.open("1-2"))
            self.assertWorks(port)
            self.assertEqual(self.daemon.ask("list")["status"], "success")
            self.assertGreater(self.descriptors(), IDLE)
        while self.descriptors() > IDLE / 2:
            self.said(LIST)
        self.assertWorks(port)
        self.assertEqual(self.warnings(), [])


class EndTests(ExportingTestCase):
    """
    The daemon's end. The devices are its own here: sessions end with it.
    """

    command = withConstant("usbip_server.server.service", "CLOSING_SECONDS", 0.5)

    def end(self, number: int) -> None:
        """End the daemon while clients have devices, ask for some, or say nothing."""
        ports = [self.open("1-1"), self.open("1-2")]
        idle = self.connect()
        self.addCleanup(idle.close)
        self.daemon.child.send_signal(number)
        self.assertIn(self.daemon.child.wait(SECONDS), (0, -number))
        for port in ports:
            self.assertOver(port)
        with contextlib.suppress(ConnectionResetError):
            self.assertEqual(idle.recv(1), b"")

    def test_terminated(self) -> None:
        """It is told to end."""
        self.end(signal.SIGTERM)

    def test_killed(self) -> None:
        """It is killed."""
        self.end(signal.SIGKILL)
