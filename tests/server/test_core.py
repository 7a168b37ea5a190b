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
        """C{list} returns the backend's devices."""
        devices = self.successResultOf(self.ask(ListDevices()))
        self.assertEqual(devices, (UNO, STICK, MOUSE))

    def test_find(self) -> None:
        """C{find} returns the selected device, and calls nothing in the backend."""
        self.assertEqual(self.device(self.ask(FindDevice(desc="uno"))), UNO)
        self.assertEqual(self.asked, [])

    def test_notFound(self) -> None:
        """If nothing matches, every command fails with C{DeviceNotFound}."""
        for command in (FindDevice, AttachDevice, DetachDevice):
            self.assertIn("id='9-9'", self.error(self.ask(command(id="9-9")), DeviceNotFound))

    def test_several(self) -> None:
        """Ambiguous criteria are refused, and no operation begins."""
        for command in (FindDevice, AttachDevice, DetachDevice):
            self.error(self.ask(command(id="1-*")), SeveralMatch)
        self.assertEqual(self.asked, [])

    def test_first(self) -> None:
        """With C{first} the first device in bus order is used."""
        self.assertEqual(self.device(self.ask(FindDevice(id="1-*", first=True))), UNO)

    def test_trouble(self) -> None:
        """While there can be no devices every command fails with the reason."""
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
        """C{attach} binds the device, and returns it as it is then."""
        result = self.ask(ATTACH)
        self.assertNoResult(result)
        call = self.backend.calls[0]
        self.assertEqual((call.verb, call.device, call.deadline), ("bind", UNO, 30))
        call.succeed()
        self.assertIs(self.device(result).state, DeviceState.BOUND)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_detach(self) -> None:
        """C{detach} unbinds it."""
        result = self.ask(DETACH)
        self.assertEqual(self.asked, [("unbind", "1-1.4")])
        self.backend.calls[0].succeed()
        self.assertIs(self.device(result).state, DeviceState.FREE)

    def test_again(self) -> None:
        """
        A repeated command is passed to the backend again, which determines whether there is
        anything to do.
        """
        for _ in range(2):
            result = self.ask(ATTACH)
            self.backend.calls[-1].succeed()
            self.device(result)
        self.assertEqual(len(self.asked), 2)

    def test_sameTwice(self) -> None:
        """A client that requests an operation in progress waits for it."""
        first, second = self.ask(ATTACH), self.ask(AttachDevice(desc="uno"), BOB)
        self.assertEqual(self.asked, [("bind", "1-1.4")])
        self.backend.calls[0].succeed()
        self.assertEqual(self.device(first), self.device(second))

    def test_sameTwiceFails(self) -> None:
        """Both clients receive an error, and the next request begins a new operation."""
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
        """C{list} and C{find} do not wait for operations."""
        attach = self.ask(ATTACH)
        self.device(self.ask(FindDevice(id="1-1.4")))
        self.successResultOf(self.ask(ListDevices()))
        self.backend.calls[0].succeed()
        self.device(attach)

    def test_opposite(self) -> None:
        """The opposite of an operation in progress waits until it has ended."""
        attach, detach = self.ask(ATTACH), self.ask(DETACH, BOB)
        self.assertEqual(self.asked, [("bind", "1-1.4")])
        self.backend.calls[0].succeed()
        self.device(attach)
        self.assertEqual(self.asked, [("bind", "1-1.4"), ("unbind", "1-1.4")])
        self.assertIs(self.backend.calls[1].device.state, DeviceState.BOUND)
        self.backend.calls[1].succeed()
        self.assertIs(self.device(detach).state, DeviceState.FREE)

    def test_oppositeAfterFailure(self) -> None:
        """It is carried out too if that operation has failed."""
        attach, detach = self.ask(ATTACH), self.ask(DETACH)
        self.backend.calls[0].fail(OperationFailed(UNO, "it bit me"))
        self.error(attach, OperationFailed)
        self.backend.calls[1].succeed()
        self.device(detach)

    def test_oppositeGone(self) -> None:
        """If the device is unplugged by then, it is not found."""
        attach, detach = self.ask(ATTACH), self.ask(DETACH)
        self.backend.inventory.replace([], {"1-1.4"})
        self.backend.calls[0].fail(OperationFailed(UNO, "it is gone"))
        self.error(attach, OperationFailed)
        self.error(detach, DeviceNotFound)

    def test_oppositeTooLong(self) -> None:
        """
        If the wait takes too long nothing is done, and the error names the operation in
        progress.
        """
        attach, detach = self.ask(ATTACH, ALICE), self.ask(DETACH, BOB)
        self.clock.advance(1.9)
        self.error(attach, StillWorking)
        message = self.error(detach, NotDone)
        self.assertIn("attach", message)
        self.assertIn(str(ALICE), message)
        self.backend.calls[0].succeed()
        self.assertEqual(self.asked, [("bind", "1-1.4")])

    def test_manyInTurn(self) -> None:
        """With many different requests, one operation at a time is in progress on a device."""
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
        """An error of the backend is returned to the client."""
        result = self.ask(ATTACH)
        self.backend.calls[0].fail(DeviceInUse(changed(UNO, holder=Holder(address="192.0.2.9"))))
        self.assertIn("192.0.2.9", self.error(result, DeviceInUse))

    def test_refreshes(self) -> None:
        """An error contains the device as it is by then."""
        result = self.ask(ATTACH)
        now = changed(UNO, state=DeviceState.ERROR, trouble="stuck")
        self.backend.inventory.replace([now], {"1-1.4"})
        self.backend.calls[0].fail(OperationFailed(UNO, "it bit me"))
        error = self.failureResultOf(result, OperationFailed).value
        assert isinstance(error, OperationFailed)
        self.assertEqual(error.device, now)

    def test_gone(self) -> None:
        """If the device is unplugged by then, it contains the device as it was."""
        result = self.ask(ATTACH)
        self.backend.inventory.replace([], {"1-1.4"})
        self.backend.calls[0].fail(OperationFailed(UNO, "it is gone"))
        error = self.failureResultOf(result, OperationFailed).value
        assert isinstance(error, OperationFailed)
        self.assertEqual(error.device, UNO)

    def test_bug(self) -> None:
        """
        A bug in a backend is a failure to the client and a traceback in the log, and the
        device can be used further.
        """
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
        """
        If it occurs after the reply, the next client with the same request receives the
        failure.
        """
        result = self.ask(ATTACH)
        self.clock.advance(2)
        self.error(result, StillWorking)
        self.backend.calls[0].fail(ZeroDivisionError("oops"))
        self.error(self.ask(ATTACH), OperationFailed)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
