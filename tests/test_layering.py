"""The import law of the package: which folder may import which other."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import usbip_server

PACKAGE = Path(usbip_server.__file__).parent
MODULES = {str(it.relative_to(PACKAGE)): ast.parse(it.read_text()) for it in PACKAGE.rglob("*.py")}

ALLOWED = {
    "model": "",
    "interfaces": "model",
    "install": "model",
    "runtime": "model",
    "net": "model runtime",
    "kernel": "model runtime",
    "protocols": "model runtime net",
    "server": "model runtime net protocols interfaces",
    "client": "model runtime net kernel",
    "client/cli": "model runtime net kernel client install",
    "client/service": "model runtime net kernel client protocols",
    "backends": "model runtime net kernel interfaces",
    "backends/remote": "model runtime net interfaces client",
    "testing": "model kernel interfaces",
    "tap": "model runtime net protocols server backends interfaces",
}
"""What the files of a folder may import besides the folder itself. The longest entry counts."""


def folderOf(path: str) -> str:
    """The entry of C{ALLOWED} that a module is in; empty if there is none."""
    return max((name for name in ALLOWED if f"{path}/".startswith(f"{name}/")), key=len, default="")


def imported(tree: ast.AST) -> Iterator[str]:
    """The paths of what a module imports; of ours below the package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            for name in (module, *(f"{module}.{alias.name}".strip(".") for alias in node.names)):
                yield name.removeprefix("usbip_server.").replace(".", "/")


class LayeringTests(SynchronousTestCase):
    """The law, for each module."""

    def test_foldersImportWhatTheyMay(self) -> None:
        """Each module imports only from folders that its own folder may import."""
        for file, tree in MODULES.items():
            own = folderOf(file.removesuffix(".py").removesuffix("/__init__"))
            allowed = {"", own, *ALLOWED.get(own, "").split()}
            self.assertLessEqual(set(map(folderOf, imported(tree))), allowed, file)

    def test_noModuleImportsItselfByWayOfOthers(self) -> None:
        """There is an order in which all modules can be imported."""
        graph = {file: {f"{n}.py" for n in imported(tree)} for file, tree in MODULES.items()}
        graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle

    def test_onlyProgramsImportTheReactor(self) -> None:
        """Elsewhere the global reactor is a parameter."""
        programs = {"tap", "client/service/tap", "client/cli/eventprinter", "testing/conformance"}
        for file, tree in MODULES.items():
            if file.removesuffix(".py") not in programs:
                self.assertNotIn("twisted/internet/reactor", imported(tree), file)

    def test_onlyKernelNamesSys(self) -> None:
        """Paths below /sys stand in kernel/ only, and in the fakes of testing/."""
        for file, tree in MODULES.items():
            if not file.startswith(("kernel/", "testing/")):
                texts = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
                self.assertFalse([t for t in texts if str(t).startswith("/sys/")], file)
