"""
Shell completion of servers, devices and ports: it offers those that exist at this moment.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from usbip_server.client.cli.text import plain

if TYPE_CHECKING:  # loaded when something is completed that servers or the kernel know
    from usbip_server.client.attach import Attached
    from usbip_server.client.cli.context import Machine
    from usbip_server.client.config import ClientSettings
    from usbip_server.client.devices import RemoteDevice

SECONDS = 0.5
"""For a server's reply: the user waits at a prompt."""

BROWSE_SECONDS = 0.3
"""For servers in the local network to answer."""

_HARMLESS = re.compile(r"[A-Za-z0-9_./@%+-]+", re.ASCII)
"""Words that are literals in every shell. Others are not offered, as devices choose them."""


def servers(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """
    Names of servers.
    """
    known = _settings(context).known
    named = [(name, f"{len(found)} servers") for name, found in known.items()]
    if not known:
        nearby = _machine(context).browse(BROWSE_SECONDS)
        named = [(each.addresses[0], each.name) for each in nearby]
    return _offered(named, incomplete)


def devices(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """
    Names of devices, and bus ids of those without a name.
    """
    return _offered(
        ((each.device.name or each.device.busId, _about(each)) for each in _found(context)),
        incomplete,
    )


def serialNumbers(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """
    Serial numbers of devices.
    """
    return _offered(
        ((each.device.serial or "", _about(each)) for each in _found(context)), incomplete
    )


def attached(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """
    Devices attached to this machine, by device node and local bus id; if none matches, those of
    servers.
    """
    here = _offered(_localNames(_attached(context)), incomplete)
    return here or devices(context, parameter, incomplete)


def ports(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """
    Ports that devices are attached at.
    """
    return _offered(
        ((str(each.port), each.localBusId or "") for each in _attached(context)), incomplete
    )


def _localNames(devices: Iterable[Attached]) -> Iterator[tuple[str, str]]:
    for each in devices:
        about = f"port {each.port}"
        yield each.localBusId or "", about
        yield from ((node, about) for node in each.nodes)


def _attached(context: click.Context) -> tuple[Attached, ...]:
    from usbip_server.client.cli.relayprocess import RelayProcess
    from usbip_server.model.errors import LocalTrouble

    try:
        return _machine(context).attaching(RelayProcess().start).attached()
    except LocalTrouble:
        return ()


def _found(context: click.Context) -> tuple[RemoteDevice, ...]:
    from usbip_server.client.cli.discovery import discover

    settings = _settings(context)
    try:
        asked = settings.servers(context.params.get("host") or (), _machine(context).environment)
        return discover(asked, SECONDS, settings.stock).found
    except (KeyboardInterrupt, ValueError):
        return ()


def _settings(context: click.Context) -> ClientSettings:
    from usbip_server.client.config import ClientSettings, find, load
    from usbip_server.runtime.yamlfile import ConfigError

    machine = _machine(context)
    try:
        if context.params.get("config"):
            return load(context.params["config"])
        return find(machine.environment, machine.etc)
    except ConfigError:
        return ClientSettings()


def _machine(context: click.Context) -> Machine:
    from usbip_server.client.cli.context import Machine

    machine = context.obj or Machine()
    assert isinstance(machine, Machine)
    return machine


def _about(found: RemoteDevice) -> str:
    return f"{found.device.description} at {found.server}"


def _offered(values: Iterable[tuple[str, str]], incomplete: str) -> list[CompletionItem]:
    return [
        CompletionItem(value, help=plain(about))
        for value, about in dict(values).items()
        if value.startswith(incomplete) and _HARMLESS.fullmatch(value)
    ]
