"""The command C{usbipshare} in another network namespace than the server."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.kernel import guest
from tests.kernel.daemoncase import BUS_IDS, DISK, FAST, HOST, SERIAL, ElsewhereCase
from tests.kernel.inside.command import CommandResult
from tests.support.childdaemon import ChildDaemon

USBIPSHARE = str(Path(sys.executable).with_name("usbipshare"))

SECONDS = 60.0
"""For a command: an emulated machine needs some to start Python."""

THROUGH = f"10{DISK}"
"""The bus id of the disk at a gateway with one server."""

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs")


class TypedCase(ElsewhereCase):
    """A server, and the command."""

    def setUp(self) -> None:
        super().setUp()
        self.awaitListed(self.server)
        self.folder = Path(self.mktemp()).absolute()
        self.configure(self.elsewhere.server)
        self.prefixes: tuple[str, ...] = self.elsewhere.prefix

    def configure(self, host: str) -> None:
        """Write the client's configuration: the server C{lab} is at a host."""
        path = self.folder / "usbipshare/client.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"servers: {{lab: {{host: {host}}}}}\ntimeout: {guest.DEADLINE}\n")
        path.chmod(0o644)

    def execute(self, *words: str, prefix: tuple[str, ...] = ()) -> CommandResult:
        """Run a subcommand."""
        env = {**os.environ, "XDG_CONFIG_HOME": str(self.folder)}
        argv = (*self.prefixes, *prefix, USBIPSHARE, *words)
        return guest.run(*argv, seconds=SECONDS, env=env)

    def output(self, *words: str) -> str:
        """Run a subcommand that has to succeed; returns what it prints."""
        ended = self.execute(*words)
        self.assertEqual(ended.rc, 0, ended)
        return ended.out

    def devices(self, *words: str) -> list[dict[str, Any]]:
        """Run a subcommand with C{--json}; returns the devices that it prints."""
        answer = json.loads(self.output(*words, "--json"))
        self.assertEqual((answer["status"], answer["errors"]), ("success", []))
        devices: list[dict[str, Any]] = answer["devices"]
        return devices

    def imported(self) -> list[str]:
        """The bus ids of the imported devices."""
        return sorted(guest.imports().values())


