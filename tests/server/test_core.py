"""
Tests of L{usbip_server.server.core} and L{usbip_server.server.devices.operations}: requests and
operations, their time limits, the start and the stop.
"""

from __future__ import annotations

from tests.server.corecase import BOUND, ERROR, FREE, Client, PatientCoreTestCase
from tests.support.fixtures import ALICE, BOB, DEVICES, UNO, PatientBackend, asked, changed
from usbip_server.model.device import Holder
from usbip_server.model.errors import (
    BackendUnavailable,
    DeviceInUse,
    DeviceNotFound,
    NotDone,
    OperationFailed,
    SeveralMatch,
    StillWorking,
)
from usbip_server.server.config import LiveSettings
from usbip_server.server.core import Core


class StartedTestCase(PatientCoreTestCase):
    """
    A core that has started.
    """

    devices = DEVICES

    def setUp(self) -> None:
        super().setUp()
        self.start()


class RequestTests(StartedTestCase):
    """
    Which device a request is about.
    """

    def test_questions(self) -> None:
        """C{list} and C{find} return devices, begin no operation, and wait for none."""
        attach = self.ask("attach")
        self.assertEqual(self.listed(), DEVICES)
        for keys in ({"desc": "uno"}, {"id": "1-*", "first": True}):
            self.assertEqual(self.done("find", **keys), UNO)
        self.assertEqual(self.verbs, ["bind"])
        self.succeed()
        self.device(attach)

    def test_notOne(self) -> None:
        """If no device or several match, every command is refused and nothing begins."""
        for command in ("find", "attach", "detach"):
            self.assertIn("id='9-9'", self.refused(DeviceNotFound, command, id="9-9"))
            self.refused(SeveralMatch, command, id="1-*")
        self.assertEqual(self.verbs, [])

    def test_trouble(self) -> None:
        """While there can be no devices every command fails with the reason."""
        self.backend.inventory.trouble = "there is no USB here"
        for command in ("list", "attach"):
            self.assertEqual(self.refused(BackendUnavailable, command), "there is no USB here")


