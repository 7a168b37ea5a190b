"""
Tests of L{usbip_server.runtime.monotonic}.
"""

from __future__ import annotations

import time

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from usbip_server.runtime.monotonic import CHECK_SECONDS, SystemClockWatch, useMonotonicTime


class MonotonicTimeTests(SynchronousTestCase):
    """
    L{useMonotonicTime}.
    """

    def setUp(self) -> None:
        self.reactor = EPollReactor()
        self.addCleanup(self.reactor._poller.close)
        self.reactor.seconds = time.time

    def test_timers(self) -> None:
        """Timers expire by the monotonic clock; a second call changes nothing."""
        useMonotonicTime(self.reactor)
        call = self.reactor.callLater(7200, lambda: None)
        self.assertLessEqual(time.monotonic(), call.getTime())
        self.assertLessEqual(call.getTime(), time.monotonic() + 7200)
        useMonotonicTime(self.reactor)

    def test_afterATimer(self) -> None:
        """A reactor that has timers is refused."""
        self.reactor.callLater(1, lambda: None)
        self.assertRaises(AssertionError, useMonotonicTime, self.reactor)


class SystemClockWatchTests(SynchronousTestCase):
    """
    L{SystemClockWatch}.
    """

    def test_set(self) -> None:
        """It reports each time that the clock was set, until it is accepted, but not that the
        clock is adjusted slowly; it can be started twice and stopped twice."""
        clock, offset, accepts = Clock(), [1e9], [True]
        reported: list[float] = []

        def onSet() -> bool:
            reported.append(offset[0])
            return accepts[0]

        watch = SystemClockWatch(clock, lambda: clock.seconds() + offset[0], onSet)
        watch.stop()
        for _ in range(2):
            watch.start()
        for by, isAccepted, expected in (
            (0.0, True, 0),
            (1.0, True, 0),
            (-7200.0, True, 1),
            (0.0, True, 0),
            (86400.0, False, 1),
            (0.0, True, 1),
            (0.0, True, 0),
        ):
            reported.clear()
            offset[0] += by
            accepts[0] = isAccepted
            clock.advance(CHECK_SECONDS)
            self.assertEqual(len(reported), expected, by)
        offset[0] += 60
        for _ in range(2):
            watch.stop()
        self.assertEqual((len(reported), clock.getDelayedCalls()), (1, []))
