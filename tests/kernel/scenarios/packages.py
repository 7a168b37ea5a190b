"""
The Debian package, and C{usbipshare setup}, on a machine with a real systemd, udev and apt.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

from tests.kernel import guest
from tests.kernel.daemoncase import DISK, SERIAL
from tests.kernel.scenarios.service import OVERRIDE, UNITS, USER, SystemdCase

DIST = Path(__file__).parents[3] / "dist" / "repacked"
"""Made by L{tests.packages.__main__}."""

ETC = Path("/etc/usbipshare")
HOME = Path("/usr/lib/usbipshare")
PIP = Path("/opt/usbipshare")
SERVER, CLIENT = "usbipshare.service", "usbipclient.service"
CONFIG = "timeouts: {answer: 60, bind: 60}\n"
STATE, CLIENT_STATE = Path("/var/lib/usbipshare"), Path("/var/lib/usbipclient")
SECONDS = 1800.0

APT = (
    *("apt-get", "--yes", "--quiet", "-o", "Dpkg::Use-Pty=0"),
    # Everything that the package depends on is installed: no list of packages has to be read.
    *("-o", "Dir::State::Lists=/run/nothing", "-o", "Dir::Cache::pkgcache="),
    *("-o", "Dir::Cache::srcpkgcache=", "-o", "APT::Install-Recommends=false"),
)

MINE = re.compile("usbip(share|client)")


class MachineCase(SystemdCase):
    """A machine on which nothing of ours is installed."""

    unit = SERVER

    def install(self) -> None:
        """Nothing. Remove what keeps services from being started in containers."""
        Path("/usr/sbin/policy-rc.d").unlink(missing_ok=True)
        for path in (PIP, Path("/usr/local/bin/usbipshare")):
            if path.is_symlink():
                path.unlink()
        for folder in (STATE, CLIENT_STATE):  # tests that were run on this machine as root
            shutil.rmtree(folder, ignore_errors=True)
        guest.run("userdel", USER)
        # dpkg would have the database of manual pages updated.
        Path("/var/lib/man-db/auto-update").unlink(missing_ok=True)
        self.assertEqual(self.traces(), set())

    def startSystemd(self, unit: str) -> None:
        """Start a systemd without any of our units."""
        for name in (SERVER, CLIENT):
            (UNITS / f"{name}.d").mkdir(exist_ok=True)
            (UNITS / f"{name}.d" / "test.conf").write_text(OVERRIDE)
        timers = UNITS / "timers.target"  # apt would run by itself
        timers.unlink(missing_ok=True)
        timers.symlink_to("/dev/null")
        super().startSystemd("basic.target")
        active = ("is-active", "basic.target")
        self.wait(lambda: self.systemctl(*active) == "active", "systemd runs")

    def traces(self) -> set[str]:
        """The files of ours on this machine, besides this test's."""
        found = {
            str(path)
            for folder in ("/etc", "/usr/lib", "/lib", "/usr/share", "/usr/bin", "/usr/local/bin")
            for path in self._ours(Path(folder))
        }
        found |= {str(path) for path in (STATE, CLIENT_STATE, PIP) if path.exists()}
        accounts = Path("/etc/passwd").read_text()
        return found | ({USER} if f"\n{USER}:" in accounts else set())

    def _ours(self, folder: Path) -> list[Path]:
        depth = 4 if folder.name in ("etc", "share") else 3
        found = guest.check(
            *("find", str(folder), "-maxdepth", str(depth), "-iname", "*usbip*"), seconds=SECONDS
        )
        paths = [Path(line) for line in found.splitlines()]
        return [it for it in paths if MINE.search(it.name) and it.suffix != ".d"]

    def succeed(self, *command: str) -> str:
        """Run a program in the namespaces of systemd; returns its output."""
        done = self.execute(*command, seconds=SECONDS)
        self.assertEqual(done.rc, 0, f"{command}\n{done.out}\n{done.err}")
        return done.out

    def ask(self, **request: object) -> Any:
        """Send the server a request that has to succeed; returns its data."""
        answer = json.loads(guest.check("nc", "-N", "localhost", "5055", stdin=json.dumps(request)))
        self.assertEqual(answer["status"], "success", answer)
        return answer["data"]

    def listed(self, *command: str) -> set[str]:
        """The bus ids that C{usbipshare list} shows."""
        reply = json.loads(self.succeed(*command, "list", "--json", "--timeout", "60"))
        return {device["bus_id"] for device in reply["devices"]}

    def state(self, unit: str) -> tuple[str, str]:
        """Is a unit active, and is it enabled?"""
        values = (self.systemctl(f"is-{what}", unit) for what in ("active", "enabled"))
        active, enabled = values
        return active, enabled


