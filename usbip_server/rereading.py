"""
Reading the configuration anew, when somebody says so with C{SIGHUP}.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger


class Rereading:
    """
    Has it done once for each signal, one after the other, however quickly they come.
    """

    _log = Logger()

    def __init__(self, reactor: IReactorFromThreads, reread: Callable[[], Awaitable[None]]) -> None:
        self._reactor = reactor
        self._reread = reread
        self._last: Deferred[None] = succeed(None)
        self._handlerBefore: Any = None

    def start(self) -> None:
        """Heed the signal from now on."""
        with contextlib.suppress(ValueError):  # not in the main thread
            self._handlerBefore = signal.signal(signal.SIGHUP, self._signalled)

    def stop(self) -> None:
        """Leave it to whoever had it before."""
        if self._handlerBefore is not None:
            signal.signal(signal.SIGHUP, self._handlerBefore)
            self._handlerBefore = None

    def _signalled(self, number: int, frame: object) -> None:
        self._reactor.callFromThread(self._next)

    def _next(self) -> None:
        self._last.addCallback(lambda _: Deferred.fromCoroutine(self._once()))

    async def _once(self) -> None:
        try:
            await self._reread()
        except Exception:
            self._log.failure("a bug in reading the configuration anew")
