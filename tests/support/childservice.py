"""
The client service in a child process, for tests that may block.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from tests.support.childdaemon import SECONDS, ChildDaemon, withKeys

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

    def _awaitReady(self) -> None:
        self.logged("ready")

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(SECONDS)
        connection.connect(self.path)
        return connection

    def _write(self, config: str) -> None:
        unsaid: dict[str, Any] = {
            "socket": {"path": self.path},
            "links": f"{self.folder}/links",
            "state": {"file": f"{self.folder}/state.json"},
        }
        if self._isInMemory:
            unsaid["timeouts"] = {"server": 60, "attach": 60, "request": 600, "stop": 60}
        keys = {key: json.dumps(value) for key, value in unsaid.items()}
        with open(self._file, "w", encoding="utf-8") as file:
            file.write(withKeys(config, keys))


def serversOf(**daemons: ChildDaemon) -> str:
    """
    The YAML for some daemons.
    """
    servers = {
        name: {"host": "127.0.0.1", "port": daemon.port, "export_port": daemon.exportPort}
        for name, daemon in daemons.items()
    }
    return f"servers: {json.dumps(servers)}\n"
