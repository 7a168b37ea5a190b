"""Runs the processes that are measured."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]

START_SECONDS = 300.0
STOP_SECONDS = 20.0


class Child:
    """A Python process that logs JSON lines."""

    def __init__(self, *arguments: str) -> None:
        """@param arguments: what follows C{python}."""
        self._began = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE
        )
        self._tooLong = threading.Timer(START_SECONDS, self._process.kill)
        self._tooLong.daemon = True
        self._tooLong.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def wait(self, event: str) -> tuple[dict[str, Any], float]:
        """Wait for a line whose C{log_format} begins with C{event}.

        @return: the line, and how many seconds after the start it came.
        @raise RuntimeError: the process ended before."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            logged: dict[str, Any] = json.loads(line.strip(b"\x1e\n") or b"{}")
            if str(logged.get("log_format")).startswith(event):
                return logged, time.monotonic() - self._began
        raise RuntimeError(f"{self._process.args!r} ended without {event!r}")

    def ignore(self) -> None:
        """Discard further lines, so that they do not fill the pipe."""
        self._tooLong.cancel()
        threading.Thread(target=self._drain, daemon=True).start()

    def stop(self) -> None:
        """Terminate the process."""
        self._tooLong.cancel()
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _drain(self) -> None:
        assert self._process.stdout is not None
        while self._process.stdout.read1(65536):  # type: ignore[attr-defined]
            pass


class RunningDaemon:
    """A daemon that is ready.

    @ivar pid: its process.
    @ivar ports: its ports for requests, on 127.0.0.1.
    @ivar listening: seconds from the start of the process until it listened.
    @ivar ready: seconds from the start of the process until it had read all devices."""

    def __init__(self, child: Child, count: int = 1) -> None:
        """@param count: the number of ports."""
        self.pid = child.pid
        self.ports: list[int] = []
        for _ in range(count):
            logged, self.listening = child.wait("listening")
            self.ports.append(int(logged["port"]))
        self.ready = child.wait("ready")[1]

    @property
    def port(self) -> int:
        """The first of its ports."""
        return self.ports[0]


@contextlib.contextmanager
def runDaemon(
    directory: Path, backend: Mapping[str, Any], **more: Mapping[str, Any] | Sequence[str]
) -> Iterator[RunningDaemon]:
    """Run the daemon as users do.

    @param directory: for its configuration file.
    @param backend: C{backend} of the configuration.
    @param more: further keys of the configuration."""
    config = directory / "usbipshare.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "listen": ["tcp:0:interface=127.0.0.1"],
                "state": {"file": None},
                "backend": dict(backend),
                **more,
            }
        )
    )
    child = Child("-m", "twisted", "--log-format=json", "usbipshare", "--config", str(config))
    try:
        daemon = RunningDaemon(child, len(more.get("listen", " ")))
        child.ignore()
        yield daemon
    finally:
        child.stop()


@contextlib.contextmanager
def runBare(directory: Path, answer: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Run C{benchmarks.bare}.

    @param directory: for the file with the answer.
    @return: its process id; the port where a connection is closed after an answer, the one where
        it is not, and the one that sends events."""
    file = directory / "answer"
    file.write_bytes(answer)
    child = Child("-m", "benchmarks.bare", str(file))
    try:
        logged, _ = child.wait("listening")
        child.ignore()
        yield child.pid, int(logged["closing"]), int(logged["staying"]), int(logged["events"])
    finally:
        child.stop()
