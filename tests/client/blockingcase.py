"""
Servers on loopback, to be reached over real connections.
"""

from __future__ import annotations

import contextlib
import socket

from twisted.trial.unittest import SynchronousTestCase

from tests.support.childdaemon import ChildDaemon, PatientDaemon
from usbip_server.client.servers import Server

SECONDS = 60.0

TIMES = (0.5, 5.0, 50.0)
"""Seconds, for what is to be given up: the next, if a busy machine did not get as far as that
within the ones before."""

CONFIG = "backend: {type: virtual}\n"


class ReachingTestCase(SynchronousTestCase):
    """
    Servers on the loopback interface.
    """

    def setUp(self) -> None:
        self.stack = contextlib.ExitStack()
        self.addCleanup(self.leave)

    def leave(self) -> object:
        """Stop all servers."""
        self.stack.close()
        return None

    def daemon(
        self, config: str = CONFIG, listen: str = "tcp:0:interface=127.0.0.1"
    ) -> ChildDaemon:
        """A daemon, until the end of the test."""
        return self.stack.enter_context(PatientDaemon(config, listen=[listen]))

    def silent(self) -> Server:
        """A server that accepts connections, and does not reply."""
        listening = self.stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        return self._at("silent", listening)

    def dead(self) -> Server:
        """A machine without a server: the port is closed."""
        with socket.create_server(("127.0.0.1", 0)) as closed:
            return self._at("dead", closed)

    def full(self) -> Server:
        """A machine that does not answer at all."""
        full = self.stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            client = self.stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        return self._at("full", full)

    def _at(self, name: str, listening: socket.socket) -> Server:
        port = listening.getsockname()[1]
        return Server(name=name, host="127.0.0.1", port=port, exportPort=port)
