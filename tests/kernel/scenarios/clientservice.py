"""
The client service on another machine, as far as the network goes: devices stay plugged in whatever
happens to them, to the server, to the network and to the service itself.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.kernel import guest
from tests.kernel.daemoncase import DISK, ElsewhereCase, leave
from tests.kernel.scenarios.service import SystemdCase
from tests.support.childdaemon import ChildDaemon
from tests.support.childservice import REAL, ChildService

SERIAL = guest.SERIAL.busId

PATIENCE = 20.0
"""Seconds on an emulated machine; the documents promise two."""

SOCKET = "/run/usbipshare/client.sock"

LINK = Path("/dev/usbipshare/disk")

RULES = """
devices:
  - {name: disk, serial: DISK42}
links: /dev/usbipshare
timeouts: {attach: 60, server: 20}
"""


class ClientServiceTests(ElsewhereCase):
    """
    A disk by rule, and a serial port by request.
    """

    def setUp(self) -> None:
        super().setUp()
        servers = f"servers: {{here: {{host: {self.elsewhere.server}}}}}\n"
        self.service = ChildService(servers + RULES, REAL, self.elsewhere.prefix)
        self.service.__enter__()
        self.addCleanup(self.service.__exit__, None, None, None)

    def within(self, what: str, condition: Callable[[], object]) -> None:
        """
        Something has to become true; how long that takes is printed.
        """
        begin = time.monotonic()
        guest.waitUntil(condition, what, PATIENCE)
        print(f"{what}: {time.monotonic() - begin:.2f} s", flush=True)

    def attached(self, what: str) -> None:
        """
        The disk has to be plugged in; how long that takes is printed, and how long it takes until
        there is a link to it: the kernel scans a disk for a second.
        """
        begin = time.monotonic()
        guest.waitUntil(guest.imports, what, PATIENCE)
        plugged = time.monotonic() - begin
        guest.waitUntil(self.isPlugged, what, PATIENCE)
        linked = time.monotonic() - begin
        print(f"plugged in {what}: {plugged:.2f} s, linked: {linked:.2f} s", flush=True)

    def isPlugged(self) -> bool:
        """Is the disk plugged in here, with its link?"""
        return bool(guest.imports()) and LINK.is_symlink() and LINK.exists()

    def port(self) -> int:
        """Of the disk."""
        (port,) = guest.imports()
        return port

    def assertTrueBytes(self) -> None:
        """The link leads to the disk."""
        self.assertTrue(self.hasTrueBytes())

    def hasTrueBytes(self) -> bool:
        """Can the disk be read by its link?"""
        try:
            return guest.diskBytes() == guest.readBlockDevice(str(LINK))
        except OSError:
            return False

    def test_returns(self) -> None:
        """
        Unplugged and plugged in again; the server killed and started anew; the link down for 5 s
        and for 60 s; the service stopped, and killed: it is there again within the promise each
        time, or it was never away.
        """
        self.attached("at first")
        self.assertTrueBytes()
        self.resetInUse()

        guest.unplug(guest.DISK)
        self.within("the unplugged disk is gone here", lambda: not guest.imports())
        guest.waitUntil(lambda: not LINK.is_symlink(), "so is its link")
        guest.plug(guest.DISK)
        guest.waitPresent(DISK, "usbip-host")
        self.attached("after a replug")
        self.assertTrueBytes()

        port = self.port()
        self.server.kill()
        self.server.start()
        self.assertEqual(self.port(), port)
        self.service.logged("{server} connected")
        guest.check("nc", "-N", "127.0.0.1", "5055", stdin='{"command":"kick","serial":"DISK42"}')
        self.service.logged("{device} at {server} detached")
        self.attached("after a kick by the server that was killed")
        self.assertTrueBytes()

        port = self.port()
        self.elsewhere.vanish()
        time.sleep(5)
        self.elsewhere.appear()
        self.assertTrueBytes()
        self.assertEqual(self.port(), port)
        print("after 5 s without the link it was never away", flush=True)

        self.elsewhere.vanish()
        began = time.monotonic()
        guest.waitUntil(lambda: not guest.imports(), "it is lost")
        lost = time.monotonic() - began
        print(f"without the link it is lost after {lost:.1f} s", flush=True)
        time.sleep(max(0.0, 60 - lost))
        self.elsewhere.appear()
        self.attached("after 60 s without the link")
        self.assertTrueBytes()

        for how in (self.service.stop, self.service.kill):
            port = self.port()
            how()
            self.assertTrue(self.isPlugged())
            self.service.start()
            self.service.logged("{device} at {server} adopted")
            self.assertEqual(self.port(), port)
            self.assertTrueBytes()
        print("adopted after a stop and after a kill", flush=True)
        guest.check("nc", "-N", "127.0.0.1", "5055", stdin='{"command":"kick","serial":"DISK42"}')
        guest.waitUntil(lambda: not guest.imports() or self.port() != port, "it is lost")
        self.attached("after what was adopted has ended")
        self.assertTrueBytes()

    def resetInUse(self) -> None:
        """The disk is reset while somebody reads it. A reset by a program here ends nothing; after
        one at the server, where the kernel may end the session, it can be read again."""
        port = self.port()
        with guest.DiskReader(os.path.realpath(LINK), guest.diskBytes(), Path.cwd()) as reader:
            reader.readsOn()
            guest.reset(guest.imports()[port])
            reader.readsOn()
            self.assertEqual(self.port(), port)
            guest.reset(DISK)
        self.within("read again after a reset at the server", self.hasTrueBytes)

    def test_request(self) -> None:
        """
        What a program asks for is plugged in when it is answered, and is kept by the next
        service; detach undoes both halves. Stock C{usbip} sees all of it.
        """
        self.attached("at first")
        answer = self.service.ask("attach", serial="QSER1")
        self.assertEqual(answer["status"], "success", answer)
        (node,) = (each for each in answer["local_devices"] if each.startswith("/dev/tty"))
        self.assertTrue(os.path.exists(node))
        listed = guest.check("usbip", "port")
        for busId in (DISK, SERIAL):
            self.assertIn(f"usbip://{self.elsewhere.server}:3240/{busId}", listed)
        self.service.kill()
        self.service.start()
        adopted = "{device} at {server} adopted"
        for _ in range(2):
            self.service.logged(adopted)
        (disk, serial) = sorted(
            self.service.ask("ports")["data"], key=lambda it: it["rule"] is None
        )
        self.assertEqual((disk["rule"], serial["rule"], serial["kept"]), ("disk", None, True))

        guest.unplug(guest.SERIAL)
        guest.waitUntil(lambda: len(guest.imports()) == 1, "it is gone")
        guest.plug(guest.SERIAL)
        guest.waitPresent(SERIAL, "usbip-host")
        self.within("attached after a replug", lambda: len(guest.imports()) == 2)
        guest.waitUntil(lambda: self.service.ask("ports")["data"][-1]["local_devices"], "nodes")
        answer = self.service.ask("detach", serial="QSER1")
        self.assertEqual(answer["status"], "success", answer)
        self.assertEqual(len(guest.imports()), 1)
        guest.waitUntil(lambda: guest.driverOf(SERIAL) == "ftdi_sio" or self.isFree(), "unbound")

    def isFree(self) -> bool:
        """Has this machine the serial port back?"""
        return guest.driverOf(SERIAL) == "usb"

    def test_other(self) -> None:
        """
        Somebody pulls it out here: it is back. What the rule says no more is pulled out.
        """
        self.attached("at first")
        guest.check("usbip", "detach", "-p", str(self.port()))
        self.service.logged("{device} at {server} detached")
        self.attached("after a detach by hand")
        self.assertTrueBytes()
        config = f"servers: {json.dumps({'here': {'host': self.elsewhere.server}})}\n"
        self.service.reload(config + RULES.replace("DISK42", "NONE"))
        self.within("pulled out", lambda: not guest.imports())
        guest.waitUntil(lambda: not LINK.is_symlink(), "so is its link")


class UnitTests(SystemdCase):
    """
    The packaged unit, under a real systemd.
    """

    unit = "usbipclient.service"
    config = Path("/etc/usbipshare/service.yaml")

    def setUp(self) -> None:
        super().setUp()
        guest.modprobe("usbip-host")
        config = "backend: {type: sysfs}\ntimeouts: {answer: 60, bind: 60}\n"
        leave("tcp:5055")
        server = ChildDaemon(f"{config}export: {{listen: ['tcp:3240']}}\n", listen=["tcp:5055"])
        server.__enter__()
        self.addCleanup(server.__exit__, None, None, None)

    def configured(self) -> str:
        return f"servers: {{here: {{host: 127.0.0.1}}}}\n{RULES}socket: {{group: 2001}}\n"

    def ask(self, **request: object) -> Any:
        """Ask it, as a program in its mount namespace."""
        inside = ("nsenter", f"--target={self.process}", "--mount")
        said = guest.check(*inside, "nc", "-N", "-U", SOCKET, stdin=json.dumps(request))
        return json.loads(said)

    def kept(self) -> list[Any]:
        """What it keeps, by bus id there."""
        return [port["bus_id"] for port in self.ask(command="ports")["data"] if port["kept"]]

    def test_unit(self) -> None:
        """
        It has no capability but one, and keeps the disk in spite of its sandbox; the disk is there
        all the time when it is started anew, killed and stopped, and so is the socket's folder.
        """
        self.untilActive()
        self.assertEqual(self.show("Type"), "notify")
        fields = self.status()
        self.assertEqual(int(fields["CapBnd"], 16), 1)  # CAP_CHOWN
        self.wait(LINK.exists, "there is a link")
        self.assertTrue(guest.diskBytes() == guest.readBlockDevice(str(LINK)))
        answer = self.ask(command="attach", serial="QSER1")
        self.assertEqual(answer["status"], "success", answer)
        self.assertTrue(answer["local_devices"], answer)

        ports = guest.imports()
        first = self.show("MainPID")
        self.systemctl("restart", self.unit)
        self.untilActive()
        self.wait(lambda: self.kept() == [DISK, SERIAL], "they are adopted")
        self.systemctl("kill", f"--signal={signal.SIGKILL.value}", self.unit)
        self.wait(lambda: self.show("MainPID") not in ("0", first), "it is restarted")
        self.untilActive()
        self.wait(lambda: self.kept() == [DISK, SERIAL], "they are adopted")
        self.systemctl("stop", self.unit)
        self.assertEqual((self.show("ActiveState"), self.show("Result")), ("inactive", "success"))
        self.assertEqual(guest.imports(), ports)
        self.assertTrue(LINK.exists())
        self.inside("test", "-d", "/run/usbipshare")
        self.inside("test", "!", "-e", SOCKET)


del ElsewhereCase, SystemdCase  # they are not to be run themselves
