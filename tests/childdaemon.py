"""
A daemon in a child process, for tests that may block.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any

SECONDS = 60.0
"""For whatever it does; a virtual machine without KVM is slow."""


class ChildDaemon:
    """
    Runs as long as a C{with} lasts.

    @ivar port: where it listens for requests.
    @ivar events: what it has logged, as far as that was read: dicts of C{log_format} and
        the fields.
    """

    def __init__(
        self,
        config: str,
        command: Sequence[str] = (sys.executable, "-m", "twisted"),
        prefix: Sequence[str] = (),
        listen: str = "tcp:0:interface=127.0.0.1",
    ) -> None:
        """
        @param config: YAML, without C{listen}.
        @param prefix: what comes before the command, such as C{sudo}.
        """
        self.port = 0
        self.events: list[dict[str, Any]] = []
        self._config = f"listen: ['{listen}']\n{config}"
        self._command = [*prefix, *command, "--log-format=json"]
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def __enter__(self) -> ChildDaemon:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml", delete=False) as file:
            file.write(self._config)
        os.chmod(file.name, 0o644)
        self._file = file.name
        self.child = subprocess.Popen(
            [*self._command, "usbipshare", "--config", file.name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        threading.Thread(target=self._read, daemon=True).start()
        try:
            self.port = self.logged("listening on")["port"]
            self.logged("ready")
        except BaseException:
            self.__exit__(None, None, None)
            raise
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
            os.unlink(self._file)

    def logged(self, beginning: str) -> dict[str, Any]:
        """
        Wait until it has logged something, from now on.

        @param beginning: of the event's format.
        @raise AssertionError: it has ended, or says nothing of the kind.
        """
        seen: list[str] = []
        while True:
            try:
                line = self._lines.get(timeout=SECONDS)
            except queue.Empty:
                raise AssertionError(f"it has not logged {beginning!r}: {seen}") from None
            if not line:
                raise AssertionError(f"it has ended: {seen}")
            seen.append(line)
            try:
                event: dict[str, Any] = json.loads(line.strip("\x1e\n"))
            except ValueError:
                continue
            self.events.append(event)
            if str(event.get("log_format")).startswith(beginning):
                return event

    def ask(self, command: str, **more: object) -> dict[str, Any]:
        """Send a request, and return the answer."""
        answer: dict[str, Any] = json.loads(
            self.send(json.dumps({"command": command, **more}).encode() + b"\n")
        )
        return answer

    def send(self, data: bytes) -> bytes:
        """Send bytes, and return what comes until the daemon closes."""
        with socket.create_connection(("127.0.0.1", self.port), SECONDS) as connection:
            connection.sendall(data)
            received = b""
            while more := connection.recv(65536):
                received += more
        return received

    def _read(self) -> None:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            self._lines.put(line)
        self._lines.put("")
