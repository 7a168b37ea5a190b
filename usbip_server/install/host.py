"""
The machine that is set up, and the Python installation that it is set up for.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import usbip_server
from usbip_server.model.errors import LocalTrouble

PACKAGED = Path("/usr/lib/usbipshare")
"""The installation of the Debian package, which sets up everything itself."""

HIDDEN = tuple(map(Path, ("/home", "/root", "/run/user", "/tmp", "/var/tmp")))
"""Folders that the units do not let their services see: C{ProtectHome=}, C{PrivateTmp=}."""

SECONDS = 120
"""The time limit for a program. The start of a service takes the longest."""


@dataclass(frozen=True)
class Installation:
    """
    Where this program is installed.

    @ivar prefix: the virtual environment, or the prefix of the system's Python.
    @ivar python: the interpreter, without symbolic links.
    @ivar scripts: the folder of C{twistd} and C{usbipshare}.
    @ivar package: the folder of this package.
    """

    prefix: Path
    python: Path
    scripts: Path
    package: Path

    @classmethod
    def here(cls) -> Installation:
        """The one that runs."""
        return cls(
            Path(sys.prefix),
            Path(sys.executable).resolve(),
            Path(sysconfig.get_path("scripts")),
            Path(usbip_server.__file__).parent.resolve(),
        )

    @property
    def command(self) -> Path:
        """The command-line client."""
        return self.scripts / "usbipshare"

    def paths(self) -> Iterator[Path]:
        """What the services read."""
        yield from dict.fromkeys((self.scripts / "twistd", self.package, self.python))


@dataclass
class Host:
    """
    A machine.

    @ivar root: the folder that stands for its root; another one than C{/} in tests.
    @ivar installation: what it is set up for.
    @ivar changed: the paths of files that were written or removed.
    """

    root: Path = Path("/")
    installation: Installation = field(default_factory=Installation.here)
    changed: set[str] = field(default_factory=set)

    @property
    def isRoot(self) -> bool:
        """Does this process run as root?"""
        return os.geteuid() == 0

    def path(self, path: str) -> Path:
        """The place of a file of the machine."""
        return self.root / path.lstrip("/")

    def has(self, program: str) -> bool:
        """Is this program installed?"""
        return (
            shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is not None
        )

    def result(self, *command: str) -> tuple[int, str]:
        """Run a program; returns its exit status and its output."""
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=SECONDS,
                check=False,
                env={**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"},
            )
        except subprocess.TimeoutExpired:
            return 124, f"it did not end within {SECONDS} s"
        return done.returncode, done.stdout.strip()

    def run(self, *command: str) -> None:
        """
        Run a program that has to succeed.

        @raise LocalTrouble: it fails.
        """
        status, output = self.result(*command)
        if status != 0:
            raise LocalTrouble(f"`{' '.join(command)}` failed with status {status}: {output}")

    def succeeds(self, *command: str) -> bool:
        """Run a program; does it succeed?"""
        return self.result(*command)[0] == 0


def packaged(name: str) -> str:
    """A file that comes with the package."""
    return resources.files("usbip_server.data").joinpath(name).read_text()


def unreadable(path: Path) -> Path | None:
    """The first folder above a path, or the path, that not every user can read; none if all can."""
    for each in (*reversed(path.parents), path):
        needed = stat.S_IROTH | stat.S_IXOTH if each == path else stat.S_IXOTH
        mode = os.stat(each).st_mode
        if each == path and not stat.S_ISDIR(mode):
            needed = stat.S_IROTH
        if mode & needed != needed:
            return each
    return None


def foreign(path: Path) -> Path | None:
    """
    The first folder above a path, or the path, that another user than root can change; none if
    there is none. A folder with the sticky bit is one in which others cannot replace a file.
    """
    for each in (*reversed(path.parents), path):
        status = os.stat(each)
        isOpen = status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX
        if status.st_uid != 0 or isOpen:
            return each
    return None
