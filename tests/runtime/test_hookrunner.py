"""
Tests of L{usbip_server.runtime.hookrunner} and L{usbip_server.runtime.webhook}, with real child
processes and a real web server.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, cast

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from tests.support.childcase import ChildTestCase, isThere
from tests.support.fixtures import asked
from tests.support.timedreactor import OVER, TimedReactor
from usbip_server.model.devicerules import Hook, Occasion
from usbip_server.runtime import process, webhook
from usbip_server.runtime.hookrunner import (
    LINE,
    LOGGED_LINES,
    HookRunner,
    environment,
    lines,
)
from usbip_server.runtime.webhook import ANSWER

BODY = b'{"event":"bound","data":{"bus_id":"1-1.4"}}'

ON = (Occasion.BOUND,)

SECONDS = 300.0
"""That a hook may take, and each step of its end, where nothing is to be late."""


class HooksTestCase(ChildTestCase):
    """
    A runner, hooks that are scripts or served here, and what is logged.
    """

    def setUp(self) -> None:
        super().setUp()
        self.events: list[LogEvent] = []
        observer = cast(ILogObserver, self.events.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.patch(process, "GRACE", SECONDS)
        self.patch(webhook, "CONNECT", SECONDS)
        self.timed = TimedReactor()
        self.hooks = self.makeHooks()

    def makeHooks(self, most: int = 8, waiting: int = 1000) -> HookRunner:
        """A runner that is stopped at the end of the test."""
        self.most = most
        hooks = HookRunner(self.timed, lambda: self.most, waiting)
        self.addCleanup(lambda: asked(hooks.stop(0)))
        return hooks

    def command(self, text: str, timeout: float = SECONDS, name: str = "script") -> Hook:
        """A hook that is a script."""
        return Hook(events=ON, command=(self.script(text, name=name),), timeout=timeout)

    async def late(self, isLate: Callable[[], object]) -> None:
        """End the time limit of the hook that has L{OVER} seconds as soon as this is true."""
        await self.until(isLate)
        self.timed.timeIsOver()

    def logged(self, level: LogLevel) -> list[str]:
        """What the runner has logged at this level."""
        return [
            formatEvent(event)
            for event in self.events
            if event["log_level"] is level
            and event["log_namespace"].endswith("hookrunner.HookRunner")
        ]

    @property
    def warnings(self) -> list[str]:
        """The warnings that were logged."""
        return self.logged(LogLevel.warn)

    @property
    def said(self) -> list[str]:
        """The lines that scripts have written into a file."""
        path = self.directory / "said"
        return path.read_text().splitlines() if path.exists() else []

    def listen(self, factory: Any, timeout: float = SECONDS) -> Hook:
        """A hook with a URL that this serves."""
        port: Any = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        url = f"http://127.0.0.1:{port.getHost().port}/usb?x=1"
        return Hook(events=ON, url=url, timeout=timeout)

    def open(self) -> None:
        """Let scripts with L{GATE} go on."""
        (self.directory / "gate").touch()

    def close(self) -> None:
        """Let scripts with L{GATE} wait."""
        (self.directory / "gate").unlink()

    async def warning(self) -> str:
        """Wait for the only warning."""
        await self.until(lambda: self.warnings)
        [warning] = self.warnings
        return warning


GATE = "while [ ! -e $D/gate ]; do sleep 0.02; done"
"""Part of a script: wait for the file C{gate}."""

SAY = 'echo "$USBIPSHARE_BUS_ID $(cat)" >> $D/said'
"""Part of a script: write the event to a file."""


class CommandTests(HooksTestCase):
    """
    Hooks that are programs.
    """

    async def test_input(self) -> None:
        """A program receives the event as a line on its standard input, its name and the device in
        variables, and its arguments without a shell. It need not read its input."""
        script = self.script(
            'cat > $D/got; echo "$USBIPSHARE_EVENT $USBIPSHARE_BUS_ID" > $D/new; '
            'printf "%s\\n" "$@" >> $D/new; mv $D/new $D/said'
        )
        words = ("$HOME", "; exit 9", "a b")
        self.hooks.call(Hook(events=ON, command=(script, *words)), "1-1.4", BODY)
        await self.until(lambda: self.said)
        self.assertEqual((self.directory / "got").read_bytes(), BODY + b"\n")
        self.assertEqual(self.said, ["bound 1-1.4", *words])
        self.hooks.call(self.command("echo done", name="other"), "1-1", b"x" * 1_000_000)
        await self.until(lambda: self.logged(LogLevel.info))
        self.assertEqual(self.warnings, [])

    async def test_output(self) -> None:
        """The output is logged line by line, with hook and device; of much output the beginning."""
        hook = self.command("echo one; echo; echo two")
        self.hooks.call(hook, "1-1.4", BODY)
        await self.until(lambda: len(self.logged(LogLevel.info)) == 2)
        path = f"{self.directory}/script"
        self.assertEqual(
            self.logged(LogLevel.info), [f"{path} on 1-1.4: one", f"{path} on 1-1.4: two"]
        )
        [event] = [event for event in self.events if event.get("line") == "one"]
        self.assertEqual((event["hook"], event["device"]), (path, "1-1.4"))
        self.events.clear()
        self.hooks.call(self.command("yes yes | head -n 1000000"), "1-1", BODY)
        await self.until(lambda: len(self.logged(LogLevel.info)) > LOGGED_LINES)
        self.assertIn("lines more", self.logged(LogLevel.info)[-1])
        self.assertEqual(self.warnings, [])

    async def test_failed(self) -> None:
        """A hook that fails, is missing, hangs or is killed is logged as a warning, with the last
        lines of its output."""
        hangs = self.command("touch $D/hangs; exec sleep 1000", timeout=OVER, name="a")
        said = "script on 1-1 has failed: exit status 3; it said: 6 / 7 / 8 / 9 / broken"
        for hook, problem in (
            (self.command("seq 1 9; echo broken >&2; exit 3"), said),
            (Hook(events=ON, command=("no-such-program",)), "there is no such program"),
            (hangs, "not ended within 1000 s"),
            (self.command("kill -SEGV $$", name="b"), "SIGSEGV has ended it"),
            (self.command("kill -40 $$", name="c"), "signal 40 has ended it"),
        ):
            self.hooks.call(hook, "1-1", BODY)
            if hook is hangs:
                await self.late((self.directory / "hangs").exists)
            self.assertIn(problem, await self.warning())
            self.events.clear()

    async def test_bug(self) -> None:
        """An unexpected exception is logged with its traceback, and is a veto."""

        async def fail(*arguments: object) -> None:
            raise ZeroDivisionError

        self.patch(HookRunner, "_execute", fail)
        hook = self.command("exit 0")
        self.hooks.call(hook, "1-1", BODY)
        reason = await self.hooks.ask(hook, "1-1", BODY)
        self.assertEqual(reason, "it could not be asked: an error in the daemon: see its log")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)


class OrderTests(HooksTestCase):
    """
    The order and number of calls.
    """

    async def test_order(self) -> None:
        """Calls of one hook for one device run one after the other; others do not wait for them."""
        hook = self.command(f'[ "$USBIPSHARE_BUS_ID" = 1-2 ] || {GATE}; {SAY}')
        other = self.command(SAY, name="other")
        for number in range(5):
            self.hooks.call(hook, "1-1", b"%d" % number)
        self.hooks.call(hook, "1-2", b"x")
        self.hooks.call(other, "1-1", b"y")
        await self.until(lambda: len(self.said) == 2)
        self.assertEqual(sorted(self.said), ["1-1 y", "1-2 x"])
        self.open()
        await self.until(lambda: len(self.said) == 7)
        self.assertEqual(self.said[2:], [f"1-1 {number}" for number in range(5)])

    async def test_most(self) -> None:
        """The number that run at a time is bounded, and may be changed: nothing is lost."""
        hooks = self.makeHooks(most=2)
        hook = self.command(
            f"touch $D/running.$$; ls $D | grep -c running >> $D/counts; {GATE}; "
            f"rm $D/running.$$; {SAY}"
        )
        for number in range(6):
            hooks.call(hook, f"1-{number}", b"x")
        counts = self.directory / "counts"
        await self.until(lambda: counts.exists() and counts.read_text().count("\n") == 2)
        self.most = 1
        self.open()
        await self.until(lambda: len(self.said) == 6)
        self.assertLessEqual({int(line) for line in counts.read_text().split()}, {1, 2})
        self.assertEqual(self.said[-2:], ["1-4 x", "1-5 x"])
        self.most = 2
        self.close()
        hooks.call(hook, "1-7", b"x")
        hooks.call(self.command(SAY, name="other"), "1-8", b"x")
        await self.until(lambda: len(self.said) == 7)
        self.open()
        await self.until(lambda: len(self.said) == 8)
        self.assertEqual(self.warnings, [])

    async def test_manyThatFail(self) -> None:
        """A long queue of hooks that fail at once does not recurse too deeply."""
        hooks = self.makeHooks(most=1)
        hooks.call(self.command(GATE), "1-1", BODY)
        for number in range(1000):
            hooks.call(Hook(events=ON, command=("/no/such/program",)), f"1-{number}", BODY)
        self.open()
        await self.until(lambda: len(self.warnings) == 1000)

    async def test_overflow(self) -> None:
        """When too many wait, further ones are dropped, with one warning for each such time;
        calls that need not wait are run."""
        hooks = self.makeHooks(most=2, waiting=2)
        hook = self.command(f"{GATE}; {SAY}; echo told")
        for episode in (1, 2):
            for number in range(6):
                hooks.call(hook, "1-1", b"%d" % number)
            hooks.call(self.command("echo hello", name="other"), "1-2", BODY)
            await self.until(lambda: "hello" in str(self.logged(LogLevel.info)))
            self.assertEqual(len(self.warnings), episode)
            self.assertIn("2 calls are waiting; of the device with most", self.warnings[-1])
            self.open()
            await self.until(lambda: "3 calls were dropped" in str(self.logged(LogLevel.info)))
            await self.until(lambda: str(self.logged(LogLevel.info)).count("told") == 3)
            self.assertEqual(len(self.said), 3 * episode)
            self.assertEqual(self.said[-3:], ["1-1 0", "1-1 1", "1-1 2"])
            self.close()
            self.events[:] = [e for e in self.events if e["log_level"] is LogLevel.warn]

    async def test_overflowOfOneDevice(self) -> None:
        """If one device causes too many calls, its last ones are dropped, not those of another."""
        hooks = self.makeHooks(most=1, waiting=4)
        hook, other = self.command(f"{GATE}; {SAY}"), self.command(SAY, name="other")
        for number in range(50):
            hooks.call(hook, "1-1", b"%d" % number)
        for each in (other, hook, other):
            hooks.call(each, "1-2", b"x")
        self.assertEqual(len(self.warnings), 1)
        self.open()
        await self.until(lambda: len(self.said) == 5)
        self.assertEqual(sorted(self.said), ["1-1 0", "1-1 1", "1-1 2", "1-2 x", "1-2 x"])

    async def test_noRoom(self) -> None:
        """If nothing may wait, a call that need not is run."""
        hooks = self.makeHooks(most=1, waiting=0)
        hooks.call(self.command(SAY), "1-1", b"x")
        hooks.call(self.command(SAY), "1-1", b"y")
        await self.until(lambda: self.said)
        self.assertEqual((self.said, len(self.warnings)), (["1-1 x"], 1))


class AskTests(HooksTestCase):
    """
    Hooks that may veto.
    """

    async def test_exitStatus(self) -> None:
        """Exit status 0 is no veto, whatever the output; with any other the first line of the
        standard output is the reason, and never what is on standard error. The hook receives the
        event."""
        hook = self.command(f"{SAY}; echo welcome")
        self.assertIsNone(await self.hooks.ask(hook, "1-1", b"x"))
        self.assertEqual(self.said, ["1-1 x"])
        self.assertIn("welcome", self.logged(LogLevel.info)[0])
        for script, reason in (
            ("echo 'not on Sundays'; echo more; exit 1", "not on Sundays"),
            ("printf '\\n \\033[31mred\\n'; exit 1", "[31mred"),
            ("exit 3", "exit status 3"),
            ("echo '+ curl --api-key s3cr3t' >&2; echo closed; exit 1", "closed"),
            ("echo '+ curl --api-key s3cr3t' >&2; exit 3", "exit status 3"),
        ):
            said = await self.hooks.ask(self.command(script), "1-1", BODY)
            self.assertEqual(said, reason)
            self.assertIn(f"script has refused 1-1: {reason}", self.logged(LogLevel.info)[-1])
        self.assertEqual(self.warnings, [])

    async def test_cannotBeAsked(self) -> None:
        """A hook that cannot be run, hangs or is killed is a veto, and is logged as a warning."""
        heeding = "trap 'exit 0' TERM; echo yes; touch $D/c.late; while :; do :; done"
        for hook, name, problem in (
            (Hook(events=ON, command=("no-such-program",)), "", "there is no such program"),
            (
                self.command("touch $D/a.late; exec sleep 1000", OVER, "a"),
                "a.late",
                "not ended within 1000 s",
            ),
            (self.command("kill -KILL $$", name="b"), "", "SIGKILL has ended it"),
            (self.command(heeding, OVER, "c"), "c.late", "not ended within 1000 s"),
        ):
            asking = asked(self.hooks.ask(hook, "1-1", BODY))
            if name:
                await self.late((self.directory / name).exists)
            reason = await asking or ""
            self.assertTrue(reason.startswith("it could not be asked: "), reason)
            told = "see the daemon's log" if problem.startswith("there is no") else problem
            self.assertIn(told, reason)
            self.assertIn(f"has refused 1-1: {reason}", self.logged(LogLevel.info)[-1])
            self.assertIn(problem, await self.warning())
            self.events.clear()

    async def test_crowded(self) -> None:
        """Asking waits for no calls, only for others that ask, at most for the time limit."""
        hooks = self.makeHooks(most=1)
        for _ in range(3):
            hooks.call(self.command(GATE), "1-1", BODY)
        refuses = self.command("echo no; exit 1", name="other")
        self.assertEqual(await hooks.ask(refuses, "1-1", BODY), "no")
        first = asked(hooks.ask(self.command(GATE), "1-1", BODY))
        second = asked(hooks.ask(self.command("exit 0", name="b"), "1-2", BODY))
        third = asked(hooks.ask(self.command("exit 0", timeout=OVER, name="c"), "1-3", BODY))
        self.timed.timeIsOver()
        self.assertEqual(await third, "it could not be asked: too many others are being asked")
        self.open()
        self.assertIsNone(await first)
        self.assertIsNone(await second)

    async def test_cancelled(self) -> None:
        """If asking is cancelled, the program is killed, and another one can be asked."""
        hooks = self.makeHooks(most=1)
        running = asked(hooks.ask(self.command("echo $$ > $D/said; exec sleep 1000"), "1-1", BODY))
        waiting = asked(hooks.ask(self.command("exit 0", name="b"), "1-1", BODY))
        await self.until(lambda: self.said)
        for deferred in (waiting, running):
            deferred.cancel()
            with self.assertRaises(CancelledError):
                await deferred
        await self.until(lambda: not isThere(int(self.said[0])))
        self.assertIsNone(await hooks.ask(self.command("exit 0"), "1-1", BODY))


class Page(Resource):
    """
    A page that a function renders.
    """

    isLeaf = True

    def __init__(self, render: Callable[[Request], Any]) -> None:
        super().__init__()
        self.render = render  # type: ignore[method-assign]


class Endless:
    """
    A body that has no end.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        request.registerProducer(self, False)

    def resumeProducing(self) -> None:
        """Send more."""
        self._request.write(b"yes\n" * 1000)

    def stopProducing(self) -> None:
        """The client has closed the connection."""


