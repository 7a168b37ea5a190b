"""The server under a real systemd and udev: the packaged unit, its user and its sandbox."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from tests.kernel import guest
from tests.kernel.daemoncase import DISK, SERIAL, GuestCase
from tests.kernel.inside.command import CommandResult, DeadlineMissed
from tests.kernel.inside.tlsimport import OK, OP_ENABLE_KTLS, TlsImport
from tests.kernel.needs import Need, needs
from tests.kernel.scenarios.sharing import unloadHost
from tests.support.certificates import LAB, authority, signed, trusting
from usbip_server.runtime.service import WRONG_CONFIGURATION

UNIT = "usbipshare.service"
UNITS = Path("/etc/systemd/system")
RULES = "60-usbipshare.rules"
USER = "usbipshare"
BECOME = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs")
CONFIG = Path("/etc/usbipshare/server.yaml")
FOLDER = CONFIG.parent
AS_ROOT = "[Service]\nUser=root\nGroup=root\n"
LISTEN = "listen: ['tcp:5056']\ntimeouts: {answer: 60}\n"

WRITABLE = {
    *(f"/sys/bus/usb/drivers/usb/{name}" for name in ("bind", "unbind")),
    *(f"/sys/bus/usb/drivers/usbip-host/{name}" for name in ("bind", "unbind")),
    *(f"/sys/bus/usb/drivers/usbip-host/{name}" for name in ("match_busid", "rebind")),
}
"""The files below C{/sys} that its user may write, besides C{usbip_sockfd} of bound devices."""

# The interpreter, or this checkout, may lie where the sandbox shows nothing.
HIDDEN = ("/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/")
PLACES = {sys.prefix, sys.base_prefix, str(Path(__file__).resolve().parents[3])}
OVERRIDE = "[Service]\nProtectHome=tmpfs\nTimeoutStartSec=infinity\n" + "".join(
    f"BindReadOnlyPaths={place}\n" for place in PLACES if place.startswith(HIDDEN)
)

# Not needed here, and slow on an emulated processor.
_UNITS = """
dbus ldconfig systemd-journal-flush systemd-modules-load systemd-random-seed
systemd-sysctl systemd-sysusers systemd-tmpfiles-setup-dev systemd-tmpfiles-setup
systemd-udev-trigger systemd-update-utmp
"""
MASKED = ("dbus.socket", *(f"{name}.service" for name in _UNITS.split()))


@needs(Need.SYSTEMD)
class SystemdCase(GuestCase):
    """A systemd and udev in a process namespace.

    @cvar unit: the unit that is started.
    @cvar config: the configuration file of the unit."""

    unit = UNIT
    config = CONFIG
    modules = ("vhci-hcd",)

    def setUp(self) -> None:
        super().setUp()
        guest.run("modprobe", "-r", "tls")
        self.install()
        for name in MASKED:
            (UNITS / name).unlink(missing_ok=True)
            (UNITS / name).symlink_to("/dev/null")
        (UNITS / f"{self.unit}.d").mkdir(exist_ok=True)
        (UNITS / f"{self.unit}.d" / "test.conf").write_text(OVERRIDE)
        self.startSystemd(self.unit)

    def install(self) -> None:
        """Install the unit and what goes with it, as it is in the package."""
        if guest.run("id", USER).rc != 0:
            options = ("--system", "--user-group", "--no-create-home")
            guest.check("useradd", *options, "--shell", "/usr/sbin/nologin", USER)
        data = resources.files("usbip_server.data")
        UNITS.mkdir(parents=True, exist_ok=True)
        (UNITS / self.unit).write_text(data.joinpath(self.unit).read_text())
        rules = Path("/etc/udev/rules.d", RULES)
        rules.write_text(data.joinpath(RULES).read_text())
        self.addCleanup(rules.unlink)
        home = Path("/opt/usbipshare")
        home.unlink(missing_ok=True)
        home.symlink_to(sys.prefix)
        self.config.parent.mkdir(exist_ok=True)
        self.config.write_text(self.configured())

    def startSystemd(self, unit: str) -> None:
        """Start a systemd, and with it a unit."""
        if not os.path.ismount("/sys/fs/cgroup"):
            guest.check("mount", "-t", "cgroup2", "none", "/sys/fs/cgroup")
        systemd = subprocess.Popen(
            [
                *("unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc"),
                *("/lib/systemd/systemd", "--system", f"--unit={unit}"),
                "--log-target=console",
            ],
            env={"PATH": os.environ["PATH"], "container": "test"},
            stdin=subprocess.DEVNULL,
        )
        self.addCleanup(systemd.wait, guest.DEADLINE)
        self.addCleanup(systemd.kill)
        children = Path(f"/proc/{systemd.pid}/task/{systemd.pid}/children")
        self.process = int(guest.waitUntil(lambda: children.read_text().strip(), "unshare forks"))

    def configured(self) -> str:
        """The configuration at first."""
        return LISTEN

    def systemctl(self, *arguments: str) -> str:
        """Run C{systemctl}; returns its output, whatever its exit status."""
        return self.execute("systemctl", *arguments).out.strip()

    def failing(self, *arguments: str) -> str:
        """Run C{systemctl}, which has to fail; returns what it writes to standard error."""
        done = self.execute("systemctl", *arguments)
        self.assertNotEqual(done.rc, 0, done.out)
        return done.err

    def execute(self, *command: str, seconds: float = 120) -> CommandResult:
        """Run a program in the namespaces of this systemd."""
        inside = ("nsenter", f"--target={self.process}", "--pid", "--mount")
        return guest.run(*inside, *command, seconds=seconds)

    def show(self, name: str) -> str:
        """A property of the unit."""
        return self.systemctl("show", "--value", f"--property={name}", self.unit)

    def awaitActive(self) -> None:
        """Wait until the daemon has notified systemd that it is ready."""
        self.wait(lambda: self.show("ActiveState") == "active", "it is active")

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until a condition is true. A failure contains the status of the unit."""
        try:
            guest.waitUntil(condition, what)
        except DeadlineMissed as error:
            status = self.systemctl("status", "--no-pager", "--full", "--lines=40", self.unit)
            self.fail(f"{error}\n{self.systemctl('list-jobs')}\n{status}")

    def inside(self, *command: str) -> None:
        """Run a program in the mount namespace of this systemd."""
        guest.check("nsenter", f"--target={self.process}", "--mount", *command)

    def status(self) -> dict[str, str]:
        """C{/proc/PID/status} of the daemon."""
        root = Path(f"/proc/{self.process}/root")
        text = (root / "proc" / self.show("MainPID") / "status").read_text()
        return dict(line.split(":\t", 1) for line in text.splitlines())


