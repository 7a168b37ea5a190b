"""
Tests of C{usbipshare doctor}: L{usbip_server.client.cli.diagnostics}.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from functools import partial
from typing import Any

import msgspec

from tests.client.cli.commandcase import VIRTUAL, CommandCase
from tests.client.cli.test_asking import listen
from tests.support.childdaemon import EXPORT
from tests.support.scriptedserver import LIST_REQUEST, ScriptedServer, says
from usbip_server import __version__
from usbip_server.client.attach import Attached
from usbip_server.client.cli.diagnostics import attachment, compared, thisMachine
from usbip_server.client.cli.exitcodes import Exit
from usbip_server.kernel import usbip_host
from usbip_server.kernel.vhci.ports import Vhci
from usbip_server.kernel.vhci.records import Record
from usbip_server.testing import FakeVhci

ANOTHER = "another program answers on"


class DoctorTests(CommandCase):
    """
    Each problem is reported, with what to do.
    """

    def checks(self, status: int = 0, *arguments: str) -> dict[str, dict[str, Any]]:
        """The checks, by their subject."""
        said = self.json("doctor", *arguments, status=status)
        return {check["what"]: check for check in said["checks"]}

    def assertWrong(self, check: dict[str, Any], found: str, fix: str) -> None:
        """A check has found this problem, and suggests this."""
        self.assertFalse(check["ok"], check)
        self.assertIn(found, check["found"])
        self.assertIn(fix, check["fix"])

    def test_noProblem(self) -> None:
        """Without problems each line begins with "ok", and the exit code is 0."""
        self.daemon()
        done = self.type("doctor")
        lines = done.stdout.splitlines()
        self.assertTrue(all(line.startswith("ok ") for line in lines), done.stdout)
        found = self.checks()
        self.assertIn("2 devices", found["raspi: requests"]["found"])
        self.assertEqual(
            found["raspi: version"]["found"], f"usbipshare {__version__} on both sides"
        )
        self.assertIn("0 devices can be imported", found["raspi: USB/IP"]["found"])
        self.assertIn("6 of 6 for USB 3", found["free ports"]["found"])

    def test_module(self) -> None:
        """The module vhci-hcd or permission is missing."""
        self.daemon()
        self.kernel.refuse = errno.EACCES
        self.assertFalse(self.checks(Exit.TROUBLE)["permission"]["ok"])
        self.kernel.loaded = self.kernel.loadable = False
        self.assertWrong(self.checks(Exit.TROUBLE)["vhci-hcd"], "not loaded", "modprobe vhci-hcd")
        missing = "modprobe: FATAL: Module vhci-hcd not found in directory /lib/modules/6.1.0"

        def load(module: str) -> None:
            raise OSError(missing)

        self.patch(self.kernel, "loadModule", load)
        self.assertWrong(self.checks(Exit.TROUBLE)["vhci-hcd"], missing, "linux-modules-extra")

    def test_privileges(self) -> None:
        """The advice for missing permission depends on whether sudo can work."""
        self.kernel.refuse = errno.EACCES
        for isRoot, status, fix in (
            (False, "NoNewPrivs:\t1\n", "sudo is disabled in this container"),
            (False, "NoNewPrivs:\t0\n", "sudo usbipshare attach"),
            (True, "NoNewPrivs:\t0\n", "None"),
        ):
            found = thisMachine(Vhci(self.kernel), self.kernel, isRoot, status)
            (check,) = [it for it in found if it.what == "permission"]
            self.assertIn(fix, str(check.fix))

    def test_servers(self) -> None:
        """Both ports of each server are checked: a closed one, one without USB/IP, one that
        refuses."""
        self.daemon("deaf", "backend: {type: virtual}\nexport: off", export_port=self.nobody())
        self.daemon("shut", f"{VIRTUAL}access: {{}}\n")
        self.known("dead", host="127.0.0.1", port=self.nobody(), export_port=self.nobody())
        found = self.checks(Exit.UNREACHABLE)
        self.assertTrue(found["deaf: requests"]["ok"])
        self.assertWrong(found["deaf: USB/IP"], "refused", "`export`")
        self.assertWrong(found["shut: requests"], "may not list", "`access`")
        self.assertWrong(found["dead: requests"], "refused", "systemctl status usbipshare")
        self.assertFalse(found["dead: USB/IP"]["ok"])

    def test_range(self) -> None:
        """For a range one line has the number of addresses that do not answer, which is a problem
        only if none does."""
        closed = self.nobody()
        for port, ok, status in ((self.daemon("raspi").port, True, 0), (closed, False, 6)):
            usbip = self.servers["raspi"]["export_port"] if ok else closed
            self.known("lab", range="127.0.0.1-127.0.0.3", port=port, export_port=usbip)
            found = self.checks(status)
            self.assertEqual(found["lab"]["ok"], ok)
            self.assertIn(f"{2 if ok else 3} of its 3 addresses do not", found["lab"]["found"])
            self.assertEqual("127.0.0.1: requests" in found, ok)
            self.assertNotIn("127.0.0.2: requests", found)

    def test_otherPrograms(self) -> None:
        """Where another program answers, the advice is to correct the port, and where the name is
        unknown, the name; the firewall is suspected only where nothing answers."""
        tls = "if the server requires TLS, set `tls` in client.yaml; or another program answers on"
        firewall = "is the server on? does a firewall block"
        for name, play, found, fix in (
            ("web", says(b"HTTP/1.1 400 Bad Request\r\n\r\n", size=8), "not that of a us", ANOTHER),
            ("ssh", says(b"SSH-2.0-OpenSSH_9.2p1\r\n", size=8), "not that of a us", ANOTHER),
            ("closing", says(size=8), "without a reply", tls),
            ("silent", listen, "no answer within", firewall),
        ):
            with ScriptedServer(play) as server:
                self.servers.clear()
                self.known(name, host="127.0.0.1", port=server.port, export_port=server.port)
                check = self.checks(Exit.UNREACHABLE, "--timeout", "0.5")[f"{name}: requests"]
                self.assertWrong(check, found, fix)
                self.assertIn(f"{server.port}/tcp", check["fix"])
        unavailable = b'{"status":"error","message":"the kernel is gone","code":"unavailable"}\n'
        with ScriptedServer(says(unavailable, size=8)) as server:
            self.servers.clear()
            self.known("ill", host="127.0.0.1", port=server.port, export_port=server.port)
            check = self.checks(Exit.UNREACHABLE)["ill: requests"]
            self.assertWrong(check, "the kernel is gone", "see the server's log")
        self.servers.clear()
        self.known("misspelt", host="raspi.invalid")
        check = self.checks(Exit.UNREACHABLE)["misspelt: requests"]
        self.assertWrong(check, "no machine of this name", "is 'raspi.invalid' the right name?")
        with ScriptedServer(says(b"HTTP/1.1 400 Bad Request\r\n\r\n", size=8)) as web:
            self.daemon("half", "backend: {type: virtual}\nexport: off", export_port=web.port)
            check = self.checks(Exit.UNREACHABLE)["half: USB/IP"]
        self.assertWrong(check, "not that of a USB/IP server", "set `export_port` of this server")

    def test_oldServers(self) -> None:
        """Servers that are too old are reported, with what to update."""
        with contextlib.ExitStack() as stack:
            for name, header, answer in (
                ("old", b"", bytes.fromhex("0106 0005 00000000 00000000")),
                ("older", b"Server: usbipshare/0.0.9\r\n", b""),
            ):
                control = stack.enter_context(ScriptedServer(partial(_answers, header)))
                export = stack.enter_context(ScriptedServer(says(answer, size=LIST_REQUEST)))
                self.known(name, host="127.0.0.1", port=control.port, export_port=export.port)
            found = self.checks(Exit.UNREACHABLE)
        update = "on the server: pip install --upgrade usbipshare"
        self.assertWrong(found["old: version"], "sends no version, so it is older", update)
        self.assertWrong(
            found["older: version"], f"0.0.9 on the server, {__version__} here", update
        )
        usbip = "usbip 0.1.8"
        needed = "the server has USB/IP 0x0106, and 0x0111 is needed"
        self.assertWrong(found["old: USB/IP"], needed, usbip)
        self.assertWrong(
            found["older: USB/IP"], "the server has closed the connection without a reply", usbip
        )

    def test_versions(self) -> None:
        """The older side has to be updated."""
        for there, here, found, fix in (
            ("1.0", "1.1", "the server is older", "on the server: pip"),
            ("1.1", "1.0", "the client is older", "here: pip"),
            (
                "1.0+lab",
                "1.0",
                "usbipshare 1.0+lab on the server, 1.0 here",
                "on the server and here: pip",
            ),
        ):
            self.assertWrong(msgspec.to_builtins(compared("x", there, here)), found, fix)

    def test_serverOfAttachedDevice(self) -> None:
        """An attached device whose server does not answer is reported, with how to detach it."""
        daemon = self.daemon(config=f"backend: {{type: virtual}}\n{EXPORT}")
        self.type("attach", "echo")
        self.assertTrue(self.checks()["port 0"]["ok"])
        attached = Attached(port=3, record=Record(host="raspi", service="3240", busId="1-1.4"))
        check = attachment(attached, isAnswering=False)
        self.assertWrong(msgspec.to_builtins(check), "1-1.4 of raspi:3240", "detach --port 3")
        daemon.kill()
        self.assertFalse(self.checks(Exit.UNREACHABLE)["raspi: requests"]["ok"])

    def test_slots(self) -> None:
        """On a machine that shares devices, the free places of usbip-host are counted."""
        for taken, ok in ((3, True), (usbip_host.SLOTS, False)):
            found = thisMachine(Vhci(self.kernel), _Sharing(taken), True, "")
            (check,) = [it for it in found if it.what == "usbip-host"]
            self.assertEqual(check.ok, ok)
            self.assertIn(f"{taken} of the 16 that its kernel supports", check.found)


def _answers(header: bytes, connection: socket.socket) -> None:
    """
    A server that has nothing to share: asked in JSON or by HTTP.

    @param header: of its answer by HTTP.
    """
    if connection.recv(4096).startswith(b"{"):
        connection.sendall(b'{"status":"success","data":[]}\n')
    else:
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + header + b"\r\n")


class _Sharing(FakeVhci):
    """
    The kernel of a machine with C{usbip-host}.
    """

    def __init__(self, taken: int) -> None:
        super().__init__()
        self._taken = taken

    def read(self, path: str) -> bytes:
        """The table of usbip-host."""
        assert path == "bus/usb/drivers/usbip-host/match_busid"
        return b" ".join(b"1-%d" % place for place in range(1, self._taken + 1)) + b"\n"
