"""
Tests of L{usbip_server.server.access.audit}.
"""

from __future__ import annotations

import json
from io import StringIO
from typing import Any

import msgspec
from twisted.internet.task import Clock
from twisted.logger import LogLevel, formatEvent, textFileLogObserver

from tests.server.corecase import LogTestCase
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
    NetworkInUse,
    NotAllowed,
    NotDone,
    NotLeased,
    OperationFailed,
    OperationTimedOut,
    SeveralMatch,
    ShareError,
    SnapshotNeeded,
    StillWorking,
    UnknownToken,
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
from usbip_server.runtime.repeats import IN_FULL, KINDS, WINDOW
from usbip_server.server.access.audit import ASKED, CHANGING, RESULT_OF, Audit

SECRET = "usbip_secret"

ERRORS: dict[str, tuple[ShareError, ...]] = {
    "pending": (StillWorking(UNO, "it takes long"),),
    "refused": (
        NotAllowed("you may not"),
        NotAllowed("you may not have it", UNO),
        UnknownToken("who?"),
        DeviceInUse(UNO),
        DeviceLeased(UNO, Lease(owner="bob", address="192.0.2.8"), 5),
        DeviceAwaited(UNO, 2),
        DeviceMounted(UNO, ["/dev/sda1 is mounted on /"]),
        NetworkInUse(UNO, ["eth0 has the default route"]),
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
"""Each error, by the result that is logged."""

ALL = [error for errors in ERRORS.values() for error in errors]


class AuditTestCase(LogTestCase):
    """
    An audit log on a fake clock.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.audit = Audit(self.clock)
        self.events = self.captureLogs()

    @property
    def lines(self) -> list[str]:
        """The lines of the log since the last call."""
        lines = [str(formatEvent(event)) for event in self.events]
        self.events.clear()
        return lines

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The entries in them."""
        return [json.loads(line.removeprefix("audit ")) for line in self.lines]

    def done(self, request: object, right: Right = Right.ATTACH, **more: Any) -> dict[str, Any]:
        """The entry for a success."""
        self.audit.done(ALICE, right, request, changed(UNO, **more))
        [entry] = self.entries
        return entry

    def failed(self, error: Exception, right: Right = Right.ATTACH) -> dict[str, Any]:
        """The entry for a failure."""
        self.clock.advance(WINDOW)
        self.audit.failed(ALICE, right, AttachDevice(bus="1-1.4", token=SECRET), error)
        [entry] = self.entries
        return entry


class ResultTests(AuditTestCase):
    """
    The result of a request, and which requests are logged.
    """

    def test_done(self) -> None:
        """The entry for a success contains the client, its criteria and the device."""
        self.assertEqual(
            self.done(AttachDevice(bus=1, desc="uno", first=True)),
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
        """The entry for an error contains the result, the reason and, if known, the device."""
        for result, errors in ERRORS.items():
            for error in errors:
                entry = self.failed(error)
                self.assertEqual((entry["result"], entry["reason"]), (result, str(error)))
                device = getattr(error, "device", None)
                self.assertEqual(entry.get("device"), device and UNO.busId, error)
                self.assertEqual(entry.get("serial"), device and UNO.serial)

    def test_allErrors(self) -> None:
        """Errors that are not in the tests above are logged as failures."""
        tried = {*map(type, ALL)}
        family = {ShareError}
        while more := {kind for known in family for kind in known.__subclasses__()} - family:
            family |= more
        ours = {kind for kind in family if kind.__module__ == ShareError.__module__}
        for kind in ours - tried:
            self.assertFalse(issubclass(kind, tuple(RESULT_OF)), kind)
        self.assertLessEqual({*RESULT_OF}, tried)
        self.assertEqual({*ERRORS}, {*RESULT_OF.values(), "failed"})

    def test_whatIsLogged(self) -> None:
        """Requests that change something are always logged, queries only if they are refused."""
        for right in CHANGING:
            self.assertEqual(self.done(FindDevice(bus=1), right)["command"], right.value)
            for error in ALL:
                self.assertEqual(self.failed(error, right)["command"], right.value)
        for right, request in (
            (Right.LIST, ListDevices()),
            (Right.FIND, FindDevice(bus=1)),
            (Right.WATCH, WatchDevices()),
        ):
            self.audit.done(ALICE, right, request, UNO)
            for error in ALL:
                self.audit.failed(ALICE, right, request, error)
            self.assertEqual({entry["result"] for entry in self.entries}, {"refused"})
            self.audit.failed(ALICE, right, request, DeviceInUse(UNO))
            self.assertEqual(self.entries, [])

    def test_http(self) -> None:
        """A refused HTTP request is logged with the client's address and the reason."""
        self.audit.refused(ALICE, NotAllowed("a foreign page"))
        [entry] = self.entries
        expected = {"who": {"address": "192.0.2.7"}, "command": "http", "result": "refused"}
        self.assertEqual(entry, {**expected, "reason": "a foreign page"})


class FieldTests(AuditTestCase):
    """
    The client and the request in an entry.
    """

    def test_who(self) -> None:
        """All that identifies the client is logged; of a token its owner's name."""
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
        """Keys that are not in the request are left out; a zero is not; numbers may be large."""
        lease = LeaseRequest(owner="ci", ttl=60.0)
        for request, expected in (
            (AttachDevice(bus=0, first=None, force=False), {"bus": 0}),
            (AttachDevice(id="uno", wait=0.0), {"id": "uno", "wait": 0.0}),
            (
                AttachDevice(serial="7*", lease=lease, wait=5.0, force=True),
                {"serial": "7*", "lease": {"owner": "ci", "ttl": 60.0}, "wait": 5.0, "force": True},
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
        """All keys that select a device or change the operation are logged, and no others."""
        kinds = (AttachDevice, DetachDevice, KickClient, RenewLease)
        keys = {field.name for kind in kinds for field in msgspec.structs.fields(kind)}
        self.assertEqual({*ASKED}, keys - {"token", "detail", "keep_alive"})

    def test_noToken(self) -> None:
        """A token is in no part of the event, whatever the request and its result."""
        for request in (
            *(kind(bus=1, token=SECRET) for kind in (AttachDevice, DetachDevice, KickClient)),
            RenewLease(bus=1, lease=LeaseRequest(owner="ci"), token=SECRET),
            *(FindDevice(bus=1, token=SECRET), ListDevices(token=SECRET)),
            WatchDevices(token=SECRET),
        ):
            for right in Right:
                self.audit.done(ALICE, right, request, UNO)
                for error in ALL:
                    self.audit.failed(ALICE, right, request, error)
        self.audit.stop()
        self.assertGreater(len(self.events), 100)
        self.assertNotIn(SECRET, repr(self.events))
        self.assertNotIn(SECRET, "".join(self.lines))


class LineTests(AuditTestCase):
    """
    The form of a line.
    """

    def test_level(self) -> None:
        """The level is C{info}, and the event of the log contains the entry itself too."""
        self.audit.done(ALICE, Right.ATTACH, AttachDevice(bus=1), UNO)
        [event] = self.events
        self.assertIs(event["log_level"], LogLevel.info)
        self.assertEqual(event["audit"].result, "done")
        self.assertRegex(str(formatEvent(event)), r"\Aaudit \{.*\}\Z")

    def test_oneLine(self) -> None:
        """An entry is one line of ASCII whatever it quotes, so that no client can forge one."""
        evil = "x\n2026-01-01 audit {}\r\v\f\x1b[2J\x7f\x85\u2028\u2029{who}\udcff\ud800"
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
        self.assertEqual(self.done(AttachDevice(bus=1), serial=evil)["serial"], evil)


class CountTests(AuditTestCase):
    """
    Failed requests that are repeated.
    """

    def refuse(self, times: int, address: str = "203.0.113.9", right: Right = Right.LIST) -> None:
        """Requests of a client are refused."""
        for number in range(times):
            error = NotAllowed(f"no, {number}")
            self.audit.failed(Principal(address), right, ListDevices(), error)

    def test_together(self) -> None:
        """
        Of many refused requests of a client within a minute the first ones get a line each, and
        the others one line together, with their number, when the minute is over.
        """
        self.refuse(50_000)
        self.assertEqual(len(self.entries), IN_FULL)
        self.clock.advance(WINDOW)
        [entry] = self.entries
        self.assertEqual(
            (entry["who"]["address"], entry["command"], entry["result"], entry["more"]),
            ("203.0.113.9", "list", "refused", 50_000 - IN_FULL),
        )
        self.assertEqual(entry["reason"], "no, 49999")
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.refuse(1)
        self.assertEqual(len(self.entries), 1)

    def test_apart(self) -> None:
        """
        Other clients, commands and results are counted apart; successes and operations in
        progress always get a line.
        """
        self.refuse(IN_FULL + 1)
        self.refuse(IN_FULL, "203.0.113.10")
        self.refuse(IN_FULL, right=Right.FIND)
        self.assertEqual(len(self.entries), 3 * IN_FULL)
        for error in (DeviceNotFound("there is none"), StillWorking(UNO, "it takes long")):
            for _ in range(2 * IN_FULL):
                self.audit.failed(ALICE, Right.ATTACH, AttachDevice(bus=1), error)
                self.audit.done(ALICE, Right.ATTACH, AttachDevice(bus=1), UNO)
        self.assertEqual(len(self.entries), (2 + 1 + 2 + 2) * IN_FULL)

    def test_sites(self) -> None:
        """Addresses of one IPv6 network are one client."""
        for number in range(1000):
            self.refuse(1, f"2001:db8::{number:x}")
        self.assertEqual(len(self.entries), IN_FULL)

    def test_bounded(self) -> None:
        """
        Only some kinds of requests are told apart, and the others are counted as one; kinds whose
        minute is over make room.
        """
        for network in (10, 11):
            for number in range(10 * KINDS):
                self.refuse(2, f"{network}.0.{number // 256}.{number % 256}")
            self.assertLessEqual(len(self.entries), 2 * KINDS + IN_FULL)
            self.clock.advance(WINDOW)
            [entry] = self.entries
            self.assertEqual(entry["more"], 18 * KINDS - IN_FULL)

    def test_stop(self) -> None:
        """When the daemon stops, the counts are written at once."""
        self.refuse(IN_FULL + 5)
        self.audit.stop()
        self.assertEqual(self.entries[-1]["more"], 5)
        self.assertEqual(self.clock.getDelayedCalls(), [])
