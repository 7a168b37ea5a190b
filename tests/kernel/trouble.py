"""
What can be wrong before a guest runs.
"""

from __future__ import annotations


class HarnessError(Exception):
    """
    The harness cannot go on, for a reason that whoever started it can put right.

    The message says what to do.
    """
