"""
Times in the format of RFC 3339.
"""

from __future__ import annotations

import datetime

from usbip_server.model.device import LATEST_TIME

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)


def timestamp(seconds: float) -> str:
    """
    Format a time in UTC with milliseconds: C{2025-01-31T12:00:00.000Z}.

    @param seconds: since the epoch.
    """
    # Rounded, not cut off: L{moment} returns the same time again.
    when = EPOCH + datetime.timedelta(milliseconds=round(seconds * 1000))
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def moment(text: str) -> float:
    """
    Parse what L{timestamp} has formatted.

    @return: seconds since the epoch.
    @raise ValueError: the text has another format, or the time is one that L{timestamp} cannot
        format in UTC, or is before the epoch.
    """
    when = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
    if when.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    seconds = when.timestamp()
    if not 0 <= seconds <= LATEST_TIME:
        raise ValueError(f"{text!r} is not between the years 1970 and 9999 in UTC")
    return seconds
