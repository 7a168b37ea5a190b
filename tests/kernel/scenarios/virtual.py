"""The virtual backend's disk, imported by a real kernel with Debian's C{usbip}. Its serial port is
in L{tests.kernel.scenarios.attaching}."""

from __future__ import annotations

import os

from tests.kernel import guest
from tests.kernel.daemoncase import HOST, DaemonCase
from tests.support.childdaemon import EXPORT


class VirtualTests(DaemonCase):
    """A device of a configuration that declares none."""

    backend = "{type: virtual}"
    more = EXPORT
    modules = ("vhci-hcd", "usb-storage", "sd_mod")

    def test_diskKeepsWhatIsWritten(self) -> None:
        """The disk has 1 MiB, and what was written to it can be read again. A detach at the server
        takes it from the client."""
        server = self.daemon()
        remote = self.succeeds(server.ask("attach", serial="DISK1"))["bus_id"]
        _, local = guest.stockAttach(remote, port=server.exportPort)
        self.assertEqual(guest.attribute(local, "serial"), "DISK1")
        found = self.detail(server, remote)
        self.assertEqual((found["state"], found["holder"]["address"]), ("in_use", HOST))
        node = guest.waitBlockDevice(local)
        written = os.urandom(65536)
        with open(node, "r+b", buffering=0) as disk:
            disk.write(written)
            os.fsync(disk.fileno())
        guest.check("blockdev", "--flushbufs", node)
        content = guest.readBlockDevice(node)
        self.assertEqual(len(content), 1024 * 1024)
        self.assertTrue(content.startswith(written))
        self.succeeds(server.ask("detach", id=remote))
        guest.waitGone(local)


del DaemonCase  # base classes are not run
