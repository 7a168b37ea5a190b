"""
Tests of L{usbip_server.runtime.service}.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from usbip_server.runtime.service import (
    SPARE_FILES,
    ReloadOnHangup,
    allowConnections,
    notify,
    removeStalePidFile,
)
from usbip_server.testing.reactor import FakeReactor

INFINITE = resource.RLIM_INFINITY


class NotifyTests(SynchronousTestCase):
    """
    Messages to systemd.
    """

    def test_sent(self) -> None:
        """Each message is a datagram to the socket that the environment names: a path, or a name
        in the abstract namespace."""
        with tempfile.TemporaryDirectory() as directory:
            path, name = os.path.join(directory, "notify"), f"usbipshare-test-{os.getpid()}"
            for address, variable in ((path, path), ("\0" + name, "@" + name)):
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
                    systemd.bind(address)
                    systemd.settimeout(5)
                    self.patch(os, "environ", {**os.environ, "NOTIFY_SOCKET": variable})
                    notify("READY=1")
                    notify("STATUS=all is well")
                    self.assertEqual(systemd.recv(100), b"READY=1")
                    self.assertEqual(systemd.recv(100), b"STATUS=all is well")

    def test_unheard(self) -> None:
        """Without a socket, without systemd, and with one that does not read, it returns."""
        environment = {key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"}
        for more in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "/does/not/exist"}):
            self.patch(os, "environ", environment | more)
            notify("READY=1")
        with (
            tempfile.TemporaryDirectory() as directory,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd,
        ):
            path = os.path.join(directory, "notify")
            systemd.bind(path)
            self.patch(os, "environ", {**os.environ, "NOTIFY_SOCKET": path})
            for _ in range(10_000):
                notify("STATUS=" + "x" * 500)


class TurningReactor(FakeReactor):
    """
    Runs what threads and signal handlers have called in its next turn.
    """

    def callFromThread(self, function: Callable[..., Any], *args: Any) -> None:
        self.callLater(0, function, *args)


class ReloadTests(SynchronousTestCase):
    """
    C{SIGHUP}.
    """

    def test_merged(self) -> None:
        """Any number of signals before a reload is one, and during it one more, also if it fails;
        after L{ReloadOnHangup.stop} the handler is the one that there was before."""
        reactor, before = TurningReactor(), signal.getsignal(signal.SIGHUP)
        reloads: list[Deferred[None]] = []

        async def reload() -> None:
            reloads.append(Deferred())
            await reloads[-1]

        reloading = ReloadOnHangup(reactor, reload)
        reloading.start()
        self.addCleanup(signal.signal, signal.SIGHUP, before)
        for when in ("before a reload", "during it"):
            for _ in range(4000):
                os.kill(os.getpid(), signal.SIGHUP)
            self.assertEqual(len(reactor.getDelayedCalls()), 1)
            reactor.advance(0)
            self.assertEqual(len(reloads), 1, when)
        reloads[0].errback(ZeroDivisionError())
        self.assertEqual((len(reloads), len(self.flushLoggedErrors(ZeroDivisionError))), (2, 1))
        reloads[1].callback(None)
        os.kill(os.getpid(), signal.SIGHUP)
        reactor.advance(0)
        self.assertEqual(len(reloads), 3)
        reloading.stop()
        self.assertIs(signal.getsignal(signal.SIGHUP), before)


class PidFileTests(SynchronousTestCase):
    """
    L{removeStalePidFile}.
    """

    def test_stale(self) -> None:
        """A pid file with the number of this process or of another program is removed, and one
        of a running twistd, of no process or with other content is left to twistd."""
        sleep = subprocess.Popen(["sleep", "600"])
        twistd = subprocess.Popen(["sh", "-c", "exec -a twistd sleep 600"], executable="bash")
        ended = subprocess.Popen(["true"])
        ended.wait()
        for child in (sleep, twistd):
            self.addCleanup(child.wait)
            self.addCleanup(child.kill)
        while b"twistd\0" not in Path(f"/proc/{twistd.pid}/cmdline").read_bytes():
            time.sleep(0.01)
        path = Path(self.mktemp())
        for content, isLeft in (
            (str(os.getpid()), False),
            (f"{sleep.pid}\n", False),
            (str(twistd.pid), True),
            (str(ended.pid), True),
            ("text", True),
        ):
            path.write_text(content)
            removeStalePidFile({"pidfile": str(path)})
            self.assertEqual(path.exists(), isLeft, content)
        path.unlink()
        for none in ({"pidfile": str(path)}, {"pidfile": ""}, {}, None):
            removeStalePidFile(none)


class OpenFilesTests(SynchronousTestCase):
    """
    The limit on open files.
    """

    def test_limit(self) -> None:
        """The limit is raised as far as the connections need, and the system allows; where that is
        not enough there is room for fewer connections, at least one, and a warning."""
        spare, half = SPARE_FILES, (512 - SPARE_FILES) // 3
        for soft, hard, mayRaise, wanted, files, room, raised in (
            (4096, 4096, True, 1024, 1, 1024, None),
            (1024, 524288, True, 2000, 1, 2000, (2000 + spare, 524288)),
            (512, 1024, True, 2000, 1, 1024 - spare, (1024, 1024)),
            (512, INFINITE, False, 2000, 1, 512 - spare, None),
            (INFINITE, INFINITE, True, 100_000, 1, 100_000, None),
            (1024, INFINITE, True, 100_000, 1, 100_000, (100_000 + spare, INFINITE)),
            (16, 16, True, 1024, 1, 1, (16, 16)),
            (1024, 4096, True, 1000, 3, 1000, (3000 + spare, 4096)),
            (512, 512, True, 1000, 3, half, (512, 512)),
        ):
            limits = [(soft, hard)]

            def get(which: int, limits: list[tuple[int, int]] = limits) -> tuple[int, int]:
                self.assertEqual(which, resource.RLIMIT_NOFILE)
                return limits[-1]

            def set_(
                which: int,
                new: tuple[int, int],
                mayRaise: bool = mayRaise,
                limits: list[tuple[int, int]] = limits,
            ) -> None:
                if not mayRaise:
                    raise ValueError("not allowed to raise maximum limit")
                limits.append(new)

            self.patch(resource, "getrlimit", get)
            self.patch(resource, "setrlimit", set_)
            with capturedLogs() as events:
                self.assertEqual(allowConnections(wanted, files), room)
            self.assertEqual(limits[1:], [] if raised is None else [raised])
            warned = [(event["room"], event["wanted"]) for event in events]
            self.assertEqual(warned, [] if room == wanted else [(room, wanted)])
