"""
Tests of L{usbip_server.server.core}: what is done, and how it goes wrong.
"""

from __future__ import annotations

from tests.server.corecase import ATTACH, DETACH, CoreTestCase
from tests.support.fixtures import ALICE, BOB, MOUSE, STICK, UNO, changed
from usbip_server.model.device import DeviceState, Holder
from usbip_server.model.errors import (
    BackendUnavailable,
    DeviceInUse,
    DeviceNotFound,
    NotDone,
    OperationFailed,
    SeveralMatch,
    StillWorking,
)
from usbip_server.model.requests import AttachDevice, DetachDevice, FindDevice, ListDevices


class QuestionTests(CoreTestCase):
    """
    Commands that change nothing.
    """

    def test_list(self) -> None:
        """To list gives the backend's devices."""
        devices = self.successResultOf(self.ask(ListDevices()))
        self.assertEqual(devices, (UNO, STICK, MOUSE))

    def test_find(self) -> None:
        """To find gives the one that is meant, and asks nothing of the backend."""
        self.assertEqual(self.device(self.ask(FindDevice(desc="uno"))), UNO)
        self.assertEqual(self.asked, [])

    def test_notFound(self) -> None:
        """What nothing matches is not found, whatever is to be done with it."""
        for command in (FindDevice, AttachDevice, DetachDevice):
            self.assertIn("id='9-9'", self.error(self.ask(command(id="9-9")), DeviceNotFound))

    def test_several(self) -> None:
        """What is ambiguous is refused and not begun."""
        for command in (FindDevice, AttachDevice, DetachDevice):
            self.error(self.ask(command(id="1-*")), SeveralMatch)
        self.assertEqual(self.asked, [])

    def test_first(self) -> None:
        """Unless any will do."""
        self.assertEqual(self.device(self.ask(FindDevice(id="1-*", first=True))), UNO)

    def test_trouble(self) -> None:
        """While there can be no devices everybody is told why."""
        self.backend.inventory.trouble = "there is no USB here"
        for command in (ListDevices(), ATTACH):
            self.assertEqual(
                self.error(self.ask(command), BackendUnavailable), "there is no USB here"
            )


