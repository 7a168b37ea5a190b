"""
Tests of L{usbip_server.client.selection}.
"""

from __future__ import annotations

from collections.abc import Sequence

from twisted.trial.unittest import SynchronousTestCase

from tests.support.fixtures import MOUSE, STICK, UNO, changed
from usbip_server.client.devices import RemoteDevice
from usbip_server.client.selection import Selector, SeveralFound, among, choose, selectorOf
from usbip_server.client.servers import Server
from usbip_server.model.device import UsbDevice
from usbip_server.model.errors import DeviceNotFound

RASPI, BENCH = (Server(name=name, host=name) for name in ("raspi", "bench"))


def at(server: Server, *devices: UsbDevice) -> list[RemoteDevice]:
    """Devices of a server."""
    return [RemoteDevice(server=server, device=device, raw={}) for device in devices]


EVERYTHING = at(RASPI, UNO, STICK) + at(BENCH, MOUSE, UNO)


class SelectorTests(SynchronousTestCase):
    """
    Selectors, applied to the devices of two servers, each of which has an Uno.
    """

    def assertAmong(
        self, selector: Selector, *indices: int, found: Sequence[RemoteDevice] = EVERYTHING
    ) -> None:
        """These devices match, and no others."""
        self.assertEqual(among(selector, found), tuple(found[index] for index in indices))

    def test_criteriaAndWords(self) -> None:
        """A device has to match all criteria and the word. A word is a bus id, vendor and product,
        a serial number or a part of the description."""
        for selector, indices in (
            (Selector(id="1-1.4"), (0, 3)),
            (Selector(id="2341:0043"), (0, 3)),
            (Selector(bus=2), (2,)),
            (Selector(desc="sandisk"), (1,)),
            (Selector(bus="1", desc="uno"), (0, 3)),
            (Selector(serial=UNO.serial, bus=2), ()),
            (Selector(word="1-2"), (1,)),
            (Selector(word="1-*"), (0, 1, 3)),
            (Selector(word="046D:c077"), (2,)),
            (Selector(word="4C530001[23]"), (1,)),
            (Selector(word="mouse"), (2,)),
            (Selector(word="9-9"), ()),
            (Selector(word="1-*", desc="ultra"), (1,)),
            (Selector(word="uno", bus="2"), ()),
        ):
            self.assertAmong(selector, *indices)

    def test_orderOfMeanings(self) -> None:
        """A word has the first of its meanings that matches any device: name, bus id, serial
        number, description."""
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

    def test_exactSerialNumberWins(self) -> None:
        """A serial number that a device of any server has literally is not used as a glob."""
        globbed = at(BENCH, changed(STICK, serial="4C5300012"))
        self.assertAmong(Selector(serial="4C530001[23]"), 1, found=EVERYTHING + globbed)
        self.assertAmong(Selector(serial="4C530001[23]"), 0, found=globbed)

    def test_choose(self) -> None:
        """One match is chosen; none and several are different errors; C{first} takes the first."""
        self.assertEqual(choose(Selector(desc="mouse"), EVERYTHING), EVERYTHING[2])
        error = self.assertRaises(DeviceNotFound, choose, Selector(word="x"), EVERYTHING)
        self.assertEqual(str(error), "no device matches 'x'")
        several = self.assertRaises(SeveralFound, choose, Selector(id="1-1.4"), EVERYTHING)
        self.assertEqual(several.found, (EVERYTHING[0], EVERYTHING[3]))
        self.assertIn("2 devices match", str(several))
        self.assertEqual(choose(Selector(id="1-1.4", first=True), EVERYTHING), EVERYTHING[0])

    def test_commandLine(self) -> None:
        """A command line without word and criteria gives no selector; empty ones are errors."""
        self.assertIsNone(selectorOf(None, True, id=None, bus=None))
        self.assertEqual(
            selectorOf("uno", True, id=None, bus="2"), Selector(word="uno", bus="2", first=True)
        )
        for word, criteria, why in (
            ("", {}, "`word` is empty"),
            (None, {"serial": " "}, "`serial` is empty"),
        ):
            error = self.assertRaises(ValueError, selectorOf, word, False, **criteria)
            self.assertIn(why, str(error))
        self.assertIn("say which device", str(self.assertRaises(ValueError, Selector)))

    def test_text(self) -> None:
        """Messages quote what was given, and advice names the bus id in it."""
        for selector, text, busId in (
            (Selector(word="uno", bus="2"), "'uno', bus='2'", None),
            (Selector(word="1-2"), "'1-2'", "1-2"),
            (Selector(bus=2), "bus=2", None),
            (Selector(id="1-1.4", desc="x"), "id='1-1.4', desc='x'", "1-1.4"),
        ):
            self.assertEqual((str(selector), selector.busId), (text, busId))
