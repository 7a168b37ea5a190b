"""
Tests of reaching a server at all, over real connections and with real daemons: as the services do
it, L{usbip_server.client.conversation}, and as commands do, L{usbip_server.client.blocking}.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet import reactor as installed
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHostnameResolver
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SkipTest, TestCase
from zope.interface import implementer

from tests.client.blockingcase import CONFIG, SECONDS, TIMES, ReachingTestCase
from tests.support.certificates import LAB, authority, signed
from tests.support.scriptedserver import ScriptedServer
from usbip_server.client import blocking as asking
from usbip_server.client.blocking import shareOf
from usbip_server.client.conversation import ask, converse
from usbip_server.client.servers import ClientTls, Server
from usbip_server.model.errors import Unreachable
from usbip_server.model.replies import ReceivedNotice, ReceivedReply, Status

reactor: Any = installed

LIST = {"command": "list"}


@implementer(IHostnameResolver)
class Resolver:
    """
    Knows no names; finds that out, or does not.
    """

    def __init__(self, isSilent: bool) -> None:
        self._isSilent = isSilent

    def resolveHostName(self, resolutionReceiver: Any, *args: Any, **more: Any) -> Any:
        """See the interface."""
        if not self._isSilent:
            resolutionReceiver.resolutionComplete()


class ShareTests(ReachingTestCase):
    """
    How long a connection may take.
    """

    def test_share(self) -> None:
        """Half of the time, but time enough for the kernel to try twice, if there is that much."""
        for seconds, share in ((3, 1.5), (10, 5), (2, 1), (1.5, 1), (1, 1), (0.25, 0.25)):
            self.assertEqual(shareOf(seconds), share)


class AddressesTests(ReachingTestCase):
    """
    A machine with several addresses, asked by a command.
    """

    def test_refused(self) -> None:
        """That it is there, and refuses, is told, also if another address does not answer."""
        places = [("127.0.0.1", each.port) for each in (self.dead(), self.full())]
        found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", place) for place in places]
        self.patch(socket, "getaddrinfo", lambda *args, **more: found)
        server = Server(name="raspi", host="raspi")
        for seconds in TIMES:
            error = self.assertRaises(Unreachable, asking.ask, server, LIST, seconds)
            if isinstance(error.__cause__, ConnectionRefusedError):
                break
        self.assertEqual(str(error), "raspi: Connection refused")
        self.assertIsInstance(error.__cause__, ConnectionRefusedError)

    def test_next(self) -> None:
        """If one refuses, the next is asked."""
        daemon = self.daemon()
        places = [("127.0.0.1", port) for port in (self.dead().port, daemon.port)]
        found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", place) for place in places]
        self.patch(socket, "getaddrinfo", lambda *args, **more: found)
        answer = asking.ask(Server(name="raspi", host="raspi"), LIST, SECONDS)
        self.assertEqual(answer.status, Status.SUCCESS)


class AskingTestCase(ReachingTestCase, TestCase):
    """
    Asking as the services do.
    """

    timeout = 300

    def leave(self) -> object:
        """Also close connections meanwhile, which a daemon waits for when it ends."""
        return deferToThread(self.stack.close)

    async def ask(
        self,
        server: Server,
        request: dict[str, Any],
        seconds: float,
        told: Callable[[ReceivedNotice], None] = lambda notice: None,
    ) -> ReceivedReply:
        """Ask a server."""
        return await ask(reactor, server, request, seconds, told)

    async def unreachable(self, server: Server, seconds: float = SECONDS) -> str:
        """It comes to nothing: why, behind the server's name."""
        try:
            await self.ask(server, LIST, seconds)
        except Unreachable as error:
            name, _, reason = str(error).partition(": ")
            self.assertEqual(name, server.called(server.address))
            return reason
        raise AssertionError("it has answered")

    async def givenUp(self, server: Server, reason: str) -> None:
        """
        It comes to nothing, as its time is over.

        @param reason: what is said before that time. An answer has what is left of it.
        """
        for seconds in TIMES:
            said = await self.unreachable(server, seconds)
            time = re.fullmatch(rf"{reason} ([\d.]+) s", said)
            if time is not None and 0 < float(time[1]) <= seconds:
                return
        self.fail(said)


class CommandsMixin:
    """
    Asking as commands do.
    """

    async def ask(self, *args: Any) -> ReceivedReply:
        """Ask a server."""
        return await deferToThread(asking.ask, *args)


