"""
Tests of L{usbip_server.server.access.audit}.
"""

from __future__ import annotations

import json
from io import StringIO
from typing import Any

import msgspec
from twisted.logger import LogLevel, capturedLogs, formatEvent, textFileLogObserver
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fixtures import ALICE, UNO, changed
from usbip_server.model.device import Lease
from usbip_server.model.errors import (
    BackendUnavailable,
    DeviceAwaited,
    DeviceInUse,
    DeviceLeased,
    DeviceMounted,
    DeviceNotFound,
    InvalidRequest,
    NotAllowed,
    NotDone,
    NotLeased,
    OperationFailed,
    OperationTimedOut,
    SeveralMatch,
    ShareError,
    SnapshotNeeded,
    StillWorking,
)
from usbip_server.model.policy import LOCAL, Principal, Right
from usbip_server.model.requests import (
    AttachDevice,
    DetachDevice,
    FindDevice,
    KickClient,
    LeaseRequest,
    ListDevices,
    RenewLease,
    WatchDevices,
)
from usbip_server.server.access.audit import ASKED, CHANGING, RESULT_OF, Audit

SECRET = "usbip_secret"

ERRORS: dict[str, tuple[ShareError, ...]] = {
    "pending": (StillWorking(UNO, "it takes long"),),
    "refused": (
        NotAllowed("you may not"),
        NotAllowed("you may not have it", UNO),
        DeviceInUse(UNO),
        DeviceLeased(UNO, Lease(owner="bob", address="192.0.2.8"), 5),
        DeviceAwaited(UNO, 2),
        DeviceMounted(UNO, ["/dev/sda1 is mounted on /"]),
        NotLeased(UNO),
    ),
    "not_found": (DeviceNotFound("there is none"),),
    "multiple_matches": (SeveralMatch("bus=1", (UNO, UNO)),),
    "failed": (
        OperationFailed(UNO, "it broke"),
        OperationTimedOut(UNO, "it hangs"),
        NotDone("no time"),
        BackendUnavailable("no USB here"),
        InvalidRequest("what?"),
        SnapshotNeeded(7),
    ),
}
"""Each error, by what it comes to."""


class AuditTestCase(SynchronousTestCase):
    """
    What is written down.
    """

    def setUp(self) -> None:
        self.audit = Audit()
        capture = capturedLogs()
        self.events: Any = capture.__enter__()
        self.addCleanup(capture.__exit__, None, None, None)

    @property
    def lines(self) -> list[str]:
        """The lines, as they stand in a log file; they are forgotten here then."""
        lines = [formatEvent(event) for event in self.events]
        self.events.clear()
        return lines

    @property
    def entries(self) -> list[dict[str, Any]]:
        """What they say."""
        return [json.loads(line.removeprefix("audit ")) for line in self.lines]

    def done(self, request: object, right: Right = Right.ATTACH, **more: Any) -> dict[str, Any]:
        """What is written of a success."""
        self.audit.done(ALICE, right, request, changed(UNO, **more))
        [entry] = self.entries
        return entry

    def failed(self, error: Exception, right: Right = Right.ATTACH) -> dict[str, Any]:
        """What is written of a failure."""
        self.audit.failed(ALICE, right, AttachDevice(bus="1-1.4", token=SECRET), error)
        [entry] = self.entries
        return entry


class ResultTests(AuditTestCase):
    """
    How it went.
    """

    def test_done(self) -> None:
        """Who was given what, and in which words they asked."""
        entry = self.done(AttachDevice(bus=1, desc="uno", first=True))
        self.assertEqual(
            entry,
            {
                "who": {"address": "192.0.2.7"},
                "command": "attach",
                "asked": {"bus": 1, "desc": "uno", "first": True},
                "device": "1-1.4",
                "serial": "75330303035351F0A1C1",
                "result": "done",
            },
        )

    def test_failed(self) -> None:
        """Each error is one of a few results, and tells its reason; of which device, if that
        is known."""
        for result, errors in ERRORS.items():
            for error in errors:
                entry = self.failed(error)
                self.assertEqual((entry["result"], entry["reason"]), (result, str(error)))
                device = getattr(error, "device", None)
                self.assertEqual(entry.get("device"), device and UNO.busId, error)
                self.assertEqual(entry.get("serial"), device and UNO.serial)

    def test_all(self) -> None:
        """That is true of every error there is; of those that are not tried each is a
        failure."""
        tried = {type(error) for errors in ERRORS.values() for error in errors}
        family = {ShareError}
        while more := {kind for known in family for kind in known.__subclasses__()} - family:
            family |= more
        ours = {kind for kind in family if kind.__module__ == ShareError.__module__}
        for kind in ours - tried:
            self.assertFalse(issubclass(kind, tuple(RESULT_OF)), kind)
        self.assertLessEqual({*RESULT_OF}, tried)
        self.assertEqual({*ERRORS}, {*RESULT_OF.values(), "failed"})

    def test_changing(self) -> None:
        """What changes something is written down however it ends."""
        for right in CHANGING:
            self.assertEqual(self.done(FindDevice(bus=1), right)["command"], right.value)
            for errors in ERRORS.values():
                for error in errors:
                    self.assertEqual(self.failed(error, right)["command"], right.value)

    def test_looking(self) -> None:
        """Of the rest only that it was not allowed."""
        for right, request in (
            (Right.LIST, ListDevices()),
            (Right.FIND, FindDevice(bus=1)),
            (Right.WATCH, WatchDevices()),
        ):
            self.audit.done(ALICE, right, request, UNO)
            for errors in ERRORS.values():
                for error in errors:
                    self.audit.failed(ALICE, right, request, error)
            self.assertEqual({entry["result"] for entry in self.entries}, {"refused"})
            self.audit.failed(ALICE, right, request, DeviceInUse(UNO))
            self.assertEqual(self.entries, [])


