"""
Runs hooks: programs and URLs of the configuration that receive events, or may veto them.

A hook may hang, fail or print without end. None of that affects the caller: the number of hooks
that run at a time is bounded, and so are their time and their output.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Iterator
from signal import Signals
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore, TimeoutError
from twisted.logger import Logger, LogLevel

from usbip_server.model.devicerules import Recipient
from usbip_server.runtime.exposition import EventCounter, Kind, Metric, Sample
from usbip_server.runtime.latch import Latch
from usbip_server.runtime.process import CannotStart, Finished, run
from usbip_server.runtime.webhook import HttpPost, NoAnswer

LOGGED_LINES = 50
"""Lines of the output of a hook that has succeeded that are logged."""

LAST_LINES = 5
"""Lines of the output of a hook that has failed that are logged."""

LINE = 300
"""Characters of a line that are logged, or quoted in a reply."""

_SIMPLE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,63}", re.ASCII)
"""The values that may become variables: without characters that are special in a shell."""


class Outcome(msgspec.Struct, frozen=True):
    """
    The result of a hook.

    @ivar problem: the error, in one line; C{None}: it has succeeded.
    @ivar output: its output.
    @ivar answer: the part of the output that is meant for the client: not standard error.
    @ivar answered: whether it has ended by itself.
    @ivar isSecret: whether C{problem} may contain what is not for clients, such as a path or an
        address.
    """

    problem: str | None = None
    output: str = ""
    answer: str = ""
    answered: bool = True
    isSecret: bool = False


_KILLED = Outcome("the daemon has stopped before it had ended", answered=False)

_CROWDED = Outcome("too many others are being asked", answered=False)


class HookRunner:
    """
    Runs hooks: a bounded number at a time, and those of the same hook and device in order. If too
    many wait, calls of the device that has most of them are dropped.
    """

    _log = Logger()

    def __init__(
        self, reactor: Any, most: Callable[[], int] = lambda: 8, waiting: int = 1000
    ) -> None:
        """
        @param reactor: provides C{IReactorProcess}, C{IReactorTime} and what connections
            need.
        @param most: returns how many may run at a time. As many again may run for C{ask}; that
            number is the one at the start.
        @param waiting: how many calls may wait.
        """
        self._reactor = reactor
        self._most = most
        self._room = waiting
        self._post = HttpPost(reactor)
        # A key is here while a call with it runs or waits.
        self._bodies: dict[tuple[Recipient, str], deque[bytes]] = {}
        self._ready: deque[tuple[Recipient, str]] = deque()
        self._callers = 0
        self._waiting = 0
        self._dropped = 0
        self._askers = DeferredSemaphore(most())
        self._turns: set[Deferred[Any]] = set()
        self._running: set[Deferred[Outcome]] = set()
        self._idle = Latch(reactor)
        self._stopping = False
        self._killed = False
        self._outcomes = EventCounter(
            "usbipshare_hook_calls_total",
            "Calls of hooks by result: ok, failed, or dropped because too many waited.",
            ("result",),
        )

    def call(self, hook: Recipient, busId: str, body: bytes) -> None:
        """
        Run a hook, after the earlier calls of the same hook for the device. The result is logged.

        @param body: the event: a JSON object without line breaks.
        """
        if self._stopping:
            return
        key = (hook, busId)
        mustWait = key in self._bodies or self._callers >= self._most()
        if mustWait and self._waiting >= self._room:
            self._logDrop()
            if not self._makeRoomFor(busId):
                return
        if key not in self._bodies:
            self._bodies[key] = deque()
            self._ready.append(key)
        self._bodies[key].append(body)
        self._waiting += 1
        if self._callers < self._most():
            Deferred.fromCoroutine(self._callWaiting())

    async def ask(self, hook: Recipient, busId: str, body: bytes) -> str | None:
        """
        Run a hook that may veto, within its time limit (and L{usbip_server.runtime.process.GRACE}
        for a program that has to be killed). It does not wait for calls of C{call}.

        @param body: the event: a JSON object without line breaks.
        @return: C{None} if it has succeeded; else the reason of its veto for the client, in one
            line. A hook that cannot be run is a veto.
        """
        outcome = await self._askWithin(hook, busId, body)
        if outcome.problem is None:
            self._logOutcome(hook, busId, outcome)
            return None
        if outcome.answered:
            reason = next(iter(lines(outcome.answer)), outcome.problem)
        else:
            self._logOutcome(hook, busId, outcome)
            problem = "see the daemon's log" if outcome.isSecret else outcome.problem
            reason = f"it could not be asked: {problem}"
        self._log.info(
            "{hook} has refused {device}: {reason}", hook=str(hook), device=busId, reason=reason
        )
        return reason

    def metrics(self) -> Iterator[Metric]:
        """The number of calls so far, and of those that wait or run now."""
        yield self._outcomes.metric()
        waiting, running = Sample(self._waiting), Sample(len(self._running))
        yield Metric("usbipshare_hooks_waiting", Kind.GAUGE, "Calls that wait.", [waiting])
        yield Metric("usbipshare_hooks_running", Kind.GAUGE, "Calls that run.", [running])

    async def stop(self, seconds: float) -> None:
        """
        Start no more hooks, and drop those that wait. Hooks that run may end.

        @param seconds: the time after which they are killed.
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

    async def _callWaiting(self) -> None:
        """
        Make waiting calls, one after the other.
        """
        self._callers += 1
        while self._ready and self._callers <= self._most():
            key = self._ready.popleft()
            body = self._bodies[key].popleft()
            self._waiting -= 1
            self._relax()
            self._logOutcome(*key, await self._run(*key, body, key[0].timeout))
            if self._bodies.get(key):
                self._ready.append(key)
            else:
                self._bodies.pop(key, None)
        self._callers -= 1

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
        Run a hook now.
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
        self._outcomes.add("ok" if outcome.problem is None else "failed")
        return _KILLED if self._killed else outcome

    async def _execute(self, hook: Recipient, busId: str, body: bytes, seconds: float) -> Outcome:
        command, data, variables = hook.command or (), body + b"\n", environment(busId, body)
        try:
            finished = await run(self._reactor, command, data, variables, seconds=seconds)
        except CannotStart as error:
            return Outcome(oneLine(str(error)), answered=False, isSecret=True)
        if finished.timedOut:
            late = f"it has not ended within {hook.timeout:g} s"
            return Outcome(late, finished.output, answered=False)
        if finished.status is None:
            return Outcome(f"{ending(finished)} has ended it", finished.output, answered=False)
        isGood = finished.status == 0
        problem = None if isGood else f"exit status {finished.status}"
        return Outcome(problem, finished.output, finished.answer)

    async def _send(self, hook: Recipient, busId: str, body: bytes, seconds: float) -> Outcome:
        try:
            answer = await self._post.send(hook.url or "", body, seconds)
        except NoAnswer as error:
            return Outcome(oneLine(str(error)), answered=False, isSecret=True)
        isGood = 200 <= answer.status < 300
        problem = None if isGood else f"HTTP status {answer.status}"
        return Outcome(problem, answer.text, answer.text)

    def _logOutcome(self, hook: Recipient, busId: str, outcome: Outcome) -> None:
        """
        Log a result.
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

    def _makeRoomFor(self, busId: str) -> bool:
        """Drop the last call for the device with most calls, unless that is the given one."""
        waiting = Counter[str]()
        for (_, other), bodies in self._bodies.items():
            waiting[other] += len(bodies)
        greedy, most = waiting.most_common(1)[0]
        if most <= waiting[busId]:
            return False
        keys = (key for key in self._bodies if key[1] == greedy)
        longest = max(keys, key=lambda key: len(self._bodies[key]))
        self._bodies[longest].pop()
        self._waiting -= 1
        if not self._bodies[longest] and longest in self._ready:
            self._ready.remove(longest)
            del self._bodies[longest]
        return True

    def _logDrop(self) -> None:
        if not self._dropped:
            self._log.warn(
                "hooks do not keep up: {waiting} calls are waiting; of the device with most of "
                "them calls are dropped",
                waiting=self._waiting,
            )
        self._dropped += 1
        self._outcomes.add("dropped")

    def _relax(self) -> None:
        """
        Log that hooks keep up again, once half of the queue is empty.
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
    The environment variables for a hook. A value that is not simple is left out.

    @param body: the event, whose kind is its C{event}.
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
    """The name of the signal that has ended a program."""
    try:
        return Signals(finished.signal or 0).name
    except ValueError:
        return f"signal {finished.signal}"  # a real-time signal


def lines(text: str) -> list[str]:
    """
    The lines of an output that are not empty, with unprintable characters replaced by blanks.
    """
    clean = (
        "".join(letter if letter.isprintable() else " " for letter in line).strip()[:LINE]
        for line in text.splitlines()
    )
    return [line for line in clean if line]


def oneLine(text: str) -> str:
    """A message with several lines as one line."""
    return " ".join(lines(text))[:LINE]
