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
from tests.support.scriptedserver import ScriptedServer, says
from usbip_server.client import blocking
from usbip_server.client.conversation import ask, converse
from usbip_server.client.jsonclient import shareOf
from usbip_server.client.servers import ClientTls, Server
from usbip_server.model.errors import Unreachable
from usbip_server.model.replies import ReceivedNotice, ReceivedReply, Status

reactor: Any = installed

LIST = {"command": "list"}


@implementer(IHostnameResolver)
class Resolver:
    """
    A resolver that knows no names, and reports that or does not.
    """

    def __init__(self, isSilent: bool) -> None:
        self._isSilent = isSilent

    def resolveHostName(self, resolutionReceiver: Any, *args: Any, **more: Any) -> Any:
        """See the interface."""
        if not self._isSilent:
            resolutionReceiver.resolutionComplete()


class AddressesTests(ReachingTestCase):
    """
    Connecting, with the client of the commands.
    """

    def test_share(self) -> None:
        """Connecting has half of the time, but enough for the kernel's second attempt."""
        for seconds, share in ((3, 1.5), (10, 5), (2, 1), (1.5, 1), (1, 1), (0.25, 0.25)):
            self.assertEqual(shareOf(seconds), share)

    def at(self, *ports: int) -> Server:
        """A server whose name has several addresses."""
        found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", p)) for p in ports]
        self.patch(socket, "getaddrinfo", lambda *args, **more: found)
        return Server(name="raspi", host="raspi")

    def test_refusalIsReported(self) -> None:
        """If one address refuses and another does not answer, the refusal is reported."""
        server = self.at(self.dead().port, self.full().port)
        for seconds in TIMES:
            error = self.assertRaises(Unreachable, blocking.ask, server, LIST, seconds)
            if isinstance(error.__cause__, ConnectionRefusedError):
                break
        self.assertEqual(str(error), "raspi: Connection refused")
        self.assertIsInstance(error.__cause__, ConnectionRefusedError)

    def test_nextAddress(self) -> None:
        """If one address refuses, the next is tried; one that does not answer leaves time for
        the others."""
        server = self.at(self.full().port, self.dead().port, self.daemon().port)
        for seconds in TIMES[1:]:
            with contextlib.suppress(Unreachable):
                self.assertEqual(blocking.ask(server, LIST, seconds).status, Status.SUCCESS)
                return
        self.fail("the last address was not tried")


class AskingTestCase(ReachingTestCase, TestCase):
    """
    The client on Twisted.
    """

    timeout = 300

    def leave(self) -> object:
        """Also close the connections that a stopping daemon waits for."""
        return deferToThread(self.stack.close)

    async def ask(
        self,
        server: Server,
        request: dict[str, Any],
        seconds: float,
        told: Callable[[ReceivedNotice], None] = lambda notice: None,
    ) -> ReceivedReply:
        """Send a request."""
        return await ask(reactor, server, request, seconds, told)

    async def unreachable(self, server: Server, seconds: float = SECONDS) -> str:
        """A request fails: the reason, without the server's name."""
        try:
            await self.ask(server, LIST, seconds)
        except Unreachable as error:
            name, _, reason = str(error).partition(": ")
            self.assertEqual(name, server.called(server.address))
            return reason
        raise AssertionError("it has answered")

    async def givenUp(self, server: Server, reason: str) -> None:
        """
        A request fails at its deadline.

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
    The client of the commands.
    """

    async def ask(self, *args: Any) -> ReceivedReply:
        """Send a request."""
        return await deferToThread(blocking.ask, *args)


