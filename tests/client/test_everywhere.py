"""
Tests of L{usbip_server.client.core.everywhere}, and of reaching a server at all: over real
connections, with real daemons.
"""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet import reactor as installed
from twisted.internet.defer import Deferred, FirstError
from twisted.internet.interfaces import IHostnameResolver
from twisted.trial.unittest import SkipTest, TestCase
from zope.interface import implementer

from tests.certificates import LAB, authority, signed
from tests.childdaemon import ChildDaemon
from tests.client.scripted import ScriptedServer
from usbip_server.client.core.asking import Notice, Refused, ask, converse
from usbip_server.client.core.everywhere import devicesOf, everywhere
from usbip_server.client.core.introducing import versionOf
from usbip_server.client.core.servers import ClientTls, Server
from usbip_server.errors import Unreachable
from usbip_server.replies import Status
from usbip_server.versions import OURS

reactor: Any = installed

SECONDS = 10.0

SOON = 0.3

CONFIG = "backend: {type: virtual}\n"

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


class ReachingTestCase(TestCase):
    """
    Servers on loopback.
    """

    timeout = 60

    def setUp(self) -> None:
        self.stack = contextlib.ExitStack()
        self.addCleanup(self.stack.close)

    def daemon(
        self, config: str = CONFIG, listen: str = "tcp:0:interface=127.0.0.1"
    ) -> ChildDaemon:
        """A daemon, until the test is over."""
        return self.stack.enter_context(ChildDaemon(config, listen=[listen]))

    def silent(self) -> Server:
        """A server that takes connections, and says nothing."""
        listening = self.stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        return Server(name="silent", host="127.0.0.1", port=listening.getsockname()[1])

    def dead(self) -> Server:
        """A machine that has no server."""
        with socket.create_server(("127.0.0.1", 0)) as closed:
            return Server(name="dead", host="127.0.0.1", port=closed.getsockname()[1])

    async def unreachable(self, server: Server, seconds: float = SECONDS) -> str:
        """It comes to nothing: why, behind the server's name."""
        try:
            await ask(reactor, server, LIST, seconds)
        except Unreachable as error:
            name, _, reason = str(error).partition(": ")
            self.assertEqual(name, server.called(server.address))
            return reason
        raise AssertionError("it has answered")


class ReachingTests(ReachingTestCase):
    """
    One server.
    """

    async def test_daemon(self) -> None:
        """A daemon is asked by its address or name, and says what it has."""
        daemon = self.daemon()
        for host in ("127.0.0.1", "localhost"):
            server = Server(name="here", host=host, port=daemon.port)
            found = await devicesOf(reactor, server, SECONDS)
            self.assertEqual([each.device.busId for each in found], ["1-1", "1-2"])
            self.assertEqual(found[0].device.interfaces, ("02/02/01", "0a/00/00"))
            self.assertEqual(found[0].raw["serial"], "ECHO1")

    async def test_ipv6(self) -> None:
        """Also by IPv6."""
        try:
            daemon = self.daemon(listen="tcp6:0:interface=\\:\\:1")
        except AssertionError:
            raise SkipTest("there is no IPv6 here") from None
        server = Server(name="here", host="::1", port=daemon.port)
        self.assertEqual((await ask(reactor, server, LIST, SECONDS)).status, Status.SUCCESS)

    async def test_conversation(self) -> None:
        """A conversation goes on: what happens is told while the same connection is used."""
        daemon = self.daemon()
        server = Server(name="here", host="127.0.0.1", port=daemon.port)
        told: list[Notice] = []
        heard: Deferred[None] = Deferred()

        def tell(notice: Notice) -> None:
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
        told: list[Notice] = []
        request = {"command": "attach", "id": "9-9", "wait": 1.0}
        answer = await ask(reactor, server, request, SECONDS, told.append)
        self.assertEqual(answer.status, Status.NOT_FOUND)
        self.assertEqual(told[0]["event"], "queued")

    async def test_refused(self) -> None:
        """A daemon that lets nobody see anything has answered, and refuses."""
        daemon = self.daemon("access: {principals: {}, allow: []}\n" + CONFIG)
        server = Server(name="here", host="127.0.0.1", port=daemon.port)
        with self.assertRaises(Refused) as caught:
            await devicesOf(reactor, server, SECONDS)
        self.assertIn(f"here (127.0.0.1:{daemon.port}): ", str(caught.exception))
        self.assertIn("may not list", str(caught.exception))

    async def test_dead(self) -> None:
        """Nobody listens."""
        self.assertEqual(await self.unreachable(self.dead()), "Connection refused")

    async def test_silent(self) -> None:
        """Somebody does, and says nothing."""
        self.assertEqual(await self.unreachable(self.silent(), SOON), "no answer within 0.3 s")

    async def test_full(self) -> None:
        """A machine does not answer at all."""
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
            for _ in range(4):
                client = self.stack.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex(full.getsockname())
            server = Server(name="full", host="127.0.0.1", port=full.getsockname()[1])
            self.assertEqual(await self.unreachable(server, SOON), "no connection within 0.3 s")

    async def test_names(self) -> None:
        """There is no such name, it is none, or nobody answers who knows."""
        for isSilent, host, reason in (
            (False, "nosuch.invalid", "there is no machine of this name"),
            (True, "nosuch.invalid", "no connection within 0.3 s"),
            (False, "a" * 64, "invalid hostname"),
        ):
            before = reactor.installNameResolver(Resolver(isSilent))
            try:
                reason_ = await self.unreachable(Server(name="away", host=host), SOON)
            finally:
                reactor.installNameResolver(before)
            self.assertIn(reason, reason_)

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
                    await self.unreachable(scripted.server), "what answers there is no usbipshare"
                )


