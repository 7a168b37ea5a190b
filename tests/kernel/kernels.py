"""
Debian's kernels, fetched as packages and never installed.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.kernel.cache import Cache
from tests.kernel.tools import output
from tests.kernel.trouble import HarnessError

# series -> the package that depends on the newest kernel of that series
META_PACKAGES = {
    "6.1": "linux-image-amd64",
    "6.12": "linux-image-6.12-amd64",
}

_IMAGE = re.compile(r"^\s*\|?Depends: linux-image-(\d+\.\d+\.\S+)$", re.MULTILINE)
_CANDIDATE = re.compile(r"^\s*Candidate: (\d\S*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Kernel:
    """
    An unpacked kernel.

    @ivar series: C{6.1}
    @ivar release: what C{uname -r} says in the guest, C{6.1.0-56-amd64}
    @ivar folder: the package's content, with C{boot/} and C{lib/modules/}
    """

    series: str
    release: str
    folder: Path

    @property
    def image(self) -> Path:
        """
        What QEMU boots.
        """
        return self.folder / "boot" / f"vmlinuz-{self.release}"


def fetchKernel(series: str, cache: Cache) -> Kernel:
    """
    The newest kernel of a series that apt knows, downloaded and unpacked unless it is there.

    @raise HarnessError: apt does not know one, or could not download it.
    """
    metaPackage = META_PACKAGES[series]
    release = _known(_IMAGE, "depends", metaPackage)
    if not release.startswith(series + "."):
        raise HarnessError(f"{metaPackage} is {release} here, not a {series} kernel")
    package = f"linux-image-{release}"
    version = _known(_CANDIDATE, "policy", package)
    folder = cache.folder / f"{package}_{version.replace(':', '%3a')}"
    with cache.locked():
        if not folder.exists():
            _unpack(package, version, release, folder)
    return Kernel(series, release, folder)


def _known(pattern: re.Pattern[str], question: str, package: str) -> str:
    """
    What apt's lists say of a package.
    """
    with suppress(HarnessError):  # E: No packages found
        found = pattern.search(output("apt-cache", question, package))
        if found is not None:
            return found[1]
    raise HarnessError(f"apt knows no candidate for {package}: run apt-get update")


def _unpack(package: str, version: str, release: str, folder: Path) -> None:
    """
    Unpack elsewhere and rename at the very end: a folder of the right name is complete.

    The cache is locked: any other workshop in it was left by somebody who was killed. A
    program he had started may still be at work there, hence a new name each time.
    """
    for leftover in folder.parent.glob("unpack-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="unpack-", dir=folder.parent) as name:
        workshop = Path(name)
        unpacked = workshop / "unpacked"
        # apt's own user cannot write here, and warns about that.
        sandbox = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
        print(f"downloading {package} {version}", flush=True)
        try:
            output("apt-get", *sandbox, "download", f"{package}={version}", folder=workshop)
        except HarnessError as error:
            raise HarnessError(f"{error}\nif it is not found: run apt-get update") from None
        (archive,) = workshop.glob("*.deb")
        output("dpkg", "-x", archive, unpacked)
        output("depmod", "-b", unpacked, release)
        unpacked.rename(folder)
