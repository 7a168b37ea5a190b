"""
The programs of the host that the harness needs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.kernel.trouble import HarnessError

# program -> the Debian package that has it
PACKAGES = {
    "apt-cache": "apt",
    "apt-get": "apt",
    "busybox": "busybox-static",
    "cpio": "cpio",
    "depmod": "kmod",
    "dpkg": "dpkg",
    "modprobe": "kmod",
    "qemu-system-x86_64": "qemu-system-x86",
    "setpriv": "util-linux",
}


def tool(name: str) -> str:
    """
    Where a program is.

    An ordinary user's PATH on Debian lacks the sbin folders, where depmod is.

    @raise HarnessError: it is not installed; names the package.
    """
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    found = shutil.which(name, path=path)
    if found is None:
        raise HarnessError(f"{name} is missing: install the Debian package {PACKAGES[name]}")
    return found


def output(name: str, *arguments: str | Path, folder: Path | None = None) -> str:
    """
    What a program prints.

    @param folder: where it runs.
    @raise HarnessError: it failed; contains what it said on standard error.
    """
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
