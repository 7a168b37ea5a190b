"""
Devices as C{--json} shows them.
"""

from __future__ import annotations

from typing import Any

from usbip_server.client.core.attaching import Attached
from usbip_server.client.core.devices import Found

Fields = dict[str, Any]


def fieldsOf(found: Found, attached: Attached | None = None) -> Fields:
    """
    A device of a server's.

    @param attached: where it is plugged in here.
    """
    return {
        "server": found.server.name,
        **{key: value for key, value in found.raw.items() if key != "server"},
        **({} if attached is None else pluggedFields(attached)),
    }


def portFields(attached: Attached, server: str | None) -> Fields:
    """
    What is plugged in here.

    @param server: where it came from, if that is known.
    """
    busId = None if attached.record is None else attached.record.busId
    return {"server": server, "bus_id": busId, **pluggedFields(attached)}


def pluggedFields(attached: Attached) -> Fields:
    """
    Where something is plugged in here.
    """
    return {
        "port": attached.port,
        "local_bus_id": attached.localBusId,
        "local_devices": [*attached.nodes],
    }
