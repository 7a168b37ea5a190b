"""
Times in the format of RFC 3339.
"""

from __future__ import annotations

import datetime


def timestamp(seconds: float) -> str:
    """
    Format a time in UTC with milliseconds: C{2025-01-31T12:00:00.000Z}.

    @param seconds: since the epoch.
    """
    when = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def moment(text: str) -> float:
    """
    Parse what L{timestamp} has formatted.

    @return: seconds since the epoch.
    @raise ValueError: the text has another format.
    """
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
