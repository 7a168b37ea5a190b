"""
Tests of L{usbip_server.model.replies}.
"""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.model.test_requests import subclasses
from tests.support.fixtures import MOUSE, UNO, changed, manyDevices
from usbip_server.model.device import DeviceState, Encryption, Holder
from usbip_server.model.errors import (
    BackendUnavailable,
    ClientError,
    DeviceInUse,
    DeviceNotFound,
    InvalidRequest,
    NoServerConnected,
    NotAllowed,
    NotDone,
    OperationFailed,
    OperationTimedOut,
    SeveralMatch,
    ShareError,
    StillWorking,
    Unreachable,
)
from usbip_server.model.replies import (
    CODE_OF,
    STATUS_OF,
    Code,
    Reply,
    Status,
    encodeDevices,
    failed,
)
from usbip_server.model.requests import FindDevice
from usbip_server.model.selector import select

RECEIVED_AT_ONCE = 4096
"""Bytes that an old client receives, in one call."""

PLAIN = {"bus_id", "device_id", "description", "vendor_id", "product_id", "serial"}

DETAIL = PLAIN | {
    "bus",
    "port_numbers",
    "path",
    "device_name",
    "manufacturer",
    "product",
    "speed",
    "device_class",
    "interfaces",
    "driver",
    "state",
    "holder",
    "trouble",
    "name",
    "lease",
}


def answer(reply: Reply) -> dict[str, Any]:
    """A reply as a client sees it."""
    decoded: dict[str, Any] = json.loads(reply.encode())
    return decoded


class DeviceTests(SynchronousTestCase):
    """
    A device in JSON.
    """

    def test_plain(self) -> None:
        """By default there are the six keys that old clients know, and no other."""
        self.assertEqual(
            json.loads(bytes(encodeDevices(UNO, detail=False))),
            {
                "bus_id": "1-1.4",
                "device_id": "vid=0x2341 pid=0x0043",
                "description": "Arduino SA Uno R3 (CDC ACM)",
                "vendor_id": "2341",
                "product_id": "0043",
                "serial": "75330303035351F0A1C1",
            },
        )

    def test_noSerial(self) -> None:
        """The serial number is null where there is none."""
        self.assertIsNone(json.loads(bytes(encodeDevices(MOUSE, detail=False)))["serial"])

    def test_detail(self) -> None:
        """With detail there is all that is known."""
        device = changed(
            UNO,
            state=DeviceState.IN_USE,
            holder=Holder(address="192.0.2.9", since=1.25, encryption=Encryption.RELAY),
            driver="usbip-host",
        )
        detail = json.loads(bytes(encodeDevices(device, detail=True)))
        self.assertEqual(set(detail), DETAIL)
        for key, value in {
            "bus": 1,
            "port_numbers": [1, 4],
            "device_name": "/dev/bus/usb/001/004",
            "manufacturer": "Arduino (www.arduino.cc)",
            "product": "Board with a U2",
            "speed": "12",
            "device_class": "02",
            "interfaces": ["02/02/01", "0a/00/00"],
            "driver": "usbip-host",
            "state": "in_use",
            "holder": {
                "address": "192.0.2.9",
                "since": "1970-01-01T00:00:01.250Z",
                "bytes_in": None,
                "bytes_out": None,
                "encryption": "relay",
            },
            "trouble": None,
        }.items():
            self.assertEqual(detail[key], value, key)

    def test_detailSometimes(self) -> None:
        """Classes of other configurations, and what is not known, are included if there are
        any."""
        for fields, expected in (
            ({"classes": UNO.interfaces}, {}),
            ({"classes": ("08/06/50",)}, {"classes": ["08/06/50"]}),
            ({"unknown": ("serial",)}, {"unknown": ["serial"]}),
        ):
            detail = json.loads(bytes(encodeDevices(changed(UNO, **fields), detail=True)))
            self.assertEqual({key: detail[key] for key in {*detail} - DETAIL}, expected)

    def test_everyState(self) -> None:
        """The states are those of the contract."""
        self.assertEqual(
            {state.value for state in DeviceState}, {"free", "bound", "in_use", "error"}
        )

    def test_list(self) -> None:
        """A list is an array, also when there is one device, or none."""
        for count in (0, 1, 3):
            listed = json.loads(bytes(encodeDevices(manyDevices(count), detail=False)))
            self.assertEqual(len(listed), count)