class OperationTests(StartedTestCase):
    """
    Attach and detach: one operation at a time on each device.
    """

    def test_outcome(self) -> None:
        """
        C{attach} binds and C{detach} unbinds, within C{timeouts.bind}; the device is returned as
        it is then. A repeated command is passed to the backend again.
        """
        for command, verb, state in 2 * [("attach", "bind", BOUND)] + [("detach", "unbind", FREE)]:
            before = self.present()
            result = self.ask(command)
            self.assertNoResult(result)
            call = self.backend.calls[-1]
            self.assertEqual((call.verb, call.device, call.deadline), (verb, before, 30))
            call.succeed()
            self.assertIs(self.device(result).state, state)
        self.assertEqual(len(self.verbs), 3)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_sameRequest(self) -> None:
        """
        Clients that request an operation in progress receive its outcome; after a failure the
        next request begins a new one.
        """
        for error in (OperationFailed(UNO, "it bit me"), None):
            results = [self.ask("attach"), self.ask("attach", Client(BOB), desc="uno")]
            for result in results:
                self.assertNoResult(result)
            if error is None:
                self.succeed()
                self.assertEqual(self.device(results[0]), self.device(results[1]))
            else:
                self.fail_(-1, error)
                messages = [self.error(OperationFailed, result) for result in results]
                self.assertEqual(messages, 2 * ["it bit me"])
        self.assertEqual(self.verbs, ["bind", "bind"])

    def test_differentDevices(self) -> None:
        """Operations on different devices do not wait for each other."""
        first, second = self.ask("attach"), self.ask("attach", id="1-2")
        self.assertEqual([call.device.busId for call in self.backend.calls], ["1-1.4", "1-2"])
        self.succeed(1)
        self.device(second)
        self.assertNoResult(first)
        self.succeed(0)
        self.device(first)

    def test_opposite(self) -> None:
        """The opposite of an operation in progress is carried out after it, however it ends."""
        for error in (None, OperationFailed(UNO, "it bit me")):
            self.startAnew()
            attach, detach = self.ask("attach"), self.ask("detach", Client(BOB))
            self.assertEqual(self.verbs, ["bind"])
            if error is None:
                self.succeed()
                self.device(attach)
            else:
                self.fail_(-1, error)
                self.error(OperationFailed, attach)
            self.assertEqual(self.verbs, ["bind", "unbind"])
            self.assertIs(self.backend.calls[1].device.state, FREE if error else BOUND)
            self.succeed()
            self.assertIs(self.device(detach).state, FREE)

    def test_oppositeGone(self) -> None:
        """If the device is unplugged by then, it is not found."""
        attach, detach = self.ask("attach"), self.ask("detach")
        self.unplug()
        self.fail_()
        self.error(OperationFailed, attach)
        self.error(DeviceNotFound, detach)

    def test_oppositeTooLong(self) -> None:
        """If that takes too long nothing is done; the error names the operation in progress."""
        attach, detach = self.ask("attach", Client(ALICE)), self.ask("detach", Client(BOB))
        self.clock.advance(1.9)
        self.error(StillWorking, attach)
        message = self.error(NotDone, detach)
        for part in ("attach", str(ALICE)):
            self.assertIn(part, message)
        self.succeed()
        self.assertEqual(self.verbs, ["bind"])

    def test_manyInTurn(self) -> None:
        """With many different requests, one operation at a time is in progress on a device."""
        results = [self.ask(command) for command in 2 * ("attach", "detach")]
        running = 0
        while any(not result.called for result in results):
            running += 1
            self.assertEqual(len(self.verbs), running)
            self.succeed()
        for result in results:
            self.device(result)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class FailureTests(StartedTestCase):
    """
    Operations that fail.
    """

    def test_deviceInError(self) -> None:
        """
        An error contains the device as it is by then, or as it was if it is gone; the error for a
        device in use names the holder.
        """
        now = changed(UNO, state=ERROR, trouble="stuck")
        for there, expected in (((now,), now), ((), UNO)):
            self.startAnew()
            result = self.ask("attach")
            self.backend.inventory.replace(there, {UNO.busId})
            self.fail_()
            error = self.failureResultOf(result, OperationFailed).value
            assert isinstance(error, OperationFailed)
            self.assertEqual(error.device, expected)
        self.become()
        result = self.ask("attach")
        self.fail_(-1, DeviceInUse(changed(UNO, holder=Holder(address="192.0.2.9"))))
        self.assertIn("192.0.2.9", self.error(DeviceInUse, result))

    def test_bug(self) -> None:
        """
        A bug in a backend is a failure to the client and a traceback in the log, and the device
        can be used further; after the reply, it is the result of the next such request.
        """
        for seconds in (0, 2):
            result = self.ask("attach")
            self.clock.advance(seconds)
            self.fail_(-1, ZeroDivisionError("oops"))
            if seconds:
                self.error(StillWorking, result)
                result = self.ask("attach")
            message = self.error(OperationFailed, result)
            self.assertNotIn("oops", message)
            self.assertIn("attach", message)
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        again = self.ask("attach")
        self.succeed()
        self.device(again)


class AnswerTimeTests(StartedTestCase):
    """
    Operations that take longer than C{timeouts.answer}.
    """

    def stillWorking(self) -> None:
        """Attach, until the reply is that it takes longer."""
        result = self.ask("attach")
        self.clock.advance(1.7)
        self.assertNoResult(result)
        self.clock.advance(0.2)
        message = self.error(StillWorking, result)
        for part in ("attach", str(UNO), "1.8 s", "30 s", "goes on", "ask again"):
            self.assertIn(part, message)

    def begins(self, command: str = "attach") -> None:
        """A request begins a new operation, which succeeds."""
        before = len(self.verbs)
        result = self.ask(command)
        self.assertEqual(len(self.verbs), before + 1)
        self.succeed()
        self.device(result)

    def test_withinTime(self) -> None:
        """The reply comes within C{timeouts.answer}, including the time of the backend's start."""
        self.backend = PatientBackend(started=False)
        self.begin()
        result = self.ask("attach")
        self.clock.advance(1)
        self.backend.starting.callback(None)
        self.assertNoResult(result)
        self.clock.advance(0.81)
        self.error(StillWorking, result)

    def test_success(self) -> None:
        """The same request during the operation waits for it; after a success it is repeated."""
        self.stillWorking()
        again = self.ask("attach", Client(BOB))
        self.assertEqual(len(self.verbs), 1)
        self.succeed()
        self.device(again)
        self.begins()

    def test_failure(self) -> None:
        """If the operation has failed after the reply, the same request returns the error, once."""
        self.stillWorking()
        self.fail_(0, OperationFailed(UNO, "it bit me"))
        self.assertEqual(self.refused(OperationFailed, "attach"), "it bit me")
        self.assertEqual(len(self.verbs), 1)
        self.begins()

    def test_outdatedFailure(self) -> None:
        """
        The error is not returned after C{timeouts.bind}, nor if the device is in the requested
        state by now, is another device at the same port, or was detached meanwhile.
        """
        for meanwhile in (
            lambda: self.begins("detach"),
            lambda: self.clock.advance(31),
            lambda: self.become(state=BOUND),
            lambda: self.become(deviceNumber=9),
        ):
            self.startAnew()
            self.stillWorking()
            self.fail_()
            meanwhile()
            self.begins()
            self.assertEqual(
                self.backend.calls[-1].device.deviceNumber, self.present().deviceNumber
            )

    def test_replugged(self) -> None:
        """The error for an unplugged device is not the result for its successor at the port."""
        first = self.ask("attach")
        self.become(deviceNumber=UNO.deviceNumber + 1, serial="OTHER")
        second = self.ask("attach", Client(BOB), serial="OTHER")
        self.fail_(0)
        failure = self.failureResultOf(first, OperationFailed)
        self.assertEqual(failure.value.device.serial, UNO.serial)
        self.succeed(1)
        self.assertEqual(self.device(second).serial, "OTHER")