class PackageTests(MachineCase):
    """The Debian package."""

    def dpkg(self, *arguments: str) -> None:
        """Run dpkg."""
        self.succeed("env", "DEBIAN_FRONTEND=noninteractive", "dpkg", *arguments)

    def package(self, revision: int) -> str:
        """The path of the package."""
        (path,) = DIST.glob(f"usbipshare_*-{revision}_*.deb")
        return str(path)

    def test_story(self) -> None:
        """The package is installed, used, upgraded, removed and purged.

        The daemon runs after the installation; sessions, configuration and state outlast the
        upgrade; server and client service on one machine keep their states apart; in the end
        nothing is left."""
        self.addCleanup(guest.run, "dpkg", "--purge", "usbipshare", seconds=SECONDS)
        began = time.monotonic()
        self.succeed("env", "DEBIAN_FRONTEND=noninteractive", *APT, "install", self.package(1))
        installing = time.monotonic() - began
        self.assertEqual(self.listed("/usr/bin/usbipshare") & {DISK, SERIAL}, {DISK, SERIAL})
        took = time.monotonic() - began
        print(f"seconds: apt-get install {installing:.0f}, to a device listed {took:.0f}")
        self.assertEqual(self.state(SERVER), ("active", "enabled"))
        self.assertEqual(self.state(CLIENT), ("inactive", "disabled"))
        self.checkFiles()

        self.useBoth()

        (ETC / "server.yaml").write_text(CONFIG)
        self.ask(command="attach", id=DISK)
        port, imported, node = guest.attachDisk(DISK)
        first = self.show("MainPID")
        self.dpkg("--install", self.package(2))
        self.awaitActive()
        self.assertNotEqual(self.show("MainPID"), first)
        self.assertEqual(guest.imports(), {port: imported})
        guest.checkDiskBytes(node)
        self.assertEqual(self.ask(command="find", id=DISK, detail=True)["state"], "in_use")
        self.assertEqual((ETC / "server.yaml").read_text(), CONFIG)
        self.checkOwner(ETC / "server.yaml", 0o640)
        self.assertEqual(self.state(CLIENT), ("active", "disabled"))
        self.ask(command="detach", id=DISK)

        self.dpkg("--remove", "usbipshare")
        self.assertEqual(self.systemctl("is-active", SERVER), "inactive")
        self.assertEqual(self.systemctl("is-active", CLIENT), "inactive")
        self.assertFalse(HOME.exists())
        self.assertTrue((STATE / "state.json").exists())
        self.assertEqual((ETC / "server.yaml").read_text(), CONFIG)
        self.dpkg("--purge", "usbipshare")
        self.assertEqual(self.traces(), set())
        for name in ("usbipshare", "usbipshare-server"):
            self.inside("test", "!", "-e", f"/run/{name}")

    def checkFiles(self) -> None:
        """What the package has installed is usable."""
        (plugins,) = HOME.glob("lib/python3*/site-packages/twisted/plugins")
        self.assertTrue((plugins / "dropin.cache").exists())
        for name in ("man1/usbipshare.1", "man5/usbipshare-server.yaml.5"):
            self.assertTrue(Path(f"/usr/share/man/{name}.gz").exists())
        self.assertTrue(Path("/usr/share/bash-completion/completions/usbipshare").exists())
        self.assertTrue(Path("/usr/share/doc/usbipshare/docs/howto/server_setup.md").exists())
        self.assertTrue(Path("/sys/bus/usb/drivers/usbip-host").exists())
        self.checkOwner(ETC / "server.yaml", 0o640)
        refused = self.execute("/usr/bin/usbipshare", "setup", "server", seconds=SECONDS)
        self.assertIn("this is the Debian package", refused.err)

    def checkOwner(self, path: Path, mode: int) -> None:
        """A file belongs to root and our group, with these permissions."""
        status = path.stat()
        self.assertEqual((path.owner(), path.group(), status.st_mode & 0o777), ("root", USER, mode))

    def useBoth(self) -> None:
        """The client service takes its state from the server's folder, where version 0.1 has it.
        From then on neither takes the folder of the other."""
        self.ask(command="attach", id=SERIAL)
        self.wait((STATE / "state.json").exists, "the state is written")
        old = STATE / "client.json"
        old.write_text('{"version": 1}')
        shutil.chown(old, USER, USER)
        (ETC / "service.yaml").write_text("servers: {here: {host: 127.0.0.1}}\n")
        self.succeed("systemctl", "start", CLIENT)
        self.assertFalse(old.exists())
        self.assertEqual((CLIENT_STATE / "client.json").owner(), "root")
        self.assertEqual((CLIENT_STATE.owner(), STATE.owner()), ("root", USER))
        before = (STATE / "state.json").read_text()
        self.ask(command="detach", id=SERIAL)
        self.wait(lambda: (STATE / "state.json").read_text() != before, "the state is written")
        self.succeed("systemctl", "restart", SERVER)
        self.awaitActive()
        self.assertEqual((CLIENT_STATE.owner(), STATE.owner()), ("root", USER))
        self.inside("test", "-S", "/run/usbipshare/client.sock")


