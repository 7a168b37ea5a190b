"""
A daemon that serves USB/IP, and USB/IP clients of third parties.
"""

from __future__ import annotations

import contextlib
import signal
import socket
from typing import Any

from tests.integration.case import DaemonCase, connect, descriptors, readAll
from tests.support import serialclient
from tests.support.childdaemon import (
    EXPORT,
    PATIENT,
    withConstant,
)
from tests.support.serialclient import SerialClient
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


class ExportingTestCase(DaemonCase):
    """
    A daemon with serial ports that send back what they receive.
    """

    if not softdevice.installed:
        skip = "the package usbip is not installed"

    config = VIRTUAL
    command: tuple[str, ...] = PATIENT

    def setUp(self) -> None:
        self.server = self.daemon(self.config, command=self.command)
        self.watching = self.server.watch(detail=True)
        self.watching.__enter__()
        self.addCleanup(self.watching.__exit__, None, None, None)

    @property
    def port(self) -> int:
        """The port for USB/IP."""
        return self.server.exportPort

    def open(self, busId: str = "1-1") -> Any:
        """Import a port."""
        handle = host.open(busid=busId, transport=UsbTransport(self.port))
        self.addCleanup(handle.close)
        return CDCDriver(handle)

    def assertWorks(self, port: Any) -> None:
        """The serial port sends back what it receives."""
        port.write(b"ping")
        self.assertEqual(port.read(), b"ping")

    def assertOver(self, port: Any) -> None:
        """The session has ended."""
        with self.assertRaises((USBError, OSError)):
            self.assertWorks(port)

    def said(self, data: bytes) -> bytes:
        """The reply on the export port, until the end."""
        with self.connect() as connection:
            connection.sendall(data)
            return readAll(connection)

    def connect(self) -> socket.socket:
        """A connection to the export port."""
        return connect(self.port)

    def warnings(self) -> list[str]:
        """The warnings and errors in the log, up to a request that is made now."""
        self.server.ask("kick", id="1-3")
        while self.server.logged("{verb} of {device} for {principal} is done")["verb"] != "kick":
            pass
        return self.unusual(self.server)


class SessionTests(ExportingTestCase):
    """
    Clients that import devices.
    """

    def test_session(self) -> None:
        """While a client uses a device, its address and traffic are shown, and after that the
        device is free again."""
        port = self.open()
        self.watching.told("imported", "1-1")
        for _ in range(100):
            self.assertWorks(port)
        shown = self.shown(self.server)
        self.assertEqual(shown["state"], "in_use")
        self.assertEqual(shown["holder"]["address"], "127.0.0.1")
        self.assertIsInstance(shown["holder"]["since"], str)
        self.assertGreater(shown["holder"]["bytes_in"], 100 * (48 + 4 + 48))
        self.assertGreater(shown["holder"]["bytes_out"], 100 * (48 + 48 + 4))
        port.close()
        released = self.watching.told("released", "1-1")
        self.assertGreaterEqual(released["holder"]["bytes_in"], shown["holder"]["bytes_in"])
        self.assertEqual(
            (self.shown(self.server)["state"], self.shown(self.server)["holder"]), ("bound", None)
        )
        self.assertEqual(self.warnings(), [])

    def test_list(self) -> None:
        """The list has the devices that can be imported, and those in use."""
        transport = UsbTransport(self.port)
        before = host.list_devices(transport)
        self.assertEqual([device["busid"] for device in before], ["1-1", "1-2"])
        self.assertEqual(before[0]["interfaces"], [(2, 2, 1), (10, 0, 0)])
        self.open()
        self.assertEqual(host.list_devices(transport), before)

    def test_again(self) -> None:
        """A client that ends its session can import the device again at once."""
        for _ in range(50):
            port = self.open()
            self.assertWorks(port)
            port.close()
        self.assertEqual(self.warnings(), [])

    def test_kick(self) -> None:
        """C{kick} ends the session, and the next client can import the device at once."""
        for _ in range(20):
            port = self.open()
            self.assertEqual(self.server.ask("kick", id="1-1")["status"], "success")
            self.assertOver(port)
        self.assertWorks(self.open())

    def test_detach(self) -> None:
        """C{detach} ends the session, and the device cannot be imported any more."""
        self.server.ask("attach", id="1-3")
        port = self.open("1-3")
        self.assertEqual(self.server.ask("detach", id="1-3")["status"], "success")
        self.assertOver(port)
        self.assertRaises(NotFound, self.open, "1-3")


