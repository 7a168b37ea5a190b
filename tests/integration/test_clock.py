"""
Daemons as processes, whose system clock is set while they run.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.support.childdaemon import EXPORT, SECONDS, ChildDaemon
from tests.support.childservice import ChildService, serversOf
from usbip_server.model.timestamps import moment

SETTABLE = """
import runpy, sys, time
real = time.time
def settable():
    with open({file!r}) as file:
        return real() + float(file.read())
time.time = settable
import usbip_server.runtime.monotonic as monotonic
monotonic.CHECK_SECONDS = 0.05
runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
"""
"""A Python program with a clock that a file sets."""

TAP = """
import importlib, time
from twisted.internet import reactor
options = importlib.import_module({module!r}).Options()
try:
    options.parseOptions(["--config", "/nowhere"])
except SystemExit:
    print(reactor.seconds is time.monotonic)
"""
"""A Python program that gives a daemon's command line a configuration file that is not there."""

SERVER = (
    "backend: {type: virtual}\n"
    "timeouts: {heartbeat: 0.05, request: 600, answer: 60, bind: 600}\n" + EXPORT
)

SERVICE = "timeouts: {heartbeat: 0.05, server: 60, attach: 60, request: 600, stop: 60}\n"

LEASED = {"id": "1-1", "lease": {"owner": "ci", "ttl": 600}}


class SystemClockTests(SynchronousTestCase):
    """
    The clock is set back two hours, as after a start with a wrong time, or forward a day.
    """

    def setUp(self) -> None:
        self.file = Path(self.mktemp()).absolute()
        self.clockSetBy = 0.0
        self.setClock(0)

    def setClock(self, by: float) -> None:
        """Set the clock of the child, by seconds."""
        self.clockSetBy += by
        new = self.file.with_suffix(".new")
        new.write_text(str(self.clockSetBy))
        new.replace(self.file)

    def command(self, module: str) -> tuple[str, ...]:
        """Runs a module with the clock."""
        return (sys.executable, "-c", SETTABLE.format(file=str(self.file), module=module))

    def isNow(self, text: str, seconds: float = 0) -> bool:
        """Is a time in a message by the clock of the child, as it is set now?"""
        return abs(moment(text) - time.time() - self.clockSetBy - seconds) < 1800

    def events(self, connection: socket.socket) -> Iterator[dict[str, Any]]:
        """The events on a connection, from now on."""
        self.addCleanup(connection.close)
        connection.sendall(b'{"command":"watch","detail":true}\n')
        lines = connection.makefile("rb")
        self.addCleanup(lines.close)
        self.assertEqual(json.loads(lines.readline())["status"], "success")
        return (json.loads(line) for line in lines)

    def untilHeartbeats(self, events: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
        """
        Wait for three heartbeats with the time of the clock as it is set.

        @return: the events until then.
        """
        passed, beats = [], 0
        while beats < 3:
            passed.append(event := next(events))
            beats += event["event"] == "heartbeat" and self.isNow(event["time"])
        return passed

    def test_server(self) -> None:
        """Heartbeats go on, and leases last as long as before, and are shown with the right end;
        one that is granted then ends."""
        for by in (-7200, 86400):
            with ChildDaemon(SERVER, self.command("twisted")) as daemon:
                address = (daemon.host, daemon.port)
                self.assertEqual(daemon.ask("attach", **LEASED)["status"], "success")
                events = self.events(socket.create_connection(address, SECONDS))
                self.setClock(by)
                events = chain(self.untilHeartbeats(events), events)
                shown = next(event for event in events if event["event"] == "lease")
                self.assertTrue(self.isNow(shown["data"]["lease"]["until"], 600), shown)
                self.assertEqual(daemon.ask("attach", id="1-1")["status"], "failure")
                renewed = daemon.ask("renew", id="1-1", lease={"owner": "ci", "ttl": 0.1})
                self.assertEqual(renewed["status"], "success")
                next(event for event in events if event["event"] == "unbound")

    def test_clientService(self) -> None:
        """Heartbeats go on, a device stays attached, and its server is connected to again when it
        is back."""
        listen, export = (f"tcp:{freePort()}:interface=127.0.0.1" for _ in range(2))
        config = f"backend: {{type: virtual}}\nexport: {{listen: ['{export}']}}\n"
        for by in (-7200, 86400):
            with ChildDaemon(config, listen=[listen]) as daemon:
                command = self.command("tests.client.service.servicechild")
                rules = serversOf(here=daemon) + "devices: [{name: echo, serial: ECHO1}]\n"
                service = ChildService(rules + SERVICE, command)
                with service:
                    service.logged("{device} at {server} attached")
                    connection = socket.socket(socket.AF_UNIX)
                    connection.settimeout(SECONDS)
                    connection.connect(service.path)
                    events = self.events(connection)
                    self.setClock(by)
                    self.untilHeartbeats(events)
                    self.assertEqual(len(service.ask("ports")["data"]), 1)
                    daemon.kill()
                    next(event for event in events if event["event"] == "disconnected")
                    daemon.start()
                    next(event for event in events if event["event"] == "attached")

    def test_commandLines(self) -> None:
        """Both daemons use the monotonic clock from when their command line is read."""
        for module in ("usbip_server.tap", "usbip_server.client.service.tap"):
            program = TAP.format(module=module)
            done = subprocess.run(
                (sys.executable, "-c", program), stdout=subprocess.PIPE, timeout=SECONDS, check=True
            )
            self.assertEqual(done.stdout, b"True\n", module)


def freePort() -> int:
    """
    A port that is free.
    """
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port
