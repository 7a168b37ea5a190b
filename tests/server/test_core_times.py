"""
Tests of L{usbip_server.server.core}: what takes its time, the start and the end.
"""

from __future__ import annotations

from tests.server.corecase import ATTACH, DETACH, CoreTestCase
from tests.support.fixtures import ALICE, BOB, EVERYBODY, UNO, PatientBackend, asked, changed
from usbip_server.model.device import DeviceState
from usbip_server.model.errors import (
    BackendUnavailable,
    OperationFailed,
    StillWorking,
)
from usbip_server.model.policy import Principal
from usbip_server.model.requests import AttachDevice, FindDevice, ListDevices
from usbip_server.server.config import LiveSettings, Settings
from usbip_server.server.core import Core


class AnswerTimeTests(CoreTestCase):
    """
    What takes longer than an answer may.
    """

    def stillWorking(self, principal: Principal = ALICE) -> None:
        """Attach, until the answer is that it takes longer."""
        result = self.ask(ATTACH, principal)
        self.clock.advance(1.7)
        self.assertNoResult(result)
        self.clock.advance(0.2)
        self.error(result, StillWorking)

    def test_message(self) -> None:
        """The answer says that it goes on, and for how long."""
        result = self.ask(ATTACH)
        self.clock.advance(1.8)
        message = self.error(result, StillWorking)
        for part in ("attach", str(UNO), "1.8 s", "30 s", "goes on", "ask again"):
            self.assertIn(part, message)

    def test_withinTime(self) -> None:
        """Two seconds are all that old clients wait; the time for the backend's start counts."""
        self.backend = PatientBackend(started=False)
        settings = LiveSettings(Settings(access=EVERYBODY, timeouts=self.timeouts))
        self.core = Core(self.backend, self.clock, settings)
        asked(self.core.start())
        result = self.ask(ATTACH)
        self.clock.advance(1)
        self.backend.starting.callback(None)
        self.assertNoResult(result)
        self.clock.advance(0.81)
        self.error(result, StillWorking)

    def test_success(self) -> None:
        """Whoever asks again when it went well is answered with the device."""
        self.stillWorking()
        self.backend.calls[0].succeed()
        again = self.ask(ATTACH)
        self.backend.calls[-1].succeed()
        self.assertIs(self.device(again).state, DeviceState.BOUND)

    def test_againMeanwhile(self) -> None:
        """Whoever asks again while it goes on waits for it, and does not begin it anew."""
        self.stillWorking()
        again = self.ask(ATTACH, BOB)
        self.assertEqual(len(self.asked), 1)
        self.backend.calls[0].succeed()
        self.device(again)

    def test_failure(self) -> None:
        """Whoever asks again when it went wrong hears of that, once."""
        self.stillWorking()
        self.backend.calls[0].fail(OperationFailed(UNO, "it bit me"))
        self.assertEqual(self.error(self.ask(ATTACH), OperationFailed), "it bit me")
        self.assertEqual(len(self.asked), 1)
        anew = self.ask(ATTACH)
        self.assertEqual(len(self.asked), 2)
        self.backend.calls[1].succeed()
        self.device(anew)

    def test_oldFailure(self) -> None:
        """A failure that nobody heard is no news any more when it has become old."""
        self.stillWorking()
        self.backend.calls[0].fail(OperationFailed(UNO, "it bit me"))
        self.clock.advance(31)
        again = self.ask(ATTACH, BOB)
        self.assertEqual(len(self.asked), 2)
        self.backend.calls[1].succeed()
        self.device(again)

    def test_failureThatWentWell(self) -> None:
        """A failure after which the device is as it was to be is no news either."""
        self.stillWorking()
        self.backend.calls[0].fail(OperationFailed(UNO, "it bit me"))
        self.backend.inventory.replace([changed(UNO, state=DeviceState.BOUND)], {UNO.busId})
        again = self.ask(ATTACH)
        self.backend.calls[1].succeed()
        self.device(again)

    def test_replugged(self) -> None:
        """
        Who asks for the device that was plugged in meanwhile does not get what became of
        the one before it, and a failure carries the device that it is about.
        """
        first = self.ask(ATTACH)
        other = changed(UNO, deviceNumber=UNO.deviceNumber + 1, serial="OTHER")
        self.backend.inventory.replace([other], {UNO.busId})
        second = self.ask(AttachDevice(serial="OTHER"), BOB)
        self.backend.calls[0].fail(OperationFailed(UNO, "it is gone"))
        failure = self.failureResultOf(first, OperationFailed)
        self.assertEqual(failure.value.device.serial, UNO.serial)
        self.backend.calls[1].succeed()
        self.assertEqual(self.device(second).serial, "OTHER")

    def test_failureAndOpposite(self) -> None:
        """Whoever asks for the opposite then is not told of it, and has it done."""
        self.stillWorking()
        self.backend.calls[0].fail(OperationFailed(UNO, "it bit me"))
        detach = self.ask(DETACH)
        self.backend.calls[1].succeed()
        self.device(detach)
        anew = self.ask(ATTACH)
        self.assertEqual(len(self.asked), 3)
        self.backend.calls[2].succeed()
        self.device(anew)

    def test_failureAndAnotherDevice(self) -> None:
        """Nor is somebody who asks for another device that is plugged in there now."""
        self.stillWorking()
        self.backend.calls[0].fail(OperationFailed(UNO, "it bit me"))
        other = changed(UNO, deviceNumber=9)
        self.backend.inventory.replace([other], {"1-1.4"})
        anew = self.ask(ATTACH)
        self.assertEqual(self.backend.calls[1].device, other)
        self.backend.calls[1].succeed()
        self.device(anew)


