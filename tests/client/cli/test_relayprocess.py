"""
Tests of L{usbip_server.client.cli.relayprocess}.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading

from twisted.trial.unittest import SynchronousTestCase

from tests.support.certificates import signed, trusting
from tests.support.scriptedserver import received
from usbip_server.client.blockingrelay import socketPair
from usbip_server.client.cli.relayprocess import RelayProcess

SECONDS = 60.0


class RelayProcessTests(SynchronousTestCase):
    """
    A TLS connection to a server that echoes, and a relay process.
    """

    def setUp(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)
        self.thread = threading.Thread(target=self.echo, args=(listener,), daemon=True)
        self.files = signed("server").write(self.mktemp(), "server")
        self.thread.start()
        plain = socket.create_connection(listener.getsockname(), SECONDS)
        self.secured = trusting().wrap_socket(plain, server_hostname="localhost")
        self.given, self.ours = socketPair()
        self.given.settimeout(SECONDS)
        self.addCleanup(self.given.close)
        self.process = RelayProcess()

    def echo(self, listener: socket.socket) -> None:
        """Serve one connection."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.files)
        connection, _ = listener.accept()
        with context.wrap_socket(connection, server_side=True) as secured:
            while data := secured.recv(4096):
                secured.sendall(data)

    def test_relays(self) -> None:
        """Bytes are relayed by a process with a session of its own and no other descriptors of
        this one, which has closed both sockets. It ends with the session."""
        read, write = os.pipe()
        self.process.start(self.secured, self.ours)
        pid = self.process.pid
        assert pid is not None
        self.assertEqual((self.secured.fileno(), self.ours.fileno()), (-1, -1))
        for said in (b"hello", b"x" * 100_000):
            self.given.sendall(said)
            self.assertEqual(received(self.given, len(said)), said)
        self.assertEqual(os.getsid(pid), pid)
        self.assertEqual(os.readlink(f"/proc/{pid}/cwd"), "/")
        os.close(write)
        self.assertEqual(os.read(read, 1), b"")
        os.close(read)
        for descriptor in range(3):
            self.assertEqual(os.readlink(f"/proc/{pid}/fd/{descriptor}"), os.devnull)
        self.given.close()
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 0)
        self.thread.join(SECONDS)
        self.assertFalse(self.thread.is_alive())
