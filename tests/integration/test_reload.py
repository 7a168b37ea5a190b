"""
SIGHUP: the configuration is reloaded.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

from twisted.internet.threads import deferToThread

from tests.integration.daemon import INERT, TWISTD, TWISTED, Child, DaemonTestCase, ask, connect

READ = "configuration reloaded"
REFUSED = "reload failed"
LAMP = "devices: [{match: {serial: L1}, name: lamp}]\n"


class ReloadTests(DaemonTestCase):
    """
    A good file is applied, a bad one changes nothing, and nobody is disturbed by either.
    """

    async def start(self, config: str = INERT, how: tuple[str, ...] = TWISTED) -> tuple[Child, int]:
        """A daemon on a file that can be written anew, and its first port."""
        self.path = self.write(config)
        child = self.run_(*how, "usbipshare", "--config", self.path)
        await child.says("ready")
        port = int(child.stdout.partition("port=")[2].partition(")")[0].partition(",")[0])
        return child, port

    async def reload(self, child: Child, config: str, outcome: str = READ) -> None:
        """Write another configuration, and have it read."""
        times = child.stdout.count(outcome)
        Path(self.path).write_text(config)
        child.signal(signal.SIGHUP)
        await child.says(outcome, times + 1)

    def logged(self, child: Child, beginning: str) -> list[dict[str, Any]]:
        """What was logged that begins so."""
        return [e for e in child.events if str(e["log_format"]).startswith(beginning)]

    async def test_good(self) -> None:
        """Rules, limits and names are true from then on; a connection stays, and a watcher on it
        is told what has changed."""
        child, port = await self.start()
        with connect(port) as watcher, watcher.makefile() as lines:
            watcher.sendall(b'{"command":"watch"}')
            await deferToThread(lines.readline)
            await self.reload(child, INERT + LAMP + "limits: {request_bytes: 1024}\n")
            event = json.loads(await deferToThread(lines.readline))
        self.assertEqual((event["event"], event["data"]["bus_id"]), ("changed", "1-1"))
        found = await ask(port, command="find", id="lamp", detail=True)
        self.assertEqual(found["data"]["name"], "lamp")
        long = await ask(port, command="find", desc="x" * 200, serial="y" * 200, id="z" * 200)
        self.assertEqual(long["status"], "not_found")
        self.assertIn("longer than 1024", (await ask(port, command="x" * 1100))["message"])

    async def test_always(self) -> None:
        """What is to be shared always from then on is bound."""
        child, port = await self.start()
        await self.reload(child, INERT + "devices: [{match: {bus: '*'}, share: always}]\n")
        for busId in ("1-1", "1-2"):
            found = await ask(port, command="find", id=busId, detail=True)
            self.assertEqual(found["data"]["state"], "bound")

    async def test_bad(self) -> None:
        """A bad file is reported with the line, and everything stays as it is."""
        child, port = await self.start(INERT + LAMP)
        for bad, line in (("colour: red\n", 10), ("devices: [{name: x}]\n", 10), ("a: [", 10)):
            await self.reload(child, INERT + bad, REFUSED)
            error = self.logged(child, REFUSED)[-1]
            self.assertEqual(error["log_level"]["name"], "error")
            self.assertRegex(str(error["error"]), rf"config.yaml:[{line - 1}{line}]")
        self.assertEqual((await ask(port, command="find", id="lamp"))["status"], "success")
        Path(self.path).unlink()
        child.signal(signal.SIGHUP)
        await child.says(REFUSED, 4)
        self.assertIn("cannot be read", self.logged(child, REFUSED)[-1]["error"])
        self.assertEqual((await ask(port, command="find", id="lamp"))["status"], "success")

    async def test_listen(self) -> None:
        """It listens where the file says, and no more where it does not; connections to the old
        place stay."""
        child, port = await self.start()
        with connect(port) as old:
            old.sendall(b'{"command":"list","keep_alive":true}')
            await deferToThread(old.recv, 65536)  # it is accepted
            await self.reload(child, INERT.replace("127.0.0.1", "127.0.0.2"))
            fresh = self.logged(child, "listening on")[-1]["port"]
            answer = await ask(fresh, "127.0.0.2", command="list")
            self.assertEqual(answer["status"], "success")
            self.assertRaises(ConnectionRefusedError, connect, port)
            old.sendall(b'{"command":"list"}')
            self.assertIn(b"success", await deferToThread(old.recv, 65536))

    async def test_narrower(self) -> None:
        """From every interface to one, and back, on the same port."""
        child, port = await self.start(INERT.replace(":interface=127.0.0.1", ""))
        one = INERT.replace("tcp:0", f"tcp:{port}")
        every = one.replace(":interface=127.0.0.1", "")
        await self.reload(child, every)
        for config, host in ((one, "127.0.0.1"), (every, "::1"), (one, "127.0.0.1")):
            await self.reload(child, config)
            self.assertEqual((await ask(port, host, command="list"))["status"], "success")
        self.assertRaises(ConnectionRefusedError, connect, port, "::1")

    async def test_listenInVain(self) -> None:
        """Where it cannot listen, nothing of the file is applied."""
        child, port = await self.start()
        with connect(port) as taken:
            here = taken.getsockname()[1]
            other = INERT.replace('["', f'["tcp:{here}:interface=127.0.0.1", "') + LAMP
            await self.reload(child, other, REFUSED)
        self.assertIn("cannot listen on", self.logged(child, REFUSED)[-1]["error"])
        self.assertEqual((await ask(port, command="find", id="lamp"))["status"], "not_found")

    async def test_notAtOnce(self) -> None:
        """What takes a new start is said to."""
        child, _ = await self.start()
        await self.reload(child, INERT.replace("Blinking", "Dark").replace("null", "/x"))
        keys = [event["key"] for event in self.logged(child, "changing")]
        self.assertEqual(keys, ["backend", "state.file"])

    async def test_twistd(self) -> None:
        """It works under twistd, too."""
        child, port = await self.start(how=TWISTD)
        await self.reload(child, INERT + LAMP)
        self.assertEqual((await ask(port, command="find", id="lamp"))["status"], "success")

    async def test_noFile(self) -> None:
        """A daemon without a file survives it."""
        child = self.run_(*TWISTED, "usbipshare", "-b", "virtual", "-l", "tcp:0", "-e", "off")
        await child.says("ready")
        child.signal(signal.SIGHUP)
        await child.says(READ)
