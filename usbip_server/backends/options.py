"""
A backend's own options, checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from usbip_server.limits import invalid

T = TypeVar("T")


def convert(options: Mapping[str, Any], kind: type[T]) -> T:
    """
    Make a C{msgspec.Struct} of the options.

    @raise InvalidOption: one is unknown, of a wrong type, or out of its range.
    """
    try:
        return msgspec.convert(dict(options), kind)
    except msgspec.ValidationError as error:
        raise invalid(error) from None
