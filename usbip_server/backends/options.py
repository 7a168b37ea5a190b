"""
A backend's own options, checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from usbip_server.errors import InvalidOption

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


def invalid(error: msgspec.ValidationError) -> InvalidOption:
    """
    Take msgspec's C{reason - at `$.a.b[0]`} apart.
    """
    reason, _, where = str(error).partition(" - at `$")
    steps = where.rstrip("`").replace("[", ".").replace("]", "").split(".")
    path: list[str | int] = [int(step) if step.isdigit() else step for step in steps if step]
    for told in ("Object contains unknown field `", "Object missing required field `"):
        if reason.startswith(told):
            path.append(reason.removeprefix(told).rstrip("`"))
            return InvalidOption(path, "unknown key" if "unknown" in told else "is missing")
    return InvalidOption(path, reason[:1].lower() + reason[1:])
