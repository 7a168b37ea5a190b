"""Checks examples of the command C{usbipshare}: command lines, JSON output and configurations."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
import yaml

from tests.support.childdaemon import SECONDS, ChildDaemon
from usbip_server.client.cli.exitcodes import Exit
from usbip_server.client.cli.main import COMMANDS, main
from usbip_server.client.config import load
from usbip_server.client.service.config import ServiceFile
from usbip_server.model.tokens import PREFIX
from usbip_server.runtime.yamlfile import ConfigError

SOCKET = "/run/usbipshare/client.sock"
"""Where the socket of the client service is in documents."""

RESULT = {"status", "devices", "errors", "message"}
"""Keys of the output with C{--json}."""

PLUGGED = {"port", "local_bus_id", "local_devices"}
"""Additional keys of a device that is attached to this machine."""

EVENTS = {"connected": {"devices"}, "disconnected": {"message"}}
"""Lines that C{watch} prints besides the events of servers, and their keys."""


def commandCalled(name: str) -> click.Command:
    """One of the commands."""
    command = main.get_command(click.Context(main), name)
    assert command is not None, name
    return command


def optionsOf(name: str) -> set[str]:
    """The options of a command, and of its subcommands: C{--host}."""
    command = commandCalled(name)
    below = [*command.commands.values()] if isinstance(command, click.Group) else []
    return {
        text
        for each in (command, *below)
        for parameter in each.params
        if isinstance(parameter, click.Option)
        for text in parameter.opts
    }


def checkTyped(where: str, command: str) -> None:
    """Assert that subcommands and options in a command line exist."""
    for typed in re.findall(
        r"\busbipshare ((?!--)[^|;&]+)", command.replace("twistd usbipshare", "")
    ):
        name, *arguments = typed.split()
        assert name in COMMANDS, f"{where}: {name}"
        for option in re.findall(r"--[\w-]+", " ".join(arguments)):
            assert option in optionsOf(name) | {"--help"}, f"{where}: {option}"


def isPrinted(value: dict[str, Any]) -> bool:
    """Return whether this is output of the command, and not of a server."""
    return "devices" in value or value.get("event") in EVENTS


def checkPrinted(where: str, value: dict[str, Any], fields: set[str]) -> None:
    """Assert that output of the command has the right keys.

    @param fields: the keys of a device in answers of servers."""
    if "event" in value:
        assert set(value) == {"event", "server"} | EVENTS[value["event"]], f"{where}: {value}"
        return
    assert set(value) - {"servers"} == RESULT, f"{where}: {value}"
    assert value["status"] in {each.word for each in Exit}, f"{where}: {value}"
    for device in value["devices"]:
        alone = {"server", "bus_id"} | PLUGGED
        assert set(device) in ({"server"} | fields, {"server"} | fields | PLUGGED, alone), where


def writeServers(daemon: ChildDaemon, folder: Path, name: str) -> None:
    """Write a client.yaml with the daemon under this name, for C{XDG_CONFIG_HOME}."""
    ports = {"port": daemon.port, "export_port": daemon.exportPort}
    servers = {"timeout": SECONDS, "servers": {name: {"host": "127.0.0.1", **ports}}}
    (folder / "usbipshare").mkdir()
    (folder / "usbipshare/client.yaml").write_text(json.dumps(servers))


def serviceError(text: str, folder: Path) -> str | None:
    """Return the error in a configuration of the client service, or C{None}."""
    try:
        file = ServiceFile("service.yaml", text.replace("plugdev", "2001"))  # may not be here
        file.known(file.config())
    except ConfigError as error:
        return str(error)
    return None


def checkMounts(text: str, folder: Path) -> None:
    """Assert that a manifest mounts the folder of the socket, at the same path, and not the
    socket."""
    manifest = yaml.safe_load(text)
    socketFolder = SOCKET.rpartition("/")[0]
    if "services" in manifest:
        (service,) = manifest["services"].values()
        assert f"{socketFolder}:{socketFolder}" in service["volumes"], manifest
        return
    spec = manifest["spec"]
    paths = {volume["name"]: volume["hostPath"]["path"] for volume in spec["volumes"]}
    (container,) = spec["containers"]
    mounts = {mount["mountPath"]: paths[mount["name"]] for mount in container["volumeMounts"]}
    assert all(inside == outside for inside, outside in mounts.items()), mounts
    assert socketFolder in mounts, mounts


def checkYaml(text: str, folder: Path) -> None:
    """Assert that the file of another program is YAML."""
    assert yaml.safe_load(text), text


def serversError(text: str, folder: Path) -> str | None:
    """Return the error in a client.yaml, or C{None}. Token files that it names are written
    first."""
    for name in re.findall(r"token_file: ([\w.]+)", text):
        (folder / name).write_text(f"{PREFIX}0123456789abcdef")
        (folder / name).chmod(0o600)
    file = folder / "client.yaml"
    file.write_text(f"{text}\n")
    try:
        load(str(file))
    except ConfigError as error:
        return str(error).replace(f"{folder}/", "")
    return None
