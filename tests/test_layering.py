"""The import law of the package: which folder may import which other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import usbip_server

PACKAGE = Path(usbip_server.__file__).parent

ALLOWED = {
    "model": "",
    "interfaces": "model",
    "runtime": "model",
    "net": "model runtime",
    "kernel": "model runtime",
    "protocols": "model runtime net",
    "server": "model runtime net protocols interfaces",
    "client": "model runtime net kernel",
    "client/cli": "model runtime net kernel client",
    "client/service": "model runtime net kernel client protocols",
    "backends": "model runtime net kernel interfaces",
    "backends/remote": "model runtime net interfaces client",
    "testing": "model kernel interfaces",
    "tap": "model runtime net protocols server backends interfaces",
}
"""What the files of a folder may import besides the folder itself. The longest entry counts."""

PROGRAMS = {"tap.py", "client/service/tap.py", "client/cli/eventprinter.py"}
"""Files that may import the global reactor: elsewhere it is a parameter."""


def folderOf(path: str) -> str:
    """The entry of C{ALLOWED} that a module is in; empty if there is none."""
    return max((name for name in ALLOWED if f"{path}/".startswith(f"{name}/")), key=len, default="")


def imported(tree: ast.AST) -> Iterator[str]:
    """The modules that a module imports, and the names that it imports from them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


class LayeringTests(SynchronousTestCase):
    """The law, for each module."""

    modules = {  # noqa: RUF012 - read only
        str(path.relative_to(PACKAGE)): ast.parse(path.read_text())
        for path in sorted(PACKAGE.rglob("*.py"))
    }

    def test_foldersImportWhatTheyMay(self) -> None:
        """Each module imports only from folders that its own folder may import."""
        for file, tree in self.modules.items():
            own = folderOf(file.removesuffix(".py").removesuffix("/__init__"))
            allowed = {"", own, *ALLOWED.get(own, "").split()}
            ours = {n.removeprefix("usbip_server.") for n in imported(tree) if "usbip_server." in n}
            wrong = [name for name in ours if folderOf(name.replace(".", "/")) not in allowed]
            self.assertEqual(wrong, [], file)

    def test_onlyProgramsImportTheReactor(self) -> None:
        """The global reactor is imported by programs, and by the public conformance suite."""
        reactor = "twisted.internet.reactor"
        users = {file for file, tree in self.modules.items() if reactor in imported(tree)}
        self.assertLessEqual(users, {*PROGRAMS, "testing/conformance.py"})

    def test_onlyKernelNamesSys(self) -> None:
        """Paths below /sys stand in kernel/ only, and in the fakes of testing/."""
        for file, tree in self.modules.items():
            if not file.startswith(("kernel/", "testing/")):
                texts = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
                self.assertFalse([t for t in texts if str(t).startswith("/sys/")], file)
