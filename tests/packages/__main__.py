"""
C{python -m tests.packages}: tests of what C{make deb} has made, and of C{Containerfile}.

Before, it packs the Debian package again, in C{dist/repacked/}, for
C{tests/kernel/scenarios/packages.py}: without compression, as an emulated processor would take
minutes to unpack it, and a second time with the next version, for the test of an upgrade.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.trialcounts import countsOf

DIST = Path(__file__).parents[2] / "dist"
REPACKED = DIST / "repacked"


def main() -> None:
    """Run the tests. The last line of the output contains their numbers."""
    repack()
    command = [sys.executable, "-m", "twisted.trial", "tests.packages"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as trial:
        assert trial.stdout is not None
        lines = []
        for line in trial.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    print(f"\n{countsOf(''.join(lines))}", flush=True)
    sys.exit(trial.returncode)


def repack() -> None:
    """Make the package without compression, and its next version."""
    (package,) = DIST.glob("usbipshare_*-1_*.deb")
    REPACKED.mkdir(exist_ok=True)
    for old in REPACKED.glob("*.deb"):
        old.unlink()
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        subprocess.run(["dpkg-deb", "-R", str(package), str(tree)], check=True)
        control = tree / "DEBIAN" / "control"
        text = control.read_text()
        version = next(it for it in text.splitlines() if it.startswith("Version: "))
        for revision in "12":
            control.write_text(text.replace(version, f"{version.removesuffix('-1')}-{revision}"))
            made = REPACKED / package.name.replace("-1_", f"-{revision}_")
            options = ("--root-owner-group", "-Znone")
            subprocess.run(["dpkg-deb", "--build", *options, str(tree), str(made)], check=True)


if __name__ == "__main__":
    main()
