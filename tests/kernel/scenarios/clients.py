"""Unmodified clients of other projects."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from usbip import host  # type: ignore[import-untyped]
from usbip.classes.host.msc import MSCDriver  # type: ignore[import-untyped]
from usbip.transport import USBIP  # type: ignore[import-untyped]

from tests.kernel import guest
from tests.kernel.daemoncase import DISK, HOST, OTHER_STOCK_PORT, SERIAL, DaemonCase
from tests.kernel.inside.gadgetline import GadgetLine
from tests.kernel.needs import Need, needs
from tests.support import serialclient
from tests.support.childdaemon import EXPORT
from tests.support.serialclient import SerialClient

ROUNDS = 3

BLOCKS = 64
"""Of a disk, in one read."""


class UsbRemoteTests(DaemonCase):
    """usb-remote 2.3.2. The daemon is at its default port: usb-remote takes another one only from
    its configuration."""

    listen = "tcp:5055"

    def setUp(self) -> None:
        super().setUp()
        self.sharedDaemon()
        self.enter(guest.stockUsbipd())

    def usbRemote(self, *arguments: str) -> str:
        """Run its command. The exit status is always 0, so the output matters."""
        command = [sys.executable, "-m", "usb_remote", *arguments, "--host", HOST]
        result = guest.run(*command, seconds=120)
        return result.out + result.err

    def test_attachAndDetach(self) -> None:
        """The command attaches a disk, which can be read, and detaches it."""
        output = self.usbRemote("attach", "--serial", "DISK42")
        self.assertIn(f"Attached to device on {HOST}", output)
        _, imported = guest.waitImport()
        guest.checkDiskBytes(guest.waitBlockDevice(imported))
        self.assertIn("Detached from device", self.usbRemote("detach", "--serial", "DISK42"))
        guest.waitGone(imported)
        guest.waitBlockDevice(DISK)

    def test_attachInUse(self) -> None:
        """An attach of a device in use prints the server's message; the session goes on."""
        self.usbRemote("attach", "--serial", "DISK42")
        port, imported = guest.waitImport()
        node = guest.waitBlockDevice(imported)
        # Without the record usb-remote does not detach its own import first.
        Path(f"/var/run/vhci_hcd/port{port}").unlink()
        self.assertIn("in use", self.usbRemote("attach", "--serial", "DISK42"))
        guest.checkDiskBytes(node)

    def test_service(self) -> None:
        """Its client service attaches and detaches on JSON requests."""
        path = f"/run/{os.path.basename(self.mktemp())}.sock"
        child = subprocess.Popen(
            [sys.executable, "-m", "usb_remote", "client-service"],
            env={**os.environ, "USB_REMOTE_CLIENT_SOCKET": path},
        )
        self.addCleanup(child.wait, guest.DEADLINE)
        self.addCleanup(child.terminate)
        guest.waitUntil(lambda: os.path.exists(path), "the service listens", seconds=120)
        for command in ("attach", "detach"):
            request = {"command": command, "serial": "DISK42", "host": HOST}
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(120)
                connection.connect(path)
                connection.sendall(json.dumps(request).encode())
                answer = json.loads(connection.recv(4096))
            self.assertEqual(self.succeeds(answer)["bus_id"], DISK)
            if command == "attach":
                _, imported = guest.waitImport()
                guest.waitBlockDevice(imported)
        guest.waitBlockDevice(DISK)


class UserSpaceTests(DaemonCase):
    """Clients that speak USB/IP themselves, without C{vhci_hcd}, with the daemon and with
    C{usbipd}."""

    more = EXPORT

    def setUp(self) -> None:
        super().setUp()
        self.server = self.daemon()

    def compare(self, busId: str, use: Callable[[int], None]) -> None:
        """Bind a device, use it with each server in turn, and unbind it.

        @param use: imports, uses and releases the device; called with a server's port."""
        self.succeeds(self.server.ask("attach", id=busId))
        with guest.stockUsbipd(OTHER_STOCK_PORT):
            for port in (OTHER_STOCK_PORT, self.server.exportPort) * ROUNDS:
                use(port)
                self.awaitState(self.server, "bound", busId)
        with self.server.watch(id=busId) as watcher:
            use(self.server.exportPort)
            watcher.told("released", busId)
            self.assertEqual(watcher.kinds(busId), ["imported", "released"])
        self.succeeds(self.server.ask("detach", id=busId))
        self.assertEqual(self.state(self.server, busId), "free")

    @needs(Need.GADGETS)
    def test_serialUsbipClient(self) -> None:
        """serial-usbipclient writes to a serial port and reads from it."""
        if not serialclient.installed:
            self.skipTest("pip install serial-usbipclient")
        vendor, product = (int(number, 16) for number in guest.SERIAL.vidPid.split(":"))
        with GadgetLine(guest.SERIAL) as line:

            def use(port: int) -> None:
                client = SerialClient(port, vendor, product)
                self.assertEqual(client.busIds(), [SERIAL])
                client.attach()
                self.awaitState(self.server, "in_use", SERIAL)
                line.open()
                for number in range(20):
                    text = b"ping %d\r\n" % number
                    self.assertEqual(client.write(text), len(text))
                    self.assertEqual(line.read(len(text)), text)
                    line.write(text.upper())
                    self.assertEqual(client.read(), text.upper())
                client.close()

            self.compare(SERIAL, use)

    def test_pythonUsbip(self) -> None:
        """The package usbip 0.7 reads a disk."""
        content = guest.diskBytes()

        def use(port: int) -> None:
            transport = USBIP(HOST, port)
            self.assertEqual([it["busid"] for it in host.list_devices(transport)], [DISK])
            with host.open(busid=DISK, transport=transport) as handle:
                self.awaitState(self.server, "in_use")
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


del DaemonCase  # base classes are not run
