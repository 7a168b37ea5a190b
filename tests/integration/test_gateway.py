"""
A daemon that is a gateway to others, and clients that others wrote.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.support.certificates import LAB, authority, signed, trusting
from tests.support.childdaemon import EXPORT, ChildDaemon, PatientDaemon
from tests.support.watchclient import WatchClient
from usbip_server.backends import softdevice
from usbip_server.model.tokens import hashOf, newToken
from usbip_server.model.usbip import (
    IMPORT_REPLY,
    Exported,
    ImportRequest,
    OpStatus,
    decodeImport,
    encodeRefusal,
    encodeRequest,
)

if softdevice.installed:
    from usbip import host  # type: ignore[import-untyped]
    from usbip.classes.host.cdc_acm import CDCDriver  # type: ignore[import-untyped]
    from usbip.core import USBError  # type: ignore[import-untyped]

    from tests.support.usbclient import UsbTransport

SECONDS = 60.0

VIRTUAL = """
backend:
  type: virtual
  devices:
    - {{bus_id: 1-1, kind: serial, product: {product}, serial: {serial}1}}
    - {{bus_id: 2-1.4, kind: serial, product: {product}, serial: {serial}2}}
"""


def serving(product: str, serial: str) -> str:
    """The configuration of a server with two serial ports."""
    return EXPORT + VIRTUAL.format(product=product, serial=serial)


def descriptorOf(device: Exported) -> bytes:
    """C{USBIP_CMD_SUBMIT} with GET_DESCRIPTOR of the device (USB 2.0, 9.4.3)."""
    head = struct.pack(">IIIII", 1, 1, device.deviceId, 1, 0)
    return head + struct.pack(">Iiiii", 0, 18, 0, 0, 0) + bytes.fromhex("8006000100001200")


class GatewayTestCase(SynchronousTestCase):
    """
    Two servers, each with two serial ports that send back what they receive; and a gateway.
    """

    if not softdevice.installed:
        skip = "the package usbip is not installed"

    def setUp(self) -> None:
        self.stack = contextlib.ExitStack()
        self.addCleanup(self.stack.close)
        servers = [PatientDaemon(serving(name, name[0])) for name in ("kitchen", "cellar")]
        with ThreadPoolExecutor() as pool:
            self.kitchen, self.cellar = pool.map(self.stack.enter_context, servers)
        self.gateway = self.stack.enter_context(PatientDaemon(self.configured()))

    def hosts(self) -> list[dict[str, Any]]:
        """What the gateway's configuration says of the servers."""
        return [
            {
                "name": name,
                "host": "127.0.0.1",
                "port": server.port,
                "export_port": server.exportPort,
            }
            for name, server in (("kitchen", self.kitchen), ("cellar", self.cellar))
        ]

    def configured(self) -> str:
        """The gateway's configuration."""
        backend = {"type": "remote", "hosts": self.hosts()}
        return f"{EXPORT}devices: [{{match: {{bus: 201-1}}, share: on_import}}]\n" + (
            f"backend: {json.dumps(backend)}\n"
        )

    def watching(self) -> WatchClient:
        """A client of the gateway's that is told what happens, until the test is over."""
        watching: WatchClient = self.stack.enter_context(self.gateway.watch(detail=True))
        return watching

    def open(self, busId: str) -> Any:
        """Import a port, through the gateway."""
        handle = host.open(busid=busId, transport=UsbTransport(self.gateway.exportPort))
        self.addCleanup(handle.close)
        return CDCDriver(handle)

    def assertWorks(self, port: Any) -> None:
        """The port does what it is for."""
        port.write(b"ping")
        self.assertEqual(port.read(), b"ping")

    def assertOver(self, port: Any) -> None:
        """The port has been taken from its client."""
        with self.assertRaises((USBError, OSError)):
            self.assertWorks(port)

    def attach(self, busId: str) -> None:
        """Attach it."""
        self.assertEqual(self.gateway.ask("attach", bus=busId)["status"], "success")

    def shown(self, busId: str, at: ChildDaemon | None = None) -> Any:
        """A device as it is shown, by the gateway or another one."""
        return (at or self.gateway).ask("find", id=busId, detail=True)["data"]

    def imported(self, server: ChildDaemon, busId: str) -> Exported:
        """What somebody who imports a device is answered, and who leaves then."""
        with socket.create_connection(("127.0.0.1", server.exportPort), SECONDS) as connection:
            connection.sendall(encodeRequest(ImportRequest(busId)))
            received = b""
            while (device := decodeImport(received)) is None:
                received += connection.recv(4096)
        return device

    def until(self, condition: Callable[[], object]) -> None:
        """Wait until something is so, that nobody tells of."""
        end = time.monotonic() + SECONDS
        while not condition():
            self.assertLess(time.monotonic(), end, "it is still not so")


