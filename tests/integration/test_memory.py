"""
What a daemon remembers when it is killed and started again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.integration.case import LAMP, DaemonCase

LEASE = {"owner": "ci-job-81", "ttl": 600}


class MemoryTests(DaemonCase):
    """
    The state file, and two daemons one after the other.
    """

    def setUp(self) -> None:
        self.state = Path(self.mktemp()).absolute() / "deep" / "state.json"
        self.config = f"{LAMP}state: {{file: {self.state}}}\n"

    def saved(self) -> list[dict[str, Any]]:
        """What the file contains."""
        devices: list[dict[str, Any]] = json.loads(self.state.read_text())["wishes"]
        return devices

    def test_killed(self) -> None:
        """
        An attached device and a lease outlast kill -9, as soon as the request is answered; a
        detached device stays free.
        """
        daemon = self.daemon(self.config)
        self.assertSucceeds(daemon, "attach", id="1-1", lease=LEASE)
        daemon.kill()
        [saved] = self.saved()
        self.assertEqual(saved["lease"]["owner"], "ci-job-81")
        daemon.start()
        shown = self.shown(daemon)
        self.assertEqual((shown["state"], shown["lease"]["owner"]), ("bound", "ci-job-81"))
        self.assertEqual(self.shown(daemon, "1-2")["state"], "free")
        message = daemon.ask("attach", id="1-1")["message"]
        self.assertIn("leased by ci-job-81 (127.0.0.1) for ", message)
        self.assertSucceeds(daemon, "detach", id="1-1", owner="ci-job-81")
        daemon.kill()
        self.assertEqual(self.saved(), [])
        daemon.start()
        self.assertEqual(self.shown(daemon)["state"], "free")

    def test_stopped(self) -> None:
        """A stop saves what is attached; with C{on_stop: unbind} that is unbound, and bound again
        at the start."""
        daemon = self.daemon(f"{self.config}on_stop: unbind\n")
        self.assertSucceeds(daemon, "attach", id="1-1")
        self.assertStops(daemon)
        while daemon.logged("{device} {kind}")["kind"] != "unbound":
            pass
        self.assertEqual([device["bus_id"] for device in self.saved()], ["1-1"])
        daemon.start()
        self.assertEqual(self.shown(daemon)["state"], "bound")

    def test_damaged(self) -> None:
        """A damaged file is renamed, with a warning."""
        self.state.parent.mkdir(parents=True)
        self.state.write_text('{"version": 1, "wishes": [{"vendor_id"')
        daemon = self.daemon(self.config)
        self.assertEqual(self.shown(daemon)["state"], "free")
        self.assertEqual(len(self.unusual(daemon)), 1)
        names = [path.name for path in self.state.parent.iterdir()]
        self.assertEqual(len([name for name in names if ".damaged-" in name]), 1)
