"""
A machine with Windows and C{usbipd-win} as a server, as far as what goes over the wire.
"""

from __future__ import annotations

import socket
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.client.cli.commandcase import CommandCase
from tests.client.cli.test_asking import listen
from tests.client.test_attach import AttachingTestCase
from tests.client.usbipdwin import BOARD, CAMERA, DRIVE, UsbipdWin, WindowsDevice
from tests.support.scriptedserver import ScriptedServer, connections, received
from usbip_server.client.cli.exitcodes import Exit
from usbip_server.client.imports import importDevice, listDevices
from usbip_server.client.servers import Server
from usbip_server.kernel.vhci.records import Record
from usbip_server.model.device import Encryption
from usbip_server.model.errors import Unreachable
from usbip_server.model.usbip import NotGiven, OpStatus

SECONDS = 60.0

BIND = "usbipd bind --busid"


class WindowsCase(SynchronousTestCase):
    """
    A server like usbipd-win. It receives only what the client sends to it.
    """

    def windows(self, *devices: WindowsDevice) -> Server:
        """Start the server."""
        self.usbipd = UsbipdWin(*devices or (BOARD, CAMERA, DRIVE))
        scripted = ScriptedServer(self.usbipd)
        scripted.__enter__()
        self.addCleanup(lambda: self.assertEqual(b"".join(scripted.heard), b""))
        self.addCleanup(scripted.__exit__, None, None, None)
        return scripted.server


class WireTests(WindowsCase):
    """
    Lists and imports.
    """

    def setUp(self) -> None:
        before = connections()
        self.addCleanup(lambda: self.assertLessEqual(connections(), before))
        self.server = self.windows()

    def test_bytes(self) -> None:
        """The simulated server writes the bytes of the real one, and no reply to other requests."""
        device = (
            rb"USB\VID_2341&PID_0043\75330303035351F0A1C1".ljust(256, b"\0")
            + b"2-4".ljust(32, b"\0")
            + bytes.fromhex("00000002 00000004 00000002 2341 0043 0001 02 00 00 01 01 02")
        )
        self.usbipd.devices = {"2-4": BOARD}
        head = bytes.fromhex("0111 0005 00000000 00000001")
        for request, reply in (
            ("0111 8005 00000000", head + device + bytes.fromhex("02020100 0a000000")),
            *((other, b"") for other in ("0106 8005 00000000", "0111 8004 00000000")),
        ):
            address = (self.server.host, self.server.exportPort)
            with socket.create_connection(address, SECONDS) as connection:
                connection.sendall(bytes.fromhex(request))
                self.assertEqual(received(connection, 4096), reply)
        self.assertEqual(b"".join(BOARD.described(withInterfaces=False)), device)

    def test_list(self) -> None:
        """Shared devices are listed with Windows' paths and their interfaces. If a device goes
        during the list there is no reply."""
        board, drive = listDevices(self.server, SECONDS)
        self.assertEqual(
            (board.path, board.busId, board.deviceId, board.interfaces),
            (BOARD.instanceId, "2-4", 0x20004, ("02/02/01", "0a/00/00")),
        )
        self.assertEqual((drive.busId, drive.interfaces), ("1-21", ("08/06/50",)))
        self.usbipd.breaks = True
        error = self.assertRaises(Unreachable, listDevices, self.server, SECONDS)
        self.assertIn("the server has closed the connection without a reply", str(error))
        self.usbipd.breaks, self.usbipd.devices = False, {"1-6": CAMERA}
        self.assertEqual(listDevices(self.server, SECONDS), ())

    def test_refusals(self) -> None:
        """What is not shared or absent is refused, and so is a bus id of Linux."""
        for busId in ("1-6", "3-1", "1-1.4", "100-1"):
            error = self.assertRaises(NotGiven, importDevice, self.server, busId, SECONDS)
            self.assertEqual(error.status, OpStatus.NODEV)


class PluggingTests(AttachingTestCase, WindowsCase):
    """
    Its devices, attached to a kernel in memory.
    """

    def setUp(self) -> None:
        super().setUp()
        self.server = self.windows()
        self.addCleanup(self.kernel.close)

    def test_attachAndDetach(self) -> None:
        """A device is attached with its numbers, at a port of its speed, and detached."""
        for busId, port, order in (
            ("2-4", 0, rf"\d+ {0x20004} 2"),
            ("1-21", 2, rf"\d+ {0x10015} 5"),
        ):
            attached, kept = self.attach(self.server, busId)
            service = str(self.server.exportPort)
            self.assertEqual(
                attached.record, Record(host="127.0.0.1", service=service, busId=busId)
            )
            self.assertEqual((attached.port, attached.encryption), (port, Encryption.NONE))
            self.assertRegex(self.kernel.writes[-1][1], f"^{port} {order}$")
            self.assertTrue(self.attaching.detach(port))
            self.assertOver(kept)


