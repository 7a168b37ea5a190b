"""
Runs blocking calls that may never return, each in a daemon thread of its own, with a deadline.

A write to a driver's C{unbind} attribute waits for the device in the kernel, without limit, and
cannot be interrupted; so can reading some attributes. Threads of the reactor's pool cannot be used
for such calls: the pool would fill up, and the reactor waits for its threads at shutdown.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

T = TypeVar("T")

Spawn = Callable[[Callable[[], None]], None]


class CallTimedOut(Exception):
    """
    A call has not returned before its deadline. Its thread still runs.
    """


class CallPending(Exception):
    """
    An earlier call with the same key has not returned yet.
    """


def startThread(function: Callable[[], None]) -> None:
    """
    Run a function in a new daemon thread.
    """
    threading.Thread(target=function, daemon=True, name="usbipshare-call").start()


class BlockingCalls:
    """
    Runs functions in threads, at most one at a time for each key.
    """

    def __init__(self, reactor: Any, spawn: Spawn = startThread) -> None:
        """
        @param reactor: provides C{IReactorTime} and C{IReactorFromThreads}.
        """
        self._reactor = reactor
        self._spawn = spawn
        self._pending: set[Hashable] = set()
        self._waiting: set[Callable[[], None]] = set()
        self._stopped = False

    def stop(self) -> None:
        """
        Stop waiting: the calls in progress, and all later ones, fail with L{CallTimedOut}.
        """
        self._stopped = True
        for giveUp in tuple(self._waiting):
            giveUp()

    async def call(
        self,
        key: Hashable,
        seconds: float,
        function: Callable[[], T],
        late: Callable[[], None] = lambda: None,
    ) -> T:
        """
        Run a function in a thread.

        @param key: identifies what the function works on, such as a bus id.
        @param seconds: the deadline.
        @param late: called in the reactor's thread when the function returns after the deadline.
        @return: the function's result; an exception that it raises is raised here.
        @raise CallPending: an earlier call with this key has not returned yet.
        @raise CallTimedOut: the function has not returned before the deadline.
        @raise RuntimeError: the system cannot start another thread.
        """
        if self._stopped:
            raise CallTimedOut(key)
        if key in self._pending:
            raise CallPending(key)
        self._pending.add(key)
        done: Deferred[T] = Deferred()
        gaveUp = False

        def giveUp() -> None:
            nonlocal gaveUp
            gaveUp = True
            self._waiting.discard(giveUp)
            if timer.active():
                timer.cancel()
            done.errback(CallTimedOut(key))

        def returned(result: Any) -> None:
            self._pending.discard(key)
            if gaveUp:
                if not self._stopped:
                    late()
                return
            self._waiting.discard(giveUp)
            timer.cancel()
            done.callback(result)

        def run() -> None:
            result: Any
            try:
                result = function()
            except BaseException:
                result = Failure()
            self._reactor.callFromThread(returned, result)

        timer = self._reactor.callLater(seconds, giveUp)
        self._waiting.add(giveUp)
        try:
            self._spawn(run)
        except BaseException:  # no more threads, no more memory
            self._pending.discard(key)
            self._waiting.discard(giveUp)
            timer.cancel()
            raise
        return await done
