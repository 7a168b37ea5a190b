"""
Starts Python programs quickly: they are forked from a process that has imported their modules. In
a guest the imports take most of the time of a start.

A forked program has the arguments, environment, folder and descriptors of its command; but its
modules were imported before, and its parent is the process that it was forked from, which reports
how it ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

FORKING = "USBIPSHARE_TESTS_FORK"
"""The environment variable with which programs are forked."""

_PROJECT = Path(__file__).resolve().parents[2]

_COMMAND = str(Path(sys.executable).with_name("usbipshare"))
_COMMAND_MODULE = "usbip_server.client.cli.main"

_MODULES = (
    "twisted",
    "tests.kernel.inside.rawgadget",
    "tests.kernel.inside.usbfs",
    "tests.kernel.inside.withoutktls",
)
"""The modules of C{python -m} that are forked."""

_ENTERING = ("nsenter", "--net=")
"""How a command begins that is to run in another network namespace."""

_CLONE_NEWNET = 0x40000000
"""C{CLONE_NEWNET} (C{include/uapi/linux/sched.h})."""

_IMPORTED = (
    "twisted.application.runner._runner",
    "twisted.application.twist._twist",
    "twisted.internet.epollreactor",
    "twisted.plugins.usbipshare_plugin",
    "twisted.plugins.usbipclient_plugin",
    "usbip_server.backends.sysfs",
    "usbip_server.backends.usbiptool",
    "usbip_server.client.cli.diagnostics",
    "usbip_server.client.cli.eventprinter",
    "usbip_server.client.cli.main",
    "usbip_server.client.service.tap",
    "usbip_server.tap",
)

_LONGEST = 1 << 17
"""Bytes of a request."""

_NUMBER = struct.Struct("=q")

Stream = int | IO[bytes]


class _Program(NamedTuple):
    """
    A program to run.

    @ivar module: what C{python -m} runs, or the one of the command C{usbipshare}.
    @ivar arguments: C{sys.argv}.
    @ivar network: the file of a network namespace; empty for that of this process.
    """

    module: str
    arguments: list[str]
    network: str


def spawn(
    command: Sequence[str],
    stdin: Stream,
    stdout: Stream,
    stderr: Stream,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
) -> subprocess.Popen[bytes] | ForkedChild:
    """
    Start a program; it is forked if L{FORKING} is set and its modules are known.

    @param stdin: as of C{Popen}; so are C{stdout} and C{stderr}.
    """
    program = _programOf(command) if FORKING in os.environ else None
    if program is None:
        return subprocess.Popen(
            command, stdin=stdin, stdout=stdout, stderr=stderr, env=env, cwd=cwd
        )
    return ForkedChild(program, stdin, stdout, stderr, env, cwd)


def _programOf(command: Sequence[str]) -> _Program | None:
    """The program of a command, if it can be forked."""
    words, network = [*command], ""
    if words[0] == _ENTERING[0] and words[1].startswith(_ENTERING[1]):
        network = words[1].removeprefix(_ENTERING[1])
        del words[:2]
    if words[:2] == [sys.executable, "-m"] and words[2] in _MODULES:
        return _Program(words[2], words[2:], network)
    if words[0] == _COMMAND:
        return _Program(_COMMAND_MODULE, words, network)
    return None


class ForkedChild:
    """
    The part of C{Popen}'s interface that tests use.

    @ivar stdin: this process's end of a pipe, if C{stdin} is C{PIPE}.
    @ivar stdout: the same for C{stdout}.
    """

    def __init__(
        self,
        program: _Program,
        stdin: Stream,
        stdout: Stream,
        stderr: Stream,
        env: Mapping[str, str] | None,
        cwd: str | Path | None,
    ) -> None:
        self.returncode: int | None = None
        self.stdin: IO[bytes] | None = None
        self.stdout: IO[bytes] | None = None
        self._program = program
        self._reading = threading.Lock()
        request = {
            **program._asdict(),
            "environment": dict(os.environ if env is None else env),
            "folder": os.path.abspath(cwd or "."),
        }
        with contextlib.ExitStack() as theirs:
            if stdin == subprocess.PIPE:
                stdin, ours = os.pipe()
                theirs.callback(os.close, stdin)
                self.stdin = os.fdopen(ours, "wb")
            if stdout == subprocess.PIPE:
                ours, stdout = os.pipe()
                theirs.callback(os.close, stdout)
                self.stdout = os.fdopen(ours, "rb")
            if stderr == subprocess.STDOUT:
                stderr = stdout
            ours, report = os.pipe()
            theirs.callback(os.close, report)
            self._report = os.fdopen(ours, "rb", buffering=0)
            given = [_descriptor(stream, theirs) for stream in (stdin, stdout, stderr)]
            socket.send_fds(_server(), [json.dumps(request).encode()], [*given, report])
        self.pid = self._readNumber()

    def _readNumber(self) -> int:
        """Read a number from the server: first the process id, later the wait status."""
        data = self._report.read(_NUMBER.size)
        if not data:
            raise AssertionError(f"the process is gone that {self._program} was forked from")
        (number,) = _NUMBER.unpack(data)
        return int(number)

    def poll(self) -> int | None:
        """Its exit status; C{None} while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """
        Wait for its end.

        @return: its exit status, or minus the signal it died of.
        @raise subprocess.TimeoutExpired: it goes on.
        """
        if self.returncode is None and not select.select([self._report], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self._program.arguments, timeout or 0.0)
        with self._reading:
            if self.returncode is None:
                self.returncode = os.waitstatus_to_exitcode(self._readNumber())
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


