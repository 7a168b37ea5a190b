"""
The devices of the virtual backend, imported by a real kernel with stock C{usbip}.
"""

from __future__ import annotations

import os
import select
import time

from twisted.trial.unittest import SynchronousTestCase

from tests.kernel import guest
from tests.support.childdaemon import EXPORT, ChildDaemon


class VirtualTests(SynchronousTestCase):
    """
    The two that there are when none are declared.
    """

    def setUp(self) -> None:
        guest.awaitDevices()
        for module in ("vhci-hcd", "cdc-acm", "usb-storage", "sd_mod"):
            guest.modprobe(module)
        self.addCleanup(guest.resetUsb)
        self.daemon = ChildDaemon(f"backend: {{type: virtual}}\n{EXPORT}")
        self.daemon.__enter__()
        self.addCleanup(self.daemon.__exit__, None, None, None)

    def attach(self, serial: str) -> tuple[str, str]:
        """
        Attach a device here and there.

        @return: its bus id at the server and at the client.
        """
        answer = self.daemon.ask("attach", serial=serial)
        self.assertEqual(answer["status"], "success", answer)
        remote = answer["data"]["bus_id"]
        port = str(self.daemon.exportPort)
        guest.check("usbip", "--tcp-port", port, "attach", "-r", "127.0.0.1", "-b", remote)
        _, local = guest.waitImport()
        self.assertEqual(guest.attribute(local, "serial"), serial)
        found = self.daemon.ask("find", serial=serial, detail=True)["data"]
        self.assertEqual((found["state"], found["holder"]["address"]), ("in_use", "127.0.0.1"))
        return remote, local

    def detach(self, remote: str, local: str) -> None:
        """Detach it at the server: the client loses it."""
        self.assertEqual(self.daemon.ask("detach", id=remote)["status"], "success")
        guest.waitGone(local)

    def test_serialPort(self) -> None:
        """The serial port is a tty that echoes."""
        remote, local = self.attach("ECHO1")
        node = str(guest.waitUntil(lambda: guest.ttyDevice(local), "it has a tty"))
        guest.check("stty", "-F", node, "raw", "-echo")
        port = os.open(node, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            os.write(port, b"Hello, USB!")
            echo = b""
            end = time.monotonic() + guest.DEADLINE
            while echo != b"Hello, USB!" and time.monotonic() < end:
                if select.select([port], [], [], 1)[0]:
                    echo += os.read(port, 100)
        finally:
            os.close(port)
        self.assertEqual(echo, b"Hello, USB!")
        self.detach(remote, local)

    def test_disk(self) -> None:
        """The disk keeps what is written to it."""
        remote, local = self.attach("DISK1")
        node = guest.waitBlockDevice(local)
        written = os.urandom(65536)
        with open(node, "r+b", buffering=0) as disk:
            disk.write(written)
            os.fsync(disk.fileno())
        guest.check("blockdev", "--flushbufs", node)
        content = guest.readBlockDevice(node)
        self.assertEqual(len(content), 1024 * 1024)
        self.assertTrue(content.startswith(written))
        self.detach(remote, local)
