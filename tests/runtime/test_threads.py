"""
Calls that may never return.
"""

from __future__ import annotations

import threading

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

from usbip_server.runtime.threads import BlockingCalls, CallPending, CallTimedOut
from usbip_server.testing import FakeReactor

SECONDS = 300.0
"""That a call may take which is not to be late."""


class BlockingCallTests(SynchronousTestCase):
    """
    Results, errors and deadlines.
    """

    def setUp(self) -> None:
        self.reactor = FakeReactor()
        self.calls = BlockingCalls(self.reactor, self.reactor.spawn)

    def call(self, key: str, function: object, **late: object) -> Deferred[object]:
        """Make a call that may take ten seconds."""
        return Deferred.fromCoroutine(self.calls.call(key, 10, function, **late))  # type: ignore[arg-type]

    def test_result(self) -> None:
        """What the function returns is returned, and the timer is gone."""
        self.assertEqual(self.successResultOf(self.call("a", lambda: 7)), 7)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_error(self) -> None:
        """What it raises is raised."""
        self.failureResultOf(self.call("a", lambda: 1 / 0), ZeroDivisionError)

    def test_late(self) -> None:
        """
        When the time is over the caller goes on; another call with that key is refused
        until the first has returned, of which the caller is told.
        """
        told: list[str] = []
        self.reactor.hold = True
        first = self.call("a", lambda: 7, late=lambda: told.append("late"))
        self.reactor.advance(10)
        self.failureResultOf(first, CallTimedOut)
        self.failureResultOf(self.call("a", lambda: 8), CallPending)
        other = self.call("b", lambda: 9)
        self.assertEqual(told, [])
        self.reactor.runThreads()
        self.assertEqual((told, self.successResultOf(other)), (["late"], 9))
        self.assertEqual(self.successResultOf(self.call("a", lambda: 10)), 10)

    def test_noThread(self) -> None:
        """When there is no thread to be had the call fails, and the next one is made."""

        def refuse(function: object) -> None:
            raise RuntimeError("can't start new thread")

        calls = BlockingCalls(self.reactor, refuse)
        for _ in range(2):
            call = Deferred.fromCoroutine(calls.call("a", 10, lambda: 7))
            self.failureResultOf(call, RuntimeError)
        self.assertEqual(self.reactor.getDelayedCalls(), [])


class RealThreadTests(TestCase):
    """
    With real threads.
    """

    async def test_daemon(self) -> None:
        """
        A call runs in a daemon thread that is not the reactor's, so a stuck one does not
        keep the process from ending.
        """
        thread = await BlockingCalls(reactor).call("a", SECONDS, threading.current_thread)
        self.assertTrue(thread.daemon)
        self.assertIsNot(thread, threading.main_thread())

    async def test_stuck(self) -> None:
        """A stuck call delays no other."""
        calls = BlockingCalls(reactor)
        stuck = threading.Event()
        self.addCleanup(stuck.set)
        first = Deferred.fromCoroutine(calls.call("a", 0.05, stuck.wait))
        self.assertEqual(await calls.call("b", SECONDS, lambda: 5), 5)
        await self.assertFailure(first, CallTimedOut)