class OperationTests(CoreTestCase):
    """
    Attach and detach.
    """

    def test_attach(self) -> None:
        """To attach binds the device, and answers with the device after it."""
        result = self.ask(ATTACH)
        self.assertNoResult(result)
        call = self.backend.calls[0]
        self.assertEqual((call.verb, call.device, call.deadline), ("bind", UNO, 30))
        call.succeed()
        self.assertIs(self.device(result).state, DeviceState.BOUND)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_detach(self) -> None:
        """To detach unbinds it."""
        result = self.ask(DETACH)
        self.assertEqual(self.asked, [("unbind", "1-1.4")])
        self.backend.calls[0].succeed()
        self.assertIs(self.device(result).state, DeviceState.FREE)

    def test_again(self) -> None:
        """What was done is asked of the backend anew, which knows if there is anything to do."""
        for _ in range(2):
            result = self.ask(ATTACH)
            self.backend.calls[-1].succeed()
            self.device(result)
        self.assertEqual(len(self.asked), 2)

    def test_sameTwice(self) -> None:
        """Whoever asks for what is in progress waits for that."""
        first, second = self.ask(ATTACH), self.ask(AttachDevice(desc="uno"), BOB)
        self.assertEqual(self.asked, [("bind", "1-1.4")])
        self.backend.calls[0].succeed()
        self.assertEqual(self.device(first), self.device(second))

    def test_sameTwiceFails(self) -> None:
        """Both hear of a failure, and the next to ask begins anew."""
        first, second = self.ask(ATTACH), self.ask(ATTACH, BOB)
        self.backend.calls[0].fail(OperationFailed(UNO, "it bit me"))
        for result in (first, second):
            self.assertEqual(self.error(result, OperationFailed), "it bit me")
        third = self.ask(ATTACH)
        self.assertNoResult(third)
        self.assertEqual(len(self.asked), 2)
        self.backend.calls[1].succeed()
        self.device(third)

    def test_differentDevices(self) -> None:
        """Operations on different devices do not wait for each other."""
        first, second = self.ask(ATTACH), self.ask(AttachDevice(id="1-2"))
        self.assertEqual(self.asked, [("bind", "1-1.4"), ("bind", "1-2")])
        self.backend.calls[1].succeed()
        self.device(second)
        self.assertNoResult(first)
        self.backend.calls[0].succeed()
        self.device(first)

    def test_questionsDoNotWait(self) -> None:
        """While an operation is in progress questions are answered."""
        attach = self.ask(ATTACH)
        self.device(self.ask(FindDevice(id="1-1.4")))
        self.successResultOf(self.ask(ListDevices()))
        self.backend.calls[0].succeed()
        self.device(attach)

    def test_opposite(self) -> None:
        """Whoever asks for the opposite of what is in progress waits until it has ended."""
        attach, detach = self.ask(ATTACH), self.ask(DETACH, BOB)
        self.assertEqual(self.asked, [("bind", "1-1.4")])
        self.backend.calls[0].succeed()
        self.device(attach)
        self.assertEqual(self.asked, [("bind", "1-1.4"), ("unbind", "1-1.4")])
        self.assertIs(self.backend.calls[1].device.state, DeviceState.BOUND)
        self.backend.calls[1].succeed()
        self.assertIs(self.device(detach).state, DeviceState.FREE)

    def test_oppositeAfterFailure(self) -> None:
        """That goes on when it has failed, too."""
        attach, detach = self.ask(ATTACH), self.ask(DETACH)
        self.backend.calls[0].fail(OperationFailed(UNO, "it bit me"))
        self.error(attach, OperationFailed)
        self.backend.calls[1].succeed()
        self.device(detach)

    def test_oppositeGone(self) -> None:
        """If the device is gone by then, it is not found."""
        attach, detach = self.ask(ATTACH), self.ask(DETACH)
        self.backend.inventory.replace([], {"1-1.4"})
        self.backend.calls[0].fail(OperationFailed(UNO, "it is gone"))
        self.error(attach, OperationFailed)
        self.error(detach, DeviceNotFound)

    def test_oppositeTooLong(self) -> None:
        """When that takes too long nothing is done, and the answer names what is in the way."""
        attach, detach = self.ask(ATTACH, ALICE), self.ask(DETACH, BOB)
        self.clock.advance(1.9)
        self.error(attach, StillWorking)
        message = self.error(detach, NotDone)
        self.assertIn("attach", message)
        self.assertIn(str(ALICE), message)
        self.backend.calls[0].succeed()
        self.assertEqual(self.asked, [("bind", "1-1.4")])

    def test_manyInTurn(self) -> None:
        """However many ask for this and that, there is one operation at a time."""
        results = [self.ask(command) for command in (ATTACH, DETACH, ATTACH, DETACH)]
        running = 0
        while any(not result.called for result in results):
            running += 1
            self.assertEqual(len(self.backend.calls), running)
            self.backend.calls[-1].succeed()
        for result in results:
            self.device(result)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class FailureTests(CoreTestCase):
    """
    Operations that go wrong.
    """

    def test_refused(self) -> None:
        """A refusal of the backend's is handed on."""
        result = self.ask(ATTACH)
        self.backend.calls[0].fail(DeviceInUse(changed(UNO, holder=Holder(address="192.0.2.9"))))
        self.assertIn("192.0.2.9", self.error(result, DeviceInUse))

    def test_refreshes(self) -> None:
        """A failure shows the device as it is now."""
        result = self.ask(ATTACH)
        now = changed(UNO, state=DeviceState.ERROR, trouble="stuck")
        self.backend.inventory.replace([now], {"1-1.4"})
        self.backend.calls[0].fail(OperationFailed(UNO, "it bit me"))
        error = self.failureResultOf(result, OperationFailed).value
        assert isinstance(error, OperationFailed)
        self.assertEqual(error.device, now)

    def test_gone(self) -> None:
        """Where there is no device any more it shows the one there was."""
        result = self.ask(ATTACH)
        self.backend.inventory.replace([], {"1-1.4"})
        self.backend.calls[0].fail(OperationFailed(UNO, "it is gone"))
        error = self.failureResultOf(result, OperationFailed).value
        assert isinstance(error, OperationFailed)
        self.assertEqual(error.device, UNO)

    def test_bug(self) -> None:
        """A bug in a backend is a failure to the client and a traceback in the log, and does
        not keep others from the device."""
        result = self.ask(ATTACH)
        self.backend.calls[0].fail(ZeroDivisionError("oops"))
        message = self.error(result, OperationFailed)
        self.assertNotIn("oops", message)
        self.assertIn("attach", message)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        again = self.ask(ATTACH)
        self.backend.calls[1].succeed()
        self.device(again)

    def test_bugUnheard(self) -> None:
        """That is told to whoever asks again, too."""
        result = self.ask(ATTACH)
        self.clock.advance(2)
        self.error(result, StillWorking)
        self.backend.calls[0].fail(ZeroDivisionError("oops"))
        self.error(self.ask(ATTACH), OperationFailed)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
