"""
Times as people and programs read them.
"""

from __future__ import annotations

import datetime


def timestamp(seconds: float) -> str:
    """
    A time as RFC 3339 has it, in UTC and milliseconds.

    @param seconds: since the epoch.
    """
    when = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def moment(text: str) -> float:
    """
    The reverse: seconds since the epoch.

    @raise ValueError: it is no such time.
    """
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