class SetupTests(MachineCase):
    """C{usbipshare setup} of an installation with C{pip}."""

    def install(self) -> None:
        """A virtual environment, as C{pip} makes it."""
        super().install()
        (package,) = DIST.glob("usbipshare_*-1_*.deb")
        target = self.mktemp()
        guest.check("dpkg-deb", "-x", str(package), target, seconds=SECONDS)
        PIP.parent.mkdir(exist_ok=True)
        shutil.move(Path(target, "usr/lib/usbipshare"), PIP)
        self.addCleanup(shutil.rmtree, PIP, ignore_errors=True)
        for name in ("twistd", "usbipshare"):
            script = PIP / "bin" / name
            script.write_text(script.read_text().replace(str(HOME), str(PIP)))

    def test_setup(self) -> None:
        """C{setup server} starts a server that lists devices and is enabled, a second call does
        nothing, and --remove leaves nothing."""
        command = str(PIP / "bin" / "usbipshare")
        began = time.monotonic()
        self.succeed(command, "setup", "server")
        self.assertEqual(self.listed("/usr/local/bin/usbipshare") & {DISK, SERIAL}, {DISK, SERIAL})
        print(f"seconds: setup server, to a device listed {time.monotonic() - began:.0f}")
        self.assertEqual(self.state(SERVER), ("active", "enabled"))
        self.assertEqual((ETC / "server.yaml").group(), USER)
        pid = self.show("MainPID")
        again = json.loads(self.succeed(command, "setup", "server", "--json"))
        self.assertEqual((again["steps"], self.show("MainPID")), ([], pid))
        self.succeed(command, "setup", "client")
        self.assertEqual(self.state(CLIENT), ("inactive", "disabled"))
        for role in ("client", "server"):
            self.succeed(command, "setup", role, "--remove")
        self.assertEqual(self.systemctl("is-active", SERVER), "inactive")
        self.assertEqual(self.traces(), {str(PIP)})


del MachineCase, SystemdCase  # base classes are not run