class GatewayTests(GatewayTestCase):
    """
    Devices of others, at one address.
    """

    def test_list(self) -> None:
        """All devices of all servers are listed, each with its server's name, and a range of
        bus numbers for each server."""
        devices = self.gateway.ask("list")["data"]
        self.assertEqual(
            [(device["bus_id"], device["description"], device["serial"]) for device in devices],
            [
                ("101-1", "kitchen at kitchen", "k1"),
                ("102-1.4", "kitchen at kitchen", "k2"),
                ("201-1", "cellar at cellar", "c1"),
                ("202-1.4", "cellar at cellar", "c2"),
            ],
        )
        found = self.gateway.ask("find", desc="at cellar", bus=202)
        self.assertEqual(found["data"]["bus_id"], "202-1.4")
        # To attach and to detach one through the gateway does so at its server.
        self.attach("102-1.4")
        self.assertEqual(self.shown("2-1.4", self.kitchen)["state"], "bound")
        self.assertEqual(self.shown("102-1.4")["state"], "bound")
        self.assertEqual(self.shown("1-1", self.kitchen)["state"], "free")
        self.gateway.ask("detach", bus="102-1.4")
        self.assertEqual(self.shown("2-1.4", self.kitchen)["state"], "free")

    def test_session(self) -> None:
        """A client imports a port and uses it; the gateway shows whose it is and what it has
        moved, the server that it is the gateway's; and both that it was given back."""
        watching = self.watching()
        self.attach("101-1")
        port = self.open("101-1")
        for _ in range(10):
            self.assertWorks(port)
        imported = watching.told("imported", "101-1")
        shown = self.shown("101-1")
        self.assertEqual(shown["state"], "in_use")
        self.assertEqual(shown["holder"]["address"], "127.0.0.1")
        self.assertEqual(shown["holder"]["since"], imported["holder"]["since"])
        self.assertGreater(shown["holder"]["bytes_in"], 10 * (48 + 4 + 48))
        self.assertGreater(shown["holder"]["bytes_out"], 10 * (48 + 48 + 4))
        self.assertEqual(self.shown("1-1", self.kitchen)["state"], "in_use")
        port.close()
        released = watching.told("released", "101-1")
        self.assertGreaterEqual(released["holder"]["bytes_in"], shown["holder"]["bytes_in"])
        self.assertEqual(watching.kinds("101-1"), ["bound", "imported", "released"])
        self.assertEqual(self.shown("1-1", self.kitchen)["state"], "bound")

    def test_second(self) -> None:
        """A second client is refused, by the gateway as by the server; whoever gives a port
        back and wants it again at once gets it, each time. It is shared on import, by the
        gateway's rules."""
        for _ in range(10):
            port = self.open("201-1")
            self.assertWorks(port)
            port.close()
        self.attach("101-1")
        port = self.open("101-1")
        for server, busId in ((self.gateway, "101-1"), (self.kitchen, "1-1")):
            with socket.create_connection(("127.0.0.1", server.exportPort), SECONDS) as other:
                other.sendall(encodeRequest(ImportRequest(busId)))
                self.assertEqual(other.recv(4096), encodeRefusal(OpStatus.DEV_BUSY))
        self.assertWorks(port)

    def test_kick(self) -> None:
        """To kick a client ends its session, be it at the gateway or at the server; so does
        a detach."""
        self.attach("101-1")
        for ask in (
            lambda: self.gateway.ask("kick", bus="101-1"),
            lambda: self.kitchen.ask("kick", bus="1-1"),
            lambda: self.gateway.ask("detach", bus="101-1"),
        ):
            port = self.open("101-1")
            self.assertWorks(port)
            self.assertEqual(ask()["status"], "success")
            self.assertOver(port)

    def test_numbers(self) -> None:
        """A client is told the bus id that it has asked for, and the numbers that the device
        has on its own machine: those it has to be called by in USB traffic."""
        self.attach("102-1.4")
        here = self.imported(self.gateway, "102-1.4")
        self.until(lambda: self.shown("2-1.4", self.kitchen)["state"] == "bound")
        there = self.imported(self.kitchen, "2-1.4")
        self.assertEqual((here.busId, there.busId), ("102-1.4", "2-1.4"))
        self.assertEqual((here.busNumber, here.deviceNumber), (2, there.deviceNumber))
        self.assertEqual((here.release, here.subclass), (there.release, there.subclass))

    def test_others(self) -> None:
        """What happens at a server without the gateway's doing is told as well, and who has a
        device there, or has leased it."""
        watching = self.watching()
        self.cellar.ask("attach", bus="2-1.4")
        watching.told("bound", "202-1.4")
        with socket.create_connection(("127.0.0.1", self.cellar.exportPort), SECONDS) as client:
            client.sendall(encodeRequest(ImportRequest("2-1.4")))
            imported = watching.told("imported", "202-1.4")
            self.assertEqual(imported["holder"]["address"], "127.0.0.1")
            answer = self.gateway.ask("attach", bus="202-1.4")
            self.assertEqual(answer["status"], "failure")
            self.assertTrue(answer["message"].startswith("in use by 127.0.0.1 since"), answer)
        watching.told("released", "202-1.4")
        self.cellar.ask("detach", bus="2-1.4")
        watching.told("unbound", "202-1.4")
        self.cellar.ask("attach", bus="2-1.4", lease={"owner": "ci", "ttl": 600})
        answer = self.gateway.ask("attach", bus="202-1.4")
        self.assertEqual(answer["status"], "failure")
        self.assertIn("its server says: leased by ci", answer["message"])

    def test_restart(self) -> None:
        """When a server is killed its devices are gone, those of others are there, and the log
        says why; when it is back they are."""
        watching = self.watching()
        self.attach("101-1")
        port = self.open("101-1")
        place = [f"tcp:{self.kitchen.port}:interface=127.0.0.1"]
        export = EXPORT.replace("tcp:0", f"tcp:{self.kitchen.exportPort}")
        self.kitchen.kill()
        watching.told("removed", "102-1.4")
        self.assertOver(port)
        lost = self.gateway.logged("{reason}: the devices of {server} are not available")
        self.assertEqual(lost["server"], "kitchen")
        self.assertEqual(
            [device["bus_id"] for device in self.gateway.ask("list")["data"]],
            ["201-1", "202-1.4"],
        )
        self.assertWorks(self.open("201-1"))
        config = export + VIRTUAL.format(product="kitchen", serial="k")
        self.stack.enter_context(PatientDaemon(config, listen=place))
        watching.told("added", "101-1")
        watching.told("bound", "101-1")  # it was attached, and that is remembered
        self.assertWorks(self.open("101-1"))

    def test_none(self) -> None:
        """When no server is there, whoever asks is told which and why."""
        self.kitchen.kill()
        self.cellar.kill()
        for _ in range(2):
            self.gateway.logged("{reason}: the devices of {server} are not available")
        answer = self.gateway.ask("list")
        self.assertEqual(answer["status"], "error")
        self.assertRegex(answer["message"], "no server is there: kitchen .*: .*; cellar .*: .*")

    def test_stop(self) -> None:
        """When the gateway ends, so do the sessions that it carries; what was attached stays."""
        self.attach("101-1")
        port = self.open("101-1")
        self.gateway.child.terminate()
        self.gateway.child.wait(SECONDS)
        self.assertOver(port)
        self.until(lambda: self.shown("1-1", self.kitchen)["state"] == "bound")


