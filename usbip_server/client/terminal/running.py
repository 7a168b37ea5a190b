"""
Running a coroutine to its end, in a program that has nothing else to do.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred

from usbip_server.client.core.resolving import Resolver
from usbip_server.client.terminal.everywhere import allowManyConnections

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """
    Somebody has ended it before its end: ctrl-C, or C{SIGTERM}.
    """


def run(work: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
    """
    Run a coroutine on the reactor. This can be done as often as one likes, but not within
    itself.

    @param work: takes the reactor.
    @return: what it returns; what it raises is raised.
    @raise Interrupted: it was ended.
    """
    from twisted.internet import reactor as installed

    reactor: Any = installed
    results: list[T] = []
    errors: list[BaseException] = []

    working: list[Deferred[None]] = []

    def interrupt(number: int, frame: object) -> None:
        reactor.callFromThread(callOff)

    def callOff() -> None:
        errors.insert(0, Interrupted())
        for deferred in working:
            deferred.cancel()
        soon()

    def soon() -> None:
        # Connections that were cut off are closed in the turn after this one.
        reactor.callLater(0, reactor.callLater, 0, reactor.crash)

    def begin() -> None:
        for number in SIGNALS:
            signal.signal(number, interrupt)
        done = Deferred.fromCoroutine(work(reactor)).addCallbacks(
            results.append, lambda failure: errors.append(failure.value)
        )
        working.append(done)
        done.addBoth(lambda nothing: soon())

    allowManyConnections()
    others = {*reactor.getDelayedCalls()}
    before = reactor.installNameResolver(Resolver(reactor))
    signals = {number: signal.getsignal(number) for number in SIGNALS}
    reactor.callWhenRunning(begin)
    try:
        # Not stop(): that would be for good, and wait for the threads of the pool.
        reactor.run()
    finally:
        for number, does in signals.items():
            signal.signal(number, does)
        reactor.installNameResolver(before)
        for call in {*reactor.getDelayedCalls()} - others:
            call.cancel()  # nobody waits for it any more
    for error in errors:
        raise error
    return results[0]
