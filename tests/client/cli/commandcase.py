"""
Runs commands with real servers and a kernel in memory.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from twisted.trial.unittest import SynchronousTestCase

from tests.support.childdaemon import EXPORT, SECONDS, ChildDaemon, PatientDaemon
from usbip_server.client.cli.context import Machine
from usbip_server.client.cli.main import main
from usbip_server.testing import FakeVhci

VIRTUAL = f"backend: {{type: virtual}}\n{EXPORT}"
"""A daemon with the two standard virtual devices, that can be imported."""


class CommandCase(SynchronousTestCase):
    """
    Runs commands in this process.

    @ivar folder: for files of the test.
    @ivar environment: the environment variables of commands.
    @ivar kernel: the kernel that they attach devices to.
    @ivar addresses: of this machine, where servers are looked for.
    """

    addresses: tuple[str, ...] = ()

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        (self.folder / "usbipshare").mkdir(parents=True)
        self.environment = {"XDG_CONFIG_HOME": str(self.folder)}
        self.kernel = FakeVhci()
        self.addCleanup(self.kernel.close)
        self.servers: dict[str, dict[str, Any]] = {}

    def daemon(self, name: str = "raspi", config: str = VIRTUAL, **more: Any) -> ChildDaemon:
        """A daemon until the end of the test, which is in client.yaml, with these options."""
        daemon = PatientDaemon(config).__enter__()
        self.addCleanup(daemon.__exit__, None, None, None)
        ports = {"port": daemon.port}
        if "export: off" not in config:
            ports["export_port"] = daemon.exportPort
        self.known(name, host="127.0.0.1", **ports, **more)
        return daemon

    def known(self, name: str, **entry: Any) -> None:
        """Add a server to client.yaml."""
        self.servers[name] = entry
        known = {"timeout": SECONDS, "servers": self.servers}
        self.write("usbipshare/client.yaml", json.dumps(known))

    def write(self, name: str, text: str, mode: int = 0o600) -> Path:
        """Write a file."""
        path = self.folder / name
        path.write_text(text)
        path.chmod(mode)
        return path

    def nobody(self) -> int:
        """A closed port."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port: int = listener.getsockname()[1]
        return port

    def machine(self, isTerminal: bool = False) -> Machine:
        """The machine that commands run on."""
        return Machine(
            system=self.kernel,
            environment=self.environment,
            etc=str(self.folder / "etc"),
            nodes=str(self.folder / "dev"),
            records=str(self.folder / "records"),
            isTerminal=isTerminal,
            addresses=self.addresses,
        )

    def type(
        self,
        *arguments: str,
        given: str | None = None,
        status: int = 0,
        isTerminal: bool = False,
    ) -> Result:
        """
        Run a command with this input and exit code: what it prints, in C{stdout} and C{stderr}.

        @param isTerminal: can the user be asked?
        """
        done = CliRunner().invoke(
            main, arguments, input=given, prog_name="usbipshare", obj=self.machine(isTerminal)
        )
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        self.assertEqual(done.exit_code, status, done.output)
        return done

    def json(self, *arguments: str, status: int = 0) -> dict[str, Any]:
        """Run a command with C{--json}: the object that it prints."""
        said: dict[str, Any] = json.loads(self.type(*arguments, "--json", status=status).stdout)
        self.assertLessEqual({"status", "devices", "errors", "message"}, {*said})
        return said
