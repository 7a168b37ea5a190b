"""
What a server and a client consist of, and where neither can be set up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from usbip_server.install.host import HIDDEN, PACKAGED, Host, foreign, packaged, unreadable
from usbip_server.install.steps import (
    Account,
    Configuration,
    File,
    Folder,
    Link,
    Module,
    PluginCache,
    Reload,
    RunningService,
    Step,
    StoppedService,
    Traces,
)
from usbip_server.model.errors import LocalTrouble

USER = "usbipshare"
ETC = "/etc/usbipshare"
UNITS = "/etc/systemd/system"
RULES = "/etc/udev/rules.d/60-usbipshare.rules"
MODULES = "/etc/modules-load.d/usbipshare.conf"
COMMAND = "/usr/local/bin/usbipshare"

EXAMPLE = "/opt/usbipshare"
"""Where the documents install a virtual environment, which is also in the packaged units."""

DAEMON_RELOAD = ("systemctl", "daemon-reload")
UDEV_RELOAD = ("udevadm", "control", "--reload")

Report = Callable[[str], None]


@dataclass(frozen=True)
class Role:
    """
    A server or a client.

    @ivar name: C{server} or C{client}.
    @ivar unit: its systemd unit.
    @ivar module: the kernel module that it needs.
    @ivar programs: what the steps run, and the Debian packages with them.
    """

    name: str
    unit: str
    module: str
    programs: tuple[tuple[str, str], ...]

    def steps(self, host: Host) -> list[Step]:
        """
        The steps, in order. A L{Reload} stands before and behind the file that it is for: removal
        goes through the steps in the opposite order.
        """
        unit = f"{UNITS}/{self.unit}"
        scripts = str(host.installation.scripts)
        text = packaged(self.unit).replace(f"{EXAMPLE}/bin", scripts)
        shared: list[Step] = [Link(COMMAND, str(host.installation.command)), PluginCache()]
        reload = Reload((unit,), DAEMON_RELOAD)
        if self is CLIENT:
            return [
                Module(self.module),
                Folder(ETC),
                Configuration(f"{ETC}/client.yaml", packaged("client.yaml")),
                Configuration(f"{ETC}/service.yaml", packaged("service.yaml"), 0o600),
                *shared,
                Traces(("/var/lib/usbipclient", "/run/usbipshare")),
                reload,
                File(unit, text),
                reload,
                StoppedService(self.unit, (unit,)),
            ]
        return [
            Module(self.module),
            File(MODULES, f"{self.module}\n"),
            Account(USER),
            Folder(ETC),
            Configuration(f"{ETC}/server.yaml", packaged("server.yaml"), 0o640, USER),
            *shared,
            Reload((RULES,), UDEV_RELOAD),
            File(RULES, packaged("60-usbipshare.rules")),
            Reload((RULES,), UDEV_RELOAD),
            Traces(("/var/lib/usbipshare",)),
            reload,
            File(unit, text),
            reload,
            RunningService(self.unit, (unit, RULES)),
        ]


SERVER = Role(
    "server",
    "usbipshare.service",
    "usbip-host",
    (("useradd", "passwd"), ("systemctl", "systemd"), ("udevadm", "udev"), ("modprobe", "kmod")),
)
CLIENT = Role(
    "client", "usbipclient.service", "vhci-hcd", (("systemctl", "systemd"), ("modprobe", "kmod"))
)
ROLES = {role.name: role for role in (SERVER, CLIENT)}


def setUp(role: Role, host: Host, dry: bool, report: Report) -> int:
    """
    Do what is missing.

    @param dry: only report what would be done.
    @param report: called with each step before it is done.
    @return: the number of steps.
    @raise LocalTrouble: it could not work on this machine, or a step fails.
    """
    refuse(role, host)
    host.changed.clear()
    count = 0
    for step in role.steps(host):
        todo = step.missing(host)
        if todo is None:
            continue
        count += 1
        report(todo)
        if dry:
            _pretend(step, host)
        else:
            step.do(host)
    return count


def remove(role: Role, host: Host, dry: bool, report: Report) -> int:
    """
    Undo what L{setUp} has done, in the opposite order. What the other role needs too stays.

    @return: the number of steps.
    @raise LocalTrouble: a step fails.
    """
    other = CLIENT if role is SERVER else SERVER
    isNeeded = host.path(f"{UNITS}/{other.unit}").exists()
    host.changed.clear()
    count = 0
    for step in reversed(role.steps(host)):
        if isNeeded and isinstance(step, Link):
            continue
        kept = step.kept(host)
        if kept is not None:
            report(kept)
        todo = step.present(host)
        if todo is None:
            continue
        count += 1
        report(todo)
        if dry:
            _pretend(step, host)
        else:
            step.undo(host)
    return count


def _pretend(step: Step, host: Host) -> None:
    """Have the steps that follow a change of a file report what they would do."""
    if isinstance(step, File):
        host.changed.add(step.path)


def refuse(role: Role, host: Host) -> None:
    """
    @raise LocalTrouble: the role could not work on this machine; the message states what to do.
    """
    here = host.installation
    if here.prefix == PACKAGED:
        raise LocalTrouble(
            f"this is the Debian package, which has set up everything: `sudo systemctl enable "
            f"--now {role.unit}` starts it, `sudo apt-get purge usbipshare` removes it"
        )
    if not host.path("/run/systemd/system").is_dir():
        raise LocalTrouble(
            "this machine does not run systemd: start `twistd --nodaemon --pidfile= "
            f"{role.unit.partition('.')[0]}` by its own means, as root"
        )
    for program, package in role.programs:
        if not host.has(program):
            raise LocalTrouble(f"there is no program {program!r}: apt-get install {package}")
    if not host.succeeds("modprobe", "--dry-run", "--quiet", role.module):
        raise LocalTrouble(
            f"this machine's kernel has no module {role.module}. Debian's kernels have it, except "
            "linux-image-cloud-*: install linux-image-amd64 or linux-image-arm64, and reboot"
        )
    for path in here.paths():
        if not path.exists():
            raise LocalTrouble(f"{path} is missing: install usbipshare again. {_elsewhere(role)}")
        hidden = next((each for each in HIDDEN if path.is_relative_to(each)), None)
        if hidden is not None:
            raise LocalTrouble(
                f"the service could not read {path}: it does not see {hidden}. {_elsewhere(role)}"
            )
        closed = unreadable(path)
        if closed is not None:
            raise LocalTrouble(
                f"the service could not read {path}: {closed} is not open to all users "
                f"(chmod o+rX). {_elsewhere(role)}"
            )
        owned = foreign(path)
        if owned is not None:
            raise LocalTrouble(
                f"another user than root can change {owned}, and so what root runs. "
                f"{_elsewhere(role)}"
            )


def _elsewhere(role: Role) -> str:
    return (
        f"Install it where only root writes: sudo python3 -m venv {EXAMPLE}; "
        f"sudo {EXAMPLE}/bin/pip install FILE (the wheel, or the folder with the sources); "
        f"sudo {EXAMPLE}/bin/usbipshare setup {role.name}"
    )
