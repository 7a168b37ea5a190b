"""
Warnings about a configuration that is valid and yet, most likely, not what is meant: doors that
cannot open or that stand open, and certificates that expire.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta, timezone

from usbip_server.model.policy import Policy, Right, several
from usbip_server.net.certificates import Tls, Validity
from usbip_server.net.endpoints import Listener, OverTls, Purpose
from usbip_server.server.config import Config

AHEAD = timedelta(days=30)
"""How long before its end a certificate is warned of."""


def warningsAbout(
    config: Config, listeners: Sequence[Listener], validities: Iterable[Validity], now: datetime
) -> list[str]:
    """
    The warnings, each with what to do.

    @param listeners: where the daemon listens.
    @param validities: the certificates that it uses.
    @param now: the time.
    """
    access = config.access if isinstance(config.access, Policy) else None
    return [
        *_aboutCertificates(validities, now),
        *(() if config.tls is None else _aboutKey(config.tls)),
        *_aboutListeners(config, listeners),
        *(() if access is None else _aboutAccess(access, config.tls)),
    ]


def _aboutCertificates(validities: Iterable[Validity], now: datetime) -> Iterator[str]:
    for path, name, begin, end in validities:
        if not begin <= now <= end:
            yield (
                f"{path}: the certificate of {name} is valid from {begin.isoformat()} to "
                f"{end.isoformat()} only, which is not now: clients that check it will reject it"
            )
        elif end - now < AHEAD:
            yield (
                f"{path}: the certificate of {name} expires on {end:%Y-%m-%d}, in "
                f"{(end - now).days} days: replace it before then"
            )


def _aboutKey(tls: Tls) -> Iterator[str]:
    path = tls.key or tls.certificate
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return
    if mode & stat.S_IROTH:
        yield f"every user of this machine can read the key in {path}: chmod 640 {path}"


def _aboutListeners(config: Config, listeners: Sequence[Listener]) -> Iterator[str]:
    requests = [it for it in listeners if it.purpose is Purpose.REQUESTS]
    isSecure = any(isinstance(it.endpoint, OverTls) for it in requests)
    plain = [it.description for it in listeners if it.purpose is Purpose.EXPORT]
    isUsed = isSecure or any(it.purpose is Purpose.SECURED_EXPORT for it in listeners)
    if config.tls is not None and not isUsed:
        yield "`tls` is not used: no endpoint in `listen` or `export.listen` is tls:"
    if isSecure and plain:
        yield (
            f"requests are encrypted, and USB traffic on {plain[0]} is not: write "
            "`export: {listen: [tls:3241]}`, unless that is intended"
        )


def _aboutAccess(policy: Policy, tls: Tls | None) -> Iterator[str]:
    named = {name for grant in (*policy.allow, *policy.deny) for name in several(grant.who)}
    for name, who in policy.principals.items():
        if name not in named:
            yield (
                f"`access.principals.{name}` has no effect: no entry of `allow` or `deny` names it"
            )
        if who.certificate is not None and (tls is None or tls.clientCa is None):
            yield (
                f"`access.principals.{name}` can never be matched: certificates of clients are "
                "checked only with `tls.client_ca`"
            )
    importers = {
        name for grant in policy.allow if grant.isAbout(Right.IMPORT) for name in several(grant.who)
    }
    if any(it not in policy.principals or policy.principals[it].token is None for it in importers):
        return
    for name, who in policy.principals.items():
        mayAttach = any(
            grant.isAbout(Right.ATTACH) and name in several(grant.who) for grant in policy.allow
        )
        if who.token is not None and mayAttach:
            yield (
                f"`access.principals.{name}` may attach, and nobody may import: USB/IP shows no "
                "token, so allow an address or a certificate to import as well"
            )


def utcNow() -> datetime:
    """The time, for L{warningsAbout}."""
    return datetime.now(timezone.utc)
