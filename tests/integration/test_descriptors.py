"""
A daemon that may have only a few file descriptors.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from tests.support.childdaemon import PatientDaemon
from usbip_server.runtime.service import SPARE_FILES

DESCRIPTORS = 150
CONNECTIONS = 300
SECONDS = 60.0


class DescriptorTests(SynchronousTestCase):
    """
    More connections than it has descriptors for.
    """

    def test_flood(self) -> None:
        """
        It says that there is room for few, turns the others away, and answers as before
        when they have gone.
        """
        config = "backend: {type: virtual}"
        prefix = ("prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}")
        with PatientDaemon(config, prefix=prefix) as daemon, contextlib.ExitStack() as crowd:
            warned = [event["room"] for event in daemon.events if "room" in event]
            self.assertEqual(warned, [DESCRIPTORS - SPARE_FILES])
            daemon.ask("list")  # the reactor runs, and has opened what it needs
            folder = f"/proc/{daemon.child.pid}/fd"
            before = len(os.listdir(folder))
            address = ("127.0.0.1", daemon.port)
            for _ in range(CONNECTIONS):
                crowd.enter_context(socket.create_connection(address, SECONDS))
            self.assertLessEqual(len(os.listdir(folder)), DESCRIPTORS)
            crowd.close()
            self.until(lambda: daemon.ask("list")["status"] == "success")
            self.until(lambda: len(os.listdir(folder)) <= before)

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so; the crowd's last connections may still be in the way."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            with contextlib.suppress(OSError, ValueError):
                if condition():
                    return
        self.fail(f"still not so after {SECONDS} s")
