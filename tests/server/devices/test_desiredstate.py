"""
Tests of L{usbip_server.server.devices.desiredstate}: how attached devices are recognized when they
are plugged in again, and how many are remembered.
"""

from __future__ import annotations

from typing import Any

from msgspec import UNSET
from msgspec.structs import replace
from twisted.logger import LogLevel, formatEvent

from tests.server.corecase import BOUND, FREE, Client, CoreTestCase, lease
from tests.support.fixtures import UNO, PromptBackend, changed
from usbip_server.model.device import OWN_STRINGS
from usbip_server.model.devicerules import Match, Rule
from usbip_server.model.requests import ListDevices
from usbip_server.server.devices import desiredstate
from usbip_server.server.devices.desireddevice import State

TWIN = changed(UNO, busId="2-3", deviceNumber=7)


class RecognitionTests(CoreTestCase):
    """
    A device that was attached, and others with the same serial number.
    """

    def attached(self, *others: Any, **fields: Any) -> None:
        """Start with a device that a client has attached and leased, and with others."""
        self.backend = PromptBackend((changed(UNO, **fields), *others))
        self.start()
        self.done("attach", id=UNO.busId, lease=lease("a"))
        self.unplug()

    def assertRecognized(self, busId: str, expected: bool) -> None:
        """Whether the device at a bus id is bound and leased."""
        self.assertIs(self.state(busId), BOUND if expected else FREE)
        self.assertEqual(self.owner(busId), "a" if expected else None)

    def test_otherPort(self) -> None:
        """A serial number of its own identifies a device at any port. A filler does not, nor does
        one of a device with another manufacturer or product string, nor its absence."""
        for fields, others, expected in (
            ({}, {}, True),
            ({"serial": r"AB\x05C"}, {}, True),
            ({"serial": r"AB\x05C"}, {"serial": r"AB\x06C"}, False),
            ({"serial": "0001"}, {}, False),
            ({"serial": None}, {}, False),
            ({}, {"manufacturer": "other"}, False),
            ({}, {"product": "other"}, False),
            ({}, {"product": None}, False),
        ):
            self.attached(**fields)
            self.plug(busId="2-3", **(fields | others))
            self.assertRecognized("2-3", expected)
            if not expected:
                self.plug(**fields)
                self.assertRecognized(UNO.busId, True)

    def test_renumbered(self) -> None:
        """A device that is recognized at its port is so also if the port has another bus id after
        a restart, and another device at the bus id is not taken for it."""
        path, other = "pci-0000:00:14.0-usb-0:2", "pci-0000:00:1a.0-usb-0:2"
        self.attached(serial=None, path=path)
        self.restart()
        self.plug(serial=None, path=other)
        self.plug(serial=None, path=path, busId="2-3")
        self.assertRecognized(UNO.busId, False)
        self.assertRecognized("2-3", True)

    def test_swapped(self) -> None:
        """Two devices with the same serial number keep their desired states when their bus ids
        are exchanged at a restart."""
        path, other = "pci-0000:00:14.0-usb-0:2", "pci-0000:00:1a.0-usb-0:2"
        self.attached(changed(TWIN, path=other), path=path)
        self.done("attach", id=TWIN.busId, lease=lease("b"))
        self.unplug(TWIN.busId)
        self.restart()
        self.plug(path=other)
        self.plug(TWIN, path=path)
        self.assertEqual((self.owner(), self.owner(TWIN.busId)), ("b", "a"))
        self.assertEqual(len(self.file.state.devices), 2)

    def test_answersLate(self) -> None:
        """A device whose strings are not known yet is not recognized, at no port; as soon as it
        has answered, it is."""
        for fields in ({}, {"serial": None}):
            busId = UNO.busId if fields else "2-3"
            self.attached(**fields)
            unread: dict[str, Any] = dict.fromkeys(OWN_STRINGS)
            plugged = self.plug(busId=busId, **unread, unknown=OWN_STRINGS)
            self.assertRecognized(busId, False)
            known = {name: getattr(UNO, name) for name in OWN_STRINGS}
            self.become(plugged, **(known | fields), unknown=())
            self.assertRecognized(busId, True)

    def test_twins(self) -> None:
        """Two devices with the same serial number are recognized at their ports only, from when
        they were plugged in together: after both were unplugged, and after a restart. The log
        contains that once."""
        events = self.captureLogs()
        self.attached(TWIN)
        for _ in range(2):
            self.unplug(TWIN.busId)
            self.plug(TWIN)
            self.assertRecognized(TWIN.busId, False)
            self.plug()
            self.assertRecognized(UNO.busId, True)
            self.unplug()
        texts = [formatEvent(event) for event in events]
        [text] = [text for text in texts if "recognized at their ports only" in text]
        self.assertIn(str(UNO.serial), text)
        self.unplug(TWIN.busId)
        self.plug(busId="3-1")
        self.assertRecognized("3-1", False)
        self.restart()
        self.assertRecognized("3-1", False)
        self.assertTrue(self.file.state.devices[0].atPort)

    def test_movedAtOnce(self) -> None:
        """A device that is removed here and added there in one update has moved: it is not taken
        for two. One that is replugged in one update is still there when its twin comes."""
        self.attached()
        self.plug()
        self.assertRecognized(UNO.busId, True)
        moved = changed(UNO, busId="2-3", deviceNumber=50)
        self.backend.inventory.replace([moved])
        self.assertRecognized("2-3", True)
        self.backend.inventory.replace([changed(moved, deviceNumber=51)])
        self.plug()
        self.unplug("2-3")
        self.unplug()
        self.plug(busId="3-1")
        self.assertRecognized("3-1", False)

    def test_twinLater(self) -> None:
        """A device that is attached while another one has its serial number is recognized at its
        port only."""
        self.attached(TWIN)
        self.done("detach", id=UNO.busId, owner="a")
        self.done("attach", id=TWIN.busId, lease=lease("a"))
        self.unplug(TWIN.busId)
        self.plug()
        self.assertRecognized(UNO.busId, False)

    def test_earlierFile(self) -> None:
        """A device of a state file without manufacturer and product is recognized by its ids and
        serial number, and what is known of it now is saved."""
        for busId in (UNO.busId, "2-3"):
            self.attached()
            [desired] = self.file.state.devices
            whole, unset = desired, UNSET
            earlier = replace(desired, manufacturer=unset, product=unset, classes=unset)
            self.file.state = State(devices=(earlier,))
            self.restart()
            self.plug(busId=busId)
            self.assertRecognized(busId, True)
            [desired] = self.file.state.devices
            self.assertEqual(replace(desired, lease=None), replace(whole, lease=None, busId=busId))


