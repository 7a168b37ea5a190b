"""
Tests of L{usbip_server.net.endpoints}.
"""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, connectProtocol
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import KeyPair
from twisted.internet.testing import MemoryReactor, MemoryReactorClock
from twisted.internet.threads import deferToThread
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from tests.support.certificates import signed, trusting
from usbip_server import DOCUMENTS
from usbip_server.net.certificates import Certificates, Tls, read
from usbip_server.net.endpoints import BACKLOG, EveryInterface, OverTls, explain, serverEndpoint
from usbip_server.net.unixsocket import SocketInUse


class Greeting(Protocol):
    """
    Sends a client its own address.
    """

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(getattr(self.transport.getPeer(), "host", "nobody").encode())
        self.transport.loseConnection()


class Listener(Protocol):
    """
    Collects what is received until the connection ends.
    """

    def __init__(self) -> None:
        self.received: Deferred[bytes] = Deferred()
        self._parts = b""

    def dataReceived(self, data: bytes) -> None:
        self._parts += data

    def connectionLost(self, reason: Failure | None = None) -> None:
        self.received.callback(self._parts)


def certificates(case: SynchronousTestCase | TestCase) -> Certificates:
    """The certificates of a server."""
    certificate, key = signed("localhost").write(case.mktemp(), "server")
    return Certificates(read(Tls(certificate=certificate, key=key)))


class RealTests(TestCase):
    """
    With the real reactor.
    """

    async def listen(self, description: str) -> int:
        """Listen, until the test is over."""
        endpoint = serverEndpoint(reactor, description, certificates(self))
        port: IListeningPort = await endpoint.listen(Factory.forProtocol(Greeting))
        self.addCleanup(maybeDeferred, port.stopListening)
        return int(getattr(port.getHost(), "port", 0))

    async def greeted(self, endpoint: Any) -> bytes:
        """The bytes that the server sends."""
        listener = Listener()
        await connectProtocol(endpoint, listener)
        return await listener.received

    async def test_bothFamilies(self) -> None:
        """A port without an interface takes IPv4 and IPv6 on one socket."""
        port = await self.listen("tcp:0")
        said = await self.greeted(TCP4ClientEndpoint(reactor, "127.0.0.1", port))
        self.assertTrue(said.endswith(b"127.0.0.1"))
        said = await self.greeted(TCP6ClientEndpoint(reactor, "::1", port))
        self.assertEqual(said, b"::1")

    async def test_tls(self) -> None:
        """A port with TLS takes both too, and answers over TLS only."""

        def greeted(host: str) -> bytes:
            connection = socket.create_connection((host, port))
            with trusting().wrap_socket(connection, server_hostname="localhost") as secure:
                return secure.recv(100)

        for description in ("tls:0", "tls:0:backlog=5"):
            port = await self.listen(description)
            self.assertTrue((await deferToThread(greeted, "127.0.0.1")).endswith(b"127.0.0.1"))
            self.assertEqual(await deferToThread(greeted, "::1"), b"::1")
        port = await self.listen("tls:0:interface=127.0.0.1")
        self.assertEqual(await deferToThread(greeted, "127.0.0.1"), b"127.0.0.1")

    async def test_withoutIpv6(self) -> None:
        """Where the kernel has no IPv6, or no address of it, a port takes IPv4."""

        class NoIpv6(socket.socket):
            def __init__(self, family: int = -1, *arguments: Any, **more: Any) -> None:
                if family == socket.AF_INET6:
                    raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
                super().__init__(family, *arguments, **more)

        class NoAddress(socket.socket):
            def bind(self, address: Any) -> None:
                if self.family == socket.AF_INET6:
                    raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
                super().bind(address)

        for kind in (NoIpv6, NoAddress):
            patched = self.patch(socket, "socket", kind)
            port = await self.listen("tcp:0")
            patched.restore()
            said = await self.greeted(TCP4ClientEndpoint(reactor, "127.0.0.1", port))
            self.assertEqual(said, b"127.0.0.1")

    async def test_taken(self) -> None:
        """A port that is taken in either family is an error, and the message says what to do."""
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with socket.create_server((host, 0), family=family) as taken:
                number = taken.getsockname()[1]
                endpoint = serverEndpoint(reactor, f"tcp:{number}")
                with self.assertRaises(CannotListenError) as caught:
                    await endpoint.listen(Factory.forProtocol(Greeting))
                message = explain(f"tcp:{number}", caught.exception)
                self.assertIn(f"cannot listen on tcp:{number}: Address already in use", message)
                self.assertIn("ss -ltnp", message)

    async def test_oneInterface(self) -> None:
        """A port with an interface takes connections to that address only."""
        port = await self.listen("tcp:0:interface=127.0.0.1")
        said = await self.greeted(TCP4ClientEndpoint(reactor, "127.0.0.1", port))
        self.assertEqual(said, b"127.0.0.1")


