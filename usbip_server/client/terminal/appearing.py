"""
Waiting for a device that no server has yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from usbip_server.client.core.devices import Found
from usbip_server.client.terminal.picking import Meant
from usbip_server.client.terminal.survey import Survey
from usbip_server.errors import DeviceNotFound

AGAIN = 1.0
"""Seconds until all servers are asked again."""


def appearing(meant: Meant, survey: Callable[[], Survey], patience: float) -> tuple[Found, Survey]:
    """
    Wait for it. Servers that do not answer are asked again, too.

    @param survey: asks all of them.
    @param patience: seconds that the device may take.
    @return: the device, and what else there is.
    @raise DeviceNotFound: it has not come.
    @raise usbip_server.client.core.choosing.SeveralFound: several have.
    """
    until = time.monotonic() + patience
    while True:
        there = survey()
        try:
            return meant.choose(there.found), there
        except DeviceNotFound:
            left = until - time.monotonic()
            if left <= 0:
                raise DeviceNotFound(
                    f"no device matches {meant}, and none has come within {patience:.0f} s"
                ) from None
        time.sleep(min(AGAIN, left))
