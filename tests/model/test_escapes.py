"""
Tests of L{usbip_server.model.escapes}.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from usbip_server.model.escapes import escape, normalize, readable, unescape, visible

FUZZ = settings(max_examples=500, deadline=None, database=None)

TEXTS = st.text(st.characters(exclude_categories=()) | st.sampled_from("\\xuU05c"), max_size=12)


class EscapeTests(SynchronousTestCase):
    """
    Strings of devices.
    """

    def test_table(self) -> None:
        """Characters that cannot be displayed are escaped, and so is the backslash."""
        for raw, escaped in (
            ("", ""),
            ("Gerät 機械 😀", "Gerät 機械 😀"),
            ("AB\x05C", r"AB\x05C"),
            ("a\nb\x7f\x9b", r"a\x0ab\x7f\x9b"),
            ("\u2028\u2029\u200e\u202e\u2066\ufeff", r"\u2028\u2029\u200e\u202e\u2066\ufeff"),
            ("\ud800\U000e0001", r"\ud800\U000e0001"),
            ("A\\B", r"A\x5cB"),
            (r"A\x05", r"A\x5cx05"),
        ):
            self.assertEqual(escape(raw), escaped)
            self.assertEqual(unescape(escaped), raw)

    @FUZZ
    @given(TEXTS)
    def test_roundTrip(self, raw: str) -> None:
        """The escaped form is printable and has one meaning; normalizing it changes nothing."""
        escaped = escape(raw)
        self.assertTrue(escaped.isprintable())
        self.assertEqual(unescape(escaped), raw)
        self.assertEqual(normalize(escaped), escaped)
        self.assertEqual(normalize(normalize(raw)), normalize(raw))

    def test_normalize(self) -> None:
        """The character itself, its escape in either case, and a backslash that begins no escape
        have one normal form."""
        for text, normal in (
            ("AB\x05C", r"AB\x05C"),
            (r"AB\x05C", r"AB\x05C"),
            (r"a\x5CB", r"a\x5cB"),
            (r"a\B", r"a\x5cB"),
            (r"\u005c", r"\x5c"),
            (r"\x41", "A"),
            (r"\x4", r"\x5cx4"),
            (r"\U00110000", r"\x5cU00110000"),
        ):
            self.assertEqual(normalize(text), normal)

    def test_visible(self) -> None:
        """Backslashes are left where a text may be escaped already."""
        self.assertEqual(visible("a\\b \\x05\x05\u2028"), r"a\b \x05\x05\u2028")

    def test_readable(self) -> None:
        """No-break and other blanks become spaces where a string is only displayed."""
        self.assertEqual(readable("USB\xa0Serial\u3000\x00"), r"USB Serial \x00")