class StartTests(PatientCoreTestCase):
    """
    Requests before the backend has started.
    """

    def setUp(self) -> None:
        super().setUp()
        self.backend = PatientBackend(DEVICES, started=False)
        self.starting = self.begin()

    def test_waits(self) -> None:
        """They wait for the backend."""
        results = [self.ask("list"), self.ask("find")]
        for result in results:
            self.assertNoResult(result)
        self.backend.starting.callback(None)
        for result in results:
            self.successResultOf(result)
        self.successResultOf(self.starting)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_tooLong(self) -> None:
        """They wait for C{timeouts.answer} at most."""
        result = self.ask("list")
        self.clock.advance(1.9)
        self.assertIn("still starting", self.error(BackendUnavailable, result))
        self.backend.starting.callback(None)
        self.listed()

    def test_broken(self) -> None:
        """If the backend does not start, requests get an error, and C{start} fails."""
        result = self.ask("list")
        self.backend.starting.errback(ZeroDivisionError("bug"))
        self.failureResultOf(self.starting, ZeroDivisionError)
        for told in (result, self.ask("list"), self.ask("attach")):
            self.assertIn("does not start", self.error(BackendUnavailable, told))


class StopTests(StartedTestCase):
    """
    The daemon stops.
    """

    def test_idle(self) -> None:
        """Without operations the backend is stopped at once, and no more operations begin."""
        self.stop()
        self.assertEqual(self.backend.stopped, 1)
        for command in ("list", "attach"):
            self.assertIn("stopping", self.refused(BackendUnavailable, command))
        self.assertEqual(self.verbs, [])

    def test_waits(self) -> None:
        """
        Operations in progress end first, and their clients get the outcome; a request that
        waits for one of them is not carried out.
        """
        attach, detach = self.ask("attach"), self.ask("detach")
        stop = asked(self.core.stop())
        self.assertNoResult(stop)
        self.assertEqual(self.backend.stopped, 0)
        self.succeed()
        self.device(attach)
        self.error(BackendUnavailable, detach)
        self.successResultOf(stop)
        self.assertEqual((self.backend.stopped, self.verbs), (1, ["bind"]))

    def test_waitsNotForEver(self) -> None:
        """
        Operations that have not ended within C{timeouts.stop}, which is for all of them
        together, are abandoned.
        """
        results = [self.ask("attach", id=device.busId) for device in DEVICES]
        stop = asked(self.core.stop())
        self.clock.advance(1)
        self.succeed(1)
        self.device(results[1])
        self.clock.advance(3)
        self.succeed(0)
        self.assertNoResult(stop)
        self.clock.advance(1.1)
        self.successResultOf(stop)
        self.assertEqual(self.backend.stopped, 1)
        for result in (results[0], results[2]):
            self.error(StillWorking, result)

    def test_withoutStart(self) -> None:
        """C{stop} may be called without C{start}."""
        backend = PatientBackend(started=False)
        core = Core(backend, self.clock, LiveSettings(self.settings()))
        self.successResultOf(asked(core.stop()))
        self.assertEqual(backend.stopped, 1)