class TypedTests(TypedCase):
    """With the server itself."""

    def test_session(self) -> None:
        """C{list}, C{attach}, C{ports}, C{doctor}, C{kick} and C{detach} with a disk and a serial
        port. A reader of the disk survives its reset at the client."""
        self.assertEqual([each["bus_id"] for each in self.devices("list")], BUS_IDS)
        [disk] = self.devices("attach", "DISK42")
        node = diskNode(disk)
        guest.checkDiskBytes(node)
        nodes = self.output("attach", SERIAL, "--host", "lab").split()
        self.assertRegex(nodes[-1], rf"^{guest.SERIAL_NODES}\d$")
        shown = guest.check("usbip", "port")
        for busId in (DISK, SERIAL):
            self.assertIn(f"usbip://{self.elsewhere.server}:3240/{busId}", shown)
            self.assertEqual(self.state(self.server, busId), "in_use")
        ports = {each["bus_id"]: each for each in self.devices("ports")}
        self.assertEqual(ports[DISK]["local_bus_id"], disk["local_bus_id"])
        self.assertEqual((ports[DISK]["server"], ports[SERIAL]["local_devices"]), ("lab", nodes))
        self.resetWhileRead(disk["local_bus_id"], node)
        print(f"\n{self.output('doctor', '--host', 'lab')}", end="")

        self.output("kick", SERIAL)
        guest.waitUntil(lambda: self.imported() == [disk["local_bus_id"]], "the serial is gone")
        self.output("detach", SERIAL)
        self.output("detach", node)
        for busId in (DISK, SERIAL):
            self.assertEqual(self.state(self.server, busId), "free")
        self.assertEqual((self.imported(), self.devices("ports")), ([], []))

    def resetWhileRead(self, busId: str, node: str) -> None:
        """A reset at the client, as programs there do it, does not end the session."""
        before = self.imported()
        with guest.diskReader(node) as reader:
            reader.awaitRead()
            guest.reset(busId)
            reader.awaitRead()
        self.assertEqual(self.imported(), before)
        self.assertEqual(self.state(self.server), "in_use")

    def test_superSpeed(self) -> None:
        """A super speed disk is attached at a super speed port."""
        self.addCleanup(self.unplugFast)
        guest.plug(guest.FAST_DISK.withSerial("FAST8"))
        guest.waitUntil(lambda: FAST in self.listed(self.server), "it is listed")
        guest.waitBlockDevice(FAST)
        [disk] = self.devices("attach", "FAST8")
        self.assertEqual(guest.attribute(disk["local_bus_id"], "speed"), "5000")
        guest.checkDiskBytes(diskNode(disk))
        self.output("detach", "FAST8")
        self.assertEqual(self.imported(), [])

    def unplugFast(self) -> None:
        """Detach the disk at the server, and unplug it."""
        self.server.ask("detach", id=FAST, force=True)
        guest.waitPresent(FAST)
        guest.forget(FAST)
        guest.unplug(guest.FAST_DISK)
        guest.waitGone(FAST)

    def test_refused(self) -> None:
        """An attach by another user than root, and one of a device in use, are refused."""
        ended = self.execute("attach", DISK, prefix=NOBODY)
        self.assertEqual(ended.rc, 7, ended)
        self.assertIn("sudo", ended.err)
        self.assertEqual(self.state(self.server), "free")
        self.succeeds(self.server.ask("attach", id=DISK))
        guest.stockAttach(DISK)
        self.awaitState(self.server, "in_use")
        ended = self.execute("attach", "DISK42")
        self.assertEqual(ended.rc, 5, ended)
        self.assertIn(HOST, ended.err)
        self.output("kick", "DISK42")
        guest.waitUntil(lambda: not self.imported(), "the other client has lost it")


class GatewayTests(TypedCase):
    """A gateway in the other namespace, and its clients in this one."""

    def setUp(self) -> None:
        super().setUp()
        self.gateway = ChildDaemon(
            f"backend: {{type: remote, hosts: [{self.elsewhere.server}]}}\n"
            "export: {listen: ['tcp:3240']}\nstate: {file: null, remember: false}\n",
            prefix=self.elsewhere.prefix,
            listen=["tcp:5055"],
        )
        self.enter(self.gateway)
        self.configure(self.elsewhere.address)
        self.prefixes = ()
        self.gateway.host = self.elsewhere.address
        self.awaitDisk(True)

    def awaitDisk(self, isListed: bool) -> None:
        """Wait until the gateway lists the disk, or does not."""
        guest.waitUntil(lambda: (THROUGH in self.listed(self.gateway)) == isListed, "the gateway")

    def test_disk(self) -> None:
        """A disk is attached through the gateway by the command and by Debian's C{usbip}. It is
        gone when it is unplugged at the server."""
        [disk] = self.devices("attach", "DISK42")
        self.assertEqual(disk["bus_id"], THROUGH)
        guest.checkDiskBytes(diskNode(disk))
        self.assertEqual(self.state(self.server), "in_use")
        self.assertEqual(self.state(self.gateway, THROUGH), "in_use")
        guest.unplug(guest.DISK)
        guest.waitUntil(lambda: not self.imported(), "it is gone at the client")
        self.awaitDisk(False)
        guest.plug(guest.DISK)
        self.awaitDisk(True)
        self.succeeds(self.gateway.ask("attach", id=THROUGH))
        port, busId, node = guest.attachDisk(THROUGH, self.elsewhere.address)
        guest.checkDiskBytes(node)
        guest.stockDetach(port, busId)
        self.awaitState(self.gateway, "bound", THROUGH)
        self.output("detach", THROUGH)
        self.awaitState(self.server, "free")


def diskNode(device: dict[str, Any]) -> str:
    """The node of an attached disk."""
    nodes: list[str] = device["local_devices"]
    return next(node for node in nodes if node.startswith("/dev/sd"))


del ElsewhereCase, TypedCase  # base classes are not run