def _descriptor(stream: Stream, opened: contextlib.ExitStack) -> int:
    """
    The number of a stream's descriptor.

    @param opened: closes what is opened for it.
    """
    if stream == subprocess.DEVNULL:
        return opened.enter_context(open(os.devnull, "r+b", buffering=0)).fileno()
    return stream if isinstance(stream, int) else stream.fileno()


@functools.cache
def _server() -> socket.socket:
    """
    The process that programs are forked from, started at the first call. It ends with this process.

    @return: a socket that takes a request for each program.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            cwd=_PROJECT,
        )
    return ours


def _serve(requests: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """
    Fork a process for each request, and report how it ends. Returns in the new process: the
    request, and its descriptors.

    @raise SystemExit: the socket of requests is closed.
    """
    children: dict[int, tuple[int, int]] = {}
    poller = select.poll()
    poller.register(requests, select.POLLIN)
    while True:
        for descriptor, _ in poller.poll():
            if descriptor == requests.fileno():
                message, descriptors, _, _ = socket.recv_fds(requests, _LONGEST, 4)
                if not message:
                    raise SystemExit
                child = os.fork()
                if child == 0:
                    return json.loads(message), descriptors[:3]
                for given in descriptors[:3]:
                    os.close(given)
                watched, report = os.pidfd_open(child), descriptors[3]
                poller.register(watched, select.POLLIN)
                children[watched] = child, report
                _report(report, child)
            else:
                child, report = children.pop(descriptor)
                poller.unregister(descriptor)
                os.close(descriptor)
                _report(report, os.waitpid(child, 0)[1])
                os.close(report)


def _report(report: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # the reader has ended
        os.write(report, _NUMBER.pack(number))


def _become(request: dict[str, Any], descriptors: Sequence[int]) -> None:
    """Become the program of a request."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    if request["network"]:
        enterNetwork(request["network"])
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    # In place: what Twisted's main() takes for its arguments is the list of the import.
    sys.argv[:] = request["arguments"]
    sys.path[0] = request["folder"]
    if request["module"] == _COMMAND_MODULE:
        sys.exit(importlib.import_module(_COMMAND_MODULE).main())
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


def enterNetwork(path: str) -> None:
    """
    Move this thread to a network namespace.

    @param path: the file of the namespace.
    """
    with open(path, "rb") as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


def main(number: str) -> None:
    """
    Import modules, and fork the programs that are requested.

    @param number: of the descriptor that requests come from.
    """
    for module in _IMPORTED:
        importlib.import_module(module)
    assert "twisted.internet.reactor" not in sys.modules  # it has descriptors of its own
    gc.collect()
    gc.freeze()  # or the first collection in each process would write to all pages
    request, descriptors = _serve(socket.socket(fileno=int(number)))
    _become(request, descriptors)


if __name__ == "__main__":
    main(*sys.argv[1:])
