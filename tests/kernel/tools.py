"""The programs of the host that the harness needs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

# The Debian package that has a program, where it has another name.
PACKAGES = {
    **{"apt-cache": "apt", "apt-get": "apt", "busybox": "busybox-static", "xz": "xz-utils"},
    **{"gcc": "gcc libc6-dev", "qemu-system-x86_64": "qemu-system-x86"},
    **dict.fromkeys(("depmod", "modprobe"), "kmod"),
    **dict.fromkeys(("prlimit", "setpriv", "taskset", "unshare"), "util-linux"),
}


class HarnessError(Exception):
    """The harness cannot go on, for a reason that its user can mend. The message contains what to
    do."""


CANDIDATE = re.compile(r"^\s*Candidate: (\d\S*)$", re.MULTILINE)
"""Matches the newest version in the output of C{apt-cache policy}."""


def tool(name: str) -> str:
    """Where a program is.

    @raise HarnessError: it is not installed; the message has the command that installs it."""
    found = _find(name)
    if found is None:
        requireTools([name])
    return str(found)


def requireTools(names: Iterable[str]) -> None:
    """Check that programs are installed.

    @raise HarnessError: some are not; has the command that installs all of them."""
    missing = [name for name in names if _find(name) is None]
    if missing:
        packages = " ".join(dict.fromkeys(PACKAGES.get(name, name) for name in missing))
        raise HarnessError(
            f"programs are missing: {', '.join(missing)}. Install them with\n"
            f"  apt-get install --no-install-recommends {packages}"
        )


def _find(name: str) -> str | None:
    # An ordinary user's PATH on Debian lacks the sbin folders, where depmod is.
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    return shutil.which(name, path=path)


def output(name: str, *arguments: str | Path, folder: Path | None = None) -> str:
    """What a program prints.

    @param folder: where it runs.
    @raise HarnessError: it failed; the message contains its standard error."""
    finished = subprocess.run(
        [tool(name), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if finished.returncode != 0:
        raise HarnessError(f"{name} {arguments[0]} failed: {finished.stderr.strip()}")
    return finished.stdout


def known(pattern: re.Pattern[str], question: str, package: str) -> str:
    """Look up a package in apt's lists.

    @param pattern: with one group, which is returned.
    @param question: C{depends} or C{policy}.
    @raise HarnessError: the package is not in the lists."""
    with suppress(HarnessError):  # E: No packages found
        found = pattern.search(output("apt-cache", question, package))
        if found is not None:
            return found[1]
    raise HarnessError(f"apt knows no candidate for {package}: run apt-get update")


def download(package: str, version: str, folder: Path) -> Path:
    """Download a package.

    @return: the file.
    @raise HarnessError: apt could not do it."""
    # apt's own user cannot write to the folder, and warns about that.
    sandbox = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
    print(f"downloading {package} {version}", flush=True)
    try:
        output("apt-get", *sandbox, "download", f"{package}={version}", folder=folder)
    except HarnessError as error:
        raise HarnessError(f"{error}\nif it is not found: run apt-get update") from None
    (archive,) = folder.glob("*.deb")
    return archive
