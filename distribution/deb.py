"""
C{make deb}: builds C{dist/usbipshare_VERSION_ARCHITECTURE.deb} for the Debian that this machine
runs, from the wheel in C{dist/}.

The package contains a virtual environment in C{/usr/lib/usbipshare}, as Debian 12 has not all the
Python packages that are needed. It runs on Debian's own Python.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

PROJECT = Path(__file__).parent.parent
DIST = PROJECT / "dist"
OURS = Path(__file__).parent / "debian"
PYTHON = "/usr/bin/python3"
HOME = "/usr/lib/usbipshare"
EXAMPLE = "/opt/usbipshare/bin"
"""The folder of scripts in the units of the wheel."""

MAINTAINER = "usbipshare packagers <packagers@usbipshare.invalid>"
SCRIPTS = ("postinst", "prerm", "postrm")
KEPT = ("python", "python3", "twistd", "usbipshare")
"""What stays in the C{bin} of the virtual environment, besides C{python3.*}."""

CONFIGURATION = {"server.yaml": 0o640, "client.yaml": 0o644, "service.yaml": 0o640}
PACKAGES = {
    "dpkg-deb": "dpkg",
    "dpkg-shlibdeps": "dpkg-dev",
    "strip": "binutils",
    PYTHON: "python3",
}
"""The Debian packages of the programs that the build runs."""


def main() -> None:
    """
    Build the package.
    """
    missing = sorted({PACKAGES[program] for program in PACKAGES if not shutil.which(program)})
    if missing:
        sys.exit(f"make deb needs: apt-get install {' '.join(missing)}")
    (wheel,) = DIST.glob("usbipshare-*.whl")
    version = wheel.name.split("-")[1]
    with tempfile.TemporaryDirectory(prefix="usbipshare-deb-") as folder:
        tree = Path(folder, "tree")
        environment = Environment(tree)
        environment.build(wheel)
        install(tree, environment.data, version)
        deb = control(tree, version, Path(folder))
        made = DIST / deb
        run("dpkg-deb", "--build", "--root-owner-group", "-Zxz", str(tree), str(made))
    print(f"{made.relative_to(PROJECT)}: {made.stat().st_size / 1e6:.1f} MB")


def run(*command: str, **more: str) -> str:
    """Run a program that has to succeed; returns its output."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, **more)  # type: ignore[call-overload]
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout}")
    return str(done.stdout).strip()


class Environment:
    """
    The virtual environment.

    @ivar data: the folder with the data of our package in it.
    """

    def __init__(self, tree: Path) -> None:
        self._root = Path(f"{tree}{HOME}")
        self._tree = tree

    @property
    def _packages(self) -> Path:
        (folder,) = self._root.glob("lib/python3*/site-packages")
        return folder

    @property
    def data(self) -> Path:
        """The folder with the data of our package."""
        return self._packages / "usbip_server" / "data"

    def build(self, wheel: Path) -> None:
        """Make it, with a wheel and what that needs."""
        run(PYTHON, "-m", "venv", "--without-pip", str(self._root))
        pip = (sys.executable, "-m", "pip", "--python", str(self._root / "bin" / "python"))
        quiet = ("--quiet", "--disable-pip-version-check", "--no-compile")
        run(*pip, "install", *quiet, str(wheel))
        self._reduce()
        self._relocate()
        for library in self._packages.rglob("*.so*"):
            run("strip", "--strip-unneeded", str(library))
            library.chmod(0o644)
        here = ("-s", str(self._tree), "-p", "/")
        run(PYTHON, "-m", "compileall", "-q", "-j0", *here, str(self._packages))

    def _reduce(self) -> None:
        """Remove what is not needed: other programs, tests, and what tells of this machine."""
        for path in (self._root / "bin").iterdir():
            if path.name not in KEPT and not path.name.startswith("python3."):
                path.unlink()
        for name in ("include", "share"):
            shutil.rmtree(self._root / name, ignore_errors=True)
        for name in ("test", "tests", "_test", "newsfragments"):
            for folder in [*self._packages.rglob(name)]:
                shutil.rmtree(folder, ignore_errors=True)
        for name in ("direct_url.json", "INSTALLER", "REQUESTED"):
            for path in self._packages.glob(f"*.dist-info/{name}"):
                path.unlink()

    def _relocate(self) -> None:
        """Replace the path of the build by the one of the package."""
        config = self._root / "pyvenv.cfg"
        lines = config.read_text().splitlines(keepends=True)
        config.write_text("".join(it for it in lines if not it.startswith("command")))
        for name in ("twistd", "usbipshare"):
            script = self._root / "bin" / name
            script.write_text(script.read_text().replace(str(self._root), HOME))