class DescriptionTests(SynchronousTestCase):
    """
    Endpoint descriptions.
    """

    def test_good(self) -> None:
        """Twisted's descriptions are accepted; a port alone stands for every interface."""
        clock = MemoryReactor()
        for description in (
            "tcp:5055:interface=192.0.2.1",
            "tcp:5055:192.0.2.1",
            "tcp:5055:interface=127.0.0.1:backlog=7",
            r"tcp:5055:interface=\:\:1",
            "tcp6:5055",
            r"tcp6:0:interface=\:\:1",
            r"tcp6:65535:interface=fe80\:\:1%eth0",
            "unix:/run/usbipshare.sock",
            "unix:/run/usbipshare.sock:mode=660",
        ):
            verifyObject(IStreamServerEndpoint, serverEndpoint(clock, description))
            self.assertNotIsInstance(serverEndpoint(clock, description), EveryInterface)
        for description in ("tcp:5055", "tcp:0", "tcp:port=65535", "tcp:5055:backlog=9"):
            endpoint = serverEndpoint(clock, description)
            verifyObject(IStreamServerEndpoint, endpoint)
            self.assertIsInstance(endpoint, EveryInterface)

    def test_backlog(self) -> None:
        """The backlog is long, unless the description contains one."""
        for description, expected in (
            ("tcp:5055:interface=127.0.0.1", BACKLOG),
            ("tcp:5055:interface=127.0.0.1:backlog=7", 7),
        ):
            memory = MemoryReactor()
            self.successResultOf(serverEndpoint(memory, description).listen(Factory()))
            self.assertEqual(memory.tcpServers[0][2], expected)

    def refusal(self, description: str, certificates: Certificates | None = None) -> str:
        """The message of the error about a description."""
        with self.assertRaises(ValueError) as caught:
            serverEndpoint(MemoryReactor(), description, certificates)
        return str(caught.exception)

    def test_bad(self) -> None:
        """
        An invalid description is refused, also if Twisted accepts it and could never listen; the
        message contains the description, the reason, and suggests what may have been meant.
        """
        ours = certificates(self)
        for description, reason in (
            ("", " is not "),
            ("tcp:http", " is not "),
            ("tcp:65536", " is not "),
            ("tcp:-1", " is not "),
            ("tcp: 5055", " is not "),
            ("tcp:\u0665", " is not "),
            ("tcp:5055:colour=red", " is not "),
            ("udp:5055", " is not "),
            ("ssl:5055:privateKey=/does/not/exist", " is not "),
            ("5055", ". Did you mean 'tcp:5055'?"),
            ("127.0.0.1:5055", ". Did you mean 'tcp:5055:interface=127.0.0.1'?"),
            ("tpc:5055", ". Did you mean 'tcp'?"),
            ("unx:/run/x", ". Did you mean 'unix'?"),
            ("frobnicate:1", None),
            ("lab.example.org:5055", None),
            ("tcp:99999:interface=127.0.0.1", "'99999' is not a port"),
            ("tcp:-5:interface=127.0.0.1", "'-5' is not a port"),
            ("tcp6:99999", "'99999' is not a port"),
            ("tcp6:-1", "'-1' is not a port"),
            ("tcp:5055:interface=notanip", "'notanip' is not an IP address"),
            ("tcp:5055:interface=127.0.0.256", "'127.0.0.256' is not an IP address"),
            ("tcp:5055:interface=localhost", "'localhost' is not an IP address"),
            ("tcp:5055:interface=", "'' is not an IP address"),
            ("tcp:5055:", "'' is not an IP address"),
            ("tcp6:5055:interface=eth0", "'eth0' is not an IP address"),
            ("tcp:5055:interface=::1", r"interface=\:\:1"),
            ("tcp6:5055:interface=::1", r"interface=\:\:1"),
            ("tls:5055:interface=::1", r"interface=\:\:1"),
            ("unix:", "'' is not a path"),
            ("unix:mode=600:address=", "'' is not a path"),
            ("unix:/" + "x" * 107, "is not a path of 1 to 107 bytes"),
            ("unix:\ud800", "surrogates not allowed"),
            ("tls", "'tls' is not an endpoint description, such as tls:5055 or"),
            ("tls:", "'' is not a port"),
            ("tls:99999", "'99999' is not a port"),
            ("tls:5056:privateKey=/x", "'tls:5056:privateKey=/x' is not an endpoint description"),
            ("tls:5056:interface=x", "'tls:5056:interface=x' is not an endpoint description: 'x'"),
        ):
            message = self.refusal(description, ours if description.startswith("tls") else None)
            self.assertIn(reason or " is not ", message)
            shown = description if "\ud800" not in description else repr(description)[1:-1]
            if "tls" not in description:
                self.assertIn(shown.removeprefix("tcp:"), message)
            if description and "tls" not in description and "::" not in description:
                suggests = reason is not None and "Did you mean" in reason
                self.assertEqual("Did you mean" in message, suggests, message)
                self.assertTrue(not suggests or message.endswith(str(reason)), message)
        serverEndpoint(MemoryReactor(), "unix:/" + "x" * 106)
        self.assertEqual(
            self.refusal("tls:5056"),
            f'"tls:5056" needs a certificate: see `tls` in {DOCUMENTS}/reference/configuration.md',
        )

    def test_tls(self) -> None:
        """With TLS and configured certificates a description means what it means with TCP."""
        ours = certificates(self)
        for description, isEvery in (
            ("tls:5056", True),
            ("tls:port=5056:backlog=9", True),
            ("tls:5056:interface=192.0.2.1", False),
            (r"tls:5056:interface=\:\:1", False),
        ):
            endpoint = serverEndpoint(MemoryReactor(), description, ours)
            verifyObject(IStreamServerEndpoint, endpoint)
            assert isinstance(endpoint, OverTls)
            self.assertEqual(isinstance(endpoint.below, EveryInterface), isEvery)
        memory = MemoryReactorClock()
        below = serverEndpoint(memory, "tls:5056:interface=127.0.0.1", ours)
        self.successResultOf(below.listen(Factory()))
        (port, factory, backlog, interface), *_ = memory.tcpServers
        self.assertEqual((port, backlog, interface), (5056, BACKLOG, "127.0.0.1"))
        self.assertIsInstance(factory, TLSMemoryBIOFactory)

    def test_ssl(self) -> None:
        """With Twisted's own TLS the reasons of errors are the same."""
        folder = Path(self.mktemp())
        folder.mkdir()
        pem = folder / "key.pem"
        pem.write_bytes(certificate())
        files = f"privateKey={pem}:certKey={pem}"
        for good in (f"ssl:5056:{files}", f"ssl:5056:interface=127.0.0.1:{files}"):
            memory = MemoryReactor()
            self.successResultOf(serverEndpoint(memory, good).listen(Factory()))
            self.assertEqual(len(memory.sslServers), 1)
        for bad, reason in (
            (f"ssl:99999:{files}", "'99999' is not a port"),
            (f"ssl:5056:interface=notanip:{files}", "'notanip' is not an IP address"),
        ):
            self.assertIn(reason, self.refusal(bad))


