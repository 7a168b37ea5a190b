"""
The command C{usbipshare} on another machine, as far as the network goes: what somebody types, and
what comes of it on a real kernel.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from tests.kernel import guest
from tests.kernel.daemoncase import BUS_IDS, DISK, ElsewhereCase
from tests.support.childdaemon import ChildDaemon

SERIAL = guest.SERIAL.busId

USBIPSHARE = str(Path(sys.executable).with_name("usbipshare"))

SECONDS = 60.0
"""For a command: an emulated machine needs some to start Python."""

FAST = guest.FAST_DISK.busId
"""Where a super speed disk is plugged in."""

LATER = 8.0
"""Seconds until something is plugged in that is waited for."""

THROUGH = f"10{DISK}"
"""The disk, at the first server of a gateway."""

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs")


class TypedCase(ElsewhereCase):
    """
    A server, and somebody at a terminal elsewhere.
    """

    def setUp(self) -> None:
        super().setUp()
        self.listsSoon(self.server)
        self.folder = Path(self.mktemp()).absolute()
        self.know(self.elsewhere.server)
        self.where: tuple[str, ...] = self.elsewhere.prefix

    def know(self, host: str) -> None:
        """Where the server is that is called C{lab}."""
        (self.folder / "usbipshare").mkdir(parents=True, exist_ok=True)
        path = self.folder / "usbipshare/client.yaml"
        path.write_text(f"servers: {{lab: {{host: {host}}}}}\ntimeout: {guest.DEADLINE}\n")
        path.chmod(0o644)

    def type(self, *words: str, prefix: tuple[str, ...] = ()) -> guest.CommandResult:
        """Type a command."""
        env = {**os.environ, "XDG_CONFIG_HOME": str(self.folder)}
        argv = (*self.where, *prefix, USBIPSHARE, *words)
        return guest.run(*argv, seconds=SECONDS, env=env)

    def done(self, *words: str) -> str:
        """Type a command that has to do what it is for: what it prints."""
        ended = self.type(*words)
        self.assertEqual(ended.rc, 0, ended)
        return ended.out

    def told(self, *words: str) -> list[dict[str, Any]]:
        """Likewise, with C{--json}: the devices it prints."""
        answer = json.loads(self.done(*words, "--json"))
        self.assertEqual((answer["status"], answer["errors"]), ("success", []))
        devices: list[dict[str, Any]] = answer["devices"]
        return devices

    def used(self) -> list[str]:
        """Where something is plugged in."""
        return sorted(guest.imports().values())


class TypedTests(TypedCase):
    """
    From our daemon.
    """

    def test_session(self) -> None:
        """A disk and a serial converter are found, plugged in, shown, reset while they are used,
        lost to somebody who kicks, and pulled out again; C{doctor} finds nothing wrong."""
        self.assertEqual([each["bus_id"] for each in self.told("list")], BUS_IDS)
        [disk] = self.told("attach", "DISK42")
        node = nodeOf(disk, "/dev/sd")
        guest.check("cmp", node, os.environ["USBIPSHARE_GUEST_DISK"])
        nodes = self.done("attach", SERIAL, "--host", "lab").split()
        self.assertRegex(nodes[-1], rf"^{guest.SERIAL_NODES}\d$")
        shown = guest.check("usbip", "port")
        for busId in (DISK, SERIAL):
            self.assertIn(f"usbip://{self.elsewhere.server}:3240/{busId}", shown)
            self.assertEqual(self.state(self.server, busId), "in_use")
        ports = {each["bus_id"]: each for each in self.told("ports")}
        self.assertEqual(ports[DISK]["local_bus_id"], disk["local_bus_id"])
        self.assertEqual((ports[DISK]["server"], ports[SERIAL]["local_devices"]), ("lab", nodes))
        self.resetInUse(disk["local_bus_id"], node)
        doctor = self.type("doctor", "--host", "lab")
        self.assertEqual(doctor.rc, 0, doctor)
        print(f"\n{doctor.out}", end="")

        self.done("kick", SERIAL)
        guest.waitUntil(lambda: self.used() == [disk["local_bus_id"]], "the converter is gone")
        self.done("detach", SERIAL)
        self.done("detach", node)
        for busId in (DISK, SERIAL):
            self.assertEqual(self.state(self.server, busId), "free")
        self.assertEqual((self.used(), self.told("ports")), ([], []))

    def resetInUse(self, busId: str, node: str) -> None:
        """The disk is reset, as programs here do it, while somebody reads it: who reads goes on,
        and it stays where it is."""
        before = self.used()
        with guest.DiskReader(node, guest.diskBytes(), Path.cwd()) as reader:
            reader.readsOn()
            guest.reset(busId)
            reader.readsOn()
        self.assertEqual(self.used(), before)
        self.assertEqual(self.state(self.server), "in_use")

    def test_fast(self) -> None:
        """A super speed disk comes at a port for such, and is what it is."""
        self.addCleanup(self.unplugFast)
        guest.plug(guest.FAST_DISK.withSerial("FAST8"))
        guest.waitUntil(lambda: FAST in self.listed(self.server), "it is listed")
        guest.waitBlockDevice(FAST)
        [disk] = self.told("attach", "FAST8")
        self.assertEqual(guest.attribute(disk["local_bus_id"], "speed"), "5000")
        guest.check("cmp", nodeOf(disk, "/dev/sd"), os.environ["USBIPSHARE_GUEST_DISK"])
        self.done("detach", "FAST8")
        self.assertEqual(self.used(), [])

    def unplugFast(self) -> None:
        """Make all as it was: the server lets go of it first."""
        self.server.ask("detach", id=FAST, force=True)
        guest.waitUntil(lambda: guest.driverOf(FAST) == "usb", "it is this machine's")
        guest.forget(FAST)
        guest.unplug(guest.FAST_DISK)
        guest.waitGone(FAST)

    def test_refused(self) -> None:
        """What cannot be had is told by the exit code, and why by a line."""
        for words, status, text in (
            (("attach", "NOSUCH"), 3, "NOSUCH"),
            (("attach", "QEMU"), 4, DISK),
            (("attach", DISK, "--host", "10.55.32.9", "--timeout", "1"), 6, "10.55.32.9"),
        ):
            ended = self.type(*words)
            self.assertEqual(ended.rc, status, ended)
            self.assertIn(text, ended.out + ended.err)
        ended = self.type("attach", DISK, prefix=NOBODY)
        self.assertEqual(ended.rc, 7, ended)
        self.assertIn("sudo", ended.err)
        self.assertEqual(self.state(self.server), "free")
        self.importDiskHere()
        ended = self.type("attach", "DISK42")
        self.assertEqual(ended.rc, 5, ended)
        self.assertIn("127.0.0.1", ended.err)
        self.done("kick", "DISK42")
        guest.waitUntil(lambda: not self.used(), "it is taken from us")

    def importDiskHere(self) -> None:
        """Have it ourselves, with stock C{usbip}."""
        self.succeeds(self.server.ask("attach", id=DISK))
        guest.check("usbip", "attach", "-r", "127.0.0.1", "-b", DISK)
        guest.waitImport()
        self.stateSoon(self.server, "in_use")

    def test_wait(self) -> None:
        """A device that is not there yet is waited for."""
        guest.unplug(guest.DISK)
        guest.waitGone(DISK)
        later = threading.Timer(LATER, guest.plug, (guest.DISK,))
        later.start()
        self.addCleanup(later.join)
        [disk] = self.told("attach", "--serial", "DISK42", "--wait", "50")
        self.assertEqual(self.used(), [disk["local_bus_id"]])
        self.done("detach", "DISK42")


class GatewayTests(TypedCase):
    """
    A gateway on the other machine, and its clients on this one.
    """

    def setUp(self) -> None:
        super().setUp()
        gateway = ChildDaemon(
            f"backend: {{type: remote, hosts: [{self.elsewhere.server}]}}\n"
            "export: {listen: ['tcp:3240']}\nstate: {file: null, remember: false}\n",
            prefix=self.elsewhere.prefix,
            listen=["tcp:5055"],
        )
        gateway.__enter__()
        self.addCleanup(gateway.__exit__, None, None, None)
        self.know(self.elsewhere.address)
        self.where = ()
        gateway.host = self.elsewhere.address
        guest.waitUntil(lambda: THROUGH in self.listed(gateway), "the gateway has the disk")
        self.gateway = gateway

    def assertTrueBytes(self, node: str) -> None:
        """A disk is what it should be."""
        guest.check("cmp", node, os.environ["USBIPSHARE_GUEST_DISK"])

    def test_disk(self) -> None:
        """A disk comes through it to our command and to stock C{usbip}, goes when it is unplugged,
        and can be had again."""
        [disk] = self.told("attach", "DISK42")
        self.assertEqual(disk["bus_id"], THROUGH)
        self.assertTrueBytes(nodeOf(disk, "/dev/sd"))
        self.assertEqual(self.state(self.server), "in_use")
        self.assertEqual(self.state(self.gateway, THROUGH), "in_use")
        guest.unplug(guest.DISK)
        guest.waitUntil(lambda: not self.used(), "it is gone here")
        guest.waitUntil(lambda: THROUGH not in self.listed(self.gateway), "and at the gateway")
        guest.plug(guest.DISK)
        guest.waitUntil(lambda: THROUGH in self.listed(self.gateway), "it is there again")
        self.succeeds(self.gateway.ask("attach", id=THROUGH))
        guest.check("usbip", "attach", "-r", self.elsewhere.address, "-b", THROUGH)
        port, busId = guest.waitImport()
        self.assertTrueBytes(guest.waitBlockDevice(busId))
        guest.check("usbip", "detach", "-p", str(port))
        guest.waitGone(busId)
        self.stateSoon(self.gateway, "bound", THROUGH)
        self.done("detach", THROUGH)
        self.stateSoon(self.server, "free")


def nodeOf(device: dict[str, Any], beginning: str) -> str:
    """
    One of a device's nodes on this machine.
    """
    nodes: list[str] = device["local_devices"]
    return next(node for node in nodes if node.startswith(beginning))
