"""
Tests of L{usbip_server.model.timestamps}.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from usbip_server.model.device import LATEST_TIME
from usbip_server.model.timestamps import moment, timestamp


class TimestampTests(SynchronousTestCase):
    """
    Times in the format of RFC 3339.
    """

    @given(st.floats(0, LATEST_TIME))
    def test_roundTrip(self, seconds: float) -> None:
        """A time is formatted to the nearest millisecond, and is the same after parsing."""
        text = timestamp(seconds)
        self.assertRegex(text, r"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\Z")
        self.assertLess(abs(moment(text) - seconds), 0.001)
        self.assertEqual(timestamp(moment(text)), text)

    def test_formats(self) -> None:
        """A time with any offset is parsed; one without, or outside of the years 1970 to 9999 in
        UTC, is an error."""
        for text, seconds in (
            ("1970-01-01T00:00:00Z", 0),
            ("2026-11-25T18:56:00.123+01:00", 1795629360.123),
            ("9999-12-31T11:59:59-12:00", LATEST_TIME),
        ):
            self.assertEqual(moment(text), seconds)
        for text in (
            *("", "yesterday", "2026-11-25T17:56:00", "1969-12-31T23:59:59Z"),
            *("9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+12:00"),
        ):
            self.assertRaises(ValueError, moment, text)
