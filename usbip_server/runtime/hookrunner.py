"""
Telling programs and addresses what happens, and asking them what may happen.

They are the configuration's, but what they do is not known: they may hang, fail, print
without end. None of that reaches whoever calls them here.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from signal import Signals
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore, TimeoutError
from twisted.logger import Logger, LogLevel

from usbip_server.model.rules import Recipient
from usbip_server.runtime.latch import Latch
from usbip_server.runtime.process import CannotStart, Finished, run
from usbip_server.runtime.webhook import HttpPost, NoAnswer

LOGGED_LINES = 50
"""Lines that are logged of the output of a hook that went well."""

LAST_LINES = 5
"""Lines of the output of one that failed."""

LINE = 300
"""Characters of a line. A reason becomes a part of an answer, which is short."""

_SIMPLE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,63}", re.ASCII)
"""What may become a variable: nothing that a careless script would stumble over."""


class Outcome(msgspec.Struct, frozen=True):
    """
    How a call has gone.

    @ivar problem: what is wrong, in one line; C{None} if it went well.
    @ivar output: what the hook had to say.
    @ivar answered: has it come to an end of its own?
    """

    problem: str | None = None
    output: str = ""
    answered: bool = True


_KILLED = Outcome("the daemon has stopped before it had ended", answered=False)

_CROWDED = Outcome("too many others are being asked", answered=False)


class HookRunner:
    """
    Calls hooks: a bounded number at a time, and one after the other where they are about
    the same device.
    """

    _log = Logger()

    def __init__(
        self, reactor: Any, most: Callable[[], int] = lambda: 8, waiting: int = 1000
    ) -> None:
        """
        @param reactor: provides C{IReactorProcess}, C{IReactorTime} and what connections
            need.
        @param most: returns how many may be told at a time; as many again can be asked, as it is at
            first.
        @param waiting: how many calls can wait.
        """
        self._reactor = reactor
        self._most = most
        self._room = waiting
        self._post = HttpPost(reactor)
        # A key is here while a call with it runs or waits.
        self._bodies: dict[tuple[Recipient, str], deque[bytes]] = {}
        self._ready: deque[tuple[Recipient, str]] = deque()
        self._tellers = 0
        self._waiting = 0
        self._dropped = 0
        self._askers = DeferredSemaphore(most())
        self._turns: set[Deferred[Any]] = set()
        self._running: set[Deferred[Outcome]] = set()
        self._idle = Latch(reactor)
        self._stopping = False
        self._killed = False

    def call(self, hook: Recipient, busId: str, body: bytes) -> None:
        """
        Tell a hook, as soon as there is room and it knows all that it was told of this
        device before. How that went is logged.

        @param body: the event: a JSON object without line breaks.
        """
        if self._stopping:
            return
        key = (hook, busId)
        mustWait = key in self._bodies or self._tellers >= self._most()
        if mustWait and self._waiting >= self._room:
            self._drop()
            return
        if key not in self._bodies:
            self._bodies[key] = deque()
            self._ready.append(key)
        self._bodies[key].append(body)
        self._waiting += 1
        if self._tellers < self._most():
            Deferred.fromCoroutine(self._tell())

    async def ask(self, hook: Recipient, busId: str, body: bytes) -> str | None:
        """
        Ask a hook, within its time (and L{usbip_server.runtime.process.GRACE} for a program
        that has to be killed). It does not wait for those that are told something.

        @param body: the event: a JSON object without line breaks.
        @return: C{None} if it agrees, else why not, in one line. One that cannot be asked
            does not agree.
        """
        outcome = await self._askWithin(hook, busId, body)
        if outcome.problem is None:
            self._say(hook, busId, outcome)
            return None
        if outcome.answered:
            reason = next(iter(lines(outcome.output)), outcome.problem)
        else:
            self._say(hook, busId, outcome)
            reason = f"it could not be asked: {outcome.problem}"
        self._log.info(
            "{hook} has refused {device}: {reason}", hook=str(hook), device=busId, reason=reason
        )
        return reason

    async def stop(self, seconds: float) -> None:
        """
        Begin nothing more, and forget what waits. What runs may end; then it is killed.

        @param seconds: how long it may take.
        """
        self._stopping = True
        self._ready.clear()
        self._bodies.clear()
        self._waiting = 0
        for turn in tuple(self._turns):
            turn.cancel()
        if self._running and not await self._idle.within(seconds):
            self._killed = True
            for work in tuple(self._running):
                work.cancel()

    async def _tell(self) -> None:
        """
        Make the calls that can be made, one after the other.
        """
        self._tellers += 1
        while self._ready and self._tellers <= self._most():
            key = self._ready.popleft()
            body = self._bodies[key].popleft()
            self._waiting -= 1
            self._relax()
            self._say(*key, await self._run(*key, body, key[0].timeout))
            if self._bodies.get(key):
                self._ready.append(key)
            else:
                self._bodies.pop(key, None)
        self._tellers -= 1

    async def _askWithin(self, hook: Recipient, busId: str, body: bytes) -> Outcome:
        if self._stopping:
            return _KILLED
        until = self._reactor.seconds() + hook.timeout
        turn: Deferred[Any] = self._askers.acquire()
        self._turns.add(turn)
        try:
            await turn.addTimeout(hook.timeout, self._reactor)
        except TimeoutError:
            return _CROWDED
        except CancelledError:
            if not self._stopping:
                raise
            return _KILLED
        finally:
            self._turns.discard(turn)
        try:
            return await self._run(hook, busId, body, until - self._reactor.seconds())
        finally:
            self._askers.release()

    async def _run(self, hook: Recipient, busId: str, body: bytes, seconds: float) -> Outcome:
        """
        Make a call now.
        """
        make = self._send if hook.command is None else self._execute
        work = Deferred.fromCoroutine(make(hook, busId, body, seconds))
        self._running.add(work)
        try:
            outcome = await work
        except CancelledError:
            if not self._killed:
                raise
            return _KILLED
        except Exception:
            self._log.failure("calling {hook} on {device}", hook=str(hook), device=busId)
            return Outcome("an error in the daemon: see its log", answered=False)
        finally:
            self._running.discard(work)
            if self._stopping and not self._running:
                self._idle.fire()
        return _KILLED if self._killed else outcome

    async def _execute(self, hook: Recipient, busId: str, body: bytes, seconds: float) -> Outcome:
        command, data, variables = hook.command or (), body + b"\n", environment(busId, body)
        try:
            finished = await run(self._reactor, command, data, variables, seconds=seconds)
        except CannotStart as error:
            return Outcome(oneLine(str(error)), answered=False)
        if finished.timedOut:
            problem = f"it has not ended within {hook.timeout:g} s"
            return Outcome(problem, finished.output, answered=False)
        if finished.status is None:
            return Outcome(f"{ending(finished)} has ended it", finished.output, answered=False)
        isGood = finished.status == 0
        return Outcome(None if isGood else f"exit status {finished.status}", finished.output)

    async def _send(self, hook: Recipient, busId: str, body: bytes, seconds: float) -> Outcome:
        try:
            answer = await self._post.send(hook.url or "", body, seconds)
        except NoAnswer as error:
            return Outcome(oneLine(str(error)), answered=False)
        isGood = 200 <= answer.status < 300
        return Outcome(None if isGood else f"HTTP status {answer.status}", answer.text)

    def _say(self, hook: Recipient, busId: str, outcome: Outcome) -> None:
        """
        Log how a call went.
        """
        said = lines(outcome.output)
        fields = {"hook": str(hook), "device": busId}
        if outcome.problem is not None:
            self._log.warn(
                "{hook} on {device} has failed: {problem}" + ("; it said: {said}" if said else ""),
                problem=outcome.problem,
                said=" / ".join(said[-LAST_LINES:]),
                **fields,
            )
            return
        level = LogLevel.debug if hook.command is None else LogLevel.info
        for line in said[:LOGGED_LINES]:
            self._log.emit(level, "{hook} on {device}: {line}", line=line, **fields)
        if len(said) > LOGGED_LINES:
            more = len(said) - LOGGED_LINES
            self._log.emit(level, "{hook} on {device}: {more} lines more", more=more, **fields)

    def _drop(self) -> None:
        if not self._dropped:
            self._log.warn(
                "hooks do not keep up: {waiting} calls are waiting, new ones are dropped",
                waiting=self._waiting,
            )
        self._dropped += 1

    def _relax(self) -> None:
        """
        Half of what was waiting is done: those that were dropped are not worth another
        warning until then.
        """
        if self._dropped and self._waiting <= self._room // 2:
            self._log.info(
                "hooks keep up again; {dropped} calls were dropped", dropped=self._dropped
            )
            self._dropped = 0


class _Named(msgspec.Struct):
    event: Any = None


def environment(busId: str, body: bytes) -> dict[str, str]:
    """
    What a script wants to know first, where that is something simple.

    @param body: the event, whose name is its C{event}.
    """
    try:
        event = msgspec.json.decode(body, type=_Named).event
    except (msgspec.DecodeError, ValueError):
        event = None
    variables = {"USBIPSHARE_EVENT": event, "USBIPSHARE_BUS_ID": busId}
    return {
        name: value
        for name, value in variables.items()
        if isinstance(value, str) and _SIMPLE.fullmatch(value)
    }


def ending(finished: Finished) -> str:
    """The signal that has ended a program."""
    try:
        return Signals(finished.signal or 0).name
    except ValueError:
        return f"signal {finished.signal}"  # a real-time signal


def lines(text: str) -> list[str]:
    """
    The lines of an output, without what does no good in a log or on a terminal.
    """
    clean = (
        "".join(letter if letter.isprintable() else " " for letter in line).strip()[:LINE]
        for line in text.splitlines()
    )
    return [line for line in clean if line]


def oneLine(text: str) -> str:
    """A message that may have several."""
    return " ".join(lines(text))[:LINE]
