"""
Tests of L{usbip_server.runtime.repeats}. How it counts is shown by
L{tests.server.access.test_audit}.
"""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.logger import Logger, LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from usbip_server.runtime.repeats import IN_FULL, WINDOW, Warnings


class WarningsTests(SynchronousTestCase):
    """
    L{Warnings}.
    """

    def test_repeated(self) -> None:
        """
        The first warnings of a kind within a minute are logged, of the others the last one with
        their number: at the end of the minute, or of the daemon.
        """
        clock = Clock()
        warnings = Warnings(Logger(), clock)
        for end in (lambda: clock.advance(WINDOW), warnings.stop):
            with capturedLogs() as events:
                for number in range(1000):
                    warnings.warn("{client} is odd", client=f"192.0.2.{number % 256}")
                    warnings.warn("{client} is late", client="192.0.2.1")
                self.assertEqual(len(events), 2 * IN_FULL)
                end()
                lines = [formatEvent(event) for event in events[2 * IN_FULL :]]
                more = f"; {1000 - IN_FULL} more such warnings"
                self.assertEqual(lines, [f"192.0.2.231 is odd{more}", f"192.0.2.1 is late{more}"])
                self.assertEqual({event["log_level"] for event in events}, {LogLevel.warn})
        self.assertEqual(clock.getDelayedCalls(), [])
