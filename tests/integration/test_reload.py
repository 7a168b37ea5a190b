"""
SIGHUP: the configuration is reloaded.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from tests.integration.case import LAMP, DaemonCase, connect, readLines, talk
from tests.support.childdaemon import ChildDaemon

NAMED = LAMP + "devices: [{match: {serial: L1}, name: lamp}]\n"

KEEP = b'{"command":"list","keep_alive":true}'


class ReloadTests(DaemonCase):
    """
    A valid file is applied, an invalid one changes nothing, and no connection is affected.
    """

    def assertReloads(self, daemon: ChildDaemon, config: str) -> None:
        """A configuration is accepted."""
        event = daemon.reload(config)
        self.assertEqual(event["log_format"], "configuration reloaded", event)

    def assertRefuses(self, daemon: ChildDaemon, config: str, message: str) -> None:
        """A configuration is refused with a message."""
        event = daemon.reload(config)
        self.assertIn("reload failed", event["log_format"])
        self.assertEqual(event["log_level"]["name"], "error")
        self.assertRegex(event["error"], message)

    def test_valid(self) -> None:
        """Rules and limits apply from then on; a connection stays, and a watcher on it receives
        what has changed."""
        daemon = self.daemon()
        with daemon.watch() as watching:
            self.assertReloads(daemon, NAMED + "limits: {request_bytes: 1024}\n")
            watching.told("changed", "1-1")
        self.assertEqual(self.shown(daemon, "lamp")["name"], "lamp")
        self.assertIn("longer than 1024", daemon.ask("x" * 1100)["message"])
        always = LAMP + "devices: [{match: {bus: '*'}, share: always}]\n"
        self.assertReloads(daemon, always)
        self.assertEqual([self.shown(daemon, it)["state"] for it in ("1-1", "1-2")], ["bound"] * 2)
        daemon.reload(always.replace("Lamp", "Torch") + "state: {file: /x}\n")
        keys = [event["key"] for event in daemon.events if "needs a restart" in event["log_format"]]
        self.assertEqual(keys, ["backend", "state.file"])

    def test_invalid(self) -> None:
        """An invalid or missing file is reported with its line, and nothing changes."""
        daemon = self.daemon(NAMED)
        for bad in ("colour: red\n", "http: {hosts: 5}\n", "a: ["):
            self.assertRefuses(daemon, NAMED + bad, r"\.yaml:\d+")
        Path(daemon._file).unlink()
        daemon.child.send_signal(signal.SIGHUP)
        self.assertIn("cannot be read", daemon.logged("reload failed")["error"])
        self.assertEqual(self.shown(daemon, "lamp")["bus_id"], "1-1")

    def test_listen(self) -> None:
        """It listens where the file says, and only there; connections to the old address stay. If
        it cannot listen, nothing of the file is applied."""
        daemon = self.daemon()
        with connect(daemon.port) as old:
            old.sendall(KEEP)
            readLines(old)
            self.assertReloads(daemon, f"{LAMP}listen: ['tcp:0:interface=127.0.0.2']\n")
            fresh = daemon.ports[-1]
            self.assertIn(b"success", talk(fresh, b'{"command":"list"}', "127.0.0.2"))
            self.assertRaises(ConnectionRefusedError, connect, daemon.port)
            taken = f"tcp:{old.getsockname()[1]}:interface=127.0.0.1"
            more = f"listen: ['tcp:{fresh}:interface=127.0.0.2', '{taken}']\n"
            self.assertRefuses(daemon, NAMED + more, "cannot listen on")
            old.sendall(b'{"command":"find","id":"lamp"}')
            self.assertIn(b"not_found", readLines(old))

    def test_otherInterface(self) -> None:
        """It goes from every interface to one, and back, on the same port."""
        daemon = self.daemon(listen=["tcp:0"])
        every = f"{LAMP}listen: ['tcp:{daemon.port}']\n"
        one = every.replace("']", ":interface=127.0.0.1']")
        for config, host in (
            (every, "::1"),
            (one, "127.0.0.1"),
            (every, "::1"),
            (one, "127.0.0.1"),
        ):
            self.assertReloads(daemon, config)
            self.assertIn(b"success", talk(daemon.port, b'{"command":"list"}', host))
        self.assertRaises(ConnectionRefusedError, connect, daemon.port, "::1")

    def test_withoutFile(self) -> None:
        """A daemon without a configuration file reloads the defaults."""
        command = ("-m", "twisted", "--log-format=json", "usbipshare", "-b", "virtual")
        child = self.process(sys.executable, *command, "-l", "tcp:0", "-e", "off")
        self.lines(child, '"log_format": "ready"')
        os.kill(child.pid, signal.SIGHUP)
        event = json.loads(self.lines(child, "reloaded").strip("\x1e"))
        self.assertEqual(event["log_format"], "configuration reloaded")