def certificate() -> bytes:
    """A key with a self-signed certificate."""
    made: bytes = KeyPair.generate(size=2048).selfSignedCert(1, commonName="localhost").dumpPEM()
    return made


class ExplainTests(SynchronousTestCase):
    """
    Errors of listening.
    """

    def test_advice(self) -> None:
        """The message contains advice for common errors."""
        for number, advice in (
            (errno.EADDRINUSE, "ss -ltnp"),
            (errno.EACCES, "CAP_NET_BIND_SERVICE"),
            (errno.EADDRNOTAVAIL, "does not have that address"),
            (errno.ENOBUFS, "No buffer space"),
        ):
            error = CannotListenError("", 80, OSError(number, os.strerror(number)))
            message = explain("tcp:80", error)
            self.assertIn("cannot listen on tcp:80: ", message)
            self.assertIn(advice, message)
            self.assertTrue(message.endswith(".") and not message.endswith(".."))

    def test_unix(self) -> None:
        """The advice for a unix socket is not the one for ports."""
        for number, advice in (
            (errno.EADDRINUSE, "remove it"),
            (errno.EACCES, "to write in that folder"),
            (errno.ENOENT, "cannot be made"),
        ):
            error = CannotListenError("", "/run/x", OSError(number, os.strerror(number)))
            message = explain("unix:/run/x", error)
            self.assertIn(advice, message)
            self.assertNotIn("ort", message.partition(": ")[2].replace("directory", ""))
        locked = explain("unix:/run/x", CannotListenError("", "/run/x", SocketInUse()))
        self.assertIn("Another daemon listens there", locked)

    def test_anyError(self) -> None:
        """Any other error is shown as it is."""
        self.assertEqual(
            explain("tcp:80", ValueError("no way")), "cannot listen on tcp:80: no way."
        )