class SerialClientTests(ExportingTestCase):
    """
    A client that uses serial ports, and sends no request without need.
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
        return SerialClient(self.server.exportPort, 0x1209, productId)

    def use(self, client: SerialClient) -> None:
        """Import a port, use it, and give it back."""
        client.attach()
        for number in range(30):
            line = b"ping %d\r\n" % number
            self.assertEqual(client.write(line), len(line))
            self.assertEqual(client.read(), line)
        client.close()

    def test_session(self) -> None:
        """A device is found, imported, used, and free after that, several times."""
        self.server.ask("attach", id="1-1")
        for _ in range(3):
            client = self.client(1)
            self.assertEqual(client.busIds(), ["1-1", "1-2"])
            self.use(client)
            self.watching.told("imported", "1-1")
            self.watching.told("released", "1-1")
        self.assertEqual(self.shown(self.server)["state"], "bound")
        self.assertEqual(self.warnings(), [])

    def test_onImport(self) -> None:
        """A device that is bound on import is unbound after the session."""
        self.use(self.client(2))
        self.watching.told("unbound", "1-2")
        self.assertEqual(self.shown(self.server, "1-2")["state"], "free")

    def test_refused(self) -> None:
        """The import of a device that is in use, or not bound, is refused."""
        self.server.ask("attach", id="1-1")
        first = self.client(1)
        first.attach()
        self.assertRaises(serialclient.USBAttachError, self.client(1).attach)
        first.write(b"ping\r\n")
        self.assertEqual(first.read(), b"ping\r\n")
        first.close()
        self.assertRaises(serialclient.USBIPValueError, self.client(3).attach)


class InvalidClientTests(ExportingTestCase):
    """
    Connections that do not speak USB/IP.
    """

    def test_garbage(self) -> None:
        """Garbage, an incomplete request and a request with data behind it are logged once each;
        no file stays open, and a session is not affected."""
        port = self.open()
        self.said(LIST)
        before = descriptors(self.server)
        bad = (b"GET / HTTP/1.1\r\n\r\n", importOf("1-2") + b"\0", LIST + LIST, 1000 * b"\xff")
        for data in bad:
            self.assertEqual(self.said(data), b"")
        with self.connect() as connection:
            connection.sendall(importOf("1-2")[:20])
        self.connect().close()
        while descriptors(self.server) > before:
            self.said(LIST)
        self.assertWorks(port)
        self.assertEqual(self.shown(self.server, "1-2")["state"], "free")
        self.assertEqual(len(self.warnings()), len(bad) + 1)


class IdleTests(ExportingTestCase):
    """
    Idle connections, without the time limit for requests.
    """

    command = withConstant("usbip_server.protocols.exporter", "REQUEST_SECONDS", 600.0)
    config = VIRTUAL + f"limits: {{connections: {4 * IDLE}}}\n"  # half of them for one client

    def test_idle(self) -> None:
        """A thousand idle connections affect no other client, and no file of them stays open."""
        port = self.open()
        with contextlib.ExitStack() as crowd:
            for _ in range(IDLE):
                crowd.enter_context(self.connect())
            self.assertEqual(self.said(LIST)[:8], bytes.fromhex("0111 0005 00000000"))
            self.assertWorks(self.open("1-2"))
            self.assertWorks(port)
            self.assertEqual(self.server.ask("list")["status"], "success")
            self.assertGreater(descriptors(self.server), IDLE)
        while descriptors(self.server) > IDLE / 2:
            self.said(LIST)
        self.assertWorks(port)
        self.assertEqual(self.warnings(), [])


class EndTests(ExportingTestCase):
    """
    The end of the daemon. Its devices are virtual: sessions end with it.
    """

    command = withConstant("usbip_server.server.service", "CLOSING_SECONDS", 0.5)

    def end(self, number: int) -> None:
        """End the daemon while there are sessions and an idle connection."""
        ports = [self.open("1-1"), self.open("1-2")]
        idle = self.connect()
        self.addCleanup(idle.close)
        self.server.child.send_signal(number)
        self.assertIn(self.server.child.wait(SECONDS), (0, -number))
        for port in ports:
            self.assertOver(port)
        with contextlib.suppress(ConnectionResetError):
            self.assertEqual(idle.recv(1), b"")

    def test_terminated(self) -> None:
        """SIGTERM ends the sessions."""
        self.end(signal.SIGTERM)

    def test_killed(self) -> None:
        """SIGKILL ends the sessions."""
        self.end(signal.SIGKILL)
