"""
The client service in a child process, for tests that may block.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from tests.support.childdaemon import SECONDS, ChildDaemon, readLines
from tests.support.forking import spawn

REAL = (sys.executable, "-m", "twisted", "--log-format=json", "usbipclient")

IN_MEMORY = (sys.executable, "-m", "tests.client.service.servicechild")
"""With a kernel that is none; it takes the folder of nodes besides."""


class ChildService(ChildDaemon):
    """
    Runs as long as a C{with} lasts.

    @ivar folder: its own: its socket is C{client.sock} there, links are in C{links}, nodes in
        C{dev}.
    """

    def __init__(
        self, config: str, command: Sequence[str] = IN_MEMORY, prefix: Sequence[str] = ()
    ) -> None:
        """
        @param config: YAML. What it says nothing of is in the folder. With a kernel in memory
            nothing is late because the machine is busy.
        """
        super().__init__(config, command, prefix)
        self._command = [*prefix, *command]
        self._isInMemory = command is IN_MEMORY
        self.folder = tempfile.mkdtemp(prefix="usbipshare-")
        os.mkdir(f"{self.folder}/dev")
        with open(f"{self.folder}/dev/ttyACM0", "wb"):
            pass

    @property
    def path(self) -> str:
        """Of its socket."""
        return f"{self.folder}/client.sock"

    @property
    def links(self) -> dict[str, str]:
        """The links there are, and where they lead."""
        with contextlib.suppress(FileNotFoundError):
            found = os.scandir(f"{self.folder}/links")
            return {entry.name: os.readlink(entry.path) for entry in found}
        return {}

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, traceback)
        shutil.rmtree(self.folder, ignore_errors=True)

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
        )
        threading.Thread(target=readLines, args=(self.child, self._lines), daemon=True).start()
        try:
            self.logged("ready")
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def stop(self) -> None:
        """Let it end."""
        self.child.terminate()
        self.child.wait(SECONDS)

    def send(self, data: bytes) -> bytes:
        """Send bytes, and return what comes until it closes."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(SECONDS)
            connection.connect(self.path)
            connection.sendall(data)
            received = b""
            while more := connection.recv(65536):
                received += more
            return received

    def _write(self, config: str) -> None:
        unsaid: dict[str, Any] = {
            "socket": {"path": self.path},
            "links": f"{self.folder}/links",
            "state": {"file": f"{self.folder}/state.json"},
        }
        if self._isInMemory:
            unsaid["timeouts"] = {"server": 60, "attach": 60, "request": 600, "stop": 60}
        more = "".join(
            f"{key}: {json.dumps(value)}\n"
            for key, value in unsaid.items()
            if f"\n{key}:" not in f"\n{config}"
        )
        with open(self._file, "w", encoding="utf-8") as file:
            file.write(f"{more}{config}")


def serversOf(**daemons: ChildDaemon) -> str:
    """
    The YAML for some daemons.
    """
    servers = {
        name: {"host": "127.0.0.1", "port": daemon.port, "export_port": daemon.exportPort}
        for name, daemon in daemons.items()
    }
    return f"servers: {json.dumps(servers)}\n"
