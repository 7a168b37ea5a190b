"""
Tests of L{usbip_server.net.unixsocket}.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import TestCase

from usbip_server.net.unixsocket import SocketInUse, listenUnix


class UnixSocketTests(TestCase):
    """
    L{listenUnix}.
    """

    def setUp(self) -> None:
        folder = Path("/tmp") / Path(self.mktemp()).name  # a socket's path has to be short
        folder.mkdir()
        self.addCleanup(folder.rmdir)
        self.path = folder / "s"
        self.lock = folder / "s.lock"

    def listen(self) -> IListeningPort:
        return listenUnix(reactor, str(self.path), Factory.forProtocol(Protocol), 5, 0o640)

    def refused(self) -> OSError:
        """Why it cannot listen."""
        error: Any = self.assertRaises(CannotListenError, self.listen).socketError
        assert isinstance(error, OSError)
        return error

    def leave(self) -> None:
        """Leave a socket behind, as a process that was killed."""
        with socket.socket(socket.AF_UNIX) as killed:
            killed.bind(str(self.path))
            killed.listen()

    async def stop(self, port: IListeningPort) -> None:
        """Stop to listen; no file is left."""
        await port.stopListening()  # type: ignore[misc]
        self.assertEqual([*self.path.parent.iterdir()], [])

    async def test_again(self) -> None:
        """A free path, and one where a killed process has left its socket, with Twisted's lock of
        this process's number or with an unlocked file, can be listened on; nothing is left."""
        for lock in (None, os.getpid(), 1, "file"):
            if lock is not None:
                self.leave()
            if isinstance(lock, int):
                self.lock.symlink_to(str(lock))
            elif lock is not None:
                self.lock.touch(0o600)
            port = self.listen()
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(self.path))
            self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o640)
            self.assertIn(self.path.name, str(port.getHost()))
            await self.stop(port)

    async def test_inUse(self) -> None:
        """While a process listens, with this lock, with Twisted's, without one or with a full
        backlog, another one does not."""
        port = self.listen()
        self.assertIsInstance(self.refused(), SocketInUse)
        await self.stop(port)
        for backlog in (5, 0):
            with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as client:
                other.bind(str(self.path))
                other.listen(backlog)
                if not backlog:
                    client.connect(str(self.path))
                self.assertIsInstance(self.refused(), SocketInUse)
                self.lock.symlink_to("1")
                self.assertIsInstance(self.refused(), SocketInUse)
                self.lock.unlink()
            self.path.unlink()

    def test_otherFiles(self) -> None:
        """A file that is not a socket is not removed; a folder that is not there is an error."""
        self.path.write_text("text")
        self.assertEqual(self.refused().errno, errno.EADDRINUSE)
        self.assertEqual(self.path.read_text(), "text")
        self.assertFalse(self.lock.exists())
        self.path.unlink()
        self.path = self.path / "none" / "s"
        self.assertEqual(self.refused().errno, errno.ENOENT)
        self.path = self.path.parent.parent

    async def test_abstract(self) -> None:
        """A name in the abstract namespace needs no lock."""
        name = f"\0usbipshare-test-{os.getpid()}"
        port = listenUnix(reactor, name, Factory.forProtocol(Protocol), 5, 0o640)
        await port.stopListening()  # type: ignore[misc]
