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


class Tls(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    rename={
        "clientCa": "client_ca",
        "requireClientCertificate": "require_client_certificate",
    },
):
    """
    What places that listen with TLS show, and ask for. All are files in PEM.

    @ivar certificate: the server's, and those between it and its CA.
    @ivar key: the key of the first; C{None}: it is in the same file.
    @ivar clientCa: whose certificates clients may show.
    @ivar requireClientCertificate: they have to show one.
    """

    certificate: str
    key: str | None = None
    clientCa: str | None = None
    requireClientCertificate: bool = False

    def __post_init__(self) -> None:
        if self.requireClientCertificate and self.clientCa is None:
            raise ValueError("`require_client_certificate` needs `client_ca`: whose?")


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
