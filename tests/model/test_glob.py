"""
Tests of L{usbip_server.model.glob}.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from usbip_server.model.glob import REMEMBERED, Glob, isGlob

ALPHABET = "ab-]![^*?\\&~|\n"


class GlobTests(SynchronousTestCase):
    """
    Patterns.
    """

    def test_table(self) -> None:
        """Stars, question marks and sets; everything else is literal, in its case."""
        for pattern, matching, others in (
            ("", [""], ["a"]),
            ("1-1.4", ["1-1.4"], ["1-1x4", "1-1.40", "1-1.", ""]),
            ("*", ["", "a", "a\nb"], []),
            ("1-*", ["1-", "1-1.4"], ["2-1", "1"]),
            ("*-*.*", ["1-1.4", "-."], ["1-1", ".-"]),
            ("?-2", ["1-2", "\n-2"], ["12-2", "-2"]),
            ("a[bc]", ["ab", "ac"], ["aB", "ad", "a", "abc"]),
            ("[!a-c]", ["d", "-", "\n"], ["a", "b", "c", ""]),
            ("[]-]", ["]", "-"], ["a"]),
            ("[!]]", ["a"], ["]"]),
            ("[c-a]", [], ["a", "b", "c", "-", ""]),
            ("[!c-a]", ["a", "b", "-"], [""]),
            ("[a-c-e]", ["a", "b", "-", "e"], ["d"]),
            ("[Ä-Ü]", ["Ö"], ["a"]),
            ("[rev 2", ["[rev 2"], ["r"]),
            ("a[", ["a["], ["a"]),
            ("[!", ["[!"], ["a"]),
            ("[]", ["[]"], ["]"]),
        ):
            glob = Glob(pattern)
            for text in matching:
                self.assertTrue(glob.matches(text), (pattern, text))
            for text in others:
                self.assertFalse(glob.matches(text), (pattern, text))

    def test_isGlob(self) -> None:
        """A text without special characters is no pattern."""
        self.assertEqual(
            [isGlob(it) for it in ("*", "a?", "[", "", "1-1.4")], 3 * [True] + 2 * [False]
        )

    @settings(max_examples=2000, deadline=None, database=None)
    @given(st.text(ALPHABET, max_size=10), st.text(ALPHABET, max_size=6))
    @example("[--a]", "-")
    @example("[a-]", "-")
    def test_fnmatch(self, pattern: str, text: str) -> None:
        """The result is that of C{fnmatchcase}."""
        self.assertEqual(Glob(pattern).matches(text), fnmatchcase(text, pattern))

    def test_noRegularExpressions(self) -> None:
        """Neither compiling nor matching a pattern uses a regular expression."""
        self.patch(re, "_compile", None)
        self.assertTrue(Glob("[a-z]?*" * 36).matches("ab" * 128))

    def test_steps(self) -> None:
        """For each character of a text one step is taken, whatever the pattern; the elements that
        match a character are determined once for each distinct character."""
        steps: list[str] = []

        class Counting(Glob):
            def _mask(self, char: str) -> int:
                steps.append(char)
                return super()._mask(char)

        for pattern in ("*a" * 120 + "b", "a*" * 120 + "b", "*" + "?" * 250 + "b", "[!b]" * 64):
            glob = Counting(pattern)
            for length in (250, 249, 248):
                self.assertFalse(glob.matches("a" * length))
            self.assertEqual(len(steps), 1, pattern)
            steps.clear()
        glob = Counting("*[Ā-\ufffe]" * 36)
        for text in ("a" * 250, "b" * 250):
            self.assertFalse(glob.matches(text))
        self.assertEqual(steps, ["a", "b"])
        self.assertEqual(len(glob._sets), 1)

    def test_memory(self) -> None:
        """What a pattern remembers of the texts that it was compared with is bounded."""
        glob = Glob("*[a-z]x")
        for first in range(1000, 4000, 100):
            self.assertFalse(glob.matches("".join(map(chr, range(first, first + 100)))))
        self.assertLessEqual(len(glob._masks), REMEMBERED)
        for number in range(2 * REMEMBERED):
            glob.matches(str(number))
        self.assertLessEqual(len(glob._results), REMEMBERED)
        self.assertTrue(glob.matches("\N{GREEK SMALL LETTER ALPHA}ax"))