class ReachingTests(AskingTestCase):
    """
    One server.

    @cvar noName: the reason of an error about a host name that is not valid.
    """

    noName = "invalid hostname"

    async def test_byAddressAndName(self) -> None:
        """A daemon answers at its address and at its name."""
        daemon = self.daemon()
        for host in ("127.0.0.1", "localhost"):
            server = Server(name="here", host=host, port=daemon.port)
            answer = await self.ask(server, LIST, SECONDS)
            self.assertEqual([each["bus_id"] for each in answer.data], ["1-1", "1-2"])

    async def test_ipv6(self) -> None:
        """A daemon answers by IPv6."""
        try:
            daemon = self.daemon(listen="tcp6:0:interface=\\:\\:1")
        except AssertionError:
            raise SkipTest("there is no IPv6 here") from None
        server = Server(name="here", host="::1", port=daemon.port)
        self.assertEqual((await self.ask(server, LIST, SECONDS)).status, Status.SUCCESS)

    async def test_eventsOnTheConnection(self) -> None:
        """On one connection there can be several requests, and events between them."""
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

    async def test_wait(self) -> None:
        """A request with C{wait} receives notices, and its time is added to the deadline."""
        daemon = self.daemon()
        server = Server(name="here", host="127.0.0.1", port=daemon.port)
        told: list[ReceivedNotice] = []
        request = {"command": "attach", "id": "9-9", "wait": 1.0}
        answer = await self.ask(server, request, SECONDS, told.append)
        self.assertEqual(answer.status, Status.NOT_FOUND)
        self.assertEqual(told[0]["event"], "queued")

    async def test_noReply(self) -> None:
        """A closed port is reported as refused; a server that does not reply is given up at the
        deadline, and a machine that does not answer earlier, at the deadline of the connection."""
        self.assertEqual(await self.unreachable(self.dead()), "Connection refused")
        await self.givenUp(self.silent(), "no answer within")
        await self.givenUp(self.full(), "no connection within")

    async def test_unknownName(self) -> None:
        """A name that is unknown, not valid, or never resolved, is reported."""
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
        """Resolve no name."""
        before = reactor.installNameResolver(Resolver(isSilent))
        try:
            yield
        finally:
            reactor.installNameResolver(before)

    async def test_otherProtocols(self) -> None:
        """A server that speaks HTTP or sends a greeting is reported."""
        for size, greeting in ((1, b"HTTP/1.1 400 Bad\r\n\r\n"), (0, b"SSH-2.0-OpenSSH_9.2p1\r\n")):
            with ScriptedServer(says(greeting, size=size)) as scripted:
                self.assertEqual(
                    await self.unreachable(scripted.server),
                    "the reply is not that of a usbipshare server",
                )


class TlsTests(AskingTestCase):
    """
    A daemon that requires TLS and a client certificate.
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
        """Start the daemon."""
        certificate, key = signed("localhost").write(self.folder, "server")
        tls = f"certificate: {certificate}, key: {key}, client_ca: {self.ca}"
        daemon = self.daemon(
            f"{CONFIG}tls: {{{tls}, require_client_certificate: true}}\n",
            "tls:0:interface=127.0.0.1",
        )
        self.plain = Server(name="raspi", host="127.0.0.1", port=daemon.port)

    def secured(self, **tls: Any) -> Server:
        """The daemon, with the client's TLS."""
        return msgspec.structs.replace(self.plain, tls=ClientTls(**{"ca": self.ca, **tls}))

    async def test_clientCertificate(self) -> None:
        """A client certificate is accepted, with its key in one file or in two. Without one, or
        with an untrusted one, the reason is reported."""
        self.start()
        both = self.folder / "both.pem"
        both.write_bytes(signed("alice").keyPem + signed("alice").pem)
        for tls in (self.alice, {"certificate": str(both)}):
            answer = await self.ask(self.secured(**tls), LIST, SECONDS)
            self.assertEqual(answer.status, Status.SUCCESS)
        mallory = signed("alice", "Other").write(self.folder, "mallory")
        for tls in ({}, dict(zip(("certificate", "key"), mallory, strict=True))):
            reason = await self.unreachable(self.secured(**tls))
            self.assertIn("the server requires a client certificate", reason)

    async def test_untrustedServer(self) -> None:
        """A server whose certificate is not trusted is asked for nothing."""
        self.start()
        other, _ = authority("Other").write(self.folder, "other")
        for tls, reason in (
            ({"ca": other}, "the server's certificate is not trusted"),
            ({"ca": None}, "the server's certificate is not trusted"),
            ({"serverName": "elsewhere"}, "the server's certificate is for another name"),
        ):
            self.assertIn(reason, await self.unreachable(self.secured(**self.alice, **tls)))

    async def test_tlsOnOneSideOnly(self) -> None:
        """TLS on one side only is reported as that, also where the handshake does not end."""
        self.start()
        self.assertIn("if it requires TLS, set", await self.unreachable(self.plain))
        server = msgspec.structs.replace(self.secured(), port=self.daemon().port)
        self.assertIn("the server does not use TLS on this port", await self.unreachable(server))
        server = msgspec.structs.replace(self.secured(), port=self.silent().port)
        await self.givenUp(server, "no answer within")

    async def test_wrongFiles(self) -> None:
        """Files that cannot be used are named; all cases are in L{tests.client.test_config}."""
        (self.folder / "locked").write_bytes(signed("alice").encryptedKeyPem)
        missing, locked = (str(self.folder / name) for name in ("no", "locked"))
        for tls, reason in (
            ({"ca": missing}, f"{missing} cannot be read: No such file or directory"),
            ({"certificate": self.ca, "key": locked}, f"the key in {locked} is encrypted"),
        ):
            self.assertIn(reason, await self.unreachable(self.secured(**tls)))


class CommandReachingTests(CommandsMixin, ReachingTests):
    """
    One server, with the client of the commands.
    """

    noName = "this is not a valid host name"

    @contextlib.contextmanager
    def names(self, isSilent: bool) -> Iterator[None]:
        """Resolve no name."""
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
    TLS, with the client of the commands.
    """
