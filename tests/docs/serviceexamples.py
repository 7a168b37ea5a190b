"""Checks and executes examples of the client service."""

from __future__ import annotations

import json
import socket
from pathlib import Path

from tests.docs.clientexamples import SOCKET
from tests.docs.documents import Block
from tests.docs.examples import ExampleRunner
from tests.docs.exchanges import execute
from tests.support.childdaemon import SECONDS, ChildDaemon
from tests.support.childservice import ChildService, serversOf
from usbip_server.client.service.devices.events import ServiceEventKind
from usbip_server.client.service.messages import decode
from usbip_server.model.inventory import ChangeKind

ABOUT = {"server", "local_devices"}
"""Keys that answers about one device, and devices in lists, have besides those of a server."""

KEYS_OF = {
    "success": {"status", "data", *ABOUT},
    "failure": {"status", "data", "message", *ABOUT},
    "error": {"status", "message"},
    "not_found": {"status", "message"},
    "multiple_matches": {"status", "message"},
}

PORT = {"port", "local_bus_id", "server", "bus_id", "local_devices", "kept", "rule"}

EVENT = {"event", "seq", "time", "server"}

QUEUED = ({"event", "time", "message"}, {"event", "time", "message", "data", "server", "place"})
"""Keys of the events C{queued}: while there is no matching device, and when there is one."""

MORE_OF = {
    "attached": {"data", "local_devices", "rule"},
    "nodes": {"data", "local_devices", "rule"},
    "lost": {"data", "local_devices", "rule", "message"},
    "failed": {"data", "rule", "message"},
    "connected": set(),
    "disconnected": {"message"},
    **{kind.value: {"data", "local_devices"} for kind in ChangeKind},
    "imported": {"data", "local_devices", "holder"},
    "released": {"data", "local_devices", "holder"},
    "lease": {"data", "local_devices", "lease"},
}
"""Further keys of each event."""

assert MORE_OF.keys() == {kind.value for kind in (*ServiceEventKind, *ChangeKind)}


def checkLocal(where: str, text: str, fields: set[str]) -> None:
    """Assert that a text is a request, or an answer or event with the right keys.

    @param fields: of a device, without detail."""
    value = json.loads(text)
    if "command" in value:
        decode(text.encode())
        return
    data = value.get("data", {})
    if value.get("event") == "queued":
        assert set(value) in QUEUED, f"{where}: {text}"
    elif "event" in value:
        wanted = EVENT | MORE_OF[value["event"]]
        assert set(value) | {"rule"} == wanted | {"rule"}, f"{where}: {text}"
    elif isinstance(data, list):
        assert set(value) - {"seq"} == {"status", "data"}, f"{where}: {text}"
        for each in data:
            assert set(each) in (fields | ABOUT, PORT), f"{where}: {each}"
        return
    else:
        assert set(value) == KEYS_OF[value["status"]], f"{where}: {text}"
    assert set(data) in (fields, set()), f"{where}: {data}"


class ServiceExampleRunner(ExampleRunner):
    """Executes examples against a service that has one server, C{raspi}."""

    def __init__(self, daemon: ChildDaemon, service: ChildService, folder: Path) -> None:
        super().__init__(daemon, folder)
        self._service = service

    def _here(self, text: str) -> str:
        nodes = f"{self._service.folder}/dev"
        return (
            super()
            ._here(text.replace(SOCKET, self._service.path))
            .replace("/dev/ttyACM", f"{nodes}/ttyACM")
        )

    def _exchange(self, block: Block) -> None:
        execute(block, ServiceServer(self._service))


class ServiceServer:
    """The socket of a service, and the actions of its examples."""

    def __init__(self, service: ChildService) -> None:
        self._service = service

    def connect(self) -> UnixConnection:
        return UnixConnection(self._service)

    def act(self, what: str) -> None:
        assert what == "it is detached", f"an unknown action: {what!r}"
        assert self._service.ask("detach", serial="ECHO1")["status"] == "success"


class UnixConnection:
    """A connection to the socket of a service."""

    def __init__(self, service: ChildService) -> None:
        self._nodes = f"{service.folder}/dev/"
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(SECONDS)
        self._socket.connect(service.path)
        self._reader = self._socket.makefile("r", encoding="utf-8")

    def send(self, request: bytes) -> None:
        self._socket.sendall(request)

    def line(self) -> str:
        return self._reader.readline().rstrip("\n").replace(self._nodes, "/dev/")

    def close(self) -> None:
        self._reader.close()
        self._socket.close()


def serviceOf(daemon: ChildDaemon) -> ChildService:
    """A service for a daemon."""
    return ChildService(serversOf(raspi=daemon))
