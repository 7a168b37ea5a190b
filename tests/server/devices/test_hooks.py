"""
Tests of L{usbip_server.server.devices.hooks}: which hooks an event runs, and vetoes.
"""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred

from tests.server.corecase import FREE, CoreTestCase
from tests.support.fixtures import STICK, UNO, PatientBackend
from usbip_server.model.devicerules import Hook, Match, Occasion, Rule, Share
from usbip_server.model.errors import OperationFailed
from usbip_server.runtime.hookrunner import HookRunner

EVERYTHING = Hook(
    events=tuple(occasion for occasion in Occasion if occasion is not Occasion.BEFORE_BIND),
    command=("everything",),
)
GATE = Hook(events=(Occasion.BEFORE_BIND,), name="gate", command=("gate", "--api-key", "s3cr3t"))


class HookDispatcherTests(CoreTestCase):
    """
    L{HookDispatcher}.
    """

    devices = (UNO, STICK)

    def setUp(self) -> None:
        super().setUp()
        self.called: list[tuple[str, str, dict[str, Any]]] = []
        self.asked: list[dict[str, Any]] = []
        self.answer: Deferred[str | None] = Deferred()
        self.patch(HookRunner, "call", self.call)
        self.patch(HookRunner, "ask", self.gate)

    def call(self, hook: Hook, busId: str, body: bytes) -> None:
        """Runs in place of a program."""
        self.called.append((str(hook), busId, json.loads(body)))

    async def gate(self, hook: Hook, busId: str, body: bytes) -> str | None:
        """Runs in place of a program that may veto."""
        self.asked.append(json.loads(body))
        return await self.answer

    @property
    def told(self) -> list[tuple[str, str]]:
        """Kind of event and bus id of each call."""
        return [(body["event"], busId) for _, busId, body in self.called]

    def test_events(self) -> None:
        """
        Hooks receive the events that watching clients receive, with all details, and none of
        devices that are plugged in when the daemon starts.
        """
        self.start(hooks=(EVERYTHING,))
        self.assertEqual(self.called, [])
        self.done("attach", lease={"owner": "ci", "ttl": 60})
        self.take()
        self.giveBack()
        self.unplug()
        self.plug()
        self.assertEqual(self.told, self.heard)
        self.assertEqual(
            [kind for kind, _ in self.told],
            ["lease", "bound", "imported", "released", "removed", "added", "bound"],
        )
        imported = self.called[2][2]
        self.assertEqual(imported["holder"]["address"], "192.0.2.8")
        self.assertEqual(imported["data"]["state"], "in_use")
        self.assertIn("seq", imported)

    def test_failed(self) -> None:
        """Hooks receive failures, with the reason."""
        self.backend = PatientBackend(self.devices)
        self.start(hooks=(EVERYTHING,))
        result = self.ask("attach")
        self.backend.calls[0].fail(OperationFailed(UNO, "the kernel says no"))
        self.failureResultOf(result)
        [(_, busId, body)] = self.called
        self.assertEqual((busId, body["event"]), (UNO.busId, "failed"))
        self.assertEqual(body["message"], "the kernel says no")
        self.assertEqual(body["data"]["serial"], UNO.serial)

    def test_ofRule(self) -> None:
        """
        The hooks of a rule receive events of its devices only; hooks receive nothing about a
        device that is never shared. After a reload the new hooks are run.
        """
        self.start(Rule(match=Match(desc="uno"), hooks=(EVERYTHING,)))
        self.done("attach", id=STICK.busId)
        self.assertEqual(self.told, [])
        self.done("attach")
        self.assertEqual(self.told, [("bound", UNO.busId)])
        self.called.clear()
        self.startAnew(Rule(match=Match(bus="*"), share=Share.NEVER), hooks=(EVERYTHING,))
        self.plug()
        self.assertEqual(self.told, [])
        self.startAnew()
        self.reload(hooks=(EVERYTHING,))
        self.done("attach")
        self.assertEqual(self.told, [("bound", UNO.busId)])

    def test_yes(self) -> None:
        """
        A device is bound when its C{before_bind} hook has succeeded, and not before; the hook is
        not run for a device that is bound already.
        """
        self.start(hooks=(GATE,))
        result = self.ask("attach")
        self.assertEqual(self.backend.calls, [])
        self.assertEqual(self.asked[0]["event"], "before_bind")
        self.assertEqual(self.asked[0]["data"]["bus_id"], UNO.busId)
        self.assertIn("192.0.2.7", self.asked[0]["message"])
        self.answer.callback(None)
        self.device(result)
        self.done("attach")
        self.assertEqual(len(self.asked), 1)

    def test_no(self) -> None:
        """
        It is not bound if the hook fails, and the client receives the reason and the name of the
        hook, but neither its command nor its URL.
        """
        self.answer.callback("the bench is locked")
        url = Hook(events=(Occasion.BEFORE_BIND,), url="http://svc:hunter2@192.0.2.1/s3cr3t")
        for hook, which in ((GATE, "the hook `gate`"), (url, "a hook")):
            self.startAnew(hooks=(hook,))
            message = self.refused(OperationFailed, "attach")
            self.assertEqual(message, f"{UNO} is not bound: {which} refuses: the bench is locked")
        self.assertEqual(self.backend.calls, [])
        self.assertIs(self.state(), FREE)

    def test_alwaysAsks(self) -> None:
        """The hook is run too for devices with C{share: always}, and again for a retry."""
        self.answer.callback("no")
        self.start(Rule(match=Match(desc="uno"), share=Share.ALWAYS, hooks=(GATE,)))
        self.assertEqual(len(self.asked), 1)
        self.sleep(3)
        self.assertEqual(len(self.asked), 3)
        self.assertEqual(self.backend.calls, [])
