"""
A daemon that is a gateway to others, and clients that others wrote.
"""

from __future__ import annotations

import contextlib
import json
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.integration.case import DaemonCase, connect
from tests.support.certificates import LAB, authority, signed, trusting
from tests.support.childdaemon import EXPORT, PatientDaemon
from tests.support.watchclient import WatchClient
from usbip_server.backends import softdevice
from usbip_server.model.tokens import hashOf, newToken
from usbip_server.model.usbip import (
    IMPORT_REPLY,
    Exported,
    ImportRequest,
    decodeImport,
    encodeRequest,
)

if softdevice.installed:
    from usbip import host  # type: ignore[import-untyped]
    from usbip.classes.host.cdc_acm import CDCDriver  # type: ignore[import-untyped]
    from usbip.core import USBError  # type: ignore[import-untyped]

    from tests.support.usbclient import UsbTransport

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


class GatewayTestCase(DaemonCase):
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
        """The option C{hosts} of the gateway's backend."""
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
        """A client that watches the gateway, until the end of the test."""
        watching: WatchClient = self.stack.enter_context(self.gateway.watch(detail=True))
        return watching

    def open(self, busId: str) -> Any:
        """Import a port through the gateway."""
        handle = host.open(busid=busId, transport=UsbTransport(self.gateway.exportPort))
        self.addCleanup(handle.close)
        return CDCDriver(handle)

    def assertWorks(self, port: Any) -> None:
        """The port sends back what it receives."""
        port.write(b"ping")
        self.assertEqual(port.read(), b"ping")

    def assertOver(self, port: Any) -> None:
        """The session has ended."""
        with self.assertRaises((USBError, OSError)):
            self.assertWorks(port)


class GatewayTests(GatewayTestCase):
    """
    A gateway to two servers.
    """

    def test_session(self) -> None:
        """A device is bound at its server; during a session the gateway shows the client and its
        traffic, and the server shows that the device is in use; after it both show it as bound."""
        self.assertEqual(
            [(each["bus_id"], each["description"]) for each in self.gateway.ask("list")["data"]],
            [
                ("101-1", "kitchen at kitchen"),
                ("102-1.4", "kitchen at kitchen"),
                ("201-1", "cellar at cellar"),
                ("202-1.4", "cellar at cellar"),
            ],
        )
        watching = self.watching()
        self.assertSucceeds(self.gateway, "attach", bus="101-1")
        self.assertEqual(self.shown(self.kitchen, "1-1")["state"], "bound")
        port = self.open("101-1")
        for _ in range(10):
            self.assertWorks(port)
        imported = watching.told("imported", "101-1")
        shown = self.shown(self.gateway, "101-1")
        self.assertEqual(shown["state"], "in_use")
        self.assertEqual(shown["holder"]["address"], "127.0.0.1")
        self.assertEqual(shown["holder"]["since"], imported["holder"]["since"])
        self.assertGreater(shown["holder"]["bytes_in"], 10 * (48 + 4 + 48))
        self.assertGreater(shown["holder"]["bytes_out"], 10 * (48 + 48 + 4))
        self.assertEqual(self.shown(self.kitchen, "1-1")["state"], "in_use")
        port.close()
        released = watching.told("released", "101-1")
        self.assertGreaterEqual(released["holder"]["bytes_in"], shown["holder"]["bytes_in"])
        self.assertEqual(watching.kinds("101-1"), ["bound", "imported", "released"])
        self.assertEqual(self.shown(self.kitchen, "1-1")["state"], "bound")

    def test_serverKilled(self) -> None:
        """When a server is killed its devices are removed, with a warning, and those of other
        servers stay; when it is back they are added."""
        watching = self.watching()
        self.assertSucceeds(self.gateway, "attach", bus="101-1")
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


class SecuredGatewayTests(GatewayTestCase):
    """
    A third server, which requires TLS and a token.
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

    def test_tlsOnBothSides(self) -> None:
        """A client with TLS to the gateway uses a device of a server with TLS."""
        self.assertSucceeds(self.gateway, "attach", bus="702-1.4")
        exporting = "exporting on {description}: {address}"
        ports = [e["port"] for e in self.gateway.events if e.get("log_format") == exporting]
        with (
            connect(ports[1]) as plain,
            trusting().wrap_socket(plain, server_hostname="localhost") as client,
            client.makefile("rb") as answers,
        ):
            client.sendall(encodeRequest(ImportRequest("702-1.4")))
            device = decodeImport(answers.read(IMPORT_REPLY))
            assert device is not None
            client.sendall(descriptorOf(device))
            self.assertEqual(answers.read(48)[:8].hex(), "0000000300000001")
            self.assertEqual(answers.read(18)[:2].hex(), "1201")
            shown = self.shown(self.gateway, "702-1.4")
            self.assertIn(shown["holder"]["encryption"], ("ktls", "relay"))
        self.until(lambda: self.shown(self.gateway, "702-1.4")["state"] == "bound")
