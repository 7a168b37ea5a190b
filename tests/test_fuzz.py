"""The fuzz targets with a few inputs, without atheris."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

import fuzz
from fuzz.__main__ import TARGETS, escaped, judge
from fuzz.cutting import cut

SOME = settings(max_examples=150, deadline=None, database=None)

MODULES: dict[str, Any] = {name: importlib.import_module(f"fuzz.{name}") for name in TARGETS}

DONE = """\
#3\tINITED cov: 10 ft: 11 corp: 3/30b exec/s: 0 rss: 61Mb
#2000000\tDONE   cov: 42 ft: 154 corp: 19/1001b lim: 512 exec/s: 9 rss: 82Mb
stat::number_of_executed_units: 2000000
"""

Changes = list[tuple[int, bytes]]


def changed(seed: bytes, changes: Changes) -> bytes:
    """A seed with some bytes replaced."""
    for at, other in changes:
        place = at % (len(seed) + 1)
        seed = seed[:place] + other + seed[place + len(other) // 2 :]
    return seed


class TargetTests(SynchronousTestCase):
    """The targets do not fail."""

    def test_all(self) -> None:
        """Each module with a check is a target."""
        folder = Path(fuzz.__file__).parent
        found = {path.stem for path in folder.glob("*.py") if "\ndef check(" in path.read_text()}
        self.assertEqual(found, {*TARGETS})

    def test_seeds(self) -> None:
        """The seeds pass; each target has some, and words for libFuzzer."""
        for module in MODULES.values():
            self.assertGreater(len(module.SEEDS), 3)
            self.assertGreater(len(module.WORDS), 3)
            for seed in module.SEEDS:
                module.check(seed)

    @SOME
    @given(st.sampled_from(TARGETS), st.binary(max_size=100))
    def test_anyBytes(self, name: str, data: bytes) -> None:
        """Any bytes pass."""
        MODULES[name].check(data)

    @SOME
    @given(st.data())
    def test_nearly(self, data: st.DataObject) -> None:
        """Seeds with some bytes replaced pass."""
        for module in MODULES.values():
            words = st.sampled_from(module.WORDS) | st.binary(min_size=1, max_size=2)
            changes = st.lists(st.tuples(st.integers(0, 400), words), max_size=4)
            module.check(changed(data.draw(st.sampled_from(module.SEEDS)), data.draw(changes)))

    def test_cut(self) -> None:
        """The first bytes are the lengths of the segments."""
        self.assertEqual(cut(b"\2\1\3abcdefg"), [b"a", b"bcd", b"efg"])
        self.assertEqual(cut(b"\0abc"), [b"abc"])
        self.assertEqual(cut(b"\7\1\1"), [])
        self.assertEqual(cut(b""), [])


class OutcomeTests(SynchronousTestCase):
    """Reading the output of libFuzzer."""

    def test_done(self) -> None:
        """A run that passed has figures and no failure."""
        outcome = judge(0, DONE)
        self.assertEqual((outcome.executed, outcome.coverage, outcome.corpus), (2000000, 42, 19))
        self.assertEqual(outcome.failure, "")

    def test_failed(self) -> None:
        """Of a run that failed, or did not begin, the output is shown."""
        self.assertIn("INITED", judge(77, DONE).failure)
        self.assertEqual(judge(0, "No module named atheris\n").failure, "No module named atheris")

    def test_escaped(self) -> None:
        """Each byte of a word is escaped."""
        self.assertEqual(escaped(b'"\n'), r"\x22\x0a")