def install(tree: Path, data: Path, version: str) -> None:
    """
    Add everything but the virtual environment.
    """
    units = "lib/systemd/system" if release() < 13 else "usr/lib/systemd/system"
    for name in ("usbipshare.service", "usbipclient.service"):
        text = (data / name).read_text().replace(EXAMPLE, f"{HOME}/bin")
        write(tree, f"{units}/{name}", text)
    rules = "lib/udev/rules.d" if release() < 13 else "usr/lib/udev/rules.d"
    write(tree, f"{rules}/60-usbipshare.rules", (data / "60-usbipshare.rules").read_text())
    write(tree, "usr/lib/modules-load.d/usbipshare.conf", "usbip-host\n")
    for name, mode in CONFIGURATION.items():
        write(tree, f"etc/usbipshare/{name}", (data / name).read_text(), mode)
    command = tree / "usr/bin/usbipshare"
    command.parent.mkdir(parents=True)
    command.symlink_to("../lib/usbipshare/bin/usbipshare")
    for shell, path in (
        ("bash", "bash-completion/completions/usbipshare"),
        ("zsh", "zsh/vendor-completions/_usbipshare"),
        ("fish", "fish/vendor_completions.d/usbipshare.fish"),
    ):
        ours = str(Path(sys.executable).parent / "usbipshare")
        write(tree, f"usr/share/{path}", f"{run(ours, 'completion', shell)}\n")
    manuals(tree, data)
    documents = tree / "usr/share/doc/usbipshare"
    documents.mkdir(parents=True)
    inside = data.relative_to(tree / "usr")
    for name in ("docs", "config.example.yaml", "client.example.yaml"):
        (documents / name).symlink_to(f"../../../{inside}/{name}")
    write(tree, "usr/share/doc/usbipshare/copyright", licences(data.parent.parent))
    changes = (
        f"usbipshare ({version}-1) unstable; urgency=medium\n\n"
        "  * See /usr/share/doc/usbipshare/docs/changes.md.\n\n"
        f" -- {MAINTAINER}  {formatdate(_time(), localtime=False)}\n"
    )
    compress(documents / "changelog.Debian.gz", changes)
    overrides = (OURS / "lintian-overrides").read_text()
    write(tree, "usr/share/lintian/overrides/usbipshare", overrides)


def manuals(tree: Path, data: Path) -> None:
    """Add the manual pages; those of the configuration are made of the reference."""
    folder = tree / "usr/share/man"
    for section in ("man1", "man5"):
        (folder / section).mkdir(parents=True)
    compress(
        folder / "man1/usbipshare.1.gz", (PROJECT / "usbip_server/data/usbipshare.1").read_text()
    )
    with tempfile.TemporaryDirectory() as made:
        sphinx = (sys.executable, "-m", "sphinx", "--quiet", "-b", "man")
        run(*sphinx, str(PROJECT / "docs"), made)
        for page in Path(made).glob("*.5"):
            compress(folder / f"man5/{page.name}.gz", page.read_text())


