"""
Tests of L{usbip_server.runtime.service}.
"""

from __future__ import annotations

import os
import socket
import tempfile

from twisted.trial.unittest import SynchronousTestCase

from usbip_server.runtime.service import notify


class NotifyTests(SynchronousTestCase):
    """
    Telling systemd.
    """

    def told(self, address: str, name: str) -> bytes:
        """What is heard at an address of systemd's, with that name in the environment."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.bind(address)
            systemd.settimeout(5)
            self.patch(os, "environ", {**os.environ, "NOTIFY_SOCKET": name})
            notify("READY=1")
            notify("STATUS=all is well")
            return systemd.recv(100) + b"|" + systemd.recv(100)

    def test_path(self) -> None:
        """It is told through the socket that it names."""
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "notify")
            self.assertEqual(self.told(path, path), b"READY=1|STATUS=all is well")

    def test_abstract(self) -> None:
        """The socket may be in the abstract namespace."""
        name = f"usbipshare-test-{os.getpid()}"
        self.assertEqual(self.told("\0" + name, "@" + name), b"READY=1|STATUS=all is well")

    def test_nobody(self) -> None:
        """Where nobody wants to know, or nobody is there any more, nothing happens."""
        environment = {key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"}
        for more in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "/does/not/exist"}):
            self.patch(os, "environ", environment | more)
            notify("READY=1")

    def test_full(self) -> None:
        """A systemd that does not read does not hold the daemon up."""
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "notify")
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
                systemd.bind(path)
                self.patch(os, "environ", {**os.environ, "NOTIFY_SOCKET": path})
                for _ in range(10_000):
                    notify("STATUS=" + "x" * 500)