class Curt(Protocol):
    """
    Is no HTTP server: sends some bytes and disconnects.
    """

    def __init__(self, words: bytes) -> None:
        self._words = words

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(self._words)
        self.transport.loseConnection()


class Silent(Protocol):
    """
    Sends nothing.

    @cvar there: the connections that are open.
    """

    there: ClassVar[set[Silent]] = set()

    def connectionMade(self) -> None:
        self.there.add(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.there.discard(self)


LATE = r"no answer within (1000|99\d(\.\d)?) s"
"""The time limit in a message: L{OVER} seconds, less the time until the request was sent."""


class UrlTests(HooksTestCase):
    """
    Hooks that are URLs.
    """

    def setUp(self) -> None:
        super().setUp()
        self.requests: list[tuple[bytes, bytes, bytes, bytes]] = []
        self.gone: list[object] = []

    def serve(self, render: Callable[[Request], Any], timeout: float = SECONDS) -> Hook:
        """A hook with a URL that this function answers."""

        def noted(request: Request) -> Any:
            assert request.content is not None
            contentType = request.getHeader(b"content-type") or b""
            body = request.content.read()
            self.requests.append((request.method, request.uri, contentType, body))
            request.notifyFinish().addErrback(self.gone.append)
            return render(request)

        return self.listen(Site(Page(noted)), timeout)

    def answering(self, code: int, body: bytes = b"", **headers: str) -> Hook:
        """A hook with a URL that has this answer."""

        def render(request: Request) -> bytes:
            request.setResponseCode(code)
            for name, value in headers.items():
                request.setHeader(name, value)
            return body

        return self.serve(render)

    async def test_called(self) -> None:
        """The event is posted as JSON. The answer is logged as debug, a failed one as a
        warning."""
        hook = self.answering(201, b"thank\nyou")
        self.hooks.call(hook, "1-1", BODY)
        await self.until(lambda: len(self.logged(LogLevel.debug)) == 2)
        self.assertEqual(self.requests, [(b"POST", b"/usb?x=1", b"application/json", BODY)])
        self.assertEqual(
            self.logged(LogLevel.debug), [f"{hook} on 1-1: thank", f"{hook} on 1-1: you"]
        )
        self.assertEqual((self.warnings, self.logged(LogLevel.info)), ([], []))
        hook = self.answering(500, b"traceback\nbroken")
        self.hooks.call(hook, "1-1", BODY)
        self.assertEqual(
            await self.warning(),
            f"{hook} on 1-1 has failed: HTTP status 500; it said: traceback / broken",
        )

    async def test_asked(self) -> None:
        """A status of 200 to 299 is no veto; with any other the first line of the answer is the
        reason. A redirect is a veto and a failure: it is not followed."""
        for code, body, reason in (
            *((200, b"welcome", None), (204, b"", None), (500, b"", "HTTP status 500")),
            (403, b"not on Sundays\nmore", "not on Sundays"),
            (404, b"\xff\n", "\N{REPLACEMENT CHARACTER}"),
        ):
            hook = self.answering(code, body)
            self.assertEqual(await self.hooks.ask(hook, "1-1", BODY), reason)
        self.assertEqual(self.warnings, [])
        self.requests.clear()
        hook = self.answering(307, location="/elsewhere")
        self.assertEqual(await self.hooks.ask(hook, "1-1", BODY), "HTTP status 307")
        self.assertEqual(len(self.requests), 1)
        self.hooks.call(hook, "1-1", BODY)
        self.assertIn("HTTP status 307", await self.warning())

    async def unanswered(
        self, hook: Hook, problem: str, isLate: Callable[[int], object] | None = None
    ) -> None:
        """
        A call of the hook fails, and asking it is a veto.

        @param problem: a regular expression.
        @param isLate: when this is true for the number of the call, its time limit is reached.
        """
        asking = asked(self.hooks.ask(hook, "1-1", BODY))
        if isLate is not None:
            await self.late(lambda: isLate(1))
        reason = await asking or ""
        self.assertEqual(reason, "it could not be asked: see the daemon's log")
        self.assertRegex(await self.warning(), problem)
        self.events.clear()
        self.hooks.call(hook, "1-1", BODY)
        if isLate is not None:
            await self.late(lambda: isLate(2))
        self.assertRegex(await self.warning(), problem)

    async def test_hanging(self) -> None:
        """At the time limit of a server that sends nothing, or a part of its answer, the
        connection is closed."""
        received: list[bytes] = []
        dataReceived = webhook.Beginning.dataReceived

        def receive(beginning: webhook.Beginning, data: bytes) -> None:
            received.append(data)
            dataReceived(beginning, data)

        def partly(request: Request) -> int:
            request.write(b"I think")
            return NOT_DONE_YET

        self.patch(webhook.Beginning, "dataReceived", receive)
        hook = self.serve(lambda request: NOT_DONE_YET, timeout=OVER)
        await self.unanswered(hook, LATE, lambda number: len(self.requests) == number)
        self.events.clear()
        await self.unanswered(self.serve(partly, OVER), LATE, lambda n: len(received) == n)
        await self.until(lambda: len(self.gone) == 4)

    async def test_endless(self) -> None:
        """Of an endless answer the beginning is read, and the connection is closed."""

        def render(request: Request) -> int:
            request.setResponseCode(403)
            Endless(request)
            return NOT_DONE_YET

        hook = self.serve(render)
        answer = await self.hooks._post.send(hook.url or "", BODY, SECONDS)
        self.assertEqual((answer.status, len(answer.text)), (403, ANSWER))
        self.assertEqual(await self.hooks.ask(hook, "1-1", BODY), "yes")
        await self.until(lambda: len(self.gone) == 2)

    async def test_unanswered(self) -> None:
        """A port that nothing listens on, a server of another protocol, one that disconnects, and
        a malformed URL are failures."""
        with socket.socket() as taken:  # bound, but not listening
            taken.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{taken.getsockname()[1]}/"
            await self.unanswered(Hook(events=ON, url=url), "refused")
        for hook, problem in (
            (self.listen(Factory.forProtocol(partial(Curt, b"220 mail ESMTP\r\n"))), "220 mail"),
            (self.listen(Factory.forProtocol(partial(Curt, b""))), "closed"),
            (Hook(events=ON, url="http://[:x"), "."),
        ):
            self.events.clear()
            await self.unanswered(hook, problem)

    async def test_incomplete(self) -> None:
        """The status of an answer counts, even if the rest of it is missing."""

        def render(request: Request) -> int:
            request.setHeader("content-length", "1000")
            request.setResponseCode(403)
            request.write(b"no\n")
            request.loseConnection()
            return NOT_DONE_YET

        self.assertEqual(await self.hooks.ask(self.serve(render), "1-1", BODY), "no")


class StopTests(HooksTestCase):
    """
    Stopping.
    """

    async def test_ends(self) -> None:
        """Running hooks may end; waiting and later calls are dropped."""
        hooks = self.makeHooks(most=1)
        hook = self.command(f"touch $D/begun; {GATE}; {SAY}")
        for number in range(3):
            hooks.call(hook, "1-1", b"%d" % number)
            hooks.call(hook, "1-2", b"%d" % number)
        await self.until((self.directory / "begun").exists)
        stopping = asked(hooks.stop(SECONDS))
        hooks.call(hook, "1-3", b"x")
        self.open()
        await stopping
        self.assertEqual(self.said, ["1-1 0"])
        self.assertEqual(self.warnings, [])

    async def test_killed(self) -> None:
        """At the time limit running hooks are killed, and that is logged."""
        hook = self.command("echo $$ > $D/said; trap '' TERM; exec sleep 1000")
        self.hooks.call(hook, "1-1", BODY)
        self.hooks.call(hook, "1-1", BODY)
        await self.until(lambda: self.said)
        await self.hooks.stop(0.1)
        self.assertIn("the daemon has stopped before it had ended", await self.warning())
        await self.until(lambda: not isThere(int(self.said[0])))

    async def test_asked(self) -> None:
        """Hooks that are being asked, wait for it, or are asked later veto."""
        hooks = self.makeHooks(most=1)
        hook = self.command("touch $D/begun; exec sleep 1000")
        answers: list[Deferred[str | None]] = [
            asked(hooks.ask(hook, "1-1", BODY)) for _ in range(2)
        ]
        await self.until((self.directory / "begun").exists)
        await hooks.stop(0.1)
        answers.append(asked(hooks.ask(hook, "1-1", BODY)))
        for answer in answers:
            self.assertIn("could not be asked: the daemon has stopped", str(await answer))

    async def test_connections(self) -> None:
        """At the time limit the connections of unanswered requests are closed."""
        hook = self.listen(Factory.forProtocol(Silent))
        self.hooks.call(hook, "1-1", BODY)
        await self.until(lambda: Silent.there)
        await self.hooks.stop(0.1)
        self.assertIn("the daemon has stopped", await self.warning())
        await self.until(lambda: not Silent.there)

    async def test_idle(self) -> None:
        """If nothing runs, stopping does not wait; it may be done twice."""
        await self.hooks.stop(1000.0)
        await self.hooks.stop(1000.0)


class WordTests(SynchronousTestCase):
    """
    Environment variables and lines of the log.
    """

    def test_environment(self) -> None:
        """Only values without special characters become variables; any body is accepted."""
        self.assertEqual(
            environment("1-1.4", BODY),
            {"USBIPSHARE_EVENT": "bound", "USBIPSHARE_BUS_ID": "1-1.4"},
        )
        for body in (b"", b"{", b"[]", b"\xff", b"{}", b'{"event":3}', b'{"event":"\xff"}'):
            self.assertEqual(environment("x", body), {"USBIPSHARE_BUS_ID": "x"})
        for text in ("", "-rf", "a b", "a\nb", "$(id)", "\N{LATIN SMALL LETTER E WITH ACUTE}"):
            self.assertEqual(environment(text, json.dumps({"event": text}).encode()), {})

    def test_lines(self) -> None:
        """Lines have no control characters and are cut off; empty ones are left out."""
        self.assertEqual(lines("\n a\x1b[2J\tb \r\n\x00\n" + "x" * 5000), ["a [2J b", "x" * LINE])
