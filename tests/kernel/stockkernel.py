"""
Debian's kernels, fetched as packages and never installed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.kernel.cache import Cache
from tests.kernel.tools import CANDIDATE, HarnessError, download, known, output

# series -> the package that depends on the newest kernel of that series
META_PACKAGES = {
    "6.1": "linux-image-amd64",
    "6.12": "linux-image-6.12-amd64",
}

_IMAGE = re.compile(r"^\s*\|?Depends: linux-image-(\d+\.\d+\.\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class StockKernel:
    """
    A kernel of Debian's, unpacked.

    @ivar series: C{6.1}
    @ivar release: the output of C{uname -r} in the guest, C{6.1.0-56-amd64}
    @ivar folder: the package's content, with C{boot/} and C{lib/modules/}
    """

    series: str
    release: str
    folder: Path

    @property
    def image(self) -> Path:
        """What QEMU boots."""
        return self.folder / "boot" / f"vmlinuz-{self.release}"

    @property
    def modules(self) -> Path:
        """The folder of its modules."""
        return self.folder / "lib" / "modules" / self.release


def fetchKernel(series: str, cache: Cache) -> StockKernel:
    """
    The newest kernel of a series in apt's lists, downloaded and unpacked unless it is in the cache.

    @raise HarnessError: there is none, or it could not be downloaded.
    """
    metaPackage = META_PACKAGES[series]
    release = known(_IMAGE, "depends", metaPackage)
    if not release.startswith(series + "."):
        raise HarnessError(f"{metaPackage} is {release} here, not a {series} kernel")
    package = f"linux-image-{release}"
    version = known(CANDIDATE, "policy", package)
    folder = cache.folder / f"{package}_{version.replace(':', '%3a')}"
    with cache.making(f"stock-{series}") as workshop:
        if not folder.exists():
            _unpack(package, version, release, folder, workshop)
    return StockKernel(series, release, folder)


def _unpack(package: str, version: str, release: str, folder: Path, workshop: Path) -> None:
    """Unpack elsewhere and rename at the very end: a folder of the right name is complete."""
    unpacked = workshop / "unpacked"
    output("dpkg", "-x", download(package, version, workshop), unpacked)
    output("depmod", "-b", unpacked, release)
    unpacked.rename(folder)