class AwayTests(CoreTestCase):
    """
    Attached devices that are not plugged in.
    """

    def test_listed(self) -> None:
        """They are listed on request, in bus order, with what is remembered of them, to clients
        that may list them; and are forgotten when they are detached."""
        rule = Rule(match=Match(serial="S2"), name="two")
        self.start(rule)
        self.done("attach")
        for number, busId in ((2, "1-10"), (1, "1-9")):
            self.plug(serial=f"S{number}", busId=busId)
            self.done("attach", id=busId)
            self.unplug(busId)
        away = self.core.dispatcher.atOnce(ListDevices(away=True), Client())
        assert isinstance(away, tuple)
        shown = [(device.busId, device.serial, device.name, device.product) for device in away]
        self.assertEqual(
            shown, [("1-9", "S1", None, UNO.product), ("1-10", "S2", "two", UNO.product)]
        )
        self.done("detach", id="two")
        away = self.core.dispatcher.atOnce(ListDevices(away=True), Client())
        self.assertEqual([device.serial for device in away or ()], ["S1"])  # type: ignore[union-attr]
        self.assertEqual([device.busId for device in self.listed()], [UNO.busId])


class NumberTests(CoreTestCase):
    """
    The number of devices that are remembered.
    """

    def test_bounded(self) -> None:
        """Of more devices than are remembered, those that are away and not leased are forgotten,
        the one that was attached first before the others, with a warning."""
        self.patch(desiredstate, "REMEMBERED", 3)
        events = self.captureLogs()
        self.start()
        self.done("attach", lease=lease("a"))
        self.unplug()
        for number in (1, 2, 1, 3, 4):
            self.plug(serial=f"S{number}")
            self.done("attach", serial=f"S{number}")
            if number < 4:
                self.unplug()
        serials = [desired.serial for desired in self.file.state.devices]
        self.assertEqual(serials, [UNO.serial, "S3", "S4"])
        warnings = [formatEvent(e) for e in events if e["log_level"] is LogLevel.warn]
        self.assertEqual(len(warnings), 2)
        self.assertIn("is forgotten: more than 3 devices are attached", warnings[0])
