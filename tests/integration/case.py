"""
What tests with daemons as child processes share.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.support.childdaemon import SECONDS, ChildDaemon, PatientDaemon

LAMP = (
    "backend:\n  type: virtual\n  devices:\n    - {bus_id: 1-1, product: Lamp, serial: L1}\n"
    "    - {bus_id: 1-2, product: Bell}\n"
)
"""The configuration of two devices."""

ENDED_WELL = (0, -signal.SIGTERM)
"""Exit statuses: Twisted raises the signal again when it has shut down."""

CLIENT = """
import socket, sys
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
connection.sendall(sys.argv[2].encode())
for line in connection.makefile("r"):
    print(line, end="", flush=True)
"""
"""A client that sends a request and prints what it receives."""


class DaemonCase(SynchronousTestCase):
    """
    Starts daemons, and stops them at the end of the test.
    """

    def daemon(self, config: str = LAMP, **more: Any) -> ChildDaemon:
        """Start a daemon. Parameters as of L{ChildDaemon}."""
        daemon = PatientDaemon(config, **more)
        daemon.__enter__()
        self.addCleanup(daemon.__exit__, None, None, None)
        return daemon

    def write(self, text: str, name: str = "config.yaml") -> Path:
        """Write a file."""
        path = Path(self.mktemp()).absolute() / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
        return path

    def until(self, condition: Callable[[], object]) -> None:
        """Poll a condition until it holds."""
        end = time.monotonic() + SECONDS
        while not condition():
            self.assertLess(time.monotonic(), end)
            time.sleep(0.005)

    def process(self, *command: str, **more: Any) -> subprocess.Popen[str]:
        """Start a program, which is killed at the end of the test."""
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=Path(__file__).parents[2],
            **more,
        )

        def reap() -> None:
            child.kill()
            child.communicate()

        self.addCleanup(reap)
        return child

    def output(self, *command: str, status: int = 0) -> str:
        """The output of a program, with its errors."""
        child = self.process(*command)
        out, _ = child.communicate(timeout=SECONDS)
        self.assertEqual(child.returncode, status, out)
        return out

    def lines(self, child: subprocess.Popen[str], text: str) -> str:
        """The line of a program's output that contains a text, from now on."""
        assert child.stdout is not None
        return next(line for line in child.stdout if text in line)

    def spawnClient(
        self, daemon: ChildDaemon, request: str = "", **keys: Any
    ) -> subprocess.Popen[str]:
        """A client in a process of its own, with a JSON request or with another one."""
        request = request or json.dumps(keys)
        return self.process(sys.executable, "-c", CLIENT, str(daemon.port), request)

    def assertSucceeds(self, daemon: ChildDaemon, command: str, **keys: object) -> Any:
        """A request succeeds; return its data."""
        reply = daemon.ask(command, **keys)
        self.assertEqual(reply["status"], "success", reply)
        return reply["data"]

    def shown(self, daemon: ChildDaemon, busId: str = "1-1") -> dict[str, Any]:
        """A device in detail."""
        device: dict[str, Any] = self.assertSucceeds(daemon, "find", id=busId, detail=True)
        return device

    def assertStops(self, daemon: ChildDaemon) -> None:
        """The daemon stops on SIGTERM, with a good exit status."""
        daemon.stop()
        self.assertIn(daemon.child.returncode, ENDED_WELL)

    def unusual(self, daemon: ChildDaemon) -> list[str]:
        """
        The formats of the warnings and errors in the log, as far as it was read; without those
        that are advice about the configuration.
        """
        return [
            event["log_format"]
            for event in daemon.events
            if event["log_level"]["name"] not in ("debug", "info")
            and event["log_format"] != "configuration: {warning}"
        ]


def connect(port: int, host: str = "127.0.0.1") -> socket.socket:
    """
    Connect to a daemon.
    """
    return socket.create_connection((host, port), SECONDS)


def parts(connection: socket.socket) -> Iterator[bytes]:
    """
    What is received until the end, or until a reset.
    """
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            yield part


def readAll(connection: socket.socket) -> bytes:
    """
    The same as one string.
    """
    return b"".join(parts(connection))


def readLines(connection: socket.socket, count: int = 1) -> bytes:
    """
    Read lines, and nothing after them if no more have been sent.
    """
    received = b""
    while received.count(b"\n") < count:
        part = connection.recv(65536)
        assert part, received
        received += part
    return received


def talk(port: int, request: bytes, host: str = "127.0.0.1", halfClose: bool = False) -> bytes:
    """
    Send a request, and read until the server closes.
    """
    with connect(port, host) as connection:
        connection.sendall(request)
        if halfClose:
            connection.shutdown(socket.SHUT_WR)
        return readAll(connection)


def isReset(connection: socket.socket) -> bool:
    """
    Has the other end reset or closed a connection? Without reading.
    """
    poll = select.poll()
    poll.register(connection, 0)
    return bool(poll.poll(0))


def descriptors(daemon: ChildDaemon) -> int:
    """
    The number of files that a daemon has open.
    """
    return len(os.listdir(f"/proc/{daemon.child.pid}/fd"))
