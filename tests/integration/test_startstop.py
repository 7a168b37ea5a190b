"""
How the daemon starts and stops.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from twisted.trial.unittest import SkipTest

from tests.integration.case import ENDED_WELL, LAMP, DaemonCase, connect, readAll, readLines, talk

TWISTED = (sys.executable, "-m", "twisted")
TWISTD = (sys.executable, "-c", "from twisted.scripts.twistd import run; run()")

SLOW_BACKEND = """
import os
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.plugin import IPlugin
from zope.interface import implementer
from usbip_server.model.device import UsbDevice
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

    unbind = release = lambda self, device, deadline: None
    export = lambda self, device, connection, holder, deadline: None
    refresh = traffic = lambda self, device: None

@implementer(IPlugin, IUsbBackendMaker)
class SlowMaker:
    name = "slow"
    description = "takes its time"

    def makeBackend(self, options, reactor):
        return Slow(options["go"], reactor)

slow = SlowMaker()
"""


class StoppingTests(DaemonCase):
    """
    SIGTERM.
    """

    def test_idleConnection(self) -> None:
        """It stops at once, ends idle connections, and logs nothing unusual."""
        daemon = self.daemon()
        with connect(daemon.port) as idle:
            idle.sendall(b'{"command":"list","keep_alive":true}')
            readLines(idle)
            self.assertStops(daemon)
            self.assertEqual(readAll(idle), b"")
        daemon.logged("stopped")
        self.assertEqual(self.unusual(daemon), [])

    def test_operationInProgress(self) -> None:
        """It answers requests in progress before it stops. The backend is a third party's, found
        as a Twisted plugin."""
        plugin = self.write(SLOW_BACKEND, "twisted/plugins/slow_backend.py")
        go = Path(self.mktemp()).absolute()
        daemon = self.daemon(
            f"timeouts: {{answer: 20, stop: 20}}\nbackend: {{type: slow, go: {go}}}\n",
            env={**os.environ, "PYTHONPATH": f"{plugin.parents[2]}:{Path(__file__).parents[2]}"},
        )
        with ThreadPoolExecutor() as pool:
            attached = pool.submit(talk, daemon.port, b'{"command":"attach","id":"1-1"}')
            daemon.logged("bind has begun")
            daemon.child.send_signal(signal.SIGTERM)
            daemon.logged("Received SIGTERM")
            self.assertFalse(attached.done())
            go.touch()
            self.assertEqual(json.loads(attached.result())["status"], "success")
        daemon.logged("backend has stopped")
        self.assertIn(daemon.child.wait(), ENDED_WELL)
        self.assertEqual(self.unusual(daemon), [])


class StartingTests(DaemonCase):
    """
    C{twistd} and C{python -m twisted}.
    """

    def test_twistd(self) -> None:
        """It runs under twistd, reloads on SIGHUP and stops, as under C{python -m twisted}."""
        listen = 'listen: ["tcp:0:interface=127.0.0.1"]\nexport: off\nstate: {file: null}\n'
        config = self.write(LAMP + listen)
        options = ("--nodaemon", "--pidfile=", "usbipshare", "--config", str(config))
        child = self.process(*TWISTD, *options)
        address = self.lines(child, "listening on")
        found = re.search(r"port=(\d+)", address)
        assert found is not None, address
        self.lines(child, "ready")
        config.write_text(LAMP + listen + "devices: [{match: {serial: L1}, name: lamp}]\n")
        child.send_signal(signal.SIGHUP)
        self.lines(child, "configuration reloaded")
        self.assertIn(b"success", talk(int(found[1]), b'{"command":"find","id":"lamp"}'))
        child.send_signal(signal.SIGTERM)
        self.lines(child, "stopped")
        self.assertIn(child.wait(), ENDED_WELL)

    def test_afterKill(self) -> None:
        """After kill -9 it starts again with the process id that it had, as in a container, where
        it is always 1: neither twistd's pid file nor its unix socket keep it from that."""
        folder = Path(tempfile.mkdtemp(prefix="usbipshare-"))
        self.addCleanup(shutil.rmtree, folder)
        listen = f"listen: ['unix:{folder}/s']\nexport: off\nstate: {{file: {folder}/state}}\n"
        service = f"socket: {{path: {folder}/client}}\nstate: {{file: {folder}/client.json}}\n"
        container = ("unshare", "--pid", "--fork", "--kill-child", "--")
        if os.geteuid() != 0 or subprocess.call((*container, "true")) != 0:
            raise SkipTest("process namespaces cannot be created here")
        for name, text in (("usbipshare", LAMP + listen), ("usbipclient", service)):
            config = self.write(text)
            options = ("--nodaemon", f"--pidfile={folder}/twistd.pid", name, "--config")
            for _ in range(2):
                child = self.process(*container, *TWISTD, *options, str(config))
                self.lines(child, "ready")
                self.assertEqual((folder / "twistd.pid").read_text(), "1")
                child.kill()
                child.wait()
            (folder / "twistd.pid").unlink()

    def test_help(self) -> None:
        """Both programs list it among their plugins."""
        for program in (TWISTED, TWISTD):
            self.assertRegex(self.output(*program, "--help"), r"usbipshare\s+Share .*\s.*USB/IP")

    def test_cannotListen(self) -> None:
        """As a daemon in the background it reports a port in use to the program that starts it."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            options = ("--pidfile=", "--logfile=/dev/null", "usbipshare", "-b", "virtual")
            output = self.output(*TWISTD, *options, "-l", f"tcp:{port}", status=1)
            self.assertIn(f"cannot listen on tcp:{port}", output)

    def test_invalidConfig(self) -> None:
        """An error in the configuration is reported with file and line, without a traceback."""
        config = self.write("backend:\n  type: virtual\n  devcies: []\n")
        for program in (TWISTED, (*TWISTD, "--nodaemon")):
            output = self.output(
                *program, "usbipshare", "--config", str(config), status=os.EX_CONFIG
            )
            self.assertIn(f"{config}:3: backend.devcies: unknown key", output)
            self.assertNotIn("Traceback", output)
