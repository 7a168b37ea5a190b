"""
How the daemon starts and ends.
"""

from __future__ import annotations

import json
import socket

from twisted.internet.threads import deferToThread

from tests.integration.daemon import (
    ENDED_WELL,
    INERT,
    PATIENCE,
    TWISTD,
    TWISTED,
    DaemonTestCase,
    ask,
    connect,
    readAll,
    talk,
)

KEEP = b'{"command":"list","keep_alive":true}'

SLOW_BACKEND = """
import os
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.plugin import IPlugin
from zope.interface import implementer
from usbip_server.model.device import UsbDevice
from usbip_server.model.errors import OperationFailed
from usbip_server.model.options import InvalidOption
from usbip_server.interfaces import IUsbBackend, IUsbBackendMaker
from usbip_server.model.inventory import Inventory

@implementer(IUsbBackend)
class Slow:
    def __init__(self, go, reactor):
        self.inventory = Inventory()
        self.go = go
        self.reactor = reactor

    async def start(self):
        self.inventory.replace([UsbDevice(
            busId="1-1", vendorId="1209", productId="0001", description="Snail")])

    async def stop(self):
        Logger().info("backend has stopped")

    async def bind(self, device, deadline, allowMounted=False):
        Logger().info("bind has begun")
        while not os.path.exists(self.go):
            await deferLater(self.reactor, 0.02)
        return device

    async def unbind(self, device, deadline):
        return device

    async def release(self, device, deadline):
        return device

    async def export(self, device, connection, holder, deadline):
        raise OperationFailed(device, "no")

    async def refresh(self, device):
        pass

    def traffic(self, device):
        return None

@implementer(IPlugin, IUsbBackendMaker)
class SlowMaker:
    name = "slow"
    description = "takes its time"

    def makeBackend(self, options, reactor):
        if set(options) != {"go"}:
            raise InvalidOption(["go"], "is missing")
        return Slow(options["go"], reactor)

slow = SlowMaker()
"""


class StoppingTests(DaemonTestCase):
    """
    How it ends.
    """

    async def test_clean(self) -> None:
        """Told to end, it ends at once, with nothing to complain of in its log."""
        child, [port] = await self.daemon()
        idle = connect(port)
        idle.sendall(KEEP)
        self.assertIn(b"success", await deferToThread(idle.recv, 65536))

        def untilTheEnd() -> bytes:
            with idle:
                return readAll(idle)

        rest = deferToThread(untilTheEnd)
        await self.terminate(child)
        self.assertEqual(await rest, b"")
        levels = {event["log_level"]["name"] for event in child.events}
        self.assertEqual(levels, {"info"})
        self.assertEqual(child.stderr, "")
        self.assertIn("stopped", [event["log_format"] for event in child.events])

    async def test_answersFirst(self) -> None:
        """What is in progress is answered before it ends, and the end waits for that. The
        backend is somebody else's, found as a Twisted plugin."""
        path = self.write(SLOW_BACKEND, "twisted/plugins/slow_backend.py")
        go = self.write("") + ".go"
        config = (
            'listen: ["tcp:0:interface=127.0.0.1"]\ntimeouts: {answer: 20, stop: 20}\n'
            f"backend: {{type: slow, go: {go}}}\n"
        )
        plugins = path.removesuffix("/twisted/plugins/slow_backend.py")
        child, [port] = await self.daemon(config, path=plugins)
        attached = deferToThread(talk, port, b'{"command":"attach","id":"1-1","keep_alive":true}')
        await child.says('"log_format": "bind has begun"')
        child.signal(15)
        await child.says("Received SIGTERM")
        self.assertFalse(attached.called)
        open(go, "w").close()
        self.assertEqual(json.loads(await attached)["status"], "success")
        self.assertIn(await child.ended, ENDED_WELL)
        self.assertIn("backend has stopped", [event["log_format"] for event in child.events])
        levels = {event["log_level"]["name"] for event in child.events}
        self.assertEqual(levels, {"info"})


class StartingTests(DaemonTestCase):
    """
    How it starts, or does not.
    """

    async def test_twistd(self) -> None:
        """It runs under twistd as well as under python -m twisted."""
        child, [port] = await self.daemon(how=TWISTD)
        self.assertEqual((await ask(port, command="list"))["status"], "success")
        await self.terminate(child)
        self.assertIn("stopped", child.stdout)

    async def test_help(self) -> None:
        """Both programs list it among their plugins."""
        for how in (TWISTED[:2], TWISTD[:2]):
            child = self.run_(*how, "--help")
            self.assertEqual(await child.ended, 0)
            self.assertIn("usbipshare", child.stdout)
            self.assertIn("USB/IP", child.stdout)

    async def test_portTakenAsDaemon(self) -> None:
        """That is so when it is to go into the background, and whoever starts it hears of it."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            child = self.run_(
                *TWISTD[:2], "--pidfile=", "--logfile=log", "usbipshare", "-b", "virtual",
                "-l", f"tcp:{port}",
            )  # fmt: skip
            self.assertEqual(await child.ended, 1)
            self.assertIn(f"cannot listen on tcp:{port}", child.stderr)

    async def test_badConfig(self) -> None:
        """A mistake in the configuration is said with file and line, before it listens."""
        for text, line, reason in (
            (INERT + "colour: red\n", 10, "colour: unknown key"),
            ("listen:\n  - tcp:5055\n  - tcp:70000\n", 3, "listen.1: "),
            ("backend: {type: virtual}\nbackend: {type: sysfs}\n", 2, "occurs twice"),
            ("backend:\n  type: virtual\n  devcies: []\n", 3, "backend.devcies: unknown key"),
        ):
            config = self.write(text)
            for how in (TWISTED, TWISTD):
                child = self.run_(*how, "usbipshare", "--config", config)
                self.assertEqual(await child.ended, 1)
                self.assertIn(f"{config}:{line}: ", child.stderr)
                self.assertIn(reason, child.stderr)
                self.assertNotIn("Traceback", child.stderr)
                self.assertNotIn("listening on", child.stdout)

    async def test_patience(self) -> None:
        """The daemon is ready within the time that a client waits."""
        child, _ = await self.daemon()
        times = [event["log_time"] for event in child.events]
        self.assertLess(times[-1] - times[0], PATIENCE)
