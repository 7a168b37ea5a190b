"""
The command that tells what is wrong: C{doctor}.
"""

from __future__ import annotations

import errno
from typing import Any

import msgspec

from tests.childdaemon import EXPORT
from tests.client.commandcase import VIRTUAL, CommandCase
from usbip_server.client.core.attaching import Attached
from usbip_server.client.terminal.checks import Check, plugged, thisMachine
from usbip_server.client.terminal.exits import Exit
from usbip_server.kernel import slots
from usbip_server.kernel.vhci import Vhci
from usbip_server.kernel.vhcirecords import Record


class DoctorTests(CommandCase):
    """
    Everything is looked at, and what is wrong is told with what to do.
    """

    def checks(self, status: int = 0) -> dict[str, dict[str, Any]]:
        """What it finds, by what was looked at."""
        return {check["what"]: check for check in self.json("doctor", status=status)["checks"]}

    def assertWrong(self, check: dict[str, Any], found: str, fix: str) -> None:
        """Something is, and that is what to do."""
        self.assertFalse(check["ok"], check)
        self.assertIn(found, check["found"])
        self.assertIn(fix, check["fix"])

    def test_well(self) -> None:
        """Where all is well each line says so, and the exit code too."""
        self.daemon()
        done = self.type("doctor")
        lines = done.stdout.splitlines()
        self.assertTrue(all(line.startswith("ok ") for line in lines), done.stdout)
        found = self.checks()
        self.assertIn("2 devices", found["raspi: requests"]["found"])
        self.assertIn("0 devices can be imported", found["raspi: USB/IP"]["found"])
        self.assertIn("6 of 6 for USB 3", found["free ports"]["found"])

    def test_module(self) -> None:
        """The kernel's module is missing."""
        self.kernel.loaded = self.kernel.loadable = False
        self.daemon()
        self.assertWrong(self.checks(Exit.TROUBLE)["vhci-hcd"], "not loaded", "modprobe vhci-hcd")

    def test_permission(self) -> None:
        """Who may not plug anything in hears of sudo."""
        self.daemon()
        self.kernel.refuse = errno.EACCES
        self.assertFalse(self.checks(Exit.TROUBLE)["permission"]["ok"])

    def test_privileges(self) -> None:
        """Where sudo cannot work, that is said."""
        self.kernel.refuse = errno.EACCES
        for isRoot, status, fix in (
            (False, "NoNewPrivs:\t1\n", "sudo cannot work in here"),
            (False, "NoNewPrivs:\t0\n", "sudo usbipshare attach"),
            (True, "NoNewPrivs:\t0\n", "None"),
        ):
            found = thisMachine(Vhci(self.kernel), self.kernel, isRoot, status)
            (check,) = [it for it in found if it.what == "permission"]
            self.assertIn(fix, str(check.fix))

    def test_servers(self) -> None:
        """Of each server both ports are looked at: one that is not there, one that serves no
        USB/IP, and one that does not let us."""
        self.daemon("deaf", "backend: {type: virtual}\nexport: off", export_port=self.nobody())
        self.daemon("shut", f"{VIRTUAL}access: {{}}\n")
        self.known("dead", host="127.0.0.1", port=self.nobody(), export_port=self.nobody())
        found = self.checks(Exit.UNREACHABLE)
        self.assertTrue(found["deaf: requests"]["ok"])
        self.assertWrong(found["deaf: USB/IP"], "refused", "`export`")
        self.assertWrong(found["shut: requests"], "may not list", "`access`")
        self.assertWrong(found["dead: requests"], "refused", "systemctl status usbipshare")
        self.assertFalse(found["dead: USB/IP"]["ok"])

    def test_stale(self) -> None:
        """A device whose server does not answer any more, and how to be rid of it."""
        daemon = self.daemon(config=f"backend: {{type: virtual}}\n{EXPORT}")
        self.type("attach", "echo")
        self.assertTrue(self.checks()["port 0"]["ok"])
        attached = Attached(port=3, record=Record(host="raspi", service="3240", busId="1-1.4"))
        check = plugged(attached, isThere=False)
        self.assertWrong(msgspec.to_builtins(check), "1-1.4 of raspi:3240", "detach --port 3")
        daemon.kill()
        self.assertFalse(self.checks(Exit.UNREACHABLE)["raspi: requests"]["ok"])

    def test_slots(self) -> None:
        """A machine that shares devices itself: how many places its kernel has left."""
        for taken, ok in ((3, True), (slots.SLOTS, False)):
            system = _Sharing(taken)
            (check,) = [it for it in self.local(system) if it.what == "usbip-host"]
            self.assertEqual(check.ok, ok)
            self.assertIn(f"{taken} of its kernel's 16 places", check.found)

    def local(self, system: Any) -> list[Check]:
        """What there is to say of a machine."""
        return [*thisMachine(Vhci(self.kernel), system, True, "")]


class _Sharing:
    """
    The kernel of a machine with C{usbip-host}.
    """

    def __init__(self, taken: int) -> None:
        self._taken = taken

    def read(self, path: str) -> bytes:
        """Its table."""
        assert path == "bus/usb/drivers/usbip-host/match_busid"
        return b" ".join(b"1-%d" % place for place in range(1, self._taken + 1)) + b"\n"
