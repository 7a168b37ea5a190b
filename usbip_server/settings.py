"""
What the configuration says that can change while the daemon runs.
"""

from __future__ import annotations

import enum

import msgspec

from usbip_server.limits import Limits, Timeouts
from usbip_server.policy import Openness, Policy
from usbip_server.rules import Hook, Rule


class OnStop(enum.Enum):
    """
    What becomes of the devices that the daemon has bound when it stops.
    """

    KEEP = "keep"
    UNBIND = "unbind"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """
    @ivar devices: what is said of devices; the first rule that matches counts.
    @ivar hooks: whom to tell of all devices.
    @ivar access: who may do what.
    @ivar remember: bind what a client has attached again when it is plugged in anew.
    @ivar onStop: what becomes of what is bound.
    """

    devices: tuple[Rule, ...] = ()
    hooks: tuple[Hook, ...] = ()
    access: Policy = Openness.PRIVATE.policy
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    remember: bool = True
    onStop: OnStop = OnStop.KEEP
