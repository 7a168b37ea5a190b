"""
Durations as people write them: C{600}, C{"10m"}, C{"1h30m"}.
"""

from __future__ import annotations

import re

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

_PART = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?(ms|s|m|h|d)", re.ASCII)

_DURATION = re.compile(rf"(?:{_PART.pattern} ?)+", re.ASCII)


def seconds(text: str) -> float:
    """
    The seconds of a duration with units: C{ms}, C{s}, C{m} (minutes), C{h} or C{d}.

    @raise ValueError: it has another form.
    """
    if not _DURATION.fullmatch(text):
        raise ValueError(
            f'{text!r} is not a duration: a number of seconds such as 600, or text such as "10m"'
        )
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
