"""Tests of what is kept from one run to the next."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.kernel import tools, umlkernel
from tests.kernel.cache import Cache
from tests.kernel.tools import HarnessError
from tests.kernel.umlkernel import isComplete, umlKernel


class KernelCacheTests(SynchronousTestCase):
    """Kernels for user-mode Linux."""

    def setUp(self) -> None:
        self.cache = Cache(Path(self.mktemp()).absolute())
        self.builds: list[str] = []
        self.version = "6.1.1-1"
        self.patch(umlkernel, "known", lambda *question: self.version)
        self.patch(umlkernel, "requireTools", lambda names: None)
        self.patch(umlkernel, "download", lambda package, version, folder: folder / "x.deb")
        self.patch(umlkernel, "_make", self.make)

    def make(self, series: str, archive: Path, workshop: Path, log: Path) -> Path:
        """What C{make} leaves."""
        self.builds.append(self.version)
        made = workshop / "made"
        modules = made / "lib" / "modules" / "6.1.1"
        modules.mkdir(parents=True)
        (made / "linux").write_text("program")
        (modules / "usbip-host.ko").write_text("module")
        return made

    def test_builtOnce(self) -> None:
        """A kernel is built at the first call only."""
        kernel, took = umlKernel("6.1", self.cache)
        self.assertIsNotNone(took)
        self.assertEqual((kernel.release, kernel.image.read_text()), ("6.1.1", "program"))
        self.assertEqual(umlKernel("6.1", self.cache), (kernel, None))
        self.assertEqual(len(self.builds), 1)

    def test_builtAgainForOtherVersionOrConfiguration(self) -> None:
        """Another version of the sources, or another configuration, is another kernel."""
        first, _ = umlKernel("6.1", self.cache)
        self.version = "6.1.2-1"
        second, _ = umlKernel("6.1", self.cache)
        config = Path(self.mktemp())
        config.write_text("CONFIG_USB=y\n")
        self.patch(umlkernel, "CONFIG", config)
        third, _ = umlKernel("6.1", self.cache)
        self.assertEqual(len({first.folder, second.folder, third.folder}), 3)
        self.assertEqual(len(self.builds), 3)

    def test_builtAgainIfFilesChanged(self) -> None:
        """A kernel with a file that was changed, cut off or deleted, or without the list of its
        files, is built again."""
        kernel, _ = umlKernel("6.1", self.cache)
        module = kernel.modules / "usbip-host.ko"
        listed = kernel.folder / "files.json"
        spoiled: list[Callable[[], object]] = [
            lambda: module.write_text("another"),
            lambda: kernel.image.write_text(""),
            module.unlink,
            listed.unlink,
            lambda: listed.write_text(json.dumps([])),
        ]
        for number, spoil in enumerate(spoiled, start=2):
            spoil()
            self.assertFalse(isComplete(kernel.folder))
            umlKernel("6.1", self.cache)
            self.assertTrue(isComplete(kernel.folder))
            self.assertEqual(len(self.builds), number)

    def test_interruptedBuildIsRemoved(self) -> None:
        """What an interrupted build has left is not taken for a kernel, and is removed."""

        def fail(*arguments: object) -> Path:
            raise KeyboardInterrupt

        with self.cache.making("uml-6.1") as workshop:
            leftover = workshop
        leftover.mkdir()
        (leftover / "linux").write_text("half")
        self.patch(umlkernel, "_make", fail)
        self.assertRaises(KeyboardInterrupt, umlKernel, "6.1", self.cache)
        self.patch(umlkernel, "_make", self.make)
        kernel, _ = umlKernel("6.1", self.cache)
        self.assertTrue(isComplete(kernel.folder))
        self.assertFalse(leftover.exists())


class ToolTests(SynchronousTestCase):
    """Programs that are not installed."""

    def test_missingProgramsNamed(self) -> None:
        """All that are missing are named, with one command that installs them."""
        self.patch(tools, "_find", lambda name: None if name in ("flex", "gcc") else "/bin/x")
        error = self.assertRaises(HarnessError, tools.requireTools, ["make", "gcc", "flex"])
        self.assertIn("missing: gcc, flex", str(error))
        self.assertIn("apt-get install --no-install-recommends gcc libc6-dev flex", str(error))
        tools.requireTools(["make"])
