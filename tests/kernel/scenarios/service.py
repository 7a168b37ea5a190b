"""
The daemon under a real systemd, with the packaged unit and its sandbox.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.kernel import guest

DISK = guest.DISK.busId
UNIT = "usbipshare.service"
UNITS = Path("/etc/systemd/system")
CONFIG = Path("/etc/usbipshare.yaml")
LISTEN = "listen: ['tcp:5056']\n"

# The tests' interpreter, or all of this, may be where the sandbox shows nothing.
HIDDEN = ("/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/")
PLACES = {sys.prefix, sys.base_prefix, str(Path(__file__).resolve().parents[3])}
OVERRIDE = "[Service]\nProtectHome=tmpfs\n" + "".join(
    f"BindReadOnlyPaths={place}\n" for place in PLACES if place.startswith(HIDDEN)
)

# Of no use to what is tried here, and slow on an emulated processor.
MASKED = (
    "dbus.service",
    "dbus.socket",
    "ldconfig.service",
    "systemd-journal-flush.service",
    "systemd-modules-load.service",
    "systemd-random-seed.service",
    "systemd-sysctl.service",
    "systemd-sysusers.service",
    "systemd-tmpfiles-setup-dev.service",
    "systemd-tmpfiles-setup.service",
    "systemd-udev-trigger.service",
    "systemd-udevd.service",
    "systemd-update-utmp.service",
)


class ServiceTests(SynchronousTestCase):
    """
    A systemd of its own, in its own process namespace.
    """

    def setUp(self) -> None:
        guest.awaitDevices()
        guest.modprobe("vhci-hcd")
        self.addCleanup(guest.resetUsb)
        UNITS.mkdir(parents=True, exist_ok=True)
        unit = resources.files("usbip_server.data").joinpath(UNIT)
        (UNITS / UNIT).write_text(unit.read_text())
        (UNITS / f"{UNIT}.d").mkdir(exist_ok=True)
        (UNITS / f"{UNIT}.d" / "test.conf").write_text(OVERRIDE)
        for name in MASKED:
            (UNITS / name).unlink(missing_ok=True)
            (UNITS / name).symlink_to("/dev/null")
        home = Path("/opt/usbipshare")
        home.unlink(missing_ok=True)
        home.symlink_to(sys.prefix)
        CONFIG.write_text(LISTEN)
        if not os.path.ismount("/sys/fs/cgroup"):
            guest.check("mount", "-t", "cgroup2", "none", "/sys/fs/cgroup")
        systemd = subprocess.Popen(
            [
                *("unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc"),
                *("/lib/systemd/systemd", "--system", f"--unit={UNIT}", "--log-target=console"),
            ],
            env={"PATH": os.environ["PATH"], "container": "test"},
            stdin=subprocess.DEVNULL,
        )
        self.addCleanup(systemd.wait, guest.DEADLINE)
        self.addCleanup(systemd.kill)
        children = Path(f"/proc/{systemd.pid}/task/{systemd.pid}/children")
        self.process = int(guest.waitUntil(lambda: children.read_text().strip(), "unshare forks"))
        # It talks only to those in its own namespace.

    def systemctl(self, *arguments: str) -> str:
        """Ask systemd; what it answers, whatever its exit status."""
        inside = ("nsenter", f"--target={self.process}", "--pid", "--mount")
        return guest.run(*inside, "systemctl", *arguments, seconds=120).out.strip()

    def show(self, name: str) -> str:
        """A property of the service."""
        return self.systemctl("show", "--value", f"--property={name}", UNIT)

    def untilActive(self) -> None:
        """Wait until the daemon has said that it is ready."""
        try:
            guest.waitUntil(lambda: self.show("ActiveState") == "active", "it is active", 60)
        except guest.DeadlineMissed:
            self.fail(
                self.systemctl("list-jobs")
                + self.systemctl("status", "--no-pager", "--lines=40", UNIT)
            )

    def ask(self, **request: object) -> Any:
        """Ask the daemon."""
        answer = self.answer(**request)
        self.assertEqual(answer["status"], "success", answer)
        return answer["data"]

    def answer(self, **request: object) -> Any:
        """What it answers."""
        said = guest.check("nc", "-N", "localhost", "5056", stdin=json.dumps(request))
        return json.loads(said)

    def inside(self, *command: str) -> None:
        """Run a program where this systemd's mounts are."""
        guest.check("nsenter", f"--target={self.process}", "--mount", *command)

    def test_service(self) -> None:
        """
        It loads the module, is active when it is ready, binds devices and ends sessions in
        spite of its sandbox, but takes no disk that is mounted; it is started again when it is
        killed, reads its file anew when it is told to, stops cleanly, and knows then what was
        asked for.
        """
        self.untilActive()
        self.assertEqual(self.show("Type"), "notify")
        self.assertTrue(Path("/sys/bus/usb/drivers/usbip-host").exists())
        self.inside("mount", "-t", "tmpfs", guest.waitBlockDevice(DISK), "/mnt")
        refused = self.answer(command="attach", id=DISK)
        self.assertIn("is mounted on /mnt", refused["message"])
        self.inside("umount", "/mnt")
        self.ask(command="attach", id=DISK)
        self.assertEqual(guest.driverOf(DISK), "usbip-host")

        with guest.StockUsbipd():
            guest.check("usbip", "attach", "-r", "127.0.0.1", "-b", DISK)
            _, imported = guest.waitImport()
        guest.waitBlockDevice(imported)
        self.ask(command="kick", id=DISK)
        guest.waitGone(imported)
        self.assertEqual(guest.usbipStatus(DISK), 1)

        first = int(self.show("MainPID"))
        self.systemctl("kill", f"--signal={signal.SIGKILL.value}", UNIT)
        guest.waitUntil(lambda: int(self.show("MainPID")) not in (0, first), "it is restarted", 120)
        self.untilActive()
        self.assertEqual(self.ask(command="find", id=DISK, detail=True)["state"], "bound")

        CONFIG.write_text(f"{LISTEN}devices: [{{match: {{id: {DISK}}}, name: disk}}]\n")
        self.systemctl("reload", UNIT)
        guest.waitUntil(
            lambda: self.answer(command="find", id="disk")["status"] == "success", "it has a name"
        )

        self.systemctl("stop", UNIT)
        self.assertEqual((self.show("ActiveState"), self.show("Result")), ("inactive", "success"))
        guest.unplug("disk")
        guest.waitGone(DISK)
        guest.replug("disk")
        guest.waitPresent(DISK)
        self.systemctl("start", UNIT)
        guest.waitPresent(DISK, "usbip-host")
        self.ask(command="detach", id="disk")
        self.assertEqual(guest.driverOf(DISK), "usb")
