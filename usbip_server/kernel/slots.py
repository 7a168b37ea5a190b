"""
How many of the places that C{usbip-host} has for bus ids are taken: there are few, and they are
not given back by themselves.
"""

from __future__ import annotations

from usbip_server.kernel.refusals import SLOTS as SLOTS
from usbip_server.kernel.system import ISystem
from usbip_server.kernel.usbip_host import TABLE


def taken(system: ISystem) -> int | None:
    """
    How many; C{None} where the driver is not loaded.
    """
    try:
        return len(system.read(TABLE).split())
    except OSError:
        return None
