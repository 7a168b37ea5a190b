"""
Versions of this program: how a server tells its own, and which of two is older.
"""

from __future__ import annotations

import re
from importlib.metadata import version

OURS = version("usbipshare")

PRODUCT = f"usbipshare/{OURS}"
"""What a server calls itself in C{Server} (RFC 9110, 10.2.4)."""

_OURS_IN = re.compile(r"(?:^|\s)usbipshare/(?P<version>[^\s()]{1,64})(?=$|[\s(])")

_RELEASE = re.compile(r"(?P<numbers>\d{1,9}(?:\.\d{1,9})*)(?P<rest>.*)")


def versionIn(server: str) -> str | None:
    """
    The version that a C{Server} header tells of; C{None} if it is none of ours.
    """
    found = _OURS_IN.search(server)
    return None if found is None else found["version"]


def isOlder(one: str, other: str) -> bool:
    """
    Does a version come before another? Of two that differ in what stands behind their numbers
    (PEP 440), those that come before a release are told from it, and others are the same.
    """
    return _order(one) < _order(other)


def _order(text: str) -> tuple[tuple[int, ...], bool]:
    found = _RELEASE.match(text)
    if found is None:
        return (), False
    numbers = [int(number) for number in found["numbers"].split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers), re.match(r"[._-]?(a|b|c|rc|alpha|beta|pre|dev)", found["rest"]) is None
