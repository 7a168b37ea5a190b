"""
The virtual backend's devices, imported by a real kernel with Debian's C{usbip}.
"""

from __future__ import annotations

import os

from tests.kernel import guest
from tests.kernel.daemoncase import HOST, DaemonCase
from tests.support.childdaemon import EXPORT


class VirtualTests(DaemonCase):
    """The two devices of a configuration that declares none."""

    backend = "{type: virtual}"
    more = EXPORT
    modules = ("vhci-hcd", "cdc-acm", "usb-storage", "sd_mod")

    def setUp(self) -> None:
        super().setUp()
        self.server = self.daemon()

    def attach(self, serial: str) -> tuple[str, str]:
        """
        Attach and import a device.

        @return: its bus id at the server, and that of the imported device.
        """
        remote = self.succeeds(self.server.ask("attach", serial=serial))["bus_id"]
        _, local = guest.stockAttach(remote, port=self.server.exportPort)
        self.assertEqual(guest.attribute(local, "serial"), serial)
        found = self.detail(self.server, remote)
        self.assertEqual((found["state"], found["holder"]["address"]), ("in_use", HOST))
        return remote, local

    def detach(self, remote: str, local: str) -> None:
        """Detach a device at the server, which takes it from the client."""
        self.succeeds(self.server.ask("detach", id=remote))
        guest.waitGone(local)

    def test_serialPortEchoes(self) -> None:
        """The serial port becomes a tty that echoes."""
        remote, local = self.attach("ECHO1")
        guest.checkEcho(str(guest.waitUntil(lambda: guest.ttyDevice(local), "it has a tty")))
        self.detach(remote, local)

    def test_diskKeepsWhatIsWritten(self) -> None:
        """The disk has 1 MiB, and what was written to it can be read again."""
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


del DaemonCase  # base classes are not run
