"""
The steps of a set-up. Each can find out whether there is anything to do, do it, and undo it.
"""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from dataclasses import dataclass

from usbip_server.install.host import Host
from usbip_server.model.errors import LocalTrouble


class Step(ABC):
    """
    One step.
    """

    @abstractmethod
    def missing(self, host: Host) -> str | None:
        """What L{do} would do; C{None}: nothing."""

    @abstractmethod
    def do(self, host: Host) -> None:
        """
        Do it.

        @raise LocalTrouble: that is not possible.
        """

    @abstractmethod
    def present(self, host: Host) -> str | None:
        """What L{undo} would do; C{None}: nothing."""

    @abstractmethod
    def undo(self, host: Host) -> None:
        """
        Undo it.

        @raise LocalTrouble: that is not possible.
        """

    def kept(self, host: Host) -> str | None:
        """What L{undo} leaves although the step has made it, and why; C{None}: nothing."""
        return None


@dataclass(frozen=True)
class Module(Step):
    """
    A kernel module, loaded now. It stays when this is undone: devices may be bound to it.
    """

    name: str

    def missing(self, host: Host) -> str | None:
        loaded = host.path("/proc/modules").read_text().splitlines()
        isLoaded = any(line.split()[0] == self.name.replace("-", "_") for line in loaded)
        return None if isLoaded else f"load the kernel module {self.name}"

    def do(self, host: Host) -> None:
        host.run("modprobe", self.name)

    def present(self, host: Host) -> str | None:
        return None

    def undo(self, host: Host) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Account(Step):
    """
    A system user with a group of the same name.
    """

    name: str

    def _isThere(self, host: Host) -> bool:
        users = host.path("/etc/passwd").read_text().splitlines()
        return any(line.startswith(f"{self.name}:") for line in users)

    def missing(self, host: Host) -> str | None:
        return None if self._isThere(host) else f"create the user {self.name}"

    def do(self, host: Host) -> None:
        options = ("--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent")
        host.run("useradd", *options, "--shell", "/usr/sbin/nologin", self.name)

    def present(self, host: Host) -> str | None:
        return f"remove the user {self.name}" if self._isThere(host) else None

    def undo(self, host: Host) -> None:
        host.run("userdel", self.name)


@dataclass(frozen=True)
class Folder(Step):
    """
    A folder. It is removed when it is empty.
    """

    path: str

    def missing(self, host: Host) -> str | None:
        return None if host.path(self.path).is_dir() else f"create {self.path}"

    def do(self, host: Host) -> None:
        host.path(self.path).mkdir(mode=0o755, parents=True)

    def present(self, host: Host) -> str | None:
        folder = host.path(self.path)
        isEmpty = folder.is_dir() and not any(folder.iterdir())
        return f"remove {self.path}" if isEmpty else None

    def undo(self, host: Host) -> None:
        host.path(self.path).rmdir()


