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
    moment = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
