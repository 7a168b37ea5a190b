"""
Tests of L{usbip_server.client.selection}.
"""

from __future__ import annotations

from collections.abc import Sequence

from twisted.trial.unittest import SynchronousTestCase

from tests.support.fixtures import MOUSE, STICK, UNO, changed
from usbip_server.client.devices import RemoteDevice
from usbip_server.client.selection import Selector, SeveralFound, among, choose
from usbip_server.client.servers import Server
from usbip_server.model.device import UsbDevice
from usbip_server.model.errors import DeviceNotFound

RASPI, BENCH = (Server(name=name, host=name) for name in ("raspi", "bench"))


def at(server: Server, *devices: UsbDevice) -> list[RemoteDevice]:
    """Devices that a server has."""
    return [RemoteDevice(server=server, device=device, raw={}) for device in devices]


EVERYTHING = at(RASPI, UNO, STICK) + at(BENCH, MOUSE, UNO)


class ChoosingTests(SynchronousTestCase):
    """
    Devices of two servers; a board of a kind is at each.
    """

    def assertAmong(
        self, wanted: Selector, *indices: int, found: Sequence[RemoteDevice] = EVERYTHING
    ) -> None:
        """These are meant."""
        self.assertEqual(among(wanted, found), tuple(found[index] for index in indices))

    def test_criteria(self) -> None:
        """All that are given have to be met."""
        self.assertAmong(Selector(id="1-1.4"), 0, 3)
        self.assertAmong(Selector(id="2341:0043"), 0, 3)
        self.assertAmong(Selector(bus=2), 2)
        self.assertAmong(Selector(desc="sandisk"), 1)
        self.assertAmong(Selector(bus="1", desc="uno"), 0, 3)
        self.assertAmong(Selector(serial=UNO.serial, bus=2))

    def test_word(self) -> None:
        """A word is a bus id, vendor and product, a serial number, or a part of the description."""
        for word, indices in (
            ("1-2", (1,)),
            ("1-*", (0, 1, 3)),
            ("046D:c077", (2,)),
            ("4C530001[23]", (1,)),
            ("mouse", (2,)),
            ("9-9", ()),
        ):
            self.assertAmong(Selector(word=word), *indices)

    def test_order(self) -> None:
        """What it can be first it is, as soon as it fits any device."""
        odd = at(
            RASPI,
            changed(UNO, name="1-2"),
            changed(STICK, busId="1-2", serial="mouse"),
            changed(MOUSE, busId="1-3", serial="1-2"),
        )
        self.assertAmong(Selector(word="1-2"), 0, found=odd)
        self.assertAmong(Selector(word="1-2"), 0, found=odd[1:])
        self.assertAmong(Selector(word="1-2"), 0, found=odd[2:])
        self.assertAmong(Selector(word="mouse"), 1, found=odd)
        self.assertAmong(Selector(word="mouse"), 0, found=odd[2:])

    def test_exact(self) -> None:
        """A serial number that one device has to the letter is that one's, wherever it is."""
        globbed = at(BENCH, changed(STICK, serial="4C5300012"))
        self.assertAmong(Selector(serial="4C530001[23]"), 1, found=EVERYTHING + globbed)
        self.assertAmong(Selector(serial="4C530001[23]"), 0, found=globbed)

    def test_choose(self) -> None:
        """One is chosen; none and several are told apart, and several are there to be shown."""
        self.assertEqual(choose(Selector(desc="mouse"), EVERYTHING), EVERYTHING[2])
        error = self.assertRaises(DeviceNotFound, choose, Selector(word="x"), EVERYTHING)
        self.assertEqual(str(error), "no device matches 'x'")
        several = self.assertRaises(SeveralFound, choose, Selector(id="1-1.4"), EVERYTHING)
        self.assertEqual(several.found, (EVERYTHING[0], EVERYTHING[3]))
        self.assertIn("2 devices match", str(several))
        self.assertEqual(choose(Selector(id="1-1.4", first=True), EVERYTHING), EVERYTHING[0])

    def test_nothing(self) -> None:
        """Whoever wants nothing in particular is asked what."""
        self.assertIn("say which device", str(self.assertRaises(ValueError, Selector)))
        self.assertIn("`word` is empty", str(self.assertRaises(ValueError, Selector, word="")))
