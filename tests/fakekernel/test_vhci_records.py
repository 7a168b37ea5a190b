"""
Tests of L{usbip_server.kernel.vhci.records}.
"""

from __future__ import annotations

import os
import stat

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from usbip_server.kernel.vhci.records import Record, Records

RASPI = Record(host="raspi", service="3240", busId="1-1.4")


class RecordsTests(SynchronousTestCase):
    """
    A folder that does not exist yet.
    """

    def setUp(self) -> None:
        self.folder = self.mktemp()
        self.records = Records(self.folder)

    def test_writeAndRead(self) -> None:
        """A record has the format, name and permissions of C{usbip attach}; the last one is
        read."""
        self.assertIsNone(self.records.of(3))
        for record in (Record(host="fe80::1%eth0", service="usbip", busId="2-1"), RASPI):
            self.records.write(3, record)
            self.assertEqual(self.records.of(3), record)
        self.assertIsNone(self.records.of(4))
        with open(f"{self.folder}/port3") as file:
            self.assertEqual(file.read(), "raspi 3240 1-1.4\n")
        self.assertEqual(stat.S_IMODE(os.stat(self.folder).st_mode), 0o700)
        self.assertEqual(os.listdir(self.folder), ["port3"])

    def test_remove(self) -> None:
        """The folder is removed with the last record; a missing record is no error."""
        self.records.write(3, RASPI)
        self.records.write(10, RASPI)
        self.records.remove(3)
        self.assertEqual((self.records.of(3), self.records.of(10)), (None, RASPI))
        self.records.remove(10)
        self.assertFalse(os.path.exists(self.folder))
        self.records.remove(10)

    def test_givenUp(self) -> None:
        """A port that was given up is noted for some time, for other processes, too; not if the
        note is in the future, and so of an earlier boot. The folder of records does not change."""
        clock = Clock()
        records, other = (Records(self.folder, clock.seconds) for _ in range(2))
        clock.rightNow = 1e9
        records.giveUp(3)
        clock.rightNow -= 1
        self.assertFalse(other.isGivenUp(3))
        records.giveUp(3)
        for seconds, isGivenUp in ((0, True), (11, True), (1, False), (-12, False)):
            clock.rightNow += seconds
            self.assertEqual((other.isGivenUp(3), other.isGivenUp(4)), (isGivenUp, False))
        self.assertFalse(os.path.exists(self.folder))
        self.assertFalse(os.path.exists(f"{self.folder}-given-up"))
        with open(f"{self.folder}-given-up", "w"):
            records.giveUp(3)  # not possible
        self.assertFalse(records.isGivenUp(3))

    def test_invalid(self) -> None:
        """A file in another format is not a record. If the folder cannot be made, a write is an
        error, and a removal is not."""
        os.mkdir(self.folder)
        for content in (b"", b"raspi 3240", b"a b c d", b"\0" * 10000):
            with open(f"{self.folder}/port0", "wb") as file:
                file.write(content)
            self.assertIsNone(self.records.of(0))
        records = Records(f"{self.folder}/port0")
        self.assertRaises(OSError, records.write, 0, RASPI)
        records.remove(0)
