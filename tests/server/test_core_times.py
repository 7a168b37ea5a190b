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
        """The reply says that the operation is still in progress, and for how long at most."""
        result = self.ask(ATTACH)
        self.clock.advance(1.8)
        message = self.error(result, StillWorking)
        for part in ("attach", str(UNO), "1.8 s", "30 s", "goes on", "ask again"):
            self.assertIn(part, message)

    def test_withinTime(self) -> None:
        """The reply comes within C{timeouts.answer}, including the time of the backend's start."""
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
        """If the operation has succeeded after that, the same request returns the device."""
        self.stillWorking()
        self.backend.calls[0].succeed()
        again = self.ask(ATTACH)
        self.backend.calls[-1].succeed()
        self.assertIs(self.device(again).state, DeviceState.BOUND)

    def test_againMeanwhile(self) -> None:
        """The same request during the operation waits for it, and does not begin it anew."""
        self.stillWorking()
        again = self.ask(ATTACH, BOB)
        self.assertEqual(len(self.asked), 1)
        self.backend.calls[0].succeed()
        self.device(again)

    def test_failure(self) -> None:
        """If the operation has failed after the reply, the same request returns the error, once."""
        self.stillWorking()
        self.backend.calls[0].fail(OperationFailed(UNO, "it bit me"))
        self.assertEqual(self.error(self.ask(ATTACH), OperationFailed), "it bit me")
        self.assertEqual(len(self.asked), 1)
        anew = self.ask(ATTACH)
        self.assertEqual(len(self.asked), 2)
        self.backend.calls[1].succeed()
        self.device(anew)

    def test_oldFailure(self) -> None:
        """An error that is older than C{timeouts.bind} is not returned any more."""
        self.stillWorking()
        self.backend.calls[0].fail(OperationFailed(UNO, "it bit me"))
        self.clock.advance(31)
        again = self.ask(ATTACH, BOB)
        self.assertEqual(len(self.asked), 2)
        self.backend.calls[1].succeed()
        self.device(again)

    def test_failureThatWentWell(self) -> None:
        """An error is not returned if the device is in the requested state by now."""
        self.stillWorking()
        self.backend.calls[0].fail(OperationFailed(UNO, "it bit me"))
        self.backend.inventory.replace([changed(UNO, state=DeviceState.BOUND)], {UNO.busId})
        again = self.ask(ATTACH)
        self.backend.calls[1].succeed()
        self.device(again)

    def test_replugged(self) -> None:
        """An error is not returned for a device that was plugged in since then."""
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
        """The opposite request does not return the error, and is carried out."""
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
        """Nor is it returned for another device at the same port."""
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
        """Requests before the backend has started wait for it."""
        results = [self.ask(ListDevices()), self.ask(FindDevice(id="1-2"))]
        for result in results:
            self.assertNoResult(result)
        self.backend.starting.callback(None)
        for result in results:
            self.successResultOf(result)
        self.successResultOf(self.start)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_tooLong(self) -> None:
        """They wait for C{timeouts.answer} at most."""
        result = self.ask(ListDevices())
        self.clock.advance(1.9)
        self.assertIn("still starting", self.error(result, BackendUnavailable))
        self.backend.starting.callback(None)
        self.successResultOf(self.ask(ListDevices()))

    def test_broken(self) -> None:
        """If the backend does not start, requests get an error, and the log contains the reason."""
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
        """Without operations in progress the backend is stopped at once."""
        self.successResultOf(asked(self.core.stop()))
        self.assertEqual(self.backend.stopped, 1)

    def test_refuses(self) -> None:
        """No more operations begin."""
        asked(self.core.stop())
        for command in (ListDevices(), ATTACH):
            self.assertIn("stopping", self.error(self.ask(command), BackendUnavailable))
        self.assertEqual(self.asked, [])

    def test_waits(self) -> None:
        """Operations in progress end first, and their clients get the outcome."""
        result = self.ask(ATTACH)
        stop = asked(self.core.stop())
        self.assertNoResult(stop)
        self.assertEqual(self.backend.stopped, 0)
        self.backend.calls[0].succeed()
        self.device(result)
        self.successResultOf(stop)
        self.assertEqual(self.backend.stopped, 1)

    def test_waitsForAll(self) -> None:
        """That applies to all operations, and C{timeouts.stop} is for all of them together."""
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
        """An operation that does not end within C{timeouts.stop} is abandoned."""
        result = self.ask(ATTACH)
        stop = asked(self.core.stop())
        self.clock.advance(4.9)
        self.assertNoResult(stop)
        self.clock.advance(0.2)
        self.successResultOf(stop)
        self.assertEqual(self.backend.stopped, 1)
        self.error(result, StillWorking)

    def test_oppositeWaiting(self) -> None:
        """A request that waits for an operation to end is not carried out."""
        attach, detach = self.ask(ATTACH), self.ask(DETACH)
        asked(self.core.stop())
        self.backend.calls[0].succeed()
        self.device(attach)
        self.error(detach, BackendUnavailable)
        self.assertEqual(len(self.asked), 1)

    def test_withoutStart(self) -> None:
        """C{stop} may be called without C{start}."""
        backend = PatientBackend(started=False)
        core = Core(backend, self.clock, LiveSettings(Settings(timeouts=self.timeouts)))
        self.successResultOf(asked(core.stop()))
        self.assertEqual(backend.stopped, 1)
