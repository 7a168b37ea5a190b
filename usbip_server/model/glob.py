"""
Glob patterns with the syntax of C{fnmatch}: C{*}, C{?} and C{[...]}.

Clients send patterns, and neither compiling nor matching may take long, whatever the pattern is:
regular expressions do not promise that. Here a match takes one step for each character of the
text, and a step is a few operations on an integer with one bit for each element of the pattern
(the "shift-and" algorithm: Baeza-Yates and Gonnet, A New Approach to Text Searching, 1992).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

Ranges = tuple[tuple[str, str], ...]
"""The first and the last character of each range in a set."""

REMEMBERED = 1024
"""Characters for which a pattern remembers the elements that match them, and texts for which it
remembers the result: a watch looks at the same devices in thousands of events."""


def isGlob(text: str) -> bool:
    """Whether a text contains a character that is special in a pattern."""
    return "*" in text or "?" in text or "[" in text


def matcher(pattern: str) -> Callable[[str], object]:
    """A function that returns whether a pattern matches a whole text."""
    return Glob(pattern).matches if isGlob(pattern) else pattern.__eq__


class Glob:
    """
    A compiled pattern.

    The elements of a pattern are characters, C{?} and sets. Bit I{n} of a state is set if the first
    I{n} elements can match the text so far. A star between two elements lets its bit stay set.
    """

    def __init__(self, pattern: str) -> None:
        self._stars = 0
        self._any = 0
        self._literals: dict[str, int] = {}
        self._masks: dict[str, int] = {}
        self._results: dict[str, bool] = {}
        sets: dict[str, int] = {}
        bit = 1
        for element in _elements(pattern):
            if element == "*":
                self._stars |= bit
                continue
            if element == "?":
                self._any |= bit
            elif len(element) == 1:
                self._literals[element] = self._literals.get(element, 0) | bit
            else:
                sets[element] = sets.get(element, 0) | bit
            bit <<= 1
        self._end = bit
        self._sets = [(bits, *_parseSet(element)) for element, bits in sets.items()]

    def matches(self, text: str) -> bool:
        """Whether the pattern matches a whole text."""
        known = self._results.get(text)
        if known is None:
            known = self._match(text)
            if len(self._results) < REMEMBERED:
                self._results[text] = known
        return known

    def _match(self, text: str) -> bool:
        state, stars, masks = 1, self._stars, self._masks
        isDone = self._end & stars
        for char in text:
            if state & isDone:
                return True  # the rest is matched by the star at the end
            mask = masks.get(char)
            if mask is None:
                mask = self._mask(char)
                if len(masks) < REMEMBERED:
                    masks[char] = mask
            state = (state & mask) << 1 | (state & stars)
            if not state:
                return False
        return bool(state & self._end)

    def _mask(self, char: str) -> int:
        """The elements that match a character: the bits before them."""
        mask = self._any | self._literals.get(char, 0)
        for bits, isNegated, ranges in self._sets:
            isIn = False
            for first, last in ranges:
                if first <= char <= last:
                    isIn = True
                    break
            if isIn is not isNegated:
                mask |= bits
        return mask


def _elements(pattern: str) -> Iterator[str]:
    """
    The elements of a pattern: C{"*"}, C{"?"}, other characters, and sets such as C{"[a-z]"}. A
    C{[} without an end is a character.
    """
    at = 0
    while at < len(pattern):
        end = at + 1
        if pattern[at] == "[":
            closing = pattern.find("]", at + (3 if pattern.startswith("!", at + 1) else 2))
            end = max(end, closing + 1)
        yield pattern[at:end]
        at = end


def _parseSet(element: str) -> tuple[bool, Ranges]:
    """
    @return: whether the set is negated, and its ranges.
    """
    isNegated = element[1] == "!"
    chars = element[2 if isNegated else 1 : -1]
    ranges: list[tuple[str, str]] = []
    at = 0
    while at < len(chars):
        isRange = chars[at + 1 : at + 2] == "-" and at + 2 < len(chars)
        last = at + 2 if isRange else at
        ranges.append((chars[at], chars[last]))
        at = last + 1
    return isNegated, tuple(ranges)
