"""
The Debian package that C{make deb} has made: its content. How it is installed is tested in
C{tests/kernel/scenarios/packages.py}.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from usbip_server.client.cli.main import COMMANDS

DIST = Path(__file__).parents[2] / "dist"
HOME = "usr/lib/usbipshare"
SECONDS = 600

CONFFILES = [f"/etc/usbipshare/{name}.yaml" for name in ("server", "client", "service")]

LARGEST = 16_000_000
"""Bytes that the package may take."""


def run(*command: str) -> tuple[int, str]:
    """Run a program; returns its exit status and output."""
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
        errors="replace",
    )
    return done.returncode, done.stdout


class DebTests(SynchronousTestCase):
    """
    The package.
    """

    def setUp(self) -> None:
        (self.package,) = DIST.glob("usbipshare_*-1_*.deb")
        self.tree = Path(self.mktemp())

    def unpack(self) -> None:
        """Unpack it, with its control files."""
        self.assertEqual(run("dpkg-deb", "-R", str(self.package), str(self.tree))[0], 0)

    def test_lintian(self) -> None:
        """lintian finds no error; each override has a comment that gives the reason."""
        if shutil.which("lintian") is None:
            self.fail("apt-get install lintian")
        options = ("--fail-on=error", "--allow-root", "--suppress-tags=groff-message")
        status, output = run("lintian", *options, str(self.package))
        self.assertEqual(status, 0, output)
        self.unpack()
        lines = (self.tree / "usr/share/lintian/overrides/usbipshare").read_text().splitlines()
        for above, line in zip(["", *lines], lines, strict=False):
            if not line.startswith("#"):
                self.assertTrue(above.startswith("#"), line)

    def test_content(self) -> None:
        """It contains programs, units, manual pages, completions, documents and configuration, and
        nothing of the machine that it was built on."""
        self.unpack()
        files = {str(it.relative_to(self.tree)) for it in self.tree.rglob("*")}
        self.assertEqual((self.tree / "DEBIAN/conffiles").read_text().split(), CONFFILES)
        for pattern in (
            "etc/usbipshare/(server|client|service)\\.yaml",
            "(usr/)?lib/systemd/system/usbip(share|client)\\.service",
            "(usr/)?lib/udev/rules\\.d/60-usbipshare\\.rules",
            "usr/lib/modules-load\\.d/usbipshare\\.conf",
            "usr/share/man/man1/usbipshare\\.1\\.gz",
            "usr/share/man/man5/usbipshare-(server|client)\\.yaml\\.5\\.gz",
            "usr/share/bash-completion/completions/usbipshare",
            "usr/share/zsh/vendor-completions/_usbipshare",
            "usr/share/fish/vendor_completions\\.d/usbipshare\\.fish",
            "usr/share/doc/usbipshare/(copyright|changelog\\.Debian\\.gz|docs)",
            f"{HOME}/lib/python3\\.\\d+/site-packages/twisted/plugins/usbip.*_plugin\\.py",
        ):
            self.assertTrue(any(re.fullmatch(pattern, name) for name in files), pattern)
        links = [it for it in (self.tree / "usr").rglob("*") if it.is_symlink()]
        for link in links:
            target = link.readlink()
            place = target if target.is_absolute() else link.parent / target
            self.assertTrue(target.is_absolute() or place.exists(), f"{link} to {target}")
        status, output = run("grep", "-rlE", "usbipshare-deb-|/opt/usbipshare/bin", str(self.tree))
        found = [it for it in output.splitlines() if "/data/" not in it and "/install/" not in it]
        self.assertEqual((status < 2, found), (True, []))
        for unit in self.tree.rglob("systemd/system/*.service"):
            self.assertIn(f"ExecStart=/{HOME}/bin/twistd ", unit.read_text())

    def test_small(self) -> None:
        """It is small."""
        self.assertLess(self.package.stat().st_size, LARGEST)

    def test_command(self) -> None:
        """The manual page is of this version: it has all subcommands."""
        self.unpack()
        status, text = run("zcat", str(self.tree / "usr/share/man/man1/usbipshare.1.gz"))
        self.assertEqual(status, 0)
        for name in COMMANDS:
            self.assertIn(f".It Cm {name}\n", text)
