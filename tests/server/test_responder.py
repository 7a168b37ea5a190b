"""
Tests of L{usbip_server.server.responder}.
"""

from __future__ import annotations

import json

from twisted.internet.task import Clock

from tests.server.corecase import LogTestCase
from tests.support.fixtures import (
    ALICE,
    DEVICES,
    EVERYBODY,
    UNO,
    PatientBackend,
    PromptBackend,
    asked,
)
from usbip_server.model.errors import DeviceInUse, NotAllowed
from usbip_server.model.replies import Devices, Measure, Status, encodeDevices
from usbip_server.net.caller import Caller
from usbip_server.protocols.interfaces import Response, refusal
from usbip_server.server import responder
from usbip_server.server.config import LiveSettings, Settings
from usbip_server.server.core import Core
from usbip_server.server.dispatcher import Dispatcher
from usbip_server.server.responder import Responder

ATTACH = b'{"command":"attach","id":"1-1.4"%s}'
LIST = b'{"command":"list"}'


class ResponderTests(LogTestCase):
    """
    L{Responder}, from the bytes of a request to those of its reply.
    """

    def setUp(self) -> None:
        self.use(PromptBackend())

    def use(self, backend: PatientBackend) -> None:
        """Use this backend."""
        self.backend = backend
        core = Core(backend, Clock(), LiveSettings(Settings(access=EVERYBODY)))
        asked(core.start())
        self.answers = Responder(core.dispatcher, core.requests)

    def to(self, raw: bytes) -> Response:
        """The answer to a request."""
        answer = self.successResultOf(asked(self.answers.to(raw, Caller(ALICE))))
        assert isinstance(answer, Response)
        return answer

    def test_success(self) -> None:
        """A success has its status and its devices."""
        answer = self.to(LIST)
        self.assertIs(answer.status, Status.SUCCESS)
        self.assertEqual(len(json.loads(answer.encoded)["data"]), len(DEVICES))
        self.assertFalse(answer.keepAlive)

    def test_detail(self) -> None:
        """With C{detail} devices have more fields, also in a failure."""
        plain, detail = self.to(LIST), self.to(b'{"command":"list","detail":true}')
        self.assertNotIn(b'"state"', plain.encoded)
        self.assertIn(b'"state":"free"', detail.encoded)
        self.use(PatientBackend())
        for more in (b"", b',"detail":true'):
            result = asked(self.answers.to(ATTACH % more, Caller(ALICE)))
            self.backend.calls[-1].fail(DeviceInUse(UNO))
            answer = self.successResultOf(result)
            self.assertIs(answer.status, Status.FAILURE)
            self.assertEqual("state" in json.loads(answer.encoded)["data"], bool(more))

    def test_keepAlive(self) -> None:
        """The request determines whether the connection stays open, also after an error."""
        self.assertTrue(self.to(b'{"command":"list","keep_alive":true}').keepAlive)
        self.assertTrue(self.to(b'{"command":"find","id":"9-9","keep_alive":true}').keepAlive)
        self.assertFalse(self.to(b'{"command":"lsit","keep_alive":true}').keepAlive)

    def test_invalid(self) -> None:
        """An invalid request is an error, and not a bug."""
        answer = self.to(b"nonsense")
        self.assertIs(answer.status, Status.ERROR)
        self.assertFalse(answer.broken)

    def test_bug(self) -> None:
        """A bug is logged, and answered with an error that contains no details of it."""
        self.patch(Dispatcher, "list", None)
        self.use(self.backend)
        answer = self.to(LIST)
        self.assertIs(answer.status, Status.ERROR)
        self.assertTrue(answer.broken)
        self.assertEqual(set(json.loads(answer.encoded)), {"status", "message"})
        self.assertNotIn(b"inventory", answer.encoded)
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)

    def test_listIsEncodedOnce(self) -> None:
        """The JSON of a list is made once for each state of the inventory."""
        made: list[bool] = []

        def encode(devices: Devices, detail: bool, traffic: Measure) -> object:
            made.append(detail)
            return encodeDevices(devices, detail, traffic)

        self.patch(responder, "encodeDevices", encode)
        detail = b'{"command":"list","detail":true}'
        first = [self.to(raw).encoded for raw in (LIST, detail, LIST, detail)]
        self.assertEqual(made, [False, True])
        self.assertEqual(first[:2], first[2:])
        self.backend.inventory.replace([UNO])
        self.assertEqual(len(json.loads(self.to(LIST).encoded)["data"]), 1)
        self.assertEqual(len(json.loads(self.to(detail).encoded)["data"]), 1)
        self.assertEqual(made, [False, True, False, True])

    def test_refuse(self) -> None:
        """A request that a protocol has refused before it was read is in the audit log."""
        logged = self.captureLogs()
        answer = self.answers.refuse(NotAllowed("a foreign page"), Caller(ALICE))
        self.assertEqual((answer.status, answer.forbidden), (Status.ERROR, True))
        self.assertEqual(json.loads(answer.encoded)["message"], "a foreign page")
        [entry] = [event["audit"] for event in logged if "audit" in event]
        self.assertEqual((entry.command, entry.result), ("http", "refused"))
        self.assertEqual(entry.who, {"address": ALICE.address})

    def test_refusal(self) -> None:
        """Input that is no request is answered with an error."""
        answer = refusal("no")
        self.assertEqual(answer.encoded, b'{"status":"error","message":"no"}\n')
        self.assertFalse(answer.keepAlive or answer.broken)
