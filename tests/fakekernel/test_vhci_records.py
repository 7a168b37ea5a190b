"""
Notes of where devices came from.
"""

from __future__ import annotations

import os
import stat

from twisted.trial.unittest import SynchronousTestCase

from usbip_server.kernel.vhci.records import Record, Records

RASPI = Record(host="raspi", service="3240", busId="1-1.4")


class RecordsTests(SynchronousTestCase):
    """
    A folder that nobody has made yet.
    """

    def setUp(self) -> None:
        self.folder = self.mktemp()
        self.records = Records(self.folder)

    def test_format(self) -> None:
        """A note is what C{usbip attach} writes, where it writes it, and nobody else reads it."""
        self.records.write(3, RASPI)
        with open(f"{self.folder}/port3") as file:
            self.assertEqual(file.read(), "raspi 3240 1-1.4\n")
        self.assertEqual(stat.S_IMODE(os.stat(self.folder).st_mode), 0o700)
        self.assertEqual(os.listdir(self.folder), ["port3"])

    def test_read(self) -> None:
        """It is read as it was written; the last one counts."""
        self.assertIsNone(self.records.of(3))
        for record in (RASPI, Record(host="fe80::1%eth0", service="usbip", busId="2-1")):
            self.records.write(3, record)
            self.assertEqual(self.records.of(3), record)
        self.assertIsNone(self.records.of(4))

    def test_remove(self) -> None:
        """The folder goes with the last one; one that is not there is no trouble."""
        self.records.write(3, RASPI)
        self.records.write(10, RASPI)
        self.records.remove(3)
        self.assertEqual((self.records.of(3), self.records.of(10)), (None, RASPI))
        self.records.remove(10)
        self.assertFalse(os.path.exists(self.folder))
        self.records.remove(10)

    def test_foreign(self) -> None:
        """What makes no sense is no note."""
        os.mkdir(self.folder)
        for content in (b"", b"raspi 3240", b"a b c d", b"\0" * 10000):
            with open(f"{self.folder}/port0", "wb") as file:
                file.write(content)
            self.assertIsNone(self.records.of(0))

    def test_cannot(self) -> None:
        """Where it cannot be written that is an error, and where it cannot be removed it is
        not."""
        with open(self.folder, "w"):
            self.assertRaises(OSError, self.records.write, 0, RASPI)
            self.records.remove(0)
        self.assertTrue(os.path.exists(self.folder))
