"""
Tests of L{usbip_server.client.cli.completion} and of C{usbipshare completion}.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from click.shell_completion import ShellComplete
from twisted.trial.unittest import SkipTest

from tests.client.cli.commandcase import CommandCase
from tests.support.childdaemon import EXPORT
from usbip_server.client.cli import completion
from usbip_server.client.cli.exitcodes import Exit
from usbip_server.client.cli.main import COMMANDS, main

SECONDS = 60

SHELLS = {
    "bash": (
        ("--norc",),
        "source {}; COMP_WORDS=(usbipshare attach ''); COMP_CWORD=2; "
        'COMPREPLY=(); _usbipshare_completion usbipshare; printf "%s\\n" "${{COMPREPLY[@]}}"',
    ),
    "zsh": (
        ("-f",),
        "compdef() {{ : }}; _describe() {{ print -l -- ${{(P)3}} }}; source {}; "
        "words=(usbipshare attach ''); CURRENT=3; _usbipshare_completion",
    ),
    "fish": ((), 'source {}; complete -C "usbipshare attach "'),
}
"""How each is had to complete C{usbipshare attach}: its options, and a command."""

EVIL = """
export: off
backend:
  type: virtual
  devices:
    - {bus_id: 1-1, product: Lamp, serial: "$(reboot)"}
    - {bus_id: 1-2, product: Bell, serial: "a b"}
    - {bus_id: 1-3, product: "two\\nlines", serial: good}
"""

NAMED = (
    f"{EXPORT}backend: {{type: virtual}}\n"
    "devices: [{match: {serial: DISK1}, name: scratch-disk}]\n"
)


class CompletingTests(CommandCase):
    """
    The words that are offered.
    """

    def setUp(self) -> None:
        super().setUp()
        self.patch(completion, "SECONDS", SECONDS)

    def offered(self, *words: str) -> dict[str, str | None]:
        """The words for the last argument, with their descriptions."""
        complete = ShellComplete(main, {"obj": self.machine()}, "usbipshare", "_C")
        *arguments, incomplete = words
        return {each.value: each.help for each in complete.get_completions(arguments, incomplete)}

    def test_commands(self) -> None:
        """Commands and options are offered."""
        self.assertEqual([*self.offered("")], [*COMMANDS])
        self.assertEqual([*self.offered("attach", "--le")], ["--lease"])
        self.assertEqual([*self.offered("completion", "")], ["bash", "zsh", "fish"])

    def test_devices(self) -> None:
        """Devices are offered by name, or else by bus id, and the servers in client.yaml."""
        self.daemon("raspi", NAMED)
        self.daemon("bench", EVIL)
        offered = self.offered("attach", "")
        self.assertEqual([*offered], ["1-1", "scratch-disk", "1-2", "1-3"])
        self.assertEqual(offered["scratch-disk"], "usbipshare Small Disk at raspi")
        self.assertEqual([*self.offered("find", "--host", "raspi", "s")], ["scratch-disk"])
        self.assertEqual([*self.offered("list", "--serial", "E")], ["ECHO1"])
        self.known("lab", range="192.0.2.1-9")
        self.assertEqual([*self.offered("list", "--host", "")], ["raspi", "bench", "lab"])

    def test_harmless(self) -> None:
        """Words with characters that shells or terminals interpret are not offered."""
        self.daemon("bench", EVIL)
        self.assertEqual([*self.offered("find", "--serial", "")], ["good"])
        told = self.offered("find", "1-3")["1-3"]
        self.assertEqual(told, r"two\x0alines at bench")

    def test_attachedDevices(self) -> None:
        """For C{detach} attached devices are offered, and other devices if none matches."""
        self.daemon()
        self.assertEqual([*self.offered("detach", "")], ["1-1", "1-2"])
        self.type("attach", "echo")
        node = str(self.folder / "dev/ttyUSB0")
        self.assertEqual([*self.offered("detach", "")], ["3-1", node])
        self.assertEqual(self.offered("detach", "--port", ""), {"0": "3-1"})

    def test_errors(self) -> None:
        """After an error nothing is offered, and nothing printed."""
        self.known("gone", host="127.0.0.1", port=self.nobody(), export_port=self.nobody())
        self.assertEqual(self.offered("attach", ""), {})
        self.assertEqual(self.offered("attach", "--host", "a b", ""), {})
        self.write("usbipshare/client.yaml", "servers: []\n")
        self.assertEqual(self.offered("list", "--host", ""), {})
        self.kernel.loaded = self.kernel.loadable = False
        self.assertEqual(self.offered("detach", "--port", ""), {})


class CompletionTests(CommandCase):
    """
    The scripts for shells.
    """

    def test_live(self) -> None:
        """Each shell accepts its script, and completes the bus ids of a server's devices."""
        self.daemon()
        here = Path(sys.executable).parent
        environment = {
            **os.environ,
            "PATH": f"{here}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "XDG_CONFIG_HOME": str(self.folder),
        }
        missing = []
        for shell, (options, code) in SHELLS.items():
            self.assertIn("_USBIPSHARE_COMPLETE", self.type("completion", shell).stdout)
            program = shutil.which(shell)
            if program is None:
                missing.append(shell)
                continue
            script = self.write(f"usbipshare.{shell}", self.type("completion", shell).stdout)
            subprocess.run([program, "-n", script], check=True, timeout=SECONDS)
            offered: list[str] = []
            # The server has half a second for it, each time.
            for _ in range(20):
                ended = subprocess.run(
                    [program, *options, "-c", code.format(script)],
                    env=environment,
                    capture_output=True,
                    text=True,
                    timeout=SECONDS,
                )
                offered = [re.split("[:\t]", line)[0] for line in ended.stdout.split("\n") if line]
                if offered:
                    break
            self.assertEqual(offered, ["1-1", "1-2"], (shell, ended))
        self.type("completion", "cmd", status=Exit.USAGE)
        if missing:
            raise SkipTest(f"not all shells: apt-get install {' '.join(missing)}")
