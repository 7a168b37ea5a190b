"""
Tests of L{usbip_server.kernel.vhci.records}.
"""

from __future__ import annotations

import os
import stat

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
