"""
What the guest's kernel starts from: busybox, a script, and the modules that reach the host.
"""

from __future__ import annotations

import lzma
import shutil
import subprocess
from pathlib import Path

from tests.kernel.stockkernel import StockKernel
from tests.kernel.tools import HarnessError, output, tool

# In the order they go in. What they need comes with them.
_MODULES = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay")

_INIT = Path(__file__).with_name("qemu-init.sh")


def buildInitrd(kernel: StockKernel, settings: str, folder: Path) -> Path:
    """
    Make the initial RAM disk.

    @param settings: what C{qemu-init.sh} and C{guest.sh} source.
    @param folder: where to put it.
    """
    tree = folder / "initrd"
    shutil.rmtree(tree, ignore_errors=True)
    for name in ("bin", "modules", "host", "writable", "root"):
        (tree / name).mkdir(parents=True)
    shutil.copy(tool("busybox"), tree / "bin" / "busybox")
    shutil.copy(_INIT, tree / "init")
    (tree / "init").chmod(0o755)
    (tree / "settings").write_text(settings)
    for number, module in enumerate(_moduleFiles(kernel)):
        target = tree / "modules" / f"{number:02}-{module.name.partition('.')[0]}.ko"
        target.write_bytes(_readModule(module))
    names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    initrd = folder / "initrd.cpio"
    with open(initrd, "wb") as archive:
        subprocess.run(
            [tool("cpio"), "--quiet", "-o", "-H", "newc", "-R", "+0:+0"],
            cwd=tree,
            input=names.encode("utf-8"),
            stdout=archive,
            check=True,
        )
    return initrd


def _moduleFiles(kernel: StockKernel) -> list[Path]:
    """The files to insert, in order. A module that is built in has none."""
    files: dict[Path, None] = {}
    for module in _MODULES:
        # An empty configuration: the host's own must not matter.
        listing = output(
            "modprobe", "-C", "/dev/null", "-S", kernel.release, "-d", kernel.folder,
            "--show-depends", module,
        )  # fmt: skip
        for line in listing.splitlines():
            verb, _, rest = line.partition(" ")
            if verb == "insmod":
                files[Path(rest.strip())] = None
    return list(files)


def _readModule(path: Path) -> bytes:
    """The content of a module, uncompressed: C{insmod} of busybox expects that."""
    if path.suffix == ".ko":
        return path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    raise HarnessError(f"{path.name}: a compression that is not known here")