class StartTests(CoreTestCase):
    """
    Before the backend is ready.
    """

    started = False

    def test_waits(self) -> None:
        """Requests that come before the backend is ready wait for it."""
        results = [self.ask(ListDevices()), self.ask(FindDevice(id="1-2"))]
        for result in results:
            self.assertNoResult(result)
        self.backend.starting.callback(None)
        for result in results:
            self.successResultOf(result)
        self.successResultOf(self.start)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_tooLong(self) -> None:
        """They do not wait longer than an answer may take."""
        result = self.ask(ListDevices())
        self.clock.advance(1.9)
        self.assertIn("still starting", self.error(result, BackendUnavailable))
        self.backend.starting.callback(None)
        self.successResultOf(self.ask(ListDevices()))

    def test_broken(self) -> None:
        """If the backend does not start requests are told so, and the daemon's log why."""
        result = self.ask(ListDevices())
        self.backend.starting.errback(ZeroDivisionError("bug"))
        self.failureResultOf(self.start, ZeroDivisionError)
        for told in (result, self.ask(ListDevices()), self.ask(ATTACH)):
            self.assertIn("does not start", self.error(told, BackendUnavailable))


class StopTests(CoreTestCase):
    """
    The end.
    """

    def test_idle(self) -> None:
        """Where nothing is in progress the backend is stopped at once."""
        self.successResultOf(asked(self.core.stop()))
        self.assertEqual(self.backend.stopped, 1)

    def test_refuses(self) -> None:
        """Nothing more is begun."""
        asked(self.core.stop())
        for command in (ListDevices(), ATTACH):
            self.assertIn("stopping", self.error(self.ask(command), BackendUnavailable))
        self.assertEqual(self.asked, [])

    def test_waits(self) -> None:
        """What is in progress comes to its end first, and is answered."""
        result = self.ask(ATTACH)
        stop = asked(self.core.stop())
        self.assertNoResult(stop)
        self.assertEqual(self.backend.stopped, 0)
        self.backend.calls[0].succeed()
        self.device(result)
        self.successResultOf(stop)
        self.assertEqual(self.backend.stopped, 1)

    def test_waitsForAll(self) -> None:
        """That is so for every operation, and the time is for all of them together."""
        results = [self.ask(AttachDevice(id=busId)) for busId in ("1-1.4", "1-2", "2-10")]
        stop = asked(self.core.stop())
        self.clock.advance(1)
        self.backend.calls[1].succeed()
        self.device(results[1])
        self.clock.advance(3)
        self.backend.calls[0].succeed()
        self.assertNoResult(stop)
        self.clock.advance(1.1)
        self.successResultOf(stop)
        for result in (results[0], results[2]):
            self.error(result, StillWorking)

    def test_waitsNotForEver(self) -> None:
        """What does not end is left behind."""
        result = self.ask(ATTACH)
        stop = asked(self.core.stop())
        self.clock.advance(4.9)
        self.assertNoResult(stop)
        self.clock.advance(0.2)
        self.successResultOf(stop)
        self.assertEqual(self.backend.stopped, 1)
        self.error(result, StillWorking)

    def test_oppositeWaiting(self) -> None:
        """What waits for an operation to end is not begun after it."""
        attach, detach = self.ask(ATTACH), self.ask(DETACH)
        asked(self.core.stop())
        self.backend.calls[0].succeed()
        self.device(attach)
        self.error(detach, BackendUnavailable)
        self.assertEqual(len(self.asked), 1)

    def test_withoutStart(self) -> None:
        """It may be stopped without having been started."""
        backend = PatientBackend(started=False)
        core = Core(backend, self.clock, LiveSettings(Settings(timeouts=self.timeouts)))
        self.successResultOf(asked(core.stop()))
        self.assertEqual(backend.stopped, 1)