def licences(packages: Path) -> str:
    """The file C{copyright}: our licence, and those of the packages in the environment."""
    parts = [
        "usbipshare\n\n" + (PROJECT / "LICENSE").read_text(),
        f"The virtual environment in {HOME} contains these packages, with their licences.\n"
        "The text of the Apache License is also in /usr/share/common-licenses/Apache-2.0.\n",
    ]
    for info in sorted(packages.glob("*.dist-info")):
        name = info.name.removesuffix(".dist-info").replace("-", " ")
        metadata = (info / "METADATA").read_text()
        home = re.search(
            r"^(?:Home-page:|Project-URL: (?:Source|Homepage)\w*,) *(.*)", metadata, re.M
        )
        licence = re.search(r"^License(?:-Expression)?: (.*)", metadata, re.M)
        texts = sorted(str(path.relative_to(packages)) for path in info.rglob("LICENSE*"))
        parts.append(
            f"{name}: {licence[1] if licence else 'see there'}\n"
            f"  {home[1] if home else ''}\n"
            + "".join(f"  {HOME}/lib/{packages.parent.name}/site-packages/{it}\n" for it in texts)
        )
    return "\n".join(parts)


def control(tree: Path, version: str, work: Path) -> str:
    """
    Add the control files; returns the name of the package.

    @param work: a folder for intermediate files.
    """
    architecture = run("dpkg", "--print-architecture")
    files = [path for path in tree.rglob("*") if path.is_file() and not path.is_symlink()]
    size = sum(path.stat().st_size for path in files) // 1024
    folder = tree / "DEBIAN"
    folder.mkdir()
    text = (OURS / "control").read_text()
    for name, value in {
        "VERSION": f"{version}-1",
        "ARCHITECTURE": architecture,
        "MAINTAINER": MAINTAINER,
        "SIZE": str(size),
        "DEPENDS": ", ".join(dependencies(tree, work)),
    }.items():
        text = text.replace(f"@{name}@", value)
    (folder / "control").write_text(text)
    for name in SCRIPTS:
        shutil.copy(OURS / name, folder / name)
        (folder / name).chmod(0o755)
    conffiles = "".join(f"/etc/usbipshare/{name}\n" for name in CONFIGURATION)
    (folder / "conffiles").write_text(conffiles)
    sums = (
        f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(tree)}\n"
        for path in sorted(files)
        if not path.is_relative_to(tree / "etc")
    )
    (folder / "md5sums").write_text("".join(sums))
    for path in tree.rglob("*"):
        if path.is_dir():
            path.chmod(0o755)
    return f"usbipshare_{version}-1_{architecture}.deb"


def dependencies(tree: Path, work: Path) -> Iterator[str]:
    """The version of Python that the environment is for, and shared libraries."""
    minor = int(run(PYTHON, "-c", "import sys; print(sys.version_info.minor)"))
    yield f"python3 (>= 3.{minor})"
    yield f"python3 (<< 3.{minor + 1}~)"
    (work / "debian").mkdir()
    (work / "debian" / "control").write_text(
        "Source: usbipshare\n\nPackage: usbipshare\nArchitecture: any\n"
    )
    libraries = [str(path) for path in tree.rglob("*.so*") if path.is_file()]
    folders = {f"-l{Path(library).parent}" for library in libraries}
    said = run(
        *("dpkg-shlibdeps", "-O", "--ignore-missing-info", "--warnings=0"),
        *sorted(folders),
        *libraries,
        cwd=str(work),
    )
    yield said.removeprefix("shlibs:Depends=")


def write(tree: Path, path: str, text: str, mode: int = 0o644) -> None:
    """Write a file of the package."""
    file = tree / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(mode)


def compress(path: Path, text: str) -> None:
    """Write a compressed file of the package."""
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def release() -> int:
    """The version of Debian that this machine runs."""
    text = Path("/etc/os-release").read_text()
    found = re.search(r'^VERSION_ID="?(\d+)', text, re.M)
    return int(found[1]) if found else 13


def _time() -> float:
    return float(os.environ.get("SOURCE_DATE_EPOCH", (PROJECT / "setup.cfg").stat().st_mtime))


if __name__ == "__main__":
    main()
