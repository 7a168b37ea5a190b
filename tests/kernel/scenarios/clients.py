"""
Clients that nobody here wrote, unmodified, against the daemon.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from usbip import host  # type: ignore[import-untyped]
from usbip.classes.host.msc import MSCDriver  # type: ignore[import-untyped]
from usbip.transport import USBIP  # type: ignore[import-untyped]

from tests import serialclient
from tests.childdaemon import EXPORT
from tests.kernel import guest
from tests.kernel.daemoncase import BUS_IDS, DISK, SERIAL, DaemonCase
from tests.kernel.needs import Need, needs
from tests.serialclient import SerialClient

HOST = "127.0.0.1"

STOCK_PORT = 3241
"""Of a stock C{usbipd}, to compare with."""

TIMES = 3

BLOCKS = 64
"""Of a disk, to read at once."""


class ClientCase(DaemonCase):
    """
    A daemon on the default port, as usb-remote takes another only from its configuration;
    and a child that serves beside it.
    """

    backend = "{type: sysfs}"
    listen = "tcp:5055"

    def setUp(self) -> None:
        super().setUp()
        self.port = str(self.shared().port)

    def serving(self, *command: str, **environment: str) -> None:
        """Have a program running until the test ends."""
        child = subprocess.Popen(command, env={**os.environ, **environment})
        self.addCleanup(child.wait, guest.DEADLINE)
        self.addCleanup(child.terminate)

    def busIds(self, answer: str | bytes) -> list[str]:
        """The bus ids in the answer to a C{list}."""
        return [device["bus_id"] for device in json.loads(answer)["data"]]


class UsbRemoteTests(ClientCase):
    """
    usb-remote 2.3.2, the field's most used client.
    """

    def setUp(self) -> None:
        super().setUp()
        server = guest.StockUsbipd()
        server.__enter__()
        self.addCleanup(server.__exit__, None, None, None)

    def usbRemote(self, *arguments: str) -> str:
        """
        Run its command line. It exits with 0 whatever happens, so its words count.
        """
        command = [sys.executable, "-m", "usb_remote", *arguments, "--host", HOST]
        result = guest.run(*command, seconds=120)
        return result.out + result.err

    def test_list(self) -> None:
        """Its list shows all devices."""
        said = self.usbRemote("list")
        for busId in BUS_IDS:
            self.assertIn(f"bus={busId}", said)

    def test_find(self) -> None:
        """It finds one device, and hears when there are several or none."""
        self.assertIn(f"bus={DISK}", self.usbRemote("find", "--serial", "DISK42"))
        self.assertIn("Narrow the criteria", self.usbRemote("find", "--desc", "QEMU"))
        self.assertIn("No matching device found", self.usbRemote("find", "--desc", "Toaster"))

    def test_attach(self) -> None:
        """It attaches a disk, reads its true bytes, and detaches it."""
        said = self.usbRemote("attach", "--serial", "DISK42")
        self.assertIn(f"Attached to device on {HOST}", said)
        _, imported = guest.waitImport()
        node = guest.waitBlockDevice(imported)
        self.assertTrue(guest.diskBytes() == guest.readBlockDevice(node))
        self.assertIn("Detached from device", self.usbRemote("detach", "--serial", "DISK42"))
        guest.waitGone(imported)
        guest.waitBlockDevice(DISK)

    def test_attachInUse(self) -> None:
        """To attach a device that somebody has fails, with our message, and disturbs nobody."""
        self.usbRemote("attach", "--serial", "DISK42")
        port, imported = guest.waitImport()
        node = guest.waitBlockDevice(imported)
        # It forgets its own import first, if it knows of it: here it does not.
        Path(f"/var/run/vhci_hcd/port{port}").unlink()
        self.assertIn("in use", self.usbRemote("attach", "--serial", "DISK42"))
        self.assertTrue(guest.diskBytes() == guest.readBlockDevice(node))

    def test_service(self) -> None:
        """Its client service attaches and detaches for whoever asks it in JSON."""
        path = os.path.abspath(self.mktemp())
        path = f"/run/{os.path.basename(path)}.sock"
        self.serving(
            sys.executable, "-m", "usb_remote", "client-service", USB_REMOTE_CLIENT_SOCKET=path
        )
        guest.waitUntil(lambda: os.path.exists(path), "the service listens", seconds=120)
        for command in ("attach", "detach"):
            request = {"command": command, "serial": "DISK42", "host": HOST}
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(120)
                connection.connect(path)
                connection.sendall(json.dumps(request).encode())
                answer = json.loads(connection.recv(4096))
            self.assertEqual(answer["status"], "success", answer)
            self.assertEqual(answer["data"]["bus_id"], DISK)
            if command == "attach":
                _, imported = guest.waitImport()
                guest.waitBlockDevice(imported)
        guest.waitBlockDevice(DISK)


class ProgramTests(ClientCase):
    """
    The tools that everybody has.
    """

    LIST = '{"command":"list"}'

    def answers(self, command: Sequence[str], stdin: str = "") -> None:
        """A command prints all devices, and ends."""
        self.assertEqual(self.busIds(guest.check(*command, stdin=stdin)), BUS_IDS)

    def test_netcat(self) -> None:
        """OpenBSD nc, with and without a line feed, with and without -N."""
        for options in ((), ("-N",)):
            for end in ("\n", "", "\r\n"):
                self.answers(["nc", *options, HOST, self.port], self.LIST + end)

    def test_socat(self) -> None:
        """socat."""
        self.answers(["socat", "-", f"TCP:{HOST}:{self.port}"], self.LIST + "\n")
        self.answers(["socat", "-t2", "-", f"TCP:{HOST}:{self.port}"], self.LIST)

    def test_curl(self) -> None:
        """curl."""
        self.answers(["curl", "-sS", "-X", "POST", f"http://{HOST}:{self.port}", "-d", self.LIST])

    def test_curlThroughSocat(self) -> None:
        """curl through a bridge that socat makes of port 8080."""
        self.serving("socat", "TCP-LISTEN:8080,fork,reuseaddr", f"TCP:{HOST}:{self.port}")
        guest.waitUntil(lambda: guest.isListening(8080), "socat listens")
        self.answers(["curl", "-sS", "-X", "POST", "http://localhost:8080", "-d", self.LIST])

    def test_attach(self) -> None:
        """An attach and a detach with nc and curl."""
        attach = guest.check(
            "nc", "-N", HOST, self.port, stdin=json.dumps({"command": "attach", "bus": DISK})
        )
        self.assertEqual(json.loads(attach)["status"], "success")
        self.assertEqual(guest.driverOf(DISK), "usbip-host")
        detach = '{"command":"detach","serial":"DISK42"}'
        said = guest.check("curl", "-sS", f"http://{HOST}:{self.port}/", "-d", detach)
        self.assertEqual(json.loads(said)["status"], "success")
        self.assertEqual(guest.driverOf(DISK), "usb")

    def test_python(self) -> None:
        """A plain socket: one request with a line feed, one recv(4096)."""
        with socket.create_connection((HOST, int(self.port)), guest.DEADLINE) as connection:
            connection.sendall(b'{"command":"list"}\n')
            self.assertEqual(self.busIds(connection.recv(4096)), BUS_IDS)


class UserSpaceTests(DaemonCase):
    """
    Clients that speak USB/IP themselves, without C{vhci_hcd}: what they import here is the
    kernel's, from us and from a stock C{usbipd}.
    """

    backend = "{type: sysfs}"

    def setUp(self) -> None:
        super().setUp()
        self.served = self.daemon(self.config(more=EXPORT))

    def compare(self, busId: str, use: Callable[[int], None]) -> None:
        """
        A device is bound, used by a client of each server in turn, a few times, free after
        each, and unbound.

        @param use: is called with a server's port.
        """
        self.succeeds(self.served.ask("attach", id=busId))
        with guest.StockUsbipd(STOCK_PORT):
            for port in (STOCK_PORT, self.served.exportPort) * TIMES:
                use(port)
                self.stateSoon(self.served, "bound", busId)
        with self.served.watch(id=busId) as watcher:
            use(self.served.exportPort)
            watcher.told("released", busId)
            self.assertEqual(watcher.kinds(busId), ["imported", "released"])
        self.succeeds(self.served.ask("detach", id=busId))
        self.assertEqual(self.state(self.served, busId), "free")

    @needs(Need.GADGETS)
    def test_serialPort(self) -> None:
        """serial-usbipclient writes to a serial port, and reads what it answers."""
        if not serialclient.installed:
            self.skipTest("pip install serial-usbipclient")
        vendor, product = (int(number, 16) for number in guest.SERIAL.vidPid.split(":"))
        with guest.GadgetLine(guest.SERIAL) as line:

            def use(port: int) -> None:
                client = SerialClient(port, vendor, product)
                self.assertEqual(client.busIds(), [SERIAL])
                client.attach()
                self.stateSoon(self.served, "in_use", SERIAL)
                line.open()
                for number in range(20):
                    text = b"ping %d\r\n" % number
                    self.assertEqual(client.write(text), len(text))
                    self.assertEqual(line.read(len(text)), text)
                    line.write(text.upper())
                    self.assertEqual(client.read(), text.upper())
                client.close()

            self.compare(SERIAL, use)

    def test_disk(self) -> None:
        """usbip 0.7 reads a disk's true bytes."""
        content = guest.diskBytes()

        def use(port: int) -> None:
            transport = USBIP(HOST, port)
            self.assertEqual([it["busid"] for it in host.list_devices(transport)], [DISK])
            with host.open(busid=DISK, transport=transport) as handle:
                self.stateSoon(self.served, "in_use")
                disk = MSCDriver(handle)
                self.assertEqual(disk.max_lun(), 0)
                self.assertIn(b"QEMU", disk.inquiry())
                # The first command after a reset is answered with "unit attention".
                count, size = guest.waitUntil(
                    lambda: [it for it in [disk.read_capacity()] if it[1]], "it has a capacity"
                )[0]
                self.assertEqual(count * size, len(content))
                for first in range(0, count, count // 8):
                    read = disk.read_blocks(first, BLOCKS, size)
                    self.assertTrue(read == content[first * size :][: BLOCKS * size])

        self.compare(DISK, use)


del ClientCase, DaemonCase  # they are not to be run themselves
