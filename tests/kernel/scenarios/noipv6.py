"""A kernel without IPv6."""

from __future__ import annotations

import socket

from tests.kernel import guest
from tests.kernel.daemoncase import DISK, HOST, ElsewhereCase
from tests.kernel.needs import boots
from tests.support.childservice import REAL, ChildService


@boots("ipv6.disable=1")
class NoIpv6Tests(ElsewhereCase):
    """A server at its default ports, and clients in another network namespace."""

    def test_server(self) -> None:
        """The daemon listens with IPv4, and exports a disk to Debian's C{usbip}."""
        self.assertRaises(OSError, socket.socket, socket.AF_INET6)
        self.succeeds(self.server.ask("attach", id=DISK))
        self.assertIn(f"{DISK}:", guest.check("usbip", "list", "-r", HOST))
        port, imported, node = guest.attachDisk(DISK)
        guest.checkDiskBytes(node)
        guest.stockDetach(port, imported)
        self.awaitState(self.server, "bound")
        self.assertNothingLogged(self.server)

    def test_clients(self) -> None:
        """The client service attaches the disk, and the command lists it."""
        servers = f"servers: {{here: {{host: {self.elsewhere.server}}}}}\n"
        rules = "devices: [{name: disk, serial: DISK42}]\n"
        with ChildService(servers + rules, REAL, self.elsewhere.prefix):
            guest.waitUntil(guest.imports, "it is attached")
            listed = self.elsewhere.check("usbipshare", "list", "--host", self.elsewhere.server)
            self.assertIn("DISK42", listed)


del ElsewhereCase  # base classes are not run
