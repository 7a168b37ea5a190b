"""Executes the examples of documents."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.docs.clientexamples import (
    checkMounts,
    checkYaml,
    serversError,
    serviceError,
    writeServers,
)
from tests.docs.documents import ROOT, Block
from tests.docs.exchanges import (
    MEMORY_SERVERS,
    OUTCOMES,
    DaemonServer,
    Numbers,
    answersInMemory,
    execute,
)
from tests.support.certificates import LAB, authority, signed
from tests.support.childdaemon import ChildDaemon
from usbip_server import DOCUMENTS
from usbip_server.tap import Options

SECONDS = 60.0

EXECUTED = ("sh", "python", "json", "yaml")
"""Kinds of blocks that are executed, or parsed by the program that they are for."""

CONFIGURED = "/etc/usbipshare/"
"""The folder of certificates in documents."""

BIN = os.path.dirname(sys.executable)

PACKAGE_OF = {"nc": "netcat-openbsd", "socat": "socat", "curl": "curl", "openssl": "openssl"}
"""Which Debian package has a program that examples use."""


def child(command: Sequence[str], folder: Path, stdin: str = "", path: Sequence[Path] = ()) -> str:
    """Run a program.

    @param path: more folders with Python modules.
    @return: what it prints."""
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT])),
        "XDG_CONFIG_HOME": str(folder),
    }
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


class ExampleRunner:
    """A daemon with the two standard virtual devices, and a folder for examples to work in.

    @ivar missing: Debian packages with programs that examples need and that are not here."""

    def __init__(self, daemon: ChildDaemon | None, folder: Path, server: str = "raspi") -> None:
        """@param daemon: C{None}: there are only configurations to be checked.
        @param server: the name of the server in the output of commands."""
        self._runs = daemon
        self._folder = folder
        if daemon is not None:
            writeServers(daemon, folder, server)
        self.missing: set[str] = set()
        self._execute: dict[str, Callable[[Block], None]] = {
            "sh": self._shell,
            "python": self._python,
            "json": self._exchange,
            "yaml": self._yaml,
        }

    @property
    def _daemon(self) -> ChildDaemon:
        assert self._runs is not None, "there is no daemon"
        return self._runs

    def execute(self, block: Block) -> None:
        """Execute a block, if it is of a kind that can be executed."""
        if block.isOutput or block.kind not in self._execute:
            return
        try:
            self._execute[block.kind](block)
        except AssertionError as error:
            raise AssertionError(f"{block.where}: {error}") from error

    def _shell(self, block: Block) -> None:
        programs = [name for name in PACKAGE_OF if re.search(rf"\b{name} ", block.text)]
        missing = {PACKAGE_OF[name] for name in programs if shutil.which(name) is None}
        self.missing |= missing
        if not missing:
            script = "\n".join(line for line in block.text.splitlines() if not isMake(line))
            self._compare(block, child(["sh", "-e", "-c", self._here(script)], self._folder))

    def _python(self, block: Block) -> None:
        self._compare(block, child([sys.executable, "-"], self._folder, self._here(block.text)))

    def _compare(self, block: Block, printed: str) -> None:
        if block.output is None:
            return
        numbers = Numbers()
        # In a document without client.yaml the server's name and its address are the same.
        printed = printed.replace(f"localhost (127.0.0.1:{self._daemon.port})", "localhost")
        printed = printed.replace("localhost", "127.0.0.1")
        lines = printed.rstrip("\n").splitlines()
        expected = self._here(block.output).splitlines()
        assert len(lines) == len(expected), f"it prints:\n{printed}"
        for line, shown in zip(lines, expected, strict=True):
            numbers.same(line, shown)

    def _here(self, text: str) -> str:
        """Replace ports, names and paths of documents by those of this test."""
        for shown, here in (
            ("5055", str(self._daemon.port)),
            ("3240", str(self._daemon.exportPort)),
            ("localhost", "127.0.0.1"),
            ("/opt/usbipshare/bin", BIN),
            ("/etc/usbipshare/server.yaml", str(self._folder / "usbipshare.yaml")),
        ):
            text = text.replace(shown, here)
        return text

    def _exchange(self, block: Block) -> None:
        server = DaemonServer(self._daemon)
        if block.circumstance in OUTCOMES:
            exchanges = block.exchanges()
            answers = answersInMemory(block.circumstance, [sent.encode() for sent, _ in exchanges])
            for answer, (_, shown) in zip(answers, exchanges, strict=True):
                Numbers().same(answer.encoded.decode().rstrip("\n"), shown)
        elif block.circumstance in MEMORY_SERVERS:
            execute(block, MEMORY_SERVERS[block.circumstance]())
        elif block.circumstance == "in-use":
            with server.inUse("1-2"):
                execute(block, server)
        else:
            assert not block.circumstance, f"an unknown circumstance: {block.circumstance!r}"
            execute(block, server)

    def _provide(self) -> None:
        """Make the certificates that configurations name, unless an example has made them."""
        for path, identity in (
            ("ca", authority(LAB)),
            ("server", signed("server")),
            ("alice", signed("alice")),
            ("tls/ca", authority(LAB)),
            ("tls/raspi", signed("server")),
            ("trusted/raspi", signed("server")),
        ):
            if not (self._folder / f"{path}.pem").exists():
                folder, _, name = path.rpartition("/")
                identity.write(self._folder / folder, name)

    def _yaml(self, block: Block) -> None:
        self._provide()
        if block.circumstance in READERS:
            text = block.text.replace(CONFIGURED, f"{self._folder}/")
            wrong = READERS[block.circumstance](text, self._folder)
            assert wrong == block.output, f"the message is:\n{wrong}"
            return
        file = self._folder / "usbipshare.yaml"
        file.write_text(block.text.replace(CONFIGURED, f"{self._folder}/") + "\n")
        wrong = configurationError(file)
        wrong = wrong and wrong.replace(f"{self._folder}/", CONFIGURED).replace(DOCUMENTS, "docs")
        if block.circumstance == "wrong":
            assert block.output is not None, "the message is missing"
            assert wrong == block.output, f"the message is:\n{wrong}"
        elif block.circumstance == "plugin":
            assert wrong is not None and "there is no backend" in wrong, wrong
        else:  # a program may be missing here, such as sudo
            assert wrong is None or "there is no program" in wrong, wrong


READERS: dict[str, Callable[[str, Path], str | None]] = {
    "client": serversError,
    "client-wrong": serversError,
    "service": serviceError,
    "service-wrong": serviceError,
    "compose": checkMounts,
    "kubernetes": checkMounts,
    "other": checkYaml,
}
"""Functions that read files other than the daemon's configuration, by the circumstance; each
returns the error, or C{None}."""


def configurationError(file: Path) -> str | None:
    """Return the error that C{twistd usbipshare --check} reports for a file, or C{None}."""
    options: Any = Options()
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            options.parseOptions(["--check", "--config", str(file)])
        except SystemExit:
            return errors.getvalue().rstrip("\n").replace(str(file), file.name) or None
    raise AssertionError("--check does not exit")


def isMake(line: str) -> bool:
    """Return whether a line calls make. It is not executed; its targets have to exist."""
    if not line.startswith("make "):
        return False
    for target in line.split()[1:]:
        makefile = (ROOT / "Makefile").read_text()
        assert "=" in target or re.search(f"^{target}:", makefile, re.MULTILINE), line
    return True