class ReachingTests(AskingTestCase):
    """
    One server.

    @cvar noName: what there is to say of what is no name.
    """

    noName = "invalid hostname"

    async def test_daemon(self) -> None:
        """A daemon is asked by its address or name, and says what it has."""
        daemon = self.daemon()
        for host in ("127.0.0.1", "localhost"):
            server = Server(name="here", host=host, port=daemon.port)
            answer = await self.ask(server, LIST, SECONDS)
            self.assertEqual([each["bus_id"] for each in answer.data], ["1-1", "1-2"])

    async def test_ipv6(self) -> None:
        """Also by IPv6."""
        try:
            daemon = self.daemon(listen="tcp6:0:interface=\\:\\:1")
        except AssertionError:
            raise SkipTest("there is no IPv6 here") from None
        server = Server(name="here", host="::1", port=daemon.port)
        self.assertEqual((await self.ask(server, LIST, SECONDS)).status, Status.SUCCESS)

    async def test_conversation(self) -> None:
        """A conversation goes on: what happens is told while the same connection is used."""
        daemon = self.daemon()
        server = Server(name="here", host="127.0.0.1", port=daemon.port)
        told: list[ReceivedNotice] = []
        heard: Deferred[None] = Deferred()

        def tell(notice: ReceivedNotice) -> None:
            told.append(notice)
            if notice["event"] == "bound" and not heard.called:
                heard.callback(None)

        watching = await converse(reactor, server, SECONDS)
        answer = await watching.watch({}, SECONDS, tell)
        self.assertIsInstance(answer.seq, int)
        asking = await converse(reactor, server, SECONDS)
        for command in ("attach", "detach", "attach"):
            answer = await asking.ask({"command": command, "id": "1-1"}, SECONDS)
            self.assertEqual(answer.status, Status.SUCCESS)
        await heard
        self.assertEqual(told[0]["data"]["bus_id"], "1-1")
        asking.close()
        await asking.lost
        daemon.kill()
        await watching.lost
        daemon.start()

    async def test_waiting(self) -> None:
        """Whoever waits is told how it goes, and has the time that it takes."""
        daemon = self.daemon()
        server = Server(name="here", host="127.0.0.1", port=daemon.port)
        told: list[ReceivedNotice] = []
        request = {"command": "attach", "id": "9-9", "wait": 1.0}
        answer = await self.ask(server, request, SECONDS, told.append)
        self.assertEqual(answer.status, Status.NOT_FOUND)
        self.assertEqual(told[0]["event"], "queued")

    async def test_dead(self) -> None:
        """Nobody listens."""
        self.assertEqual(await self.unreachable(self.dead()), "Connection refused")

    async def test_silent(self) -> None:
        """Somebody does, and says nothing."""
        await self.givenUp(self.silent(), "no answer within")

    async def test_full(self) -> None:
        """A machine does not answer at all."""
        await self.givenUp(self.full(), "no connection within")

    async def test_names(self) -> None:
        """There is no such name, it is none, or nobody answers who knows."""
        for host, reason in (
            ("nosuch.invalid", "there is no machine of this name"),
            ("a" * 64, self.noName),
        ):
            with self.names(isSilent=False):
                away = Server(name="away", host=host)
                self.assertIn(reason, await self.unreachable(away))
        with self.names(isSilent=True):
            await self.givenUp(Server(name="away", host="nosuch.invalid"), "no connection within")

    @contextlib.contextmanager
    def names(self, isSilent: bool) -> Iterator[None]:
        """Nobody knows names."""
        before = reactor.installNameResolver(Resolver(isSilent))
        try:
            yield
        finally:
            reactor.installNameResolver(before)

    async def test_others(self) -> None:
        """Somebody else listens there, who answers HTTP or says hello first."""

        def http(connection: socket.socket) -> None:
            connection.recv(1)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        def ssh(connection: socket.socket) -> None:
            connection.sendall(b"SSH-2.0-OpenSSH_9.2p1\r\n")
            connection.recv(1)

        for play in (http, ssh):
            with ScriptedServer(play) as scripted:
                self.assertEqual(
                    await self.unreachable(scripted.server),
                    "the reply is not that of a usbipshare server",
                )


