"""
Tests of L{usbip_server.server.devices.view}: devices that are plugged in again and again.
"""

from __future__ import annotations

from tests.server.corecase import ALWAYS, BOUND, ERROR, CoreTestCase
from tests.support.fixtures import STICK, UNO
from usbip_server.server.devices.view import OFTEN, PAUSES, WINDOW


class FlappingTests(CoreTestCase):
    """
    A device with C{share: always} is plugged in again and again.
    """

    devices = (UNO, STICK)

    def setUp(self) -> None:
        super().setUp()
        self.start(ALWAYS)
        self.sleep(2 * WINDOW)
        self.heard.clear()
        self.backend.calls.clear()

    def flap(self, times: int, seconds: float = 0.1) -> None:
        """Unplug the device and plug it in, again and again."""
        for _ in range(times):
            self.unplug()
            self.clock.advance(seconds / 2)
            self.plug()
            self.clock.advance(seconds / 2)

    def test_notFlapping(self) -> None:
        """
        Neither a few plug-ins, as when a board is flashed, nor many over a long time are flapping.
        """
        self.flap(OFTEN - 1)
        self.assertIs(self.state(), BOUND)
        self.sleep(2 * WINDOW)
        self.flap(50, WINDOW / (OFTEN - 1) + 0.1)
        self.assertEqual(len(self.verbs), 50 + OFTEN - 1)

    def test_leftAlone(self) -> None:
        """A flapping device is left alone, shown with the state C{error}, and has no events."""
        self.flap(OFTEN)
        heard, calls = len(self.heard), len(self.backend.calls)
        self.flap(10)
        shown = self.shown()
        self.assertIs(shown.state, ERROR)
        self.assertIn("flapping", shown.trouble or "")
        self.assertEqual((len(self.heard), len(self.backend.calls)), (heard, calls))

    def test_others(self) -> None:
        """Other devices are not affected."""
        self.flap(OFTEN)
        self.plug(STICK, driver="usb")
        self.assertIs(self.state(STICK.busId), BOUND)

    def test_pause(self) -> None:
        """After the pause the device is shown as it is, and bound; or it disappears."""
        for isGone in (False, True):
            self.flap(OFTEN)
            if isGone:
                self.unplug()
                self.assertEqual(len(self.listed()), 2)
            self.sleep(PAUSES.first)
            if not isGone:
                self.assertEqual((self.shown().state, self.shown().trouble), (BOUND, None))
        self.assertEqual([device.busId for device in self.listed()], [STICK.busId])

    def test_grows(self) -> None:
        """While it goes on the pauses grow."""
        pauses = []
        for _ in range(8):
            while self.shown().state is not ERROR:
                self.flap(1)
            began = self.clock.seconds()
            while self.shown().state is ERROR:
                self.flap(1)
            pauses.append(round(self.clock.seconds() - began))
        self.assertEqual(pauses[:5], [2, 4, 8, 16, 32])
        self.assertEqual(pauses[5:], [PAUSES.longest] * 3)

    def test_forgiven(self) -> None:
        """After a calm time the first pause is short again."""
        self.flap(40)
        self.sleep(4 * PAUSES.longest)
        self.plug(STICK)  # an event anywhere
        self.flap(OFTEN)
        self.sleep(PAUSES.first)
        self.assertIs(self.shown().state, BOUND)

    def test_bounded(self) -> None:
        """Clients receive only a few events a second of a flapping device."""
        self.flap(3000, 0.02)
        self.assertLess(len(self.heard), 60 * 3 * OFTEN)
        self.assertLess(len(self.clock.getDelayedCalls()), 5)
