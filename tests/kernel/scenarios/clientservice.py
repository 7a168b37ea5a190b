"""The client service (C{twistd usbipclient}) in another network namespace than the server."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.kernel import guest
from tests.kernel.daemoncase import DISK, SERIAL, ElsewhereCase, stopSharedDaemons
from tests.kernel.scenarios.service import SystemdCase
from tests.support.childdaemon import ChildDaemon
from tests.support.childservice import REAL, ChildService

SOCKET = "/run/usbipshare/client.sock"

LINK = Path("/dev/usbipshare/disk")

RULES = """
devices:
  - {name: disk, serial: DISK42}
links: /dev/usbipshare
timeouts: {attach: 60, server: 20}
"""


class ClientServiceTests(ElsewhereCase):
    """The disk is attached by a rule, the serial port by a request."""

    def setUp(self) -> None:
        super().setUp()
        self.servers = f"servers: {{here: {{host: {self.elsewhere.server}}}}}\n"
        self.service = ChildService(self.servers + RULES, REAL, self.elsewhere.prefix)
        self.enter(self.service)

    def awaitMeasured(self, what: str, condition: Callable[[], object]) -> None:
        """Wait until a condition is true, and print how long that takes."""
        began = time.monotonic()
        guest.waitUntil(condition, what)
        print(f"{what}: {time.monotonic() - began:.2f} s", flush=True)

    def awaitDisk(self, when: str) -> None:
        """Wait until the disk is attached and its link leads to it, and print how long both take:
        the kernel scans a disk for a second."""
        self.awaitMeasured(f"attached {when}", guest.imports)
        self.awaitMeasured(f"linked {when}", self.isLinked)
        self.assertTrue(self.isReadable())

    def awaitLost(self) -> None:
        """Wait until nothing is imported."""
        guest.waitUntil(lambda: not guest.imports(), "nothing is imported")

    def isLinked(self) -> bool:
        """Is the disk attached, with its link?"""
        return bool(guest.imports()) and LINK.is_symlink() and LINK.exists()

    def isReadable(self) -> bool:
        """Does the link lead to the disk, and can that be read?"""
        try:
            return guest.diskBytes() == guest.readBlockDevice(str(LINK))
        except OSError:
            return False

    def port(self) -> int:
        """The vhci port of the disk, if nothing else is imported."""
        (port,) = guest.imports()
        return port

    def kick(self) -> None:
        """Kick the client of the disk, at the server."""
        guest.check("nc", "-N", "127.0.0.1", "5055", stdin='{"command":"kick","serial":"DISK42"}')

    def test_attachedAgain(self) -> None:
        """The disk is attached again after a replug, after a kick by a server that was killed and
        started, and after 60 s without network. It stays attached during 5 s without network, and
        while the service is stopped or killed: the started service adopts it."""
        self.awaitDisk("at first")
        self.resetWhileRead()

        guest.unplug(guest.DISK)
        self.awaitMeasured("the unplugged disk is gone", lambda: not guest.imports())
        guest.waitUntil(lambda: not LINK.is_symlink(), "its link is gone")
        guest.plug(guest.DISK)
        guest.waitPresent(DISK, "usbip-host")
        self.awaitDisk("after a replug")

        port = self.port()
        self.server.kill()
        self.server.start()
        self.assertEqual(self.port(), port)
        self.service.logged("{server} connected")
        self.kick()
        self.service.logged("{device} at {server} detached")
        self.awaitDisk("after a kick by the server that was killed")

        port = self.port()
        self.elsewhere.vanish()
        time.sleep(5)
        self.elsewhere.appear()
        self.assertTrue(self.isReadable())
        self.assertEqual(self.port(), port)

        self.elsewhere.vanish()
        began = time.monotonic()
        self.awaitLost()
        lost = time.monotonic() - began
        print(f"without network it is lost after {lost:.1f} s", flush=True)
        time.sleep(max(0.0, 60 - lost))
        self.elsewhere.appear()
        self.awaitDisk("after 60 s without network")

        for end in (self.service.stop, self.service.kill):
            port = self.port()
            end()
            self.assertTrue(self.isLinked())
            self.service.start()
            self.service.logged("{device} at {server} adopted")
            self.assertEqual(self.port(), port)
            self.assertTrue(self.isReadable())
        self.kick()
        guest.waitUntil(lambda: not guest.imports() or self.port() != port, "it is lost")
        self.awaitDisk("after a kick of what was adopted")

    def resetWhileRead(self) -> None:
        """A reset of the disk at the client does not end the session. After one at the server,
        where the kernel may end the session, the disk can be read again."""
        port = self.port()
        with guest.diskReader(os.path.realpath(LINK)) as reader:
            reader.awaitRead()
            guest.reset(guest.imports()[port])
            reader.awaitRead()
            self.assertEqual(self.port(), port)
            guest.reset(DISK)
        self.awaitMeasured("read again after a reset at the server", self.isReadable)

    def test_request(self) -> None:
        """A request is answered when its device is attached. The device is adopted by a service
        that is started after a kill, attached again after a replug, and unbound after a detach.
        Debian's C{usbip} shows both devices."""
        self.awaitDisk("at first")
        answer = self.service.ask("attach", serial="QSER1")
        self.assertEqual(answer["status"], "success", answer)
        (node,) = (each for each in answer["local_devices"] if each.startswith("/dev/tty"))
        self.assertTrue(os.path.exists(node))
        listed = guest.check("usbip", "port")
        for busId in (DISK, SERIAL):
            self.assertIn(f"usbip://{self.elsewhere.server}:3240/{busId}", listed)
        self.service.kill()
        self.service.start()
        for _ in range(2):
            self.service.logged("{device} at {server} adopted")
        (disk, serial) = sorted(
            self.service.ask("ports")["data"], key=lambda it: it["rule"] is None
        )
        self.assertEqual((disk["rule"], serial["rule"], serial["kept"]), ("disk", None, True))

        guest.unplug(guest.SERIAL)
        guest.waitUntil(lambda: len(guest.imports()) == 1, "it is gone")
        guest.plug(guest.SERIAL)
        guest.waitPresent(SERIAL, "usbip-host")
        self.awaitMeasured("attached after a replug", lambda: len(guest.imports()) == 2)
        guest.waitUntil(lambda: self.service.ask("ports")["data"][-1]["local_devices"], "nodes")
        answer = self.service.ask("detach", serial="QSER1")
        self.assertEqual(answer["status"], "success", answer)
        self.assertEqual(len(guest.imports()), 1)
        guest.waitPresent(SERIAL)

    def test_detachedByHandAndRuleRemoved(self) -> None:
        """A disk that C{usbip detach} detaches is attached again. One whose rule was removed is
        detached, and its link is removed."""
        self.awaitDisk("at first")
        guest.check("usbip", "detach", "-p", str(self.port()))
        self.service.logged("{device} at {server} detached")
        self.awaitDisk("after a detach by hand")
        self.service.reload(self.servers + RULES.replace("DISK42", "NONE"))
        self.awaitMeasured("detached", lambda: not guest.imports())
        guest.waitUntil(lambda: not LINK.is_symlink(), "its link is gone")