class TlsTests(AskingTestCase):
    """
    A daemon that speaks TLS only, and asks for a certificate.
    """

    def setUp(self) -> None:
        super().setUp()
        self.folder = Path(self.mktemp()).absolute()
        self.plain = self.silent()
        self.ca, _ = authority(LAB).write(self.folder, "ca")
        self.alice = dict(
            zip(("certificate", "key"), signed("alice").write(self.folder, "alice"), strict=True)
        )

    def start(self) -> None:
        """Have it listen."""
        certificate, key = signed("localhost").write(self.folder, "server")
        tls = f"certificate: {certificate}, key: {key}, client_ca: {self.ca}"
        daemon = self.daemon(
            f"{CONFIG}tls: {{{tls}, require_client_certificate: true}}\n",
            "tls:0:interface=127.0.0.1",
        )
        self.plain = Server(name="raspi", host="127.0.0.1", port=daemon.port)

    def secured(self, **tls: Any) -> Server:
        """The daemon, as it is asked with TLS."""
        return msgspec.structs.replace(self.plain, tls=ClientTls(**{"ca": self.ca, **tls}))

    async def test_daemon(self) -> None:
        """It answers those who show a certificate, key and all in one file or in two."""
        self.start()
        both = self.folder / "both.pem"
        both.write_bytes(signed("alice").keyPem + signed("alice").pem)
        for tls in (self.alice, {"certificate": str(both)}):
            answer = await self.ask(self.secured(**tls), LIST, SECONDS)
            self.assertEqual(answer.status, Status.SUCCESS)

    async def test_distrust(self) -> None:
        """Whoever is not who they should be is not asked."""
        self.start()
        other, _ = authority("Other").write(self.folder, "other")
        for tls, reason in (
            ({"ca": other}, "the server's certificate is not trusted"),
            ({"ca": None}, "the server's certificate is not trusted"),
            ({"serverName": "elsewhere"}, "the server's certificate is for another name"),
        ):
            self.assertIn(reason, await self.unreachable(self.secured(**self.alice, **tls)))

    async def test_distrusted(self) -> None:
        """Whoever shows none, or one that does not count, is told so."""
        self.start()
        mallory = signed("alice", "Other").write(self.folder, "mallory")
        for tls in ({}, dict(zip(("certificate", "key"), mallory, strict=True))):
            reason = await self.unreachable(self.secured(**tls))
            self.assertIn("the server requires a client certificate", reason)

    async def test_mixed(self) -> None:
        """Whoever speaks plain to it is told as that, and so is one that is spoken to in TLS
        and does not."""
        self.start()
        self.assertIn("if it requires TLS, set", await self.unreachable(self.plain))
        daemon = self.daemon()
        server = msgspec.structs.replace(self.secured(), port=daemon.port)
        self.assertIn("the server does not use TLS on this port", await self.unreachable(server))

    async def test_handshake(self) -> None:
        """A handshake that does not end is given up in time."""
        await self.givenUp(self.secured(), "no answer within")

    async def test_files(self) -> None:
        """Files that are of no use are named."""
        (self.folder / "empty").write_text("")
        (self.folder / "locked").write_bytes(signed("alice").encryptedKeyPem)
        missing, empty, locked = (str(self.folder / name) for name in ("no", "empty", "locked"))
        bob = signed("bob").write(self.folder, "bob")
        for tls, reason in (
            ({"ca": missing}, f"{missing} cannot be read: No such file or directory"),
            ({"ca": empty}, f"{empty} holds no certificate in PEM"),
            ({"certificate": empty}, f"{empty} holds no certificate in PEM"),
            ({"certificate": self.ca}, f"{self.ca} holds no private key in PEM"),
            ({"certificate": self.ca, "key": locked}, f"the key in {locked} is encrypted"),
            ({"certificate": self.alice["certificate"], "key": bob[1]}, "does not belong to"),
        ):
            self.assertIn(reason, await self.unreachable(self.secured(**tls)))


class CommandReachingTests(CommandsMixin, ReachingTests):
    """
    One server, asked by a command.
    """

    noName = "this is not a valid host name"

    @contextlib.contextmanager
    def names(self, isSilent: bool) -> Iterator[None]:
        """Nobody knows names, or finds out that nobody does."""
        over = threading.Event()
        known = socket.getaddrinfo

        def look(host: Any, *args: Any, **more: Any) -> Any:
            if more.get("flags") or not isSilent:
                return known(host, *args, **{**more, "flags": socket.AI_NUMERICHOST})
            over.wait(SECONDS)
            raise socket.gaierror

        patching = self.patch(socket, "getaddrinfo", look)
        try:
            yield
        finally:
            patching.restore()
            over.set()


class CommandTlsTests(CommandsMixin, TlsTests):
    """
    TLS, spoken by a command.
    """
