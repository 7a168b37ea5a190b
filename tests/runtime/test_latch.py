"""
Tests of L{usbip_server.runtime.latch}.
"""

from __future__ import annotations

from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fixtures import ALICE, UNO, asked, changed
from usbip_server.model.device import Holder
from usbip_server.model.errors import OperationFailed
from usbip_server.runtime.latch import Latch
from usbip_server.server.devices.operations import Action, Operation


class EventTests(SynchronousTestCase):
    """
    Something that happens once.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.event = Latch(self.clock)

    def test_happens(self) -> None:
        """All who wait go on when it happens."""
        waits = [asked(self.event.within(seconds)) for seconds in (1, 2, 3)]
        for wait in waits:
            self.assertNoResult(wait)
        self.event.fire()
        for wait in waits:
            self.assertTrue(self.successResultOf(wait))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_happenedBefore(self) -> None:
        """Nobody waits for what has happened."""
        self.event.fire()
        for seconds in (5, 0, -1):
            self.assertTrue(self.successResultOf(asked(self.event.within(seconds))))

    def test_tooLate(self) -> None:
        """Each waits as long as it likes, and no longer."""
        short, long = asked(self.event.within(1)), asked(self.event.within(2))
        self.clock.advance(1)
        self.assertFalse(self.successResultOf(short))
        self.assertNoResult(long)
        self.event.fire()
        self.assertTrue(self.successResultOf(long))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_noTime(self) -> None:
        """Who has no time does not wait."""
        for seconds in (0, -1):
            self.assertFalse(self.successResultOf(asked(self.event.within(seconds))))

    def test_cancelled(self) -> None:
        """Who does not want to wait any longer leaves nothing behind."""
        wait = asked(self.event.within(5))
        wait.cancel()
        self.failureResultOf(wait, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.event.fire()

    def test_waitAgainFromWithin(self) -> None:
        """Who goes on may wait for it again."""
        results: list[bool] = []

        async def twice() -> None:
            results.append(await self.event.within(1))
            results.append(await self.event.within(1))

        done = asked(twice())
        self.event.fire()
        self.successResultOf(done)
        self.assertEqual(results, [True, True])


class OperationTests(SynchronousTestCase):
    """
    The attach or detach of a device.
    """

    def setUp(self) -> None:
        self.operation = Operation(Action.ATTACH, UNO, ALICE, Latch(Clock()))

    def test_isAbout(self) -> None:
        """It is about the very device, in whichever state, and not another at its place."""
        self.assertTrue(
            self.operation.isAbout(Action.ATTACH, changed(UNO, holder=Holder(address="192.0.2.9")))
        )
        self.assertFalse(self.operation.isAbout(Action.DETACH, UNO))
        self.assertFalse(self.operation.isAbout(Action.ATTACH, changed(UNO, deviceNumber=9)))
        self.assertFalse(self.operation.isAbout(Action.ATTACH, changed(UNO, busId="1-2")))

    def test_outcome(self) -> None:
        """Its outcome is a device, or an error."""
        self.operation.result = UNO
        self.assertEqual(self.operation.outcome(), UNO)
        self.operation.error = OperationFailed(UNO, "it bit me")
        with self.assertRaises(OperationFailed):
            self.operation.outcome()
