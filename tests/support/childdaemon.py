"""
A daemon in a child process, for tests that may block.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, ClassVar

from tests.support.forking import ForkedChild, spawn
from tests.support.watchclient import WatchClient

EXPORT = "export: {listen: ['tcp:0:interface=127.0.0.1']}\n"
"""USB/IP on a port that is free: L{ChildDaemon.exportPort} tells which."""

TWISTED = (sys.executable, "-m", "twisted")
"""The command of an ordinary daemon."""

SECONDS = 180.0
"""For whatever it does; a virtual machine without KVM is slow."""


PATIENCE = {
    ("usbip_server.server.devices.operations", "EXPORT_SECONDS"): 600.0,
    ("usbip_server.server.exports", "EXPORT_SECONDS"): 600.0,
    ("usbip_server.protocols.exporter", "REQUEST_SECONDS"): 600.0,
    ("usbip_server.protocols.exporter_tls", "HANDSHAKE_SECONDS"): 600.0,
}
"""Deadlines that cannot be configured, and that a busy machine could miss: of modules, by the names
of constants."""


def withConstant(module: str, name: str, value: float) -> tuple[str, ...]:
    """
    The command of a daemon in which a constant of a module has another value: of a deadline that
    a test has to wait for, or that nothing is to miss. The other deadlines are those of
    L{PATIENCE}.
    """
    changed = {**PATIENCE, (module, name): value}
    code = "".join(
        f"import {module}; {module}.{name} = {value}; " for (module, name), value in changed.items()
    )
    run = "import runpy; runpy.run_module('twisted', run_name='__main__', alter_sys=True)"
    return (sys.executable, "-c", code + run)


PATIENT = withConstant("usbip_server.backends.remote.backend", "FIRST_SECONDS", 600.0)
"""The command of a daemon of which nothing is to be late."""


class ChildDaemon:
    """
    Runs as long as a C{with} lasts.

    @ivar host: where it is reached.
    @ivar port: where it listens for requests.
    @ivar events: what it has logged, as far as that was read: dicts of C{log_format} and
        the fields.
    @cvar unsaid: what its configuration says, where it is not given, as YAML.
    """

    unsaid: ClassVar[dict[str, str]] = {"state": "{file: null}", "export": "off"}

    def __init__(
        self,
        config: str,
        command: Sequence[str] = TWISTED,
        prefix: Sequence[str] = (),
        listen: Sequence[str] = ("tcp:0:interface=127.0.0.1",),
        env: Mapping[str, str] | None = None,
    ) -> None:
        """
        @param config: YAML, without C{listen}. What it says nothing of is not remembered.
        @param prefix: what comes before the command, such as C{sudo}.
        @param env: its environment; C{None}: that of this process.
        """
        self.host = "127.0.0.1"
        self.port = 0
        self.events: list[dict[str, Any]] = []
        self._listen = listen
        self._env = env
        self._config = config
        self._command = [*prefix, *command, "--log-format=json", "usbipshare"]

    def __enter__(self) -> ChildDaemon:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml", delete=False) as file:
            os.chmod(file.name, 0o644)
        self._file = file.name
        self._write(self._config)
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.child.terminate()
        try:
            self.child.wait(SECONDS)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
            raise
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._file)

    def start(self) -> None:
        """
        Start it again, with the same configuration, after its end.
        """
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.child = spawn(
            [*self._command, "--config", self._file],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._env,
        )
        threading.Thread(target=readLines, args=(self.child, self._lines), daemon=True).start()
        try:
            self._awaitReady()
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def _awaitReady(self) -> None:
        """Wait until it answers requests."""
        self.port = self.logged("listening on")["port"]
        self.logged("ready")

    def stop(self) -> None:
        """Let it end."""
        self.child.terminate()
        self.child.wait(SECONDS)

    def kill(self) -> None:
        """
        Kill it, so that it has no time for anything.
        """
        self.child.kill()
        self.child.wait(SECONDS)

    def reload(self, config: str) -> dict[str, Any]:
        """
        Give it another configuration, and have it read that.

        @param config: as at the beginning.
        @return: what it logs of it.
        """
        self._write(config)
        self.child.send_signal(signal.SIGHUP)
        return self.logged("configuration reloaded", "reload failed")

    @property
    def ports(self) -> list[int]:
        """Where it listens, or has listened, for requests."""
        return [
            event["port"]
            for event in self.events
            if str(event.get("log_format")).startswith("listening on")
        ]

    @property
    def exportPort(self) -> int:
        """Where it serves USB/IP."""
        port: int = next(
            event["port"]
            for event in self.events
            if str(event.get("log_format")).startswith("exporting on")
        )
        return port

    def logged(self, *beginnings: str) -> dict[str, Any]:
        """
        Wait until it has logged something, from now on.

        @param beginnings: of the event's format, any of them.
        @raise AssertionError: it has ended, or says nothing of the kind.
        """
        seen: list[str] = []
        while True:
            try:
                line = self._lines.get(timeout=SECONDS)
            except queue.Empty:
                raise AssertionError(f"it has not logged {beginnings}: {seen}") from None
            if not line:
                raise AssertionError(f"it has ended: {seen}")
            seen.append(line)
            try:
                event: dict[str, Any] = json.loads(line.strip("\x1e\n"))
            except ValueError:
                continue
            self.events.append(event)
            if str(event.get("log_format")).startswith(beginnings):
                return event

    def ask(self, command: str, **more: object) -> dict[str, Any]:
        """Send a request, and return the answer."""
        answer: dict[str, Any] = json.loads(
            self.send(json.dumps({"command": command, **more}).encode() + b"\n")
        )
        return answer

    def watch(self, **request: object) -> WatchClient:
        """A client that is told what happens, for as long as a C{with} lasts."""
        return WatchClient(self.port, **request)

    def send(self, data: bytes) -> bytes:
        """Send bytes, and return what comes until the daemon closes."""
        with self._connect() as connection:
            connection.sendall(data)
            received = b""
            while more := connection.recv(65536):
                received += more
        return received

    def _connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), SECONDS)

    def _write(self, config: str) -> None:
        keys = {"listen": json.dumps(self._listen), **self.unsaid}
        with open(self._file, "w", encoding="utf-8") as file:
            file.write(withKeys(config, keys))


class PatientDaemon(ChildDaemon):
    """
    One whose deadlines a busy machine does not miss, as long as its configuration says nothing of
    C{timeouts}.
    """

    unsaid: ClassVar[dict[str, str]] = {
        **ChildDaemon.unsaid,
        "timeouts": "{request: 600, answer: 60, bind: 600}",
    }

    def __init__(
        self,
        config: str,
        command: Sequence[str] = PATIENT,
        prefix: Sequence[str] = (),
        listen: Sequence[str] = ("tcp:0:interface=127.0.0.1",),
        env: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(config, command, prefix, listen, env)


def withKeys(config: str, keys: Mapping[str, str]) -> str:
    """
    A configuration with other keys, unless it has them.

    @param keys: YAML by the name of the key.
    """
    more = [f"{key}: {it}\n" for key, it in keys.items() if f"\n{key}:" not in f"\n{config}"]
    return "".join(more) + config


def readLines(child: subprocess.Popen[bytes] | ForkedChild, lines: queue.SimpleQueue[str]) -> None:
    """
    Put each line that a child prints into a queue, and an empty one at its end.
    """
    assert child.stdout is not None
    for line in child.stdout:
        lines.put(line.decode("utf-8", "replace"))
    lines.put("")
