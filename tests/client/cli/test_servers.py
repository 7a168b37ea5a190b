"""
C{usbipshare servers}, and commands for which no server is named.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable

from tests.client.cli.commandcase import CommandCase
from tests.net.test_mdns import HERE, SECONDS, loopback
from usbip_server.client import nearby
from usbip_server.client.cli.context import CommandContext
from usbip_server.client.cli.output import Printer
from usbip_server.client.config import ClientSettings
from usbip_server.client.servers import Server
from usbip_server.model.replies import Refused
from usbip_server.net.announcer import Announcer
from usbip_server.net.mdns import Announcement, Ports, browse


class NearbyTests(CommandCase):
    """
    Servers in the local network.
    """

    addresses = HERE

    def setUp(self) -> None:
        super().setUp()
        self.patch(nearby, "CONTROL_PORT", self.nobody())
        self.patch(nearby, "privateAddresses", tuple)
        self.name = f"test-{uuid.uuid4().hex[:12]}"

    def announce(self, ports: Ports) -> None:
        """Announce a server, and wait until it is found."""
        announcer = Announcer(Announcement(self.name, "1.2", ports), loopback)
        announcer.start()
        self.addCleanup(announcer.join)
        self.addCleanup(announcer.stop)
        self.eventually(lambda: self.assertIn(self.name, [each["name"] for each in self.found()]))

    def eventually(self, check: Callable[[], None]) -> None:
        """Repeat a check: on a busy machine servers may answer later than a command waits."""
        until = time.monotonic() + SECONDS
        while True:
            try:
                return check()
            except self.failureException:
                if time.monotonic() > until:
                    raise

    def found(self) -> list[dict[str, object]]:
        """The servers that the command lists."""
        listed: list[dict[str, object]] = json.loads(self.type("servers", "--json").stdout)
        return listed

    def test_asked(self) -> None:
        """If no server is named, those in the network are asked."""
        daemon = self.daemon()
        (self.folder / "usbipshare" / "client.yaml").unlink()
        self.announce(Ports(requests=daemon.port, export=daemon.exportPort))

        def check() -> None:
            listed = [each for each in self.json("list")["devices"] if each["server"] == self.name]
            self.assertEqual([each["bus_id"] for each in listed], ["1-1", "1-2"])
            shown, export = self.type("servers").stdout, daemon.exportPort
            self.assertRegex(shown, rf"{self.name} +127.0.0.1 +{daemon.port} +- +{export}")
            found = [(each["name"], each["port"], each["version"]) for each in self.found()]
            self.assertIn((self.name, daemon.port, "1.2"), found)

        self.eventually(check)

    def test_here(self) -> None:
        """The server of this machine is C{localhost}, also if it is found in the network."""
        daemon = self.daemon()
        (self.folder / "usbipshare" / "client.yaml").unlink()
        self.announce(Ports(requests=daemon.port))
        self.patch(nearby, "CONTROL_PORT", daemon.port)
        self.patch(nearby, "privateAddresses", lambda: HERE)
        servers = nearby.serversNearby(lambda seconds: browse(seconds, HERE))
        self.assertEqual([server.name for server in servers], ["localhost"])

    def test_notAttached(self) -> None:
        """A device of a server that is not named is not attached; with C{--host} it is."""
        daemon = self.daemon()
        (self.folder / "usbipshare" / "client.yaml").unlink()
        self.announce(Ports(requests=daemon.port, export=daemon.exportPort))
        said = self.type("attach", "--serial", "DISK1", status=5).stderr
        address = f"127.0.0.1:{daemon.port}"
        self.assertIn(f"{self.name} is not named by you", said)
        self.assertIn(f"give --host {address}", said)
        state = daemon.ask("find", id="1-2", detail=True)["data"]["state"]
        self.assertEqual(state, "free")

    def test_calledLocalhost(self) -> None:
        """A server of another machine that calls itself C{localhost} is not trusted either."""
        context = CommandContext(self.machine(), Printer(False), ClientSettings(), None, 1)
        context.requireNamed(Server(name="localhost", host="localhost"))
        liar = Server(name="localhost", host="192.0.2.7")
        self.assertRaises(Refused, context.requireNamed, liar)

    def test_notTrusted(self) -> None:
        """A server in the network that has TLS only is not trusted because it is found."""
        self.announce(Ports(secureRequests=self.nobody()))

        def check() -> None:
            said = self.json("list", status=6)
            self.assertEqual([each["server"] for each in said["errors"]], [self.name])

        self.eventually(check)

    def test_named(self) -> None:
        """If servers are named, no other is looked for."""
        self.announce(Ports(requests=self.nobody()))
        self.daemon()
        servers = {each["server"] for each in self.json("list")["devices"]}
        self.assertEqual(servers, {"raspi"})


class AloneTests(CommandCase):
    """
    A machine without a network.
    """

    def test_none(self) -> None:
        """It is said that no server has answered, and how to name one."""
        self.patch(nearby, "CONTROL_PORT", self.nobody())
        self.assertEqual(json.loads(self.type("servers", "--json").stdout), [])
        self.assertIn("no server has answered within 1 s", self.type("servers").stderr)