class ServiceTests(SystemdCase):
    """The packaged unit of the server."""

    def ask(self, **request: object) -> Any:
        """Send a request that has to succeed; returns its data."""
        answer = self.answer(**request)
        self.assertEqual(answer["status"], "success", answer)
        return answer["data"]

    def answer(self, **request: object) -> Any:
        """Send a request; returns the answer."""
        return json.loads(guest.check("nc", "-N", "localhost", "5056", stdin=json.dumps(request)))

    def writable(self, folder: str = "/sys") -> set[str]:
        """The files below C{/sys} that its user may write, outside the sandbox."""
        found = guest.check(*BECOME, "find", folder, "-type", "f", "-writable", seconds=120)
        return set(found.split())

    def test_rights(self) -> None:
        """The daemon is not root, has no capabilities and can gain none. Below C{/sys} it may write
        the files that it needs and no others."""
        self.awaitActive()
        fields = self.status()
        uid = guest.check("id", "-u", USER).strip()
        self.assertEqual((fields["Uid"].split(), uid == "0"), ([uid] * 4, False))
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            self.assertEqual(int(fields[name], 16), 0, name)
        self.assertEqual((fields["NoNewPrivs"], fields["Seccomp"]), ("1", "2"))
        self.assertEqual(self.writable(), WRITABLE)
        self.ask(command="attach", id=DISK)
        device = os.path.realpath(f"/sys/bus/usb/devices/{DISK}")
        guest.waitUntil(lambda: self.writable(device), "udev has run its rule")
        self.assertEqual(self.writable(), {*WRITABLE, f"{device}/usbip_sockfd"})
        for forbidden in (f"{device}/authorized", "/sys/bus/usb/drivers/hub/unbind"):
            refused = guest.run(*BECOME, "sh", "-c", f"echo 1 > {forbidden}")
            self.assertIn("Permission denied", refused.err)
        self.ask(command="detach", id=DISK)
        self.assertEqual(self.writable(), WRITABLE)

    def reload(self, busId: str, more: str = "") -> None:
        """Reload, with a configuration that names a device."""
        CONFIG.write_text(f"{LISTEN}devices: [{{match: {{id: {busId}}}, name: it{more}}}]\n")
        self.systemctl("reload", UNIT)
        self.wait(lambda: self.answer(command="find", id="it")["status"] == "success", "it is read")

    def test_service(self) -> None:
        """In its sandbox the daemon loads the module, notifies systemd, binds devices, exports them
        and ends sessions; it does not bind a mounted disk. It is restarted after a kill, reloads,
        stops cleanly, and remembers attached devices. With a wrong configuration a reload fails and
        changes nothing, and the daemon ends and is not restarted."""
        self.awaitActive()
        self.assertEqual(self.show("Type"), "notify")
        self.assertTrue(Path("/sys/bus/usb/drivers/usbip-host").exists())
        self.inside("mount", "-t", "tmpfs", guest.waitBlockDevice(DISK), "/mnt")
        refused = self.answer(command="attach", id=DISK)
        self.assertIn("is mounted on /mnt", refused["message"])
        self.inside("umount", "/mnt")
        self.ask(command="attach", id=DISK)
        self.assertEqual(guest.driverOf(DISK), "usbip-host")

        _, imported, _ = guest.attachDisk(DISK)
        self.ask(command="kick", id=DISK)
        guest.waitGone(imported)
        self.assertEqual(guest.usbipStatus(DISK), 1)

        first = int(self.show("MainPID"))
        self.systemctl("kill", f"--signal={signal.SIGKILL.value}", UNIT)
        guest.waitUntil(lambda: int(self.show("MainPID")) not in (0, first), "it is restarted", 120)
        self.awaitActive()
        self.assertEqual(self.ask(command="find", id=DISK, detail=True)["state"], "bound")

        self.reload(DISK)

        good = CONFIG.read_text()
        CONFIG.write_text("listen: tcp\n")
        self.assertIn("failed", self.failing("reload", UNIT))
        self.assertEqual(self.answer(command="find", id="it")["status"], "success")
        self.failing("restart", UNIT)
        self.assertEqual((self.show("ActiveState"), self.show("NRestarts")), ("failed", "0"))
        self.assertEqual(self.show("ExecMainStatus"), str(WRONG_CONFIGURATION))
        CONFIG.write_text(good)
        self.systemctl("start", UNIT)
        self.awaitActive()

        self.systemctl("stop", UNIT)
        self.assertEqual((self.show("ActiveState"), self.show("Result")), ("inactive", "success"))
        guest.unplug(guest.DISK)
        guest.waitGone(DISK)
        guest.plug(guest.DISK)
        guest.waitPresent(DISK)
        self.systemctl("start", UNIT)
        guest.waitPresent(DISK, "usbip-host")
        self.ask(command="detach", id="it")
        self.assertEqual(guest.driverOf(DISK), "usb")

    def test_permissionsSetByUdev(self) -> None:
        """A device is exported as soon as udev has set the permissions of C{usbip_sockfd}: one that
        was just bound, one of a driver that was unloaded and loaded, and one that was bound before
        there was a rule. The daemon works as root, too."""
        self.awaitActive()
        self.reload(SERIAL, ", share: on_import")
        _, imported = guest.stockAttach(SERIAL)
        self.ask(command="detach", id=SERIAL)
        guest.waitGone(imported)

        unloadHost()
        guest.modprobe("usbip-host")
        guest.waitUntil(lambda: self.writable("/sys/bus/usb") == WRITABLE, "udev has run its rule")
        _, imported = guest.stockAttach(SERIAL)

        self.systemctl("stop", UNIT)
        attribute = Path(f"/sys/bus/usb/devices/{SERIAL}/usbip_sockfd")
        os.chown(attribute, 0, 0)
        attribute.chmod(0o200)
        self.systemctl("start", UNIT)
        self.awaitActive()
        self.ask(command="kick", id=SERIAL)
        guest.waitGone(imported)

        dropin = UNITS / f"{UNIT}.d" / "root.conf"
        dropin.write_text(AS_ROOT)
        self.addCleanup(dropin.unlink)
        self.systemctl("daemon-reload")
        self.systemctl("restart", UNIT)
        self.awaitActive()
        self.assertEqual(self.status()["Uid"].split(), ["0"] * 4)
        _, imported = guest.stockAttach(SERIAL)
        self.ask(command="detach", id=SERIAL)
        guest.waitGone(imported)
        self.assertEqual(guest.driverOf(SERIAL), "usb")

    def test_tls(self) -> None:
        """The daemon requires client certificates, and uses kTLS: systemd has loaded the module."""
        self.awaitActive()
        self.assertTrue(Path("/sys/module/tls").exists())
        signed("server").write(FOLDER, "server")
        authority(LAB).write(FOLDER, "ca")
        shutil.chown(FOLDER / "server.key", "root", USER)
        (FOLDER / "server.key").chmod(0o640)
        files = {
            "certificate": f"{FOLDER}/server.pem",
            "key": f"{FOLDER}/server.key",
            "client_ca": f"{FOLDER}/ca.pem",
        }
        tls = json.dumps({**files, "require_client_certificate": True})
        export = "{listen: ['tls:3241'], require_ktls: true}"
        listen = LISTEN.replace("'tcp:5056'", "'tcp:5056', 'tls:5057'")
        CONFIG.write_text(f"{listen}tls: {tls}\nexport: {export}\n")
        self.systemctl("reload", UNIT)
        self.wait(lambda: guest.isListening(5057), "it listens with TLS")

        context = trusting(client=signed("alice").write(self.mktemp(), "alice"))
        with (
            socket.create_connection(("127.0.0.1", 5057), guest.DEADLINE) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            connection.sendall(json.dumps({"command": "attach", "id": DISK}).encode())
            self.assertIn(b'{"status":"success"', connection.recv(4096))
        context.options |= OP_ENABLE_KTLS
        client = TlsImport(3241, DISK, context)
        self.addCleanup(client.close)
        self.assertEqual((client.status, client.isKeyed), (OK, True))
        holder = self.ask(command="find", id=DISK, detail=True)["holder"]
        self.assertEqual((holder["address"], holder["encryption"]), ("127.0.0.1", "ktls"))
        client.attach()
        _, imported = guest.waitImport()
        guest.checkDiskBytes(guest.waitBlockDevice(imported))


del GuestCase  # base classes are not run