class ShapeTests(SynchronousTestCase):
    """
    The shapes of answers are closed: old clients reject any other.
    """

    def test_coversTheFamily(self) -> None:
        """There is a status for every error there is."""
        uncovered = {
            kind
            for kind in subclasses(ShareError)
            if kind.__module__.startswith("usbip_server.")
            and not issubclass(kind, ClientError)
            and not any(known in kind.__mro__ for known in STATUS_OF)
        }
        self.assertEqual(uncovered, set())
        self.assertEqual(set(Status) - set(STATUS_OF.values()), {Status.SUCCESS})
        self.assertEqual({*CODE_OF.values()}, {*Code})

    def test_errors(self) -> None:
        """Each error has its status and a message, and with C{detail} the code of its class or of a
        base. A failure has the device, too; no other error has."""
        several = SeveralMatch("x", [UNO, MOUSE])
        for error, status, code in (
            (InvalidRequest("x"), "error", "invalid_request"),
            (NotAllowed("x"), "error", "not_allowed"),
            (BackendUnavailable("x"), "error", "unavailable"),
            (Unreachable("x"), "error", "unavailable"),
            (NoServerConnected("x"), "error", "no_server_connected"),
            (NotDone("x"), "error", "busy"),
            (DeviceNotFound("x"), "not_found", "not_found"),
            (several, "multiple_matches", "multiple_matches"),
            (OperationFailed(UNO, "x"), "failure", "failed"),
            (DeviceInUse(UNO), "failure", "in_use"),
            (StillWorking(UNO, "x"), "failure", "pending"),
            (OperationTimedOut(UNO, "x"), "failure", "timed_out"),
        ):
            plain, detailed = answer(failed(error)), answer(failed(error, detail=True))
            self.assertEqual((plain["status"], plain["message"]), (status, str(error)))
            data = {"data"} if status == "failure" else set()
            self.assertEqual({*plain}, {"status", "message"} | data)
            self.assertEqual(({*detailed}, detailed["code"]), ({*plain, "code"}, code))
            if data:
                self.assertEqual(({*plain["data"]}, {*detailed["data"]}), (PLAIN, DETAIL))

    def test_success(self) -> None:
        """A success has data and no message."""
        for devices in (UNO, (UNO, MOUSE), ()):
            reply = Reply(status=Status.SUCCESS, data=encodeDevices(devices, detail=False))
            self.assertEqual(set(answer(reply)), {"status", "data"})

    def test_oneLine(self) -> None:
        """An answer is one line, whatever a device calls itself."""
        rude = changed(UNO, description='a\nb"}\r\n{\x00', serial="\n")
        encoded = Reply(status=Status.SUCCESS, data=encodeDevices(rude, detail=True)).encode()
        self.assertEqual(encoded.count(b"\n"), 1)
        self.assertTrue(encoded.endswith(b"}\n"))
        self.assertEqual(json.loads(encoded)["data"]["description"], rude.description)

    def test_surrogates(self) -> None:
        """A message that cannot be encoded is shown all the same."""
        self.assertIn("ud800", answer(failed(DeviceNotFound("no \ud800")))["message"])


class LengthTests(SynchronousTestCase):
    """
    An old client receives once.
    """

    def test_sixteenDevices(self) -> None:
        """Sixteen devices with names of usual length fit."""
        encoded = encodeDevices(manyDevices(16), detail=False)
        reply = Reply(status=Status.SUCCESS, data=encoded).encode()
        self.assertLessEqual(len(reply), RECEIVED_AT_ONCE)

    def test_severalMatch(self) -> None:
        """However many devices match, the message fits, and be their names as long as USB
        lets them be."""
        devices = manyDevices(1000)
        talkative = [
            changed(it, description=char * 126, product="P" + char * 125, serial=char * 126)
            for it in devices
            for char in ("D", "機", "😀", r"\x5c")
        ]
        for several in (devices, talkative):
            with self.assertRaises(SeveralMatch) as caught:
                select(FindDevice(desc="*", serial="*" * 256), several)
            self.assertLessEqual(len(failed(caught.exception).encode()), RECEIVED_AT_ONCE)

    def test_notFound(self) -> None:
        """So does the message about criteria that are as long as they may be."""
        request = FindDevice(id="x" * 256, bus="x" * 256, serial="x" * 256, desc="x" * 256)
        with self.assertRaises(DeviceNotFound) as caught:
            select(request, manyDevices(1000))
        self.assertLessEqual(len(failed(caught.exception).encode()), RECEIVED_AT_ONCE)