class UnitTests(SystemdCase):
    """The packaged unit, under a real systemd."""

    unit = "usbipclient.service"
    config = Path("/etc/usbipshare/service.yaml")

    def setUp(self) -> None:
        super().setUp()
        guest.modprobe("usbip-host")
        config = "backend: {type: sysfs}\ntimeouts: {answer: 60, bind: 60}\n"
        stopSharedDaemons("tcp:5055")
        exporting = f"{config}export: {{listen: ['tcp:3240']}}\n"
        self.enter(ChildDaemon(exporting, listen=["tcp:5055"]))

    def configured(self) -> str:
        return f"servers: {{here: {{host: 127.0.0.1}}}}\n{RULES}socket: {{group: 2001}}\n"

    def ask(self, **request: object) -> Any:
        """Send a request from the unit's mount namespace."""
        inside = ("nsenter", f"--target={self.process}", "--mount")
        answer = guest.check(*inside, "nc", "-N", "-U", SOCKET, stdin=json.dumps(request))
        return json.loads(answer)

    def kept(self) -> list[Any]:
        """The bus ids of the attachments that the service keeps."""
        return [port["bus_id"] for port in self.ask(command="ports")["data"] if port["kept"]]

    def test_unit(self) -> None:
        """The service has no capability but C{CAP_CHOWN}, and attaches the disk in its sandbox. The
        devices stay attached, and the folder of the socket exists, while it is restarted, killed
        and stopped."""
        self.awaitActive()
        self.assertEqual(self.show("Type"), "notify")
        fields = self.status()
        self.assertEqual(int(fields["CapBnd"], 16), 1)  # CAP_CHOWN
        self.wait(LINK.exists, "there is a link")
        guest.checkDiskBytes(str(LINK))
        answer = self.ask(command="attach", serial="QSER1")
        self.assertEqual(answer["status"], "success", answer)
        self.assertTrue(answer["local_devices"], answer)

        ports = guest.imports()
        first = self.show("MainPID")
        self.systemctl("restart", self.unit)
        self.awaitActive()
        self.wait(lambda: self.kept() == [DISK, SERIAL], "they are adopted")
        self.systemctl("kill", f"--signal={signal.SIGKILL.value}", self.unit)
        self.wait(lambda: self.show("MainPID") not in ("0", first), "it is restarted")
        self.awaitActive()
        self.wait(lambda: self.kept() == [DISK, SERIAL], "they are adopted")
        self.systemctl("stop", self.unit)
        self.assertEqual((self.show("ActiveState"), self.show("Result")), ("inactive", "success"))
        self.assertEqual(guest.imports(), ports)
        self.assertTrue(LINK.exists())
        self.inside("test", "-d", "/run/usbipshare")
        self.inside("test", "!", "-e", SOCKET)


del ElsewhereCase, SystemdCase  # base classes are not run