class WordsTests(AuditTestCase):
    """
    Who asked, and for what.
    """

    def test_who(self) -> None:
        """Whatever is known of somebody; a token by the name of its owner."""
        for principal, expected in (
            (Principal("2001:db8::7"), {"address": "2001:db8::7"}),
            (Principal(LOCAL, uid=0), {"address": "local", "uid": 0}),
            (
                Principal("192.0.2.7", certificate="alice", token="ci"),
                {"address": "192.0.2.7", "certificate": "alice", "token": "ci"},
            ),
        ):
            self.audit.done(principal, Right.KICK, KickClient(bus=1), UNO)
            [entry] = self.entries
            self.assertEqual(entry["who"], expected)

    def test_asked(self) -> None:
        """What was not said is left out; zero was said."""
        lease = LeaseRequest(owner="ci", ttl=60.0)
        for request, expected in (
            (AttachDevice(bus=0, first=None, force=False), {"bus": 0}),
            (AttachDevice(id="uno", wait=0.0), {"id": "uno", "wait": 0.0}),
            (
                AttachDevice(serial="7*", lease=lease, wait=5.0, force=True),
                {
                    "serial": "7*",
                    "lease": {"owner": "ci", "ttl": 60.0},
                    "wait": 5.0,
                    "force": True,
                },
            ),
            (DetachDevice(bus=1, owner="ci"), {"bus": 1, "owner": "ci"}),
            (
                RenewLease(bus=1, lease=LeaseRequest(owner="ci")),
                {"bus": 1, "lease": {"owner": "ci", "ttl": None}},
            ),
            (AttachDevice(bus=1, detail=True, keep_alive=True), {"bus": 1}),
        ):
            self.assertEqual(self.done(request)["asked"], expected)

    def test_everyKey(self) -> None:
        """All that a request can say of the device, and how, is there; of the rest nothing."""
        kinds = (AttachDevice, DetachDevice, KickClient, RenewLease)
        keys = {field.name for kind in kinds for field in msgspec.structs.fields(kind)}
        self.assertEqual({*ASKED}, keys - {"token", "detail", "keep_alive"})

    def test_noToken(self) -> None:
        """A token is in no part of the event, whatever was asked and however it ended."""
        for request in (
            AttachDevice(bus=1, token=SECRET),
            DetachDevice(bus=1, token=SECRET),
            KickClient(bus=1, token=SECRET),
            RenewLease(bus=1, lease=LeaseRequest(owner="ci"), token=SECRET),
            FindDevice(bus=1, token=SECRET),
            ListDevices(token=SECRET),
            WatchDevices(token=SECRET),
        ):
            for right in Right:
                self.audit.done(ALICE, right, request, UNO)
                for errors in ERRORS.values():
                    for error in errors:
                        self.audit.failed(ALICE, right, request, error)
        self.assertGreater(len(self.events), 100)
        self.assertNotIn(SECRET, repr(self.events))
        self.assertNotIn(SECRET, "".join(self.lines))


class LineTests(AuditTestCase):
    """
    How it is written.
    """

    def test_level(self) -> None:
        """It is no warning, and the event has the entry itself for those who want it."""
        self.audit.done(ALICE, Right.ATTACH, AttachDevice(bus=1), UNO)
        [event] = self.events
        self.assertIs(event["log_level"], LogLevel.info)
        self.assertEqual(event["audit"].result, "done")
        self.assertRegex(formatEvent(event), r"\Aaudit \{.*\}\Z")

    def test_oneLine(self) -> None:
        """Whatever somebody says, it is one line of ASCII: nobody forges another."""
        evil = "x\n2026-01-01 audit {}\r\v\f\x1b[2J\x7f\x85\u2028\u2029{who}"
        self.audit.done(Principal(evil, certificate=evil), Right.ATTACH, AttachDevice(id=evil), UNO)
        self.audit.failed(ALICE, Right.ATTACH, AttachDevice(desc=evil), DeviceNotFound(evil))
        output = StringIO()
        for event in self.events:
            textFileLogObserver(output)(event)
        text = output.getvalue()
        self.assertEqual(len(text.splitlines()), 2)
        self.assertTrue(text.isascii())
        self.assertNotIn("\x1b", text)
        done, failed = self.entries
        self.assertEqual((done["who"]["certificate"], done["asked"]["id"]), (evil, evil))
        self.assertEqual((failed["asked"]["desc"], failed["reason"]), (evil, evil))

    def test_surrogates(self) -> None:
        """Halves of surrogate pairs stop nothing: a device may have them in its strings."""
        half = "x\udcff\ud800"
        entry = self.done(
            AttachDevice(desc=half, lease=LeaseRequest(owner="x", ttl=1.0)), serial=half
        )
        self.assertEqual((entry["asked"]["desc"], entry["serial"]), (half, half))
        self.assertEqual(self.failed(DeviceNotFound(half))["reason"], half)
        self.audit.done(Principal("::1", certificate=half), Right.KICK, KickClient(bus=1), UNO)
        [line] = self.lines
        self.assertEqual(line.encode("ascii").count(b"\\ud800"), 1)

    def test_numbers(self) -> None:
        """Nor do numbers that are larger than a computer likes them."""
        self.assertEqual(self.done(AttachDevice(bus=10**4000))["asked"], {"bus": 10**4000})
