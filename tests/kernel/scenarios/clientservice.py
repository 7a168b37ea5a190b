"""
The client service in a network namespace of its own, with real kernels: devices are attached again
after events at the device, the server, the network and the service itself.
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
"""Seconds on an emulated machine; the documentation promises two."""

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
        Wait for a condition, and print how long that takes.
        """
        begin = time.monotonic()
        guest.waitUntil(condition, what, PATIENCE)
        print(f"{what}: {time.monotonic() - begin:.2f} s", flush=True)

    def attached(self, what: str) -> None:
        """
        Wait until the disk is attached, and until it has its symlink, which takes longer as the
        kernel scans a disk for a second. Print how long each takes.
        """
        begin = time.monotonic()
        guest.waitUntil(guest.imports, what, PATIENCE)
        attached = time.monotonic() - begin
        guest.waitUntil(self.isAttached, what, PATIENCE)
        linked = time.monotonic() - begin
        print(f"attached {what}: {attached:.2f} s, linked: {linked:.2f} s", flush=True)

    def isAttached(self) -> bool:
        """Is the disk attached, with its symlink?"""
        return bool(guest.imports()) and LINK.is_symlink() and LINK.exists()

    def port(self) -> int:
        """The port of the disk."""
        (port,) = guest.imports()
        return port

    def assertReadable(self) -> None:
        """The symlink points to the disk."""
        self.assertTrue(self.isReadable())

    def isReadable(self) -> bool:
        """Can the content of the disk be read through the symlink?"""
        try:
            return guest.diskBytes() == guest.readBlockDevice(str(LINK))
        except OSError:
            return False

    def test_returns(self) -> None:
        """
        The disk is replugged; the server is killed and started; the network is down for 5 s and for
        60 s; the service is stopped, and killed. Each time the disk is attached again, or was
        attached all the time.
        """
        self.attached("at first")
        self.assertReadable()
        self.resetInUse()

        guest.unplug(guest.DISK)
        self.within("the unplugged disk is detached", lambda: not guest.imports())
        guest.waitUntil(lambda: not LINK.is_symlink(), "its symlink is removed")
        guest.plug(guest.DISK)
        guest.waitPresent(DISK, "usbip-host")
        self.attached("after a replug")
        self.assertReadable()

        port = self.port()
        self.server.kill()
        self.server.start()
        self.assertEqual(self.port(), port)
        self.service.logged("{server} connected")
        guest.check("nc", "-N", "127.0.0.1", "5055", stdin='{"command":"kick","serial":"DISK42"}')
        self.service.logged("{device} at {server} detached")
        self.attached("after a kick by the restarted server")
        self.assertReadable()

        port = self.port()
        self.elsewhere.vanish()
        time.sleep(5)
        self.elsewhere.appear()
        self.assertReadable()
        self.assertEqual(self.port(), port)
        print("after 5 s without network it was attached all the time", flush=True)

        self.elsewhere.vanish()
        began = time.monotonic()
        guest.waitUntil(lambda: not guest.imports(), "it is lost")
        lost = time.monotonic() - began
        print(f"without network it is lost after {lost:.1f} s", flush=True)
        time.sleep(max(0.0, 60 - lost))
        self.elsewhere.appear()
        self.attached("after 60 s without network")
        self.assertReadable()

        for how in (self.service.stop, self.service.kill):
            port = self.port()
            how()
            self.assertTrue(self.isAttached())
            self.service.start()
            self.service.logged("{device} at {server} adopted")
            self.assertEqual(self.port(), port)
            self.assertReadable()
        print("adopted after a stop and after a kill", flush=True)
        guest.check("nc", "-N", "127.0.0.1", "5055", stdin='{"command":"kick","serial":"DISK42"}')
        guest.waitUntil(lambda: not guest.imports() or self.port() != port, "it is lost")
        self.attached("after the end of an adopted session")
        self.assertReadable()

    def resetInUse(self) -> None:
        """The disk is reset while a program reads it. A reset on this machine ends nothing; after
        one at the server, where the kernel may end the session, it can be read again."""
        port = self.port()
        with guest.DiskReader(os.path.realpath(LINK), guest.diskBytes(), Path.cwd()) as reader:
            reader.readsOn()
            guest.reset(guest.imports()[port])
            reader.readsOn()
            self.assertEqual(self.port(), port)
            guest.reset(DISK)
        self.within("read again after a reset at the server", self.isReadable)

    def test_request(self) -> None:
        """
        A requested device is attached when the reply comes, and kept by the next process; detach
        unbinds it at the server. Stock C{usbip} shows it.
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
        guest.waitUntil(lambda: len(guest.imports()) == 1, "the serial port is detached")
        guest.plug(guest.SERIAL)
        guest.waitPresent(SERIAL, "usbip-host")
        self.within("attached after a replug", lambda: len(guest.imports()) == 2)
        guest.waitUntil(lambda: self.service.ask("ports")["data"][-1]["local_devices"], "nodes")
        answer = self.service.ask("detach", serial="QSER1")
        self.assertEqual(answer["status"], "success", answer)
        self.assertEqual(len(guest.imports()), 1)
        guest.waitUntil(lambda: guest.driverOf(SERIAL) == "ftdi_sio" or self.isFree(), "unbound")

    def isFree(self) -> bool:
        """Has the serial port no driver but usb?"""
        return guest.driverOf(SERIAL) == "usb"

    def test_other(self) -> None:
        """
        A disk that is detached by hand is attached again; after a reload that selects another
        device it is detached.
        """
        self.attached("at first")
        guest.check("usbip", "detach", "-p", str(self.port()))
        self.service.logged("{device} at {server} detached")
        self.attached("after a detach by hand")
        self.assertReadable()
        config = f"servers: {json.dumps({'here': {'host': self.elsewhere.server}})}\n"
        self.service.reload(config + RULES.replace("DISK42", "NONE"))
        self.within("detached after a reload", lambda: not guest.imports())
        guest.waitUntil(lambda: not LINK.is_symlink(), "its symlink is removed")


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
        """Send a request, as a program in its mount namespace."""
        inside = ("nsenter", f"--target={self.process}", "--mount")
        said = guest.check(*inside, "nc", "-N", "-U", SOCKET, stdin=json.dumps(request))
        return json.loads(said)

    def kept(self) -> list[Any]:
        """The bus ids of the devices that it keeps attached."""
        return [port["bus_id"] for port in self.ask(command="ports")["data"] if port["kept"]]

    def test_unit(self) -> None:
        """
        In its sandbox, with one capability, it keeps the disk attached; the disk and the socket's
        directory stay when the service is restarted, killed and stopped.
        """
        self.untilActive()
        self.assertEqual(self.show("Type"), "notify")
        fields = self.status()
        self.assertEqual(int(fields["CapBnd"], 16), 1)  # CAP_CHOWN
        self.wait(LINK.exists, "the symlink exists")
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
