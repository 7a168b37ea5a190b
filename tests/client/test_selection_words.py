"""
Tests of L{usbip_server.client.selection}.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.support.fixtures import DEVICES, MOUSE, STICK, UNO
from usbip_server.client.devices import RemoteDevice
from usbip_server.client.selection import Selection, SeveralFound, meant
from usbip_server.client.servers import serverAt
from usbip_server.model.errors import DeviceNotFound


class PickingTests(SynchronousTestCase):
    """
    A word, criteria, or both.
    """

    found = tuple(RemoteDevice(server=serverAt("raspi"), device=each, raw={}) for each in DEVICES)

    def typed(self, word: str | None = None, first: bool = False, **criteria: str) -> Selection:
        """What was typed."""
        which = meant(word, first, **criteria)
        assert which is not None
        return which

    def test_nothing(self) -> None:
        """Nothing means nothing; what is empty makes no sense."""
        self.assertIsNone(meant(None, True, id=None, bus=None))
        self.assertRaises(ValueError, meant, "", False)
        self.assertRaises(ValueError, meant, None, False, serial=" ")

    def test_both(self) -> None:
        """What is said in both ways has to be so."""
        for typed, device in (
            (self.typed("uno"), UNO),
            (self.typed(bus="2"), MOUSE),
            (self.typed("arduino", bus="1"), UNO),
            (self.typed(id="0781:*"), STICK),
            (self.typed("1-*", first=True), UNO),
            (self.typed("1-*", desc="ultra"), STICK),
        ):
            self.assertIs(typed.choose(self.found).device, device)
            self.assertIn(device, [each.device for each in typed.among(self.found)])
        self.assertRaises(DeviceNotFound, self.typed("uno", bus="2").choose, self.found)
        self.assertEqual(self.typed("uno", bus="2").among(self.found), ())

    def test_several(self) -> None:
        """Of several none is taken, if not the first is meant."""
        error = self.assertRaises(SeveralFound, self.typed("1-*").choose, self.found)
        self.assertEqual([each.device for each in error.found], [UNO, STICK])

    def test_words(self) -> None:
        """It is said what was typed."""
        self.assertEqual(str(self.typed("uno", bus="2")), "'uno', bus='2'")
