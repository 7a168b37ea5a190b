"""
The command C{usbipshare} as people have it: a process, a terminal, signals, pipes.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tests.client.cli.commandcase import CommandCase
from tests.client.cli.test_asking import listen
from tests.support.scriptedserver import ScriptedServer
from usbip_server.client.cli import INTERRUPTED
from usbip_server.client.cli.exitcodes import Exit
from usbip_server.client.cli.output import FAILED

SECONDS = 60.0

SCRIPT = Path(sys.executable).parent / "usbipshare"

LAMP = "backend: {type: virtual, devices: [{bus_id: 1-1, product: Blinking Lamp}]}\n"


class ProcessTestCase(CommandCase):
    """
    Commands as processes, with a client.yaml of the test.
    """

    @property
    def variables(self) -> dict[str, str]:
        """The environment of commands."""
        return {"PATH": os.environ["PATH"], "TERM": "xterm-256color", **self.environment}

    def start(self, *arguments: str, **more: Any) -> subprocess.Popen[bytes]:
        """Start a command, until the end of the test."""
        child = subprocess.Popen(
            [SCRIPT, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.variables | more,
        )

        def reap() -> None:
            child.kill()
            child.communicate()

        self.addCleanup(reap)
        return child

    def end(self, child: subprocess.Popen[bytes], status: int) -> tuple[str, str]:
        """Wait for a command: what it has printed."""
        out, err = child.communicate(timeout=SECONDS)
        self.assertEqual(child.returncode, status, err.decode())
        return out.decode(), err.decode()

    def line(self, stream: IO[bytes] | None) -> str:
        """The next line that a command prints."""
        assert stream is not None
        self.assertTrue(select.select([stream], [], [], SECONDS)[0], "it says nothing")
        return os.read(stream.fileno(), 65536).decode().rstrip("\n")

    @contextlib.contextmanager
    def terminal(self, *arguments: str, **more: str) -> Iterator[tuple[int, int]]:
        """Start a command on a terminal: its process, and the other side of the terminal."""
        pid, master = pty.fork()
        if pid == 0:
            os.execve(SCRIPT, [str(SCRIPT), *arguments], self.variables | more)
        try:
            yield pid, master
        finally:
            os.close(master)
            os.waitpid(pid, 0)

    def seen(self, master: int, end: str = "") -> str:
        """The output on a terminal, up to a text or to the end."""
        seen = ""
        while not (end and end in seen):
            self.assertTrue(select.select([master], [], [], SECONDS)[0], f"there is only {seen!r}")
            try:
                data = os.read(master, 65536)
            except OSError:  # nobody has the other side any more
                break
            if not data:
                break
            seen += data.decode()
        return seen


class TerminalTests(ProcessTestCase):
    """
    Commands on a terminal.
    """

    def test_question(self) -> None:
        """If several devices match, the user is asked."""
        self.daemon()
        with self.terminal("find", "usbipshare") as (_, master):
            self.seen(master, "Which one")
            os.write(master, b"2\n")
            self.assertIn("DISK1", self.seen(master, "state"))

    def test_colours(self) -> None:
        """Tables have colours on a terminal, unless C{NO_COLOR} is set, and none in a pipe."""
        daemon = self.daemon()
        daemon.ask("attach", id="1-1")
        green = "\x1b[32m"
        with self.terminal("list") as (_, master):
            self.assertIn(green, self.seen(master))
        with self.terminal("list", NO_COLOR="1") as (_, master):
            self.assertNotIn(green, self.seen(master))
        out, _ = self.end(self.start("list"), 0)
        self.assertNotIn("\x1b", out)


class WatchTests(ProcessTestCase):
    """
    C{usbipshare watch}.
    """

    def test_watch(self) -> None:
        """Each event of any server is a line, until the command is interrupted."""
        raspi = self.daemon("raspi")
        bench = self.daemon("bench", f"export: off\n{LAMP}")
        watch = self.start("watch")
        told: set[str] = set()
        while len(told) < 2:
            told |= {*self.line(watch.stderr).splitlines()}
        self.assertEqual(told, {"raspi: 2 devices", "bench: 1 devices"})
        for daemon, said in (
            (raspi, r"\d\d:\d\d:\d\d  raspi  1-1  bound  usbipshare Echoing Serial Port"),
            (bench, r"\d\d:\d\d:\d\d  bench  1-1  bound  Blinking Lamp"),
        ):
            daemon.ask("attach", id="1-1")
            self.assertRegex(self.line(watch.stdout), rf"\A{said}\Z")
        watch.send_signal(signal.SIGINT)
        self.assertEqual(self.end(watch, 0), ("", ""))

    def test_json(self) -> None:
        """With C{--json} each line has the server, also when that connects and disconnects."""
        daemon = self.daemon("raspi", f"export: off\n{LAMP}")
        watch = self.start("watch", "--json", "--id", "1-*")
        connected = json.loads(self.line(watch.stdout))
        self.assertEqual((connected["event"], connected["server"]), ("connected", "raspi"))
        self.assertEqual([device["bus_id"] for device in connected["devices"]], ["1-1"])
        daemon.ask("attach", id="1-1")
        bound = json.loads(self.line(watch.stdout))
        self.assertEqual((bound["event"], bound["server"]), ("bound", "raspi"))
        self.assertEqual(bound["data"]["state"], "bound")
        daemon.kill()
        lost = json.loads(self.line(watch.stdout).splitlines()[0])
        self.assertEqual((lost["event"], lost["server"]), ("disconnected", "raspi"))

    def test_closedPipe(self) -> None:
        """The command ends when its pipe is closed."""
        daemon = self.daemon("raspi", f"export: off\n{LAMP}")
        watch = self.start("watch")
        self.line(watch.stderr)
        assert watch.stdout is not None
        watch.stdout.close()
        daemon.ask("attach", id="1-1")
        watch.wait(SECONDS)


class InterruptedTests(ProcessTestCase):
    """
    Signals.
    """

    def test_interrupted(self) -> None:
        """SIGINT and SIGTERM end a command that waits, with a message."""
        asked = threading.Event()

        def hear(peer: socket.socket) -> None:
            peer.settimeout(None)  # the client is to be ended by the signal, not by this side
            peer.recv(1)
            asked.set()
            listen(peer)

        with ScriptedServer(hear) as silent:
            self.known("silent", host="127.0.0.1", port=silent.port)
            for number in (signal.SIGINT, signal.SIGTERM):
                waiting = self.start("list", "--timeout", "600")
                self.assertTrue(asked.wait(SECONDS))
                waiting.send_signal(number)
                _, said = self.end(waiting, INTERRUPTED)
                self.assertEqual(said, "interrupted\n")
                asked.clear()


class OutputTests(ProcessTestCase):
    """
    Standard output that cannot be written.
    """

    def typed(self, text: str) -> subprocess.CompletedProcess[str]:
        """Run a shell command."""
        return subprocess.run(
            ["bash", "-c", text.replace("usbipshare", str(SCRIPT)) + "; exit ${PIPESTATUS[0]}"],
            env=self.variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )

    def test_fullDisk(self) -> None:
        """A full disk is reported in one line, with an exit code of its own."""
        self.daemon()
        for command in ("list", "list --json", "--help", "completion bash"):
            for variable in ("", "PYTHONUNBUFFERED=1 "):
                done = self.typed(f"{variable}usbipshare {command} > /dev/full")
                said = "usbipshare: write error: No space left on device\n"
                self.assertEqual((done.returncode, done.stderr), (FAILED, said), command)

    def test_closedStreams(self) -> None:
        """The same if standard output is closed; messages to a closed standard error are
        discarded."""
        self.daemon()
        done = self.typed("usbipshare list >&-")
        said = "usbipshare: write error: Bad file descriptor\n"
        self.assertEqual((done.returncode, done.stderr), (FAILED, said))
        done = self.typed("usbipshare list 2>&-")
        self.assertEqual((done.returncode, len(done.stdout.splitlines())), (0, 3))
        self.assertEqual(self.typed("usbipshare list <&- >&- 2>&-").returncode, FAILED)

    def test_closedPipe(self) -> None:
        """A closed pipe is not reported."""
        self.daemon()
        done = self.typed("usbipshare list | head -1")
        self.assertTrue(done.stdout.startswith("SERVER "), done.stdout)
        done = self.typed("usbipshare list | true")
        self.assertEqual((done.returncode, done.stderr), (FAILED, ""))


class ManyTests(ProcessTestCase):
    """
    Many servers.
    """

    def test_range(self) -> None:
        """A thousand servers that do not answer are reported in one line."""
        self.known("lab", range="127.1.0.0-127.1.3.231", port=self.nobody(), export_port=9)
        _, said = self.end(self.start("list"), Exit.UNREACHABLE)
        self.assertIn("lab: 1000 of its 1000 addresses do not answer\n", said)
