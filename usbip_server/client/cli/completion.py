"""
What shells offer when somebody presses the tab key: devices that there are at this moment.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import click
from click.shell_completion import CompletionItem

from usbip_server.client.attach import Attached
from usbip_server.client.cli.context import Machine
from usbip_server.client.cli.discovery import survey
from usbip_server.client.cli.output import plain
from usbip_server.client.cli.relayprocess import RelayProcess
from usbip_server.client.config import ClientSettings, find, load
from usbip_server.client.devices import RemoteDevice
from usbip_server.model.errors import LocalTrouble
from usbip_server.runtime.yamlfile import ConfigError

SECONDS = 0.5
"""For a server to answer: somebody is waiting at a prompt."""

_HARMLESS = re.compile(r"[A-Za-z0-9_./@%+-]+", re.ASCII)
"""What a shell takes to the letter: the rest is not offered, as it comes from devices."""


def servers(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """
    Names of servers.
    """
    known = _settings(context).known
    return _offered([(name, f"{len(found)} servers") for name, found in known.items()], incomplete)


def devices(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """
    Names and bus ids of devices.
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


def plugged(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """
    What is plugged in here: its nodes, or where it is on this machine; and what servers have.
    """
    here = _offered(_places(_attached(context)), incomplete)
    return here or devices(context, parameter, incomplete)


def ports(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """
    Ports of this machine that something is plugged in at.
    """
    return _offered(
        ((str(each.port), each.localBusId or "") for each in _attached(context)), incomplete
    )


def _places(attached: Iterable[Attached]) -> Iterator[tuple[str, str]]:
    for each in attached:
        about = f"port {each.port}"
        yield each.localBusId or "", about
        yield from ((node, about) for node in each.nodes)


def _attached(context: click.Context) -> tuple[Attached, ...]:
    try:
        return _machine(context).attaching(RelayProcess().carry).attached()
    except LocalTrouble:
        return ()


def _found(context: click.Context) -> tuple[RemoteDevice, ...]:
    settings = _settings(context)
    try:
        meant = settings.servers(context.params.get("host") or (), _machine(context).environment)
        return survey(meant, SECONDS, settings.stock).found
    except (KeyboardInterrupt, ValueError):
        return ()


def _settings(context: click.Context) -> ClientSettings:
    machine = _machine(context)
    try:
        if context.params.get("config"):
            return load(context.params["config"])
        return find(machine.environment, machine.etc)
    except ConfigError:
        return ClientSettings()


def _machine(context: click.Context) -> Machine:
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
