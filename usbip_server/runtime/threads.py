"""
Calls that may never return.

A write to a driver's C{unbind} waits for the device in the kernel, without limit, and
cannot be interrupted; so can the reading of some attributes. Each such call gets a daemon
thread of its own: the reactor's pool would fill up, and would wait for them at shutdown.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

T = TypeVar("T")

Spawn = Callable[[Callable[[], None]], None]


class TookTooLong(Exception):
    """
    A call has not returned in time; its thread goes on.
    """


class StillOut(Exception):
    """
    An earlier call with the same key has not returned yet.
    """


def startThread(function: Callable[[], None]) -> None:
    """
    Run a function in a daemon thread of its own.
    """
    threading.Thread(target=function, daemon=True, name="usbipshare-call").start()


class BlockingCalls:
    """
    Makes calls in threads, one at a time for each key.
    """

    def __init__(self, reactor: Any, spawn: Spawn = startThread) -> None:
        """
        @param reactor: provides C{IReactorTime} and C{IReactorFromThreads}.
        """
        self._reactor = reactor
        self._spawn = spawn
        self._out: set[Hashable] = set()
        self._waiting: set[Callable[[], None]] = set()
        self._stopped = False

    def isOut(self, key: Hashable) -> bool:
        """Has a call with this key not returned yet?"""
        return key in self._out

    def stop(self) -> None:
        """
        Wait for nothing any longer: all calls fail with L{TookTooLong}, new ones too.
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
        Call C{function} in a thread.

        @param seconds: how long to wait for it.
        @param late: called when it returns after all, though we had given up.
        @return: what it returns; what it raises is raised.
        @raise StillOut: an earlier call with this key has not returned.
        @raise TookTooLong: C{seconds} have passed.
        @raise RuntimeError: the system has no more threads.
        """
        if self._stopped:
            raise TookTooLong(key)
        if key in self._out:
            raise StillOut(key)
        self._out.add(key)
        done: Deferred[T] = Deferred()
        gaveUp = False

        def giveUp() -> None:
            nonlocal gaveUp
            gaveUp = True
            self._waiting.discard(giveUp)
            if timer.active():
                timer.cancel()
            done.errback(TookTooLong(key))

        def back(result: Any) -> None:
            self._out.discard(key)
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
            self._reactor.callFromThread(back, result)

        timer = self._reactor.callLater(seconds, giveUp)
        self._waiting.add(giveUp)
        try:
            self._spawn(run)
        except BaseException:  # no more threads, no more memory
            self._out.discard(key)
            self._waiting.discard(giveUp)
            timer.cancel()
            raise
        return await done
