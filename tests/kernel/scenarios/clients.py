"""
Clients that nobody here wrote, unmodified, against the daemon.
"""

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
from tests.kernel.daemoncase import DISK, SERIAL, DaemonCase
from tests.kernel.needs import Need, needs
from tests.support import serialclient
from tests.support.childdaemon import EXPORT
from tests.support.serialclient import SerialClient

HOST = "127.0.0.1"

STOCK_PORT = 3241
"""Of a stock C{usbipd}, to compare with."""

TIMES = 3

BLOCKS = 64
"""Of a disk, to read at once."""


class UsbRemoteTests(DaemonCase):
    """
    usb-remote 2.3.2, the field's most used client. The daemon is on the default port, as it takes
    another only from its configuration.
    """

    backend = "{type: sysfs}"
    listen = "tcp:5055"

    def setUp(self) -> None:
        super().setUp()
        self.shared()
        server = guest.StockUsbipd()
        server.__enter__()
        self.addCleanup(server.__exit__, None, None, None)

    def serving(self, *command: str, **environment: str) -> None:
        """Have a program running until the test ends."""
        child = subprocess.Popen(command, env={**os.environ, **environment})
        self.addCleanup(child.wait, guest.DEADLINE)
        self.addCleanup(child.terminate)

    def usbRemote(self, *arguments: str) -> str:
        """
        Run its command line. It exits with 0 whatever happens, so its words count.
        """
        command = [sys.executable, "-m", "usb_remote", *arguments, "--host", HOST]
        result = guest.run(*command, seconds=120)
        return result.out + result.err

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


del DaemonCase  # it is not to be run itself