class CommandTests(CommandCase, WindowsCase):
    """
    Commands, with C{stock: true} in client.yaml.
    """

    def setUp(self) -> None:
        super().setUp()
        self.node = str(self.folder / "dev/ttyUSB0")
        port = self.windows().exportPort
        self.addCleanup(self.kernel.close)
        self.known("desktop", host="127.0.0.1", export_port=port, stock=True)

    def refused(self, word: str) -> str:
        """The message of a refused attach."""
        message: str = self.json("attach", word, status=Exit.REFUSED)["message"]
        self.assertEqual(self.kernel.used(), {})
        return message

    def test_list(self) -> None:
        """Shared devices are listed, and no other port is connected to."""
        done = self.type("list")
        _, board, drive = done.stdout.splitlines()
        self.assertEqual(board.split()[:3], ["desktop", "2-4", "-"])
        self.assertIn("USB device 0781:5581", drive)
        self.assertEqual(done.stderr, "")
        [device] = self.json("find", "1-21")["devices"]
        self.assertEqual((device["speed"], device["interfaces"]), ("5000", ["08/06/50"]))
        [server] = self.json("status")["servers"]
        self.assertEqual((server["kind"], server["devices"]), ("usbipd", 2))

    def test_attachAndDetach(self) -> None:
        """A device is selected by bus id or vid:pid, attached, and detached."""
        for arguments in (("2-4",), ("2341:0043",), ("--id", "2341:*"), ("--bus", "2-4")):
            done = self.type("attach", *arguments)
            self.assertEqual(done.stdout, f"{self.node}\n")
            self.assertIn("2-4 (USB device 2341:0043) at desktop: attached at port", done.stderr)
            self.assertEqual(self.type("attach", *arguments).stdout, done.stdout)
            done = self.type("detach", *arguments)
            self.assertIn("desktop is a stock usbipd: 2-4 stays bound there", done.stderr)
        self.assertEqual(self.kernel.used(), {})

    def test_notShared(self) -> None:
        """For a device that is not listed the advice names the commands of Linux and Windows."""
        said = self.json("attach", "1-6", status=Exit.NOT_FOUND)["message"]
        self.assertEqual(
            said,
            "no device matches '1-6'; a stock usbipd (desktop) lists only devices that are bound: "
            "on the server, sudo usbip bind -b 1-6; "
            "on Windows, as administrator, usbipd bind --busid 1-6",
        )
        for command, arguments in (("find", ("nothing",)), ("attach", ("--id", "13d3:*"))):
            done = self.type(command, *arguments, status=Exit.NOT_FOUND)
            self.assertIn(f"on Windows, as administrator, {BIND} BUSID\n", done.stderr)

    def test_noLongerShared(self) -> None:
        """So it does for one that was listed and is not shared any more."""
        self.usbipd.wasListed = lambda: self.usbipd.devices.pop("2-4", None)
        self.assertEqual(
            self.refused("2-4"),
            "2-4 (USB device 2341:0043) at desktop: its server has no bound device there, or does "
            "not permit the import; on the server: as administrator, usbipd bind --busid 2-4",
        )

    def test_refusals(self) -> None:
        """A device may be used by a client, or kept by Windows: there is advice for each."""
        force = "administrator: usbipd bind --force --busid 2-4"
        for status, advice in (
            (OpStatus.DEV_BUSY, f"`usbipd list` on the server shows whether .*{force}"),
            (OpStatus.NA, force),
            (OpStatus.DEV_ERR, force),
            (OpStatus.ERROR, "; on the server: usbipd list"),
        ):
            self.usbipd.stays["2-4"] = status
            self.assertRegex(self.refused("2-4"), f"{advice}$")

    def test_doctor(self) -> None:
        """A server with only the port of USB/IP is no problem; for a closed port Windows' firewall
        is named."""
        found = self.checks()
        self.assertTrue(found["desktop: USB/IP"]["ok"])
        self.assertNotIn("desktop: requests", found)
        with ScriptedServer(listen) as silent:
            self.known("desktop", host="127.0.0.1", export_port=silent.port, stock=True)
            check = self.checks("--timeout", "0.2", status=Exit.UNREACHABLE)["desktop: USB/IP"]
        self.assertIn("no answer in time", check["found"])
        self.assertIn("on Windows, its rule usbipd admits only", check["fix"])

    def checks(self, *arguments: str, status: int = 0) -> dict[str, Any]:
        """The checks of C{doctor}, by their subject."""
        said = self.json("doctor", *arguments, status=status)
        return {check["what"]: check for check in said["checks"]}
