"""
A daemon as a child process, and clients that talk to it with plain sockets.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.interfaces import IReactorProcess, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

PATIENCE = 60.0
"""Seconds that a client waits for an answer, and a test for the daemon to end."""

TWISTED = ("-m", "twisted", "--log-format=json")
"""The one way to run the daemon."""

TWISTD = ("-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile=")
"""The other, which knows no JSON logs."""

ENDED_WELL = (0, -signal.SIGTERM)
"""Exit statuses: Twisted passes the signal on to itself when it has shut down."""

INERT = """
state: {file: null}
export: off
listen: ["tcp:0:interface=127.0.0.1"]
backend:
  type: virtual
  devices:
    - {bus_id: 1-1, product: Blinking Lamp, serial: L1}
    - {bus_id: 1-2, product: Door Bell}
"""


TIMEOUTS = "timeouts: {request: 600, answer: 60, bind: 600}\n"
"""For a daemon that a busy machine does not keep from answering in time."""


class Child(ProcessProtocol):
    """
    A process.

    @ivar ended: fires with its exit status, or the negative number of the signal that
        killed it.
    @ivar output: its standard output and error, each as text.
    """

    transport: Any

    def __init__(self) -> None:
        self.ended: Deferred[int] = Deferred()
        self.isOver = False
        self._output = {1: b"", 2: b""}
        self._awaited: list[tuple[str, int, Deferred[None]]] = []

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        self._output[childFD] += data
        self._tell()

    def processEnded(self, reason: Failure) -> None:
        self.isOver = True
        ending = reason.value
        assert isinstance(ending, ProcessDone | ProcessTerminated)
        self.ended.callback(-ending.signal if ending.signal else ending.exitCode or 0)
        for _, _, deferred in self._awaited:
            deferred.errback(AssertionError(f"it has ended: {self.stdout}\n{self.stderr}"))

    @property
    def stdout(self) -> str:
        """What it has written to its standard output."""
        return self._output[1].decode()

    @property
    def stderr(self) -> str:
        """What it has written to its standard error."""
        return self._output[2].decode()

    @property
    def events(self) -> list[dict[str, Any]]:
        """The whole events that its JSON log has until now."""
        records = self.stdout.split("\x1e")[1:]
        return [json.loads(record) for record in records if record.endswith("\n")]

    def says(self, text: str, times: int = 1) -> Deferred[None]:
        """Wait until its standard output holds a text."""
        deferred: Deferred[None] = Deferred()
        self._awaited.append((text, times, deferred))
        self._tell()
        return deferred

    def signal(self, number: int) -> None:
        """Send a signal, if it is still there."""
        if not self.isOver:
            try:
                self.transport.signalProcess(number)
            except ProcessExitedAlready:
                return

    def _tell(self) -> None:
        for wanted in tuple(self._awaited):
            text, times, deferred = wanted
            # Up to a whole line: what stands in it can be taken apart then.
            if self.stdout.rpartition("\n")[0].count(text) >= times:
                self._awaited.remove(wanted)
                deferred.callback(None)


class DaemonTestCase(TestCase):
    """
    Starts daemons, and leaves none behind.
    """

    timeout = 300

    def write(self, text: str | bytes, name: str = "config.yaml") -> str:
        """Write a file for the daemon to read."""
        directory = Path(self.mktemp()).absolute()
        path = directory / name
        path.parent.mkdir(parents=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    def run_(self, *arguments: str, path: str = "") -> Child:
        """Start a Python with arguments; C{path}: where it looks for modules first."""
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        child = Child()
        root = str(Path(__file__).parents[2])
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(part for part in (path, root) if part),
            "PYTHONUNBUFFERED": "1",
        }
        IReactorProcess(reactor).spawnProcess(
            child, sys.executable, [sys.executable, *arguments], environment, str(directory)
        )
        self.addCleanup(self._reap, child)
        return child

    async def daemon(
        self, config: str = INERT, how: tuple[str, ...] = TWISTED, path: str = ""
    ) -> tuple[Child, list[int]]:
        """
        Start a daemon, and wait until it is ready.

        @param config: YAML. If it says nothing of C{timeouts} these are L{TIMEOUTS}.
        @return: the process, and the ports it listens on.
        """
        file = self.write(config if "\ntimeouts:" in config else config + TIMEOUTS)
        child = self.run_(*how, "usbipshare", "--config", file, path=path)
        await child.says('"log_format": "ready"' if how is TWISTED else "] ready")
        if how is TWISTED:
            ports = [
                event["port"]
                for event in child.events
                if event["log_format"] == "listening on {description}: {address}"
            ]
        else:
            ports = [
                int(line.rpartition("port=")[2].partition(")")[0].partition(",")[0])
                for line in child.stdout.splitlines()
                if "listening on" in line
            ]
        return child, ports

    async def terminate(self, child: Child) -> None:
        """
        Ask a daemon to end, and wait until it has ended well.
        """
        child.signal(signal.SIGTERM)
        self.assertIn(await child.ended, ENDED_WELL)

    def _reap(self, child: Child) -> Deferred[int] | None:
        if child.isOver:
            return None
        child.signal(signal.SIGTERM)
        kill = IReactorTime(reactor).callLater(PATIENCE, child.signal, signal.SIGKILL)
        ended: Deferred[int] = Deferred()

        def over(status: int) -> int:
            if kill.active():
                kill.cancel()
            ended.callback(status)
            return status

        child.ended.addCallback(over)
        return ended


def connect(port: int, host: str = "127.0.0.1") -> socket.socket:
    """Connect to a daemon."""
    return socket.create_connection((host, port), PATIENCE)


def readAll(connection: socket.socket) -> bytes:
    """Read until the server closes."""
    received = b""
    while part := connection.recv(65536):
        received += part
    return received


def talk(port: int, request: bytes, host: str = "127.0.0.1", halfClose: bool = False) -> bytes:
    """Send a request, and read until the server closes."""
    with connect(port, host) as connection:
        connection.sendall(request)
        if halfClose:
            connection.shutdown(socket.SHUT_WR)
        return readAll(connection)


async def ask(port: int, host: str = "127.0.0.1", **request: Any) -> dict[str, Any]:
    """Ask a daemon for something, as the field's most used client does."""
    received: bytes = await deferToThread(talk, port, json.dumps(request).encode(), host)
    answer: dict[str, Any] = json.loads(received)
    return answer


def descriptors(child: Child) -> int:
    """How many files a process has open."""
    return len(os.listdir(f"/proc/{child.transport.pid}/fd"))