class SecuredGatewayTests(GatewayTestCase):
    """
    A server that wants to be spoken to in TLS, and to be shown a token.
    """

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        authority(LAB).write(self.folder, "ca")
        signed("localhost").write(self.folder, "server")
        self.token = newToken()
        super().setUp()

    def hosts(self) -> list[dict[str, Any]]:
        config = (
            "export: {listen: ['tls:0:interface=127.0.0.1']}\n"
            f"tls: {{certificate: {self.folder}/server.pem, key: {self.folder}/server.key}}\n"
            "access:\n"
            f"  principals: {{gate: {{token: '{hashOf(self.token)}'}}}}\n"
            "  allow: [{who: gate}, {who: local, commands: [import]}]\n"
        ) + VIRTUAL.format(product="attic", serial="a")
        self.attic = self.stack.enter_context(
            PatientDaemon(config, listen=["tls:0:interface=127.0.0.1"])
        )
        (self.folder / "token").write_text(f"{self.token}\n")
        attic = {
            "name": "attic",
            "host": "127.0.0.1",
            "port": self.attic.port,
            "export_port": self.attic.exportPort,
            "token_file": str(self.folder / "token"),
            "tls": {"ca": str(self.folder / "ca.pem")},
            "bus": 700,
        }
        return [*super().hosts(), attic]

    def configured(self) -> str:
        places = [f"{kind}:0:interface=127.0.0.1" for kind in ("tcp", "tls")]
        return super().configured().replace(EXPORT, f"export: {{listen: {places}}}\n") + (
            f"tls: {{certificate: {self.folder}/server.pem, key: {self.folder}/server.key}}\n"
        )

    def test_both(self) -> None:
        """A client that speaks TLS with the gateway gets a device of a server that speaks TLS with
        it, and what the device says."""
        self.attach("702-1.4")
        exporting = "exporting on {description}: {address}"
        ports = [e["port"] for e in self.gateway.events if e.get("log_format") == exporting]
        with (
            socket.create_connection(("127.0.0.1", ports[1]), SECONDS) as plain,
            trusting().wrap_socket(plain, server_hostname="localhost") as client,
            client.makefile("rb") as answers,
        ):
            client.sendall(encodeRequest(ImportRequest("702-1.4")))
            device = decodeImport(answers.read(IMPORT_REPLY))
            assert device is not None
            client.sendall(descriptorOf(device))
            self.assertEqual(answers.read(48)[:8].hex(), "0000000300000001")
            self.assertEqual(answers.read(18)[:2].hex(), "1201")
            shown = self.shown("702-1.4")
            self.assertIn(shown["holder"]["encryption"], ("ktls", "relay"))
        self.until(lambda: self.shown("702-1.4")["state"] == "bound")

    def test_session(self) -> None:
        """A port there is used like any other, and a lot goes through in both directions."""
        self.attach("701-1")
        port = self.open("701-1")
        self.assertWorks(port)
        for _ in range(20):
            port.write(b"x" * 10000)
            received = b""
            while len(received) < 10000:
                received += port.read()
            self.assertEqual(received, b"x" * 10000)
        port.close()
        self.until(lambda: self.shown("701-1")["state"] == "bound")