@dataclass(frozen=True)
class File(Step):
    """
    A file with a content.

    @ivar group: its group; C{None}: root's.
    """

    path: str
    text: str
    mode: int = 0o644
    group: str | None = None

    def _content(self, host: Host) -> str | None:
        try:
            return host.path(self.path).read_text()
        except FileNotFoundError:
            return None

    def missing(self, host: Host) -> str | None:
        there = self._content(host)
        if there == self.text:
            return None
        return f"write {self.path}" if there is None else f"update {self.path}"

    def do(self, host: Host) -> None:
        path = host.path(self.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.new")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "w") as file:
            file.write(self.text)
        if self.group is not None:
            host.run("chgrp", self.group, str(beside))
        beside.chmod(self.mode)
        beside.replace(path)
        host.changed.add(self.path)

    def present(self, host: Host) -> str | None:
        return None if self._content(host) is None else f"remove {self.path}"

    def undo(self, host: Host) -> None:
        host.path(self.path).unlink()
        host.changed.add(self.path)


class Configuration(File):
    """
    A configuration file. It is written if it is missing, and removed if nobody has changed it.
    """

    def missing(self, host: Host) -> str | None:
        return super().missing(host) if self._content(host) is None else None

    def present(self, host: Host) -> str | None:
        return super().present(host) if self._content(host) == self.text else None

    def kept(self, host: Host) -> str | None:
        isChanged = self._content(host) not in (None, self.text)
        return f"{self.path} is kept, as it was changed" if isChanged else None


@dataclass(frozen=True)
class Link(Step):
    """
    A symbolic link. A file of another kind, or a link to elsewhere, is left alone.
    """

    path: str
    target: str

    def _target(self, host: Host) -> str | None:
        path = host.path(self.path)
        return os.readlink(path) if path.is_symlink() else None

    def missing(self, host: Host) -> str | None:
        isThere = os.path.lexists(host.path(self.path))
        isTarget = self.path == self.target  # the installation's own folder is in the path
        return None if isThere or isTarget else f"link {self.path} to {self.target}"

    def do(self, host: Host) -> None:
        host.path(self.path).parent.mkdir(parents=True, exist_ok=True)
        host.path(self.path).symlink_to(self.target)

    def present(self, host: Host) -> str | None:
        return f"remove {self.path}" if self._target(host) == self.target else None

    def undo(self, host: Host) -> None:
        host.path(self.path).unlink()


@dataclass(frozen=True)
class PluginCache(Step):
    """
    Twisted's lists of plugins, which a service could not write into the installation.
    """

    def missing(self, host: Host) -> str | None:
        plugins = host.installation.package.parent / "twisted" / "plugins"
        isThere = (plugins / "dropin.cache").exists()
        return None if isThere else "have Twisted write its lists of plugins"

    def do(self, host: Host) -> None:
        host.run(str(host.installation.scripts / "twistd"), "usbipshare", "--version")

    def present(self, host: Host) -> str | None:
        return None

    def undo(self, host: Host) -> None:
        """Nothing: they are a part of the installation."""


@dataclass(frozen=True)
class Reload(Step):
    """
    A program that has to run when files have changed.

    @ivar paths: of the files.
    """

    paths: tuple[str, ...]
    command: tuple[str, ...]

    def missing(self, host: Host) -> str | None:
        return f"run {' '.join(self.command)}" if host.changed.intersection(self.paths) else None

    def do(self, host: Host) -> None:
        host.run(*self.command)

    def present(self, host: Host) -> str | None:
        return self.missing(host)

    def undo(self, host: Host) -> None:
        host.run(*self.command)


@dataclass(frozen=True)
class RunningService(Step):
    """
    A unit that is enabled and runs with the files as they are now.

    @ivar paths: of files that it is restarted for.
    """

    unit: str
    paths: tuple[str, ...]

    def missing(self, host: Host) -> str | None:
        if not host.succeeds("systemctl", "--quiet", "is-active", self.unit):
            return f"enable and start {self.unit}"
        if host.changed.intersection(self.paths):
            return f"restart {self.unit}"
        isEnabled = host.succeeds("systemctl", "--quiet", "is-enabled", self.unit)
        return None if isEnabled else f"enable {self.unit}"

    def do(self, host: Host) -> None:
        host.run("systemctl", "--quiet", "enable", self.unit)
        isChanged = bool(host.changed.intersection(self.paths))
        status, output = host.result("systemctl", "restart" if isChanged else "start", self.unit)
        if status != 0:
            log = host.result("journalctl", "-u", self.unit, "-n", "5", "-o", "cat", "--no-pager")
            raise LocalTrouble(f"{self.unit} does not start: {output}\n{log[1]}")

    def present(self, host: Host) -> str | None:
        isThere = host.path(f"/etc/systemd/system/{self.unit}").exists()
        return f"stop and disable {self.unit}" if isThere else None

    def undo(self, host: Host) -> None:
        host.run("systemctl", "--quiet", "disable", "--now", self.unit)


class StoppedService(RunningService):
    """
    A unit that nobody has to enable; it is restarted if it runs.
    """

    def missing(self, host: Host) -> str | None:
        isActive = host.succeeds("systemctl", "--quiet", "is-active", self.unit)
        isChanged = host.changed.intersection(self.paths)
        return f"restart {self.unit}" if isActive and isChanged else None

    def do(self, host: Host) -> None:
        host.run("systemctl", "restart", self.unit)


@dataclass(frozen=True)
class Traces(Step):
    """
    Folders that a service makes and that nothing else needs. They are only removed.
    """

    paths: tuple[str, ...]

    def _there(self, host: Host) -> list[str]:
        return [path for path in self.paths if host.path(path).is_dir()]

    def missing(self, host: Host) -> str | None:
        return None

    def do(self, host: Host) -> None:
        """Nothing."""

    def present(self, host: Host) -> str | None:
        there = self._there(host)
        return f"remove {' and '.join(there)}" if there else None

    def undo(self, host: Host) -> None:
        for path in self._there(host):
            shutil.rmtree(host.path(path))
