"""Kernels for user-mode Linux, built from Debian's kernel sources.

A kernel is built once. Its folder in the cache has the version of the source package and a
digest of L{CONFIG} in its name, so that a change of either builds another one. A list of its
files and their digests shows whether it is complete: an incomplete one is built again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

from tests.kernel.cache import Cache
from tests.kernel.machine import Kernel
from tests.kernel.tools import CANDIDATE, HarnessError, download, known, output, requireTools, tool

SERIES = ("6.1", "6.12")

CONFIG = Path(__file__).with_name("uml.config")
"""The options that are set besides C{allnoconfig}."""

_PROGRAMS = (
    *("apt-cache", "apt-get", "bc", "bison", "depmod", "dpkg", "flex", "gcc", "make"),
    *("tar", "xz"),
)

# Not in 6.1, where it is always on.
_LATER = ("CONFIG_HID_SUPPORT=y",)

_LIST = "files.json"
_LOG_LINES = 30


def umlKernel(series: str, cache: Cache) -> tuple[Kernel, float | None]:
    """The kernel of the newest sources in apt's lists, built unless it is in the cache.

    @return: it, and how many seconds it took to build it, if it was built.
    @raise HarnessError: a program is missing, the sources are not in apt's lists, or could not be
        built."""
    package = f"linux-source-{series}"
    version = known(CANDIDATE, "policy", package)
    digest = hashlib.sha256(CONFIG.read_bytes()).hexdigest()[:12]
    folder = cache.folder / f"uml-{series}_{version.replace(':', '%3a')}_{digest}"
    took = None
    with cache.making(f"uml-{series}") as workshop:
        if not isComplete(folder):
            shutil.rmtree(folder, ignore_errors=True)
            requireTools(_PROGRAMS)
            began = time.monotonic()
            log = cache.folder / f"build-{series}.log"
            made = _make(series, download(package, version, workshop), workshop, log)
            files = [path for path in sorted(made.rglob("*")) if path.is_file()]
            listed = {str(path.relative_to(made)): _digestOf(path) for path in files}
            (made / _LIST).write_text(json.dumps(listed))
            made.rename(folder)
            took = time.monotonic() - began
    (modules,) = (folder / "lib" / "modules").iterdir()
    return Kernel(series, modules.name, folder, folder / "linux"), took


def isComplete(folder: Path) -> bool:
    """Is a kernel's folder as it was built?"""
    try:
        listed: dict[str, str] = json.loads((folder / _LIST).read_bytes())
        return bool(listed) and all(
            _digestOf(folder / name) == digest for name, digest in listed.items()
        )
    except (OSError, ValueError, AttributeError):
        return False


def _make(series: str, archive: Path, workshop: Path, log: Path) -> Path:
    """Unpack and build.

    @return: the kernel's folder, still in the workshop."""
    print(f"building Linux {series} for user-mode Linux, once: minutes. Log: {log}", flush=True)
    package, sources, build, made = (workshop / name for name in ("deb", "src", "build", "made"))
    output("dpkg", "-x", archive, package)
    (tarball,) = package.glob("usr/src/linux-source-*.tar.xz")
    sources.mkdir()
    output("tar", "--strip-components=1", "-xf", tarball, folder=sources)
    shutil.rmtree(package)
    build.mkdir()
    make = ("make", f"-j{os.cpu_count() or 1}", "ARCH=um", f"O={build}")
    merge = ("scripts/kconfig/merge_config.sh", "-m", "-O", build, build / ".config", CONFIG)
    with log.open("wb") as to:
        for step in (
            (*make, "allnoconfig"),
            ("env", "ARCH=um", *merge),
            (*make, "olddefconfig"),
            (*make, "linux", "modules"),
            (*make, f"INSTALL_MOD_PATH={made}", "modules_install"),
        ):
            _run(step, sources, to.fileno(), log)
    _checkConfig(build / ".config")
    shutil.copy(build / "linux", made / "linux")
    for link in made.glob("lib/modules/*/*"):
        if link.is_symlink():  # to the sources, which go
            link.unlink()
    return made


def _run(step: tuple[str | Path, ...], folder: Path, log: int, path: Path) -> None:
    environment = {**os.environ, "LC_ALL": "C", "KBUILD_BUILD_TIMESTAMP": "1970-01-01"}
    # A surrounding make's flags (its job server) are none of the kernel's business.
    for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):
        environment.pop(name, None)
    program, *arguments = map(str, step)
    ended = subprocess.run(
        [tool(program) if program == "make" else program, *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
    )
    if ended.returncode != 0:
        end = "\n".join(path.read_text("utf-8", "replace").splitlines()[-_LOG_LINES:])
        raise HarnessError(f"{end}\nthe kernel could not be built: {' '.join(arguments)}")


def _checkConfig(written: Path) -> None:
    """Kconfig silently drops unknown options and those whose dependencies are not set."""
    got = set(written.read_text().splitlines())
    wanted = [line for line in CONFIG.read_text().splitlines() if line.startswith("CONFIG_")]
    dropped = [line for line in wanted if line not in got and line not in _LATER]
    if dropped:
        raise HarnessError(f"{CONFIG.name} asks for what these sources do not give: {dropped}")


def _digestOf(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