class TlsTests(ReachingTestCase):
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
            answer = await ask(reactor, self.secured(**tls), LIST, SECONDS)
            self.assertEqual(answer.status, Status.SUCCESS)

    async def test_version(self) -> None:
        """It is asked for its version as for everything else."""
        self.start()
        server = self.secured(**self.alice)
        self.assertEqual(await versionOf(reactor, server, SECONDS), OURS)

    async def test_distrust(self) -> None:
        """Whoever is not who they should be is not asked."""
        self.start()
        other, _ = authority("Other").write(self.folder, "other")
        for tls, reason in (
            ({"ca": other}, "its certificate is not to be trusted"),
            ({"ca": None}, "its certificate is not to be trusted"),
            ({"serverName": "elsewhere"}, "its certificate is for another name"),
        ):
            self.assertIn(reason, await self.unreachable(self.secured(**self.alice, **tls)))

    async def test_distrusted(self) -> None:
        """Whoever shows none, or one that does not count, is told so."""
        self.start()
        mallory = signed("alice", "Other").write(self.folder, "mallory")
        for tls in ({}, dict(zip(("certificate", "key"), mallory, strict=True))):
            self.assertEqual(
                await self.unreachable(self.secured(**tls)),
                "it asks for a certificate, and takes none of ours",
            )

    async def test_mixed(self) -> None:
        """Whoever speaks plain to it is told as that, and so is one that is spoken to in TLS
        and does not."""
        self.start()
        self.assertIn("if it speaks TLS only, give it", await self.unreachable(self.plain))
        daemon = self.daemon()
        server = msgspec.structs.replace(self.secured(), port=daemon.port)
        self.assertIn("it does not speak TLS", await self.unreachable(server))

    async def test_handshake(self) -> None:
        """A handshake that does not end is given up in time."""
        self.assertEqual(await self.unreachable(self.secured(), SOON), "no answer within 0.3 s")

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


class EverywhereTests(ReachingTestCase):
    """
    Many servers.
    """

    async def test_together(self) -> None:
        """All are asked at once: it takes as long as the slowest, answers are in the servers'
        order, and one that does not answer is no more than a line."""
        daemon = self.daemon()
        here = Server(name="here", host="127.0.0.1", port=daemon.port)
        servers = [self.silent(), here, self.dead(), *(self.silent() for _ in range(10)), here]
        began = reactor.seconds()
        heard = await everywhere(servers, lambda server: devicesOf(reactor, server, 1.0))
        self.assertLess(reactor.seconds() - began, 3.0)
        self.assertEqual([server for server, _ in heard.answers], [here, here])
        self.assertEqual([len(found) for _, found in heard.answers], [2, 2])
        names = ["silent", "dead", *(10 * ["silent"])]
        self.assertEqual([server.name for server, _ in heard.troubles], names)
        self.assertIn("Connection refused", str(heard.troubles[1][1]))

    async def test_nobody(self) -> None:
        """Of no servers nothing is heard."""
        heard = await everywhere([], lambda server: devicesOf(reactor, server, 1.0))
        self.assertEqual((heard.answers, heard.troubles), ([], []))

    async def test_bug(self) -> None:
        """What is no trouble of a server's is not taken for one."""

        async def fails(server: Server) -> None:
            raise KeyError(server)

        with self.assertRaises(FirstError) as caught:
            await everywhere([self.dead()], fails)
        self.assertIsInstance(caught.exception.subFailure.value, KeyError)
