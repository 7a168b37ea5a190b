"""
What a daemon remembers when it is killed and started anew.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.task import deferLater

from tests.integration.daemon import INERT, Child, DaemonTestCase, ask


class MemoryTests(DaemonTestCase):
    """
    The state file, and two daemons one after the other.
    """

    def setUp(self) -> None:
        self.state = Path(self.mktemp()).absolute() / "deep" / "state.json"
        self.config = INERT.replace("null", str(self.state))

    async def kill(self, child: Child) -> None:
        """As a crash would."""
        child.signal(signal.SIGKILL)
        await child.ended

    async def detail(self, port: int, busId: str = "1-1") -> dict[str, Any]:
        """All that is known of a device."""
        found = await ask(port, command="find", id=busId, detail=True)
        data: dict[str, Any] = found["data"]
        return data

    def saved(self) -> list[dict[str, Any]]:
        """What stands in the file."""
        wishes: list[dict[str, Any]] = json.loads(self.state.read_text())["wishes"]
        return wishes

    async def untilSaved(self, count: int) -> None:
        """Wait until the file holds so many wishes."""
        while not self.state.exists() or len(self.saved()) != count:
            await deferLater(reactor, 0.01)

    async def test_attached(self) -> None:
        """What was attached is bound again after kill -9, until it is detached."""
        child, [port] = await self.daemon(self.config)
        await ask(port, command="attach", id="1-1")
        await self.untilSaved(1)
        await self.kill(child)
        child, [port] = await self.daemon(self.config)
        self.assertEqual((await self.detail(port))["state"], "bound")
        self.assertEqual((await self.detail(port, "1-2"))["state"], "free")
        await ask(port, command="detach", id="1-1")
        await self.untilSaved(0)
        await self.kill(child)
        child, [port] = await self.daemon(self.config)
        self.assertEqual((await self.detail(port))["state"], "free")

    async def test_leased(self) -> None:
        """So is whose it is."""
        lease = {"owner": "ci-job-81", "ttl": 600}
        child, [port] = await self.daemon(self.config)
        await ask(port, command="attach", id="1-1", lease=lease)
        before = (await self.detail(port))["lease"]
        await self.untilSaved(1)
        await self.kill(child)
        _, [port] = await self.daemon(self.config)
        self.assertEqual((await self.detail(port))["lease"], before)
        refused = await ask(port, command="attach", id="1-1")
        self.assertIn("leased by ci-job-81 (127.0.0.1) for ", refused["message"])
        freed = await ask(port, command="detach", id="1-1", owner="ci-job-81")
        self.assertEqual(freed["status"], "success")

    async def test_cleanStop(self) -> None:
        """A clean stop writes what there is to be written."""
        child, [port] = await self.daemon(self.config)
        await ask(port, command="attach", id="1-1")
        await self.terminate(child)
        self.assertEqual([wish["bus_id"] for wish in self.saved()], ["1-1"])

    async def test_damaged(self) -> None:
        """A damaged file is set aside with a warning."""
        self.state.parent.mkdir(parents=True)
        self.state.write_text('{"version": 1, "wishes": [{"vendor_id"')
        child, [port] = await self.daemon(self.config)
        self.assertEqual((await self.detail(port))["state"], "free")
        levels = [event["log_level"]["name"] for event in child.events]
        self.assertEqual(levels.count("warn"), 1)
        names = [path.name for path in self.state.parent.iterdir()]
        self.assertEqual(len([name for name in names if ".damaged-" in name]), 1)

    async def test_unbindOnStop(self) -> None:
        """What is to be given back when the daemon stops is bound again when it starts."""
        config = self.config + "on_stop: unbind\n"
        child, [port] = await self.daemon(config)
        await ask(port, command="attach", id="1-1")
        await self.terminate(child)
        self.assertIn('"unbound"', child.stdout)
        _, [port] = await self.daemon(config)
        self.assertEqual((await self.detail(port))["state"], "bound")
