"""
Carrying out what documents show.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.task import Clock

from tests.childdaemon import ChildDaemon
from tests.documents import ROOT, Block
from tests.support import ALICE, PatientBackend, asked
from usbip_server.answers import Answer, Answers
from usbip_server.device import DeviceState, UsbDevice
from usbip_server.errors import OperationFailed
from usbip_server.limits import Timeouts
from usbip_server.sharing import Sharing
from usbip_server.tap import Options

SECONDS = 60.0

BIN = os.path.dirname(sys.executable)

PACKAGE_OF = {"nc": "netcat-openbsd", "socat": "socat", "curl": "curl"}
"""Which Debian package has a program that examples use."""

DISK = UsbDevice(
    busId="1-2",
    vendorId="1209",
    productId="d15c",
    description="usbipshare Small Disk",
    serial="DISK1",
    deviceNumber=3,
)


def child(command: Sequence[str], folder: Path, stdin: str = "", path: Sequence[Path] = ()) -> str:
    """
    Run a program.

    @param path: more folders with Python modules.
    @return: what it prints.
    """
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT])),
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


class Stage:
    """
    A daemon with the two standard virtual devices, and a folder for examples to work in.

    @ivar missing: Debian packages with programs that examples need and that are not here.
    """

    def __init__(self, daemon: ChildDaemon, folder: Path) -> None:
        self._daemon = daemon
        self._folder = folder
        self.missing: set[str] = set()
        self._play: dict[str, Callable[[Block], None]] = {
            "sh": self._shell,
            "python": self._python,
            "json": self._exchange,
            "yaml": self._yaml,
        }

    def play(self, block: Block) -> None:
        """
        Carry out a block, if there is anything to be carried out in it.
        """
        if block.isOutput or block.kind not in self._play:
            return
        try:
            self._play[block.kind](block)
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
        expected = self._here(block.output).splitlines()
        if not block.output.startswith("{"):
            assert printed.splitlines() == expected, f"it prints:\n{printed}"
            return
        assert len(printed.splitlines()) == len(expected), f"it prints:\n{printed}"
        for line, shown in zip(printed.splitlines(), expected, strict=True):
            same(line, shown)

    def _here(self, text: str) -> str:
        """
        With the port, the names and the paths that there are here.
        """
        for shown, here in (
            ("5055", str(self._daemon.port)),
            ("localhost", "127.0.0.1"),
            ("/opt/usbipshare/bin", BIN),
            ("/etc/usbipshare.yaml", str(self._folder / "usbipshare.yaml")),
        ):
            text = text.replace(shown, here)
        return text

    def _exchange(self, block: Block) -> None:
        exchanges = block.exchanges()
        requests = [sent.encode() for sent, _ in exchanges]
        if block.circumstance in REHEARSED:
            answers = [a.encoded for a in rehearse(block.circumstance, requests)]
        elif block.circumstance == "in-use":
            with self._imported("1-2"):
                answers = self._converse(requests)
        else:
            assert not block.circumstance, f"what is {block.circumstance!r}?"
            answers = self._converse(requests)
        for answer, (_, shown) in zip(answers, exchanges, strict=True):
            same(answer.decode(), shown)

    def _converse(self, requests: Sequence[bytes]) -> list[bytes]:
        """
        Send requests on one connection for as long as they ask for that.
        """
        answers = []
        with contextlib.ExitStack() as stack:
            connection: socket.socket | None = None
            for request in requests:
                if connection is None:
                    where = ("127.0.0.1", self._daemon.port)
                    connection = stack.enter_context(socket.create_connection(where, SECONDS))
                    reader = stack.enter_context(connection.makefile("rb"))
                connection.sendall(request + b"\n")
                answers.append(reader.readline())
                if b'"keep_alive":true' not in request:
                    assert reader.read() == b"", "the connection is not closed"
                    connection = None
        return answers

    @contextlib.contextmanager
    def _imported(self, busId: str) -> Iterator[None]:
        """
        While a client has imported a device: C{OP_REQ_IMPORT}, as in Documentation/usb/
        usbip_protocol.rst of Linux.
        """
        logged = self._daemon.events
        port = next(e["port"] for e in logged if str(e["log_format"]).startswith("virtual"))
        assert self._daemon.ask("attach", id=busId)["status"] == "success"
        with socket.create_connection(("127.0.0.1", port), SECONDS) as client:
            client.sendall(struct.pack(">HHI32s", 0x0111, 0x8003, 0, busId.encode()))
            self._until(busId, "in_use")
            yield
        self._until(busId, "bound")
        assert self._daemon.ask("detach", id=busId)["status"] == "success"

    def _until(self, busId: str, state: str) -> None:
        end = time.monotonic() + SECONDS
        while self._daemon.ask("find", id=busId, detail=True)["data"]["state"] != state:
            assert time.monotonic() < end, f"{busId} is still not {state}"

    def _yaml(self, block: Block) -> None:
        file = self._folder / "usbipshare.yaml"
        file.write_text(block.text + "\n")
        wrong = configurationError(file)
        if block.circumstance == "wrong":
            assert block.output is not None, "what is the message?"
            assert wrong == block.output, f"the message is:\n{wrong}"
        elif block.circumstance == "plugin":
            assert wrong is not None and "there is no backend" in wrong, wrong
        else:  # a program may be missing here, such as sudo
            assert wrong is None or "there is no program" in wrong, wrong


def configurationError(file: Path) -> str | None:
    """
    What C{twistd usbipshare --check} says against a file, if anything.
    """
    options: Any = Options()
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            options.parseOptions(["--check", "--config", str(file)])
        except SystemExit as ended:
            return str(ended.code).replace(str(file), file.name) if ended.code else None
    raise AssertionError("--check does not exit")


def isMake(line: str) -> bool:
    """
    Is it a call of make?  These are too long to be run; the targets have to exist.
    """
    if not line.startswith("make "):
        return False
    for target in line.split()[1:]:
        makefile = (ROOT / "Makefile").read_text()
        assert "=" in target or re.search(f"^{target}:", makefile, re.MULTILINE), line
    return True


def same(answer: str, shown: str) -> None:
    """
    Is this the answer that is shown?
    """
    assert json.loads(answer) == json.loads(shown), f"it answers:\n{answer}"


def _succeed(backend: PatientBackend) -> None:
    backend.calls[0].succeed()


def _fail(backend: PatientBackend) -> None:
    backend.calls[0].fail(OperationFailed(DISK, f"usbip-host did not take {DISK}"))


def _nothing(backend: PatientBackend) -> None:
    pass


class SlowBackend(PatientBackend):
    """
    A backend that does what it is asked when it is told to, if it is not done already.
    """

    async def bind(self, device: UsbDevice, deadline: float) -> UsbDevice:
        if device.state is DeviceState.BOUND:
            return device
        return await super().bind(device, deadline)


REHEARSED = {"slow": _succeed, "slow-refused": _fail, "stuck": _nothing, "starting": _nothing}
"""What no real daemon does on demand, and what happens after the first answer."""


def rehearse(circumstance: str, requests: Sequence[bytes]) -> Iterator[Answer]:
    """
    Send requests to what is a daemon but for the network and the time.
    """
    clock: Any = Clock()
    backend = SlowBackend([DISK], started=circumstance != "starting")
    sharing = Sharing(backend, clock, Timeouts())
    answers = Answers(sharing)
    asked(sharing.start())
    for number, request in enumerate(requests):
        answered: list[Answer] = []
        asked(answers.to(request, ALICE)).addCallback(answered.append)
        clock.advance(Timeouts().answer)
        yield answered[0]
        if number == 0:
            REHEARSED[circumstance](backend)
