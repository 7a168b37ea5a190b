"""
C{usbipshare setup}, in a folder that stands for the root of a machine.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from click.testing import CliRunner
from twisted.trial.unittest import SynchronousTestCase

from usbip_server.client.cli.exitcodes import Exit
from usbip_server.client.cli.main import main
from usbip_server.install.host import HIDDEN, Host, Installation, foreign, packaged, unreadable
from usbip_server.install.roles import CLIENT, ROLES, SERVER, Role, remove, setUp
from usbip_server.model.errors import LocalTrouble

SCRIPTS = Path("/srv/usb/bin")
SH = Path("/bin/sh").resolve()


class FakeInstallation(Installation):
    """
    An installation whose files are those of this machine's shell.
    """

    readBy = (SH,)

    def paths(self) -> Iterator[Path]:
        yield from self.readBy


class FakeHost(Host):
    """
    A machine in a folder. Programs are simulated.

    @ivar calls: the programs that were run and change something.
    @ivar active: the units that are active.
    @ivar enabled: the units that are enabled.
    @ivar failing: the first words of a command that fails.
    """

    def __init__(self, root: Path) -> None:
        package = root / "site" / "usbip_server"
        here = FakeInstallation(root / "venv", SH, SCRIPTS, package)
        super().__init__(root, here)
        self.plugins = root / "site" / "twisted" / "plugins"
        self.calls: list[str] = []
        self.active: set[str] = set()
        self.enabled: set[str] = set()
        self.failing = "nothing"
        self.user = True
        self.programs = {"useradd", "systemctl", "udevadm", "modprobe"}
        for folder in (self.plugins, root / "run/systemd/system", root / "proc", root / "etc"):
            folder.mkdir(parents=True)
        (root / "proc/modules").write_text("usbcore 1 0 - Live 0x0\n")
        (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")

    @property
    def isRoot(self) -> bool:
        return self.user

    def has(self, program: str) -> bool:
        return program in self.programs

    def result(self, *command: str) -> tuple[int, str]:
        line = " ".join(command).replace("--quiet ", "")
        if line.startswith(self.failing):
            return 1, "it has failed"
        words = line.split()
        if words[:2] == ["systemctl", "is-active"]:
            return int(words[2] not in self.active), ""
        if words[:2] == ["systemctl", "is-enabled"]:
            return int(words[2] not in self.enabled), ""
        if words[0] == "journalctl":
            return 0, "cannot listen on tcp:3240"
        if words[:2] == ["modprobe", "--dry-run"]:
            return 0, ""
        self.calls.append(line)
        self._simulate(words)
        return 0, ""

    def _simulate(self, words: list[str]) -> None:
        accounts = self.path("/etc/passwd")
        if words[0] == "modprobe":
            name = words[1].replace("-", "_")
            with self.path("/proc/modules").open("a") as modules:
                modules.write(f"{name} 1 0 - Live 0x0\n")
        elif words[0] == "useradd":
            accounts.write_text(f"{accounts.read_text()}{words[-1]}:x:999:999::/:/bin/false\n")
        elif words[0] == "userdel":
            lines = accounts.read_text().splitlines(keepends=True)
            accounts.write_text("".join(it for it in lines if not it.startswith(words[1])))
        elif words[0].endswith("twistd"):
            (self.plugins / "dropin.cache").write_text("")
        elif words[:2] == ["systemctl", "enable"]:
            self.enabled.add(words[-1])
        elif words[:2] == ["systemctl", "disable"]:
            self.enabled.discard(words[-1])
            self.active.discard(words[-1])
        elif words[1] in ("start", "restart"):
            self.active.add(words[-1])

    def files(self) -> dict[str, str]:
        """The files and links of the machine, and their contents and targets."""
        return {
            f"/{path.relative_to(self.root)}": os.readlink(path)
            if path.is_symlink()
            else path.read_text()
            for path in self.root.rglob("*")
            if path.is_symlink() or path.is_file()
        }


class SetupCase(SynchronousTestCase):
    """
    A machine on which nothing is installed yet.
    """

    def setUp(self) -> None:
        self.host = FakeHost(Path(self.mktemp()).absolute())
        self.before = self.host.files()

    def made(self) -> dict[str, str]:
        """The files that were not there before."""
        same = ("/etc/passwd", "/proc/modules", "/site/twisted/plugins/dropin.cache")
        files = self.host.files()
        return {path: files[path] for path in files.keys() - self.before.keys() - {*same}}

    def perform(self, role: Role, *, dry: bool = False) -> list[str]:
        """Set up; returns the steps."""
        steps: list[str] = []
        self.assertEqual(setUp(role, self.host, dry, steps.append), len(steps))
        return steps

    def remove(self, role: Role, *, dry: bool = False) -> list[str]:
        """Remove; returns what is reported."""
        steps: list[str] = []
        remove(role, self.host, dry, steps.append)
        return steps


class ServerTests(SetupCase):
    """
    C{usbipshare setup server}.
    """

    def test_everything(self) -> None:
        """Module, user, configuration, command, udev rule and unit are there; the daemon runs."""
        self.perform(SERVER)
        unit = packaged("usbipshare.service").replace("/opt/usbipshare/bin", str(SCRIPTS))
        self.assertIn(f"ExecStart={SCRIPTS}/twistd ", unit)
        self.assertEqual(
            self.made(),
            {
                "/etc/modules-load.d/usbipshare.conf": "usbip-host\n",
                "/etc/usbipshare/server.yaml": packaged("server.yaml"),
                "/etc/udev/rules.d/60-usbipshare.rules": packaged("60-usbipshare.rules"),
                "/etc/systemd/system/usbipshare.service": unit,
                "/usr/local/bin/usbipshare": f"{SCRIPTS}/usbipshare",
            },
        )
        config = self.host.path("/etc/usbipshare/server.yaml")
        self.assertEqual(stat.S_IMODE(config.stat().st_mode), 0o640)
        self.assertEqual((self.host.active, self.host.enabled), ({SERVER.unit}, {SERVER.unit}))
        calls = [" ".join(call.split()[:2]) for call in self.host.calls]
        self.assertEqual(
            calls,
            [
                "modprobe usbip-host",
                "useradd --system",
                "chgrp usbipshare",
                f"{SCRIPTS}/twistd usbipshare",
                "udevadm control",
                "systemctl daemon-reload",
                "systemctl enable",
                "systemctl restart",
            ],
        )

    def test_again(self) -> None:
        """A second call does nothing; neither does one with --dry-run."""
        self.perform(SERVER)
        before, calls = self.host.files(), [*self.host.calls]
        self.assertEqual(self.perform(SERVER), [])
        self.assertEqual(self.perform(SERVER, dry=True), [])
        self.assertEqual((self.host.files(), self.host.calls), (before, calls))

    def test_dryRun(self) -> None:
        """--dry-run reports the same steps, and changes nothing."""
        shown = self.perform(SERVER, dry=True)
        self.assertEqual((self.host.files(), self.host.calls), (self.before, []))
        done = self.perform(SERVER)
        self.assertEqual([step.replace("restart", "enable and start") for step in done], shown)

    def test_resumes(self) -> None:
        """After a step that fails the next call does the rest."""
        self.host.failing = "udevadm"
        error = self.assertRaises(LocalTrouble, self.perform, SERVER)
        self.assertIn("`udevadm control --reload` failed with status 1", str(error))
        self.host.failing = "nothing"
        self.perform(SERVER)
        self.assertEqual(self.host.active, {SERVER.unit})

    def test_update(self) -> None:
        """A unit of an older version is replaced, and the daemon restarted."""
        self.perform(SERVER)
        self.host.path("/etc/systemd/system/usbipshare.service").write_text("older")
        self.host.calls.clear()
        self.assertEqual(
            self.perform(SERVER),
            [
                "update /etc/systemd/system/usbipshare.service",
                "run systemctl daemon-reload",
                "restart usbipshare.service",
            ],
        )

    def test_configurationIsKept(self) -> None:
        """A configuration that is there is used, and not removed either."""
        config = self.host.path("/etc/usbipshare/server.yaml")
        config.parent.mkdir()
        config.write_text("access: local\n")
        self.perform(SERVER)
        kept = "/etc/usbipshare/server.yaml is kept, as it was changed"
        self.assertIn(kept, self.remove(SERVER))
        self.assertEqual(self.made(), {"/etc/usbipshare/server.yaml": "access: local\n"})

    def test_otherCommand(self) -> None:
        """Something else at the place of the command is neither replaced nor removed."""
        other = self.host.path("/usr/local/bin/usbipshare")
        other.parent.mkdir(parents=True)
        other.write_text("mine")
        self.perform(SERVER)
        self.remove(SERVER)
        self.assertEqual(other.read_text(), "mine")

    def test_remove(self) -> None:
        """--remove removes all files, the state and the user; a second time there is nothing."""
        self.perform(SERVER)
        state = self.host.path("/var/lib/usbipshare/state.json")
        state.parent.mkdir(parents=True)
        state.write_text("{}")
        shown = self.remove(SERVER, dry=True)
        self.assertEqual(len(self.made()), 6)
        done = self.remove(SERVER)
        self.assertEqual({*done} - {*shown}, {"remove /etc/usbipshare"})  # it is empty then
        self.assertEqual(done[0], "stop and disable usbipshare.service")
        self.assertEqual((self.made(), self.host.active), ({}, set()))
        self.assertNotIn("usbipshare", self.host.path("/etc/passwd").read_text())
        self.assertFalse(self.host.path("/etc/usbipshare").exists())
        self.assertEqual(self.remove(SERVER), [])

    def test_doesNotStart(self) -> None:
        """If the daemon does not start, the error contains the end of its log."""
        self.host.failing = "systemctl restart"
        error = self.assertRaises(LocalTrouble, self.perform, SERVER)
        self.assertIn("usbipshare.service does not start: it has failed\ncannot listen", str(error))


class ClientTests(SetupCase):
    """
    C{usbipshare setup client}.
    """

    def test_everything(self) -> None:
        """Configuration, command and unit are there; the client service is not enabled."""
        self.perform(CLIENT)
        self.assertEqual(
            self.made().keys(),
            {
                "/etc/usbipshare/client.yaml",
                "/etc/usbipshare/service.yaml",
                "/etc/systemd/system/usbipclient.service",
                "/usr/local/bin/usbipshare",
            },
        )
        service = self.host.path("/etc/usbipshare/service.yaml")
        self.assertEqual(stat.S_IMODE(service.stat().st_mode), 0o600)
        self.assertEqual((self.host.active, self.host.enabled), (set(), set()))
        self.assertEqual(self.perform(CLIENT), [])

    def test_restart(self) -> None:
        """A client service that runs is restarted with a new unit."""
        self.host.active.add(CLIENT.unit)
        self.assertIn("restart usbipclient.service", self.perform(CLIENT))

    def test_both(self) -> None:
        """On a machine that is both, removing one leaves what the other needs."""
        self.perform(SERVER)
        self.perform(CLIENT)
        self.remove(CLIENT)
        self.assertIn("/usr/local/bin/usbipshare", self.made())
        self.assertEqual(self.perform(SERVER), [])
        self.remove(SERVER)
        self.assertEqual(self.made(), {})


class RefusalTests(SetupCase):
    """
    Machines and installations that would not work.
    """

    def refused(self, role: Role = SERVER) -> str:
        """The reason. Nothing is changed, and --dry-run is refused too."""
        error = self.assertRaises(LocalTrouble, self.perform, role)
        again = self.assertRaises(LocalTrouble, self.perform, role, dry=True)
        self.assertEqual(str(error), str(again))
        self.assertEqual((self.made(), self.host.calls), ({}, []))
        return str(error)

    def install(self, *paths: str | Path, prefix: str = "/srv/usb") -> None:
        """Have the installation consist of these files."""
        here = FakeInstallation(Path(prefix), SH, SCRIPTS, SCRIPTS)
        object.__setattr__(here, "readBy", tuple(map(Path, paths)))
        self.host.installation = here

    def test_hidden(self) -> None:
        """The units hide some folders; the message has the commands that help."""
        hidden = next(folder for folder in HIDDEN if folder.is_dir())
        self.install(hidden)
        reason = self.refused()
        self.assertIn(f"it does not see {hidden}", reason)
        self.assertIn("sudo /opt/usbipshare/bin/usbipshare setup server", reason)
        self.assertIn("setup client", self.refused(CLIENT))

    def test_missing(self) -> None:
        """There is no twistd."""
        self.install("/srv/nowhere/bin/twistd")
        self.assertIn("/srv/nowhere/bin/twistd is missing", self.refused())

    def test_package(self) -> None:
        """The Debian package needs no set-up."""
        self.install(SH, prefix="/usr/lib/usbipshare")
        self.assertIn("this is the Debian package", self.refused())

    def test_machine(self) -> None:
        """There is no systemd, a program or the kernel module is missing."""
        self.host.programs.discard("udevadm")
        self.assertIn("apt-get install udev", self.refused())
        self.host.failing = "modprobe --dry-run usbip-host"
        self.host.programs.add("udevadm")
        self.assertIn("this machine's kernel has no module usbip-host", self.refused())
        self.host.path("/run/systemd/system").rmdir()
        self.assertIn("does not run systemd", self.refused())

    def test_closed(self) -> None:
        """A folder that not every user may enter closes what is in it."""
        folder = Path(self.mktemp()).absolute()
        file = folder / "bin" / "twistd"
        file.parent.mkdir(parents=True)
        file.write_text("")
        for path, mode in ((file, 0o644), (folder, 0o755), (file.parent, 0o711)):
            path.chmod(mode)
        above = unreadable(folder.parent)
        self.assertEqual(unreadable(file), above)
        if above is None:
            folder.chmod(0o750)
            self.assertEqual(unreadable(file), folder)
            folder.chmod(0o755)
            file.chmod(0o640)
            self.assertEqual(unreadable(file), file)
            self.assertEqual(unreadable(file.parent), file.parent)

    def test_foreign(self) -> None:
        """What another user can change is refused, as root would execute it."""
        file = Path(self.mktemp()).absolute()
        file.write_text("")
        self.assertIsNone(foreign(SH))
        if os.geteuid() == 0 and foreign(file.parent) is None:
            for mode, owner, wrong in ((0o666, 0, file), (0o644, 1, file), (0o644, 0, None)):
                file.chmod(mode)
                os.chown(file, owner, 0)
                self.assertEqual(foreign(file), wrong)
        elif os.geteuid() != 0:
            self.assertIsNotNone(foreign(file))


class CommandTests(SetupCase):
    """
    The command line.
    """

    def call(self, *arguments: str) -> tuple[int, str]:
        """Call it; returns its exit status and output."""
        result = CliRunner().invoke(main, ["setup", *arguments], obj=self.host)
        return result.exit_code, result.output

    def test_server(self) -> None:
        """It prints the steps, and what to do next."""
        status, output = self.call("server")
        self.assertEqual(status, 0, output)
        self.assertIn("write /etc/usbipshare/server.yaml\n", output)
        self.assertIn("the server is set up: `usbipshare list` shows its devices\n", output)
        self.assertIn('"steps": []', self.call("server", "--json")[1])
        self.assertIn("the server is removed", self.call("server", "--remove")[1])

    def test_roles(self) -> None:
        """There are two roles."""
        self.assertEqual(self.call("gateway")[0], Exit.USAGE)
        self.assertEqual([*ROLES], ["server", "client"])
        self.assertIn("usbipclient", self.call("client")[1])

    def test_notRoot(self) -> None:
        """Without root only --dry-run is possible."""
        self.host.user = False
        status, output = self.call("server")
        self.assertEqual((status, self.made()), (Exit.TROUBLE, {}))
        self.assertIn("this needs root", output)
        status, output = self.call("server", "--dry-run")
        self.assertEqual((status, self.made()), (0, {}))
        self.assertIn("nothing was changed\n", output)
