"""
Tests of L{usbip_server.client.cli.main}, of C{usbipshare token}, and of the manual page.
"""

from __future__ import annotations

import json
import pkgutil
import re
import shutil
import signal
import subprocess
import sys
from importlib import resources
from pathlib import Path

import click
from click.testing import CliRunner
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.docs.clientexamples import commandCalled, optionsOf
from usbip_server.client.cli import INTERRUPTED, commands
from usbip_server.client.cli.exitcodes import Exit
from usbip_server.client.cli.main import COMMANDS, main
from usbip_server.client.cli.options import LONGEST, Duration
from usbip_server.model.devicerules import LONGEST_NAME
from usbip_server.model.policy import BUILT_IN, Policy, several
from usbip_server.model.tokens import PREFIX, hashOf, isHashOf
from usbip_server.server.config import Source

SECONDS = 60

TOKEN = "usbip_0123456789abcdef"


HEAVY = {
    *("OpenSSL", "asyncio", "cryptography", "importlib.metadata", "ssl", "subprocess"),
    *("twisted", "usbip_server.client.attach", "usbip_server.kernel", "yaml", "zope.interface"),
}
"""What is loaded only by commands that use it."""

SLIM = HEAVY | {"ipaddress", "msgspec", "socket", "usbip_server.client.config"}

ATTACHING = {"subprocess", "usbip_server.client.attach", "usbip_server.kernel", "zope.interface"}

LOADS: tuple[tuple[str, str, set[str]], ...] = (
    ("--help", "", SLIM),
    ("--version", "", SLIM),
    ("tokken", "", HEAVY),
    *((f"{name} --help", "", SLIM) for name in COMMANDS if name not in ("attach", "renew")),
    *((f"{name} --help", "", HEAVY) for name in ("attach", "renew")),
    ("", "usbipshare a", SLIM),
    ("", "usbipshare attach --ho", HEAVY),
    ("", "usbipshare attach --host 127.0.0.1:1 u", HEAVY),
    ("list --host 127.0.0.1:1", "", HEAVY),
    ("list --host 127.0.0.1:1 --json", "", HEAVY),
    ("status --host 127.0.0.1:1", "", HEAVY),
    ("kick --host 127.0.0.1:1 uno", "", HEAVY),
    ("token ci", "", HEAVY),
    ("completion bash", "", SLIM - {"subprocess"}),
    ("ports", "", HEAVY - ATTACHING),
    ("attach --host 127.0.0.1:1 uno", "", HEAVY - ATTACHING),
    ("detach --host 127.0.0.1:1 uno", "", HEAVY - ATTACHING),
)
"""Command lines, or words to complete, and the modules that they must not load."""


class LoadingTests(SynchronousTestCase):
    """
    The modules that a command loads, which are most of the time that it takes.
    """

    def test_loadedModules(self) -> None:
        """Each command loads only what it uses."""
        folder = self.mktemp()
        code = (
            "import atexit, sys; "
            "atexit.register(lambda: print('modules:', *sys.modules, file=sys.stderr)); "
            "sys.argv[0] = 'usbipshare'; "
            "from usbip_server.client.cli.main import main; main()"
        )
        for words, completed, unused in LOADS:
            environment = {"XDG_CONFIG_HOME": folder}
            if completed:
                environment |= {
                    "_USBIPSHARE_COMPLETE": "bash_complete",
                    "COMP_WORDS": completed,
                    "COMP_CWORD": str(len(completed.split()) - 1),
                }
            done = subprocess.run(
                [sys.executable, "-c", code, *words.split()],
                check=False,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                env=environment,
            )
            loaded = set(done.stderr.partition("modules:")[2].split())
            self.assertIn("usbip_server.client.cli.main", loaded, done.stderr)
            self.assertEqual(loaded & unused, set(), (words, completed))


class SignalTests(SynchronousTestCase):
    """
    Signals while the command is being loaded.
    """

    def test_whileLoading(self) -> None:
        """SIGINT and SIGTERM end the command as they do later, whatever it imports at that time;
        a signal that its parent process has ignored is ignored."""
        code = (
            "import os, signal, sys\n"
            "_, module, number, isIgnored = sys.argv\n"
            "class Finder:\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            "        if name == module: os.kill(os.getpid(), int(number))\n"
            "sys.meta_path.insert(0, Finder())\n"
            "if isIgnored: signal.signal(int(number), signal.SIG_IGN)\n"
            "from usbip_server.client.cli import run\n"
            "sys.argv[1:] = ['--version'] if isIgnored else ['list', '--host', '127.0.0.1:1']\n"
            "run()"
        )
        for number, module, isIgnored, status in (
            (signal.SIGINT, "click", "", INTERRUPTED),
            (signal.SIGTERM, "usbip_server.client.cli.commands.list", "", INTERRUPTED),
            (signal.SIGINT, "msgspec", "", INTERRUPTED),
            (signal.SIGINT, "usbip_server.client.cli.tables", "", INTERRUPTED),
            (signal.SIGINT, "click", "ignored", Exit.DONE),
        ):
            done = subprocess.run(
                [sys.executable, "-c", code, module, str(int(number)), isIgnored],
                check=False,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                env={"XDG_CONFIG_HOME": self.mktemp()},
            )
            self.assertEqual(done.returncode, status, (module, done.stderr))
            if status == INTERRUPTED:
                self.assertEqual(done.stderr, "interrupted\n")


class CommandLineTestCase(SynchronousTestCase):
    """
    Runs commands that need no server.
    """

    def type(self, *arguments: str, given: bytes | None = None, status: int = 0) -> str:
        """Run a command with this input and exit code: what it prints."""
        done = CliRunner().invoke(main, arguments, input=given, prog_name="usbipshare")
        self.assertEqual(done.exit_code, status, done.output)
        return done.output


class HelpTests(CommandLineTestCase):
    """
    Help, version and errors of usage.
    """

    def test_help(self) -> None:
        """The help has all commands; that of each command has examples, and a text for each
        option."""
        for option in ("-h", "--help"):
            said = self.type(option)
            for name in COMMANDS:
                self.assertRegex(said, rf"\n  {name} +[A-Z][^.]+[a-z]\n")
                told = self.type(name, option)
                self.assertRegex(told, rf"\AUsage: usbipshare {name} \[OPTIONS\]")
                self.assertIn(f"\n    usbipshare {name}", told.replace("sudo ", ""))
        for name in COMMANDS:
            for parameter in commandCalled(name).params:
                if isinstance(parameter, click.Option):
                    self.assertTrue(parameter.help, f"{name} {parameter.name}")

    def test_commandsAndModules(self) -> None:
        """Each command has a module, and each module is a command."""
        there = {module.name for module in pkgutil.iter_modules(commands.__path__)}
        self.assertEqual(there, {*COMMANDS})
        for name in COMMANDS:
            self.assertEqual(commandCalled(name).name, name)
        self.assertRegex(self.type("--version"), r"\Ausbipshare \d+\.\d+\S*\n\Z")

    def test_usageErrors(self) -> None:
        """Errors of usage have exit code 2, and suggest the nearest word."""
        for arguments, said in (
            (("tokken",), "No such command 'tokken'. Did you mean 'token'?"),
            (("frobnicate",), "No such command 'frobnicate'.\n"),
            (("attach", "--first", "--hosts", "raspi", "x"), "--host"),
            (("--verbose",), "No such option"),
            (("token", "a", "b"), "unexpected extra argument"),
            (("token", "--hash"), "No such option"),
            (
                ("list", "--timeout", "3x"),
                "'3x' is not a duration: a number of seconds such as 600",
            ),
            (("attach", "--wait", "-1"), "'-1' is not a number of seconds >= 0 and <= 86400"),
            (("watch", "--id", "8-1:1.0"), "`id`: '8-1:1.0' is an interface; its device is '8-1'"),
            (("watch", "--serial", ""), "`serial` is empty"),
            (("list", "--timeout", "2d"), "'2d' is not a number of seconds > 0 and <= 86400"),
            (("renew", "--ttl", "nan"), "'nan' is not a number of seconds > 0"),
        ):
            self.assertIn(said, self.type(*arguments, status=2))


class DurationTests(SynchronousTestCase):
    """
    Options with a duration.
    """

    def test_units(self) -> None:
        """A duration is a number of seconds, or a text with units."""
        for text, seconds in (("0", 0), ("1.5", 1.5), ("90s", 90), ("1h30m", 5400), ("1d", 86400)):
            self.assertEqual(Duration(LONGEST, isZeroValid=True).convert(text, None, None), seconds)


class TokenTests(CommandLineTestCase):
    """
    C{usbipshare token}.
    """

    def made(self, *arguments: str) -> tuple[str, Policy]:
        """The token, and the policy in the printed configuration."""
        said = self.type("token", *arguments)
        _, token, _, configuration = said.split("\n\n")
        access = Source("pasted", configuration).config().access
        assert isinstance(access, Policy)
        return token, access

    def test_token(self) -> None:
        """The daemon reads the printed configuration, and accepts the token, which is printed
        once, with a warning, and is different each time. The name is optional."""
        said = self.type("token", "ci")
        self.assertIn("The token of ci, which is not shown again:", said)
        self.assertEqual(said.count(PREFIX), 1)
        for arguments, name in ((("ci",), "ci"), ((), "NAME")):
            token, access = self.made(*arguments)
            [kept] = several(access.principals[name].token)
            self.assertTrue(isHashOf(kept, token))
            self.assertNotIn(token, said)
        made = json.loads(self.type("token", "--json"))
        self.assertEqual(made.keys(), {"token", "hash"})
        self.assertTrue(isHashOf(made["hash"], made["token"]))

    def test_names(self) -> None:
        """The daemon reads every name as it was given."""
        for name in (
            *("ci", "build-01", "CI_2", "_x", "no", "On", "NULL", "~", "1", "1e3", "0x1f", "a b"),
            *("a: b", "#a", "it's", '"', "\\", "{a}", "[", "&a", "*a", "!a", "-", "- a", "?", "%"),
            *("Jürgen", "機械", "😀", "2026-01-01", "<<", "=", ".nan", "😀" * LONGEST_NAME),
        ):
            self.assertEqual([*self.made("--", name)[1].principals], [name])

    def test_wrongNames(self) -> None:
        """A name that is empty, built-in, too long or not printable is refused, without a token."""
        for name in (*BUILT_IN, "", " ", "a\nb", "a\tb", "\x1b[31m", "\u2028", "\ud800", "a" * 65):
            said = self.type("token", "--", name, status=2)
            self.assertIn("Invalid value for '[NAME]'", said)
            self.assertNotIn(PREFIX, said)


class CheckTests(CommandLineTestCase):
    """
    C{usbipshare token --check}.
    """

    kept = hashOf(TOKEN)

    def test_check(self) -> None:
        """The token is read from standard input, with or without the end of the line. Another
        token has exit code 1. No token is printed."""
        for given in (TOKEN, TOKEN + "\n", f"  {TOKEN}\r\n"):
            said = self.type("token", "--check", self.kept, given=given.encode())
            self.assertEqual(said, "the hash is of this token\n")
        for wrong in (b"usbip_guessed", b"", b"usbip_\xff\xed\xa0\x80", b"x" * 100_000):
            said = self.type("token", "--check", self.kept, given=wrong, status=1)
            self.assertEqual(said, "the hash is of another token\n")

    def test_wrongUsage(self) -> None:
        """A text that is not a hash, as an unquoted one, is refused, and not printed; C{--check}
        cannot be combined with other arguments."""
        for kept in ("sha256", "", TOKEN, self.kept.upper(), self.kept + "\n"):
            said = self.type("token", "--check", kept, status=2)
            self.assertIn("in single quotes", said)
            self.assertNotIn(TOKEN, said)
        for more in ("ci", "--json"):
            said = self.type("token", "--check", self.kept, more, status=2)
            self.assertIn("--check cannot be combined", said)


class ManualTests(SynchronousTestCase):
    """
    The manual page.
    """

    def setUp(self) -> None:
        self.page = resources.files("usbip_server.data").joinpath("usbipshare.1")
        self.text = self.page.read_text()

    def section(self, title: str) -> str:
        """A section, without its title."""
        return self.text.partition(f".Sh {title}\n")[2].partition("\n.Sh ")[0]

    def options(self, text: str) -> set[str]:
        """The options that are described."""
        return {f"-{name}" for name in re.findall(r"^\.It Fl (-[\w-]+)", text, re.MULTILINE)}

    def test_commandsAndOptions(self) -> None:
        """The page has each command with its options, and no others."""
        said = self.section("COMMANDS")
        self.assertEqual(re.findall(r"^\.It Cm (\w+)$", said, re.MULTILINE), [*COMMANDS])
        common = self.options(self.section("WHICH DEVICE") + self.section("WHICH SERVERS"))
        self.assertEqual(common, optionsOf("find"))
        for name in COMMANDS:
            own = self.options(said.partition(f".It Cm {name}\n")[2].partition("\n.It Cm ")[0])
            self.assertEqual(own, optionsOf(name) - common, name)

    def test_synopsis(self) -> None:
        """The synopsis has each command with its options, and the page has each exit code."""
        calls = self.section("SYNOPSIS").split(".Nm\n")[1:]
        self.assertEqual([call.split()[1] for call in calls], [*COMMANDS])
        common = optionsOf("find")
        for name, call in zip(COMMANDS, calls, strict=True):
            shown = {f"-{option}" for option in re.findall(r"Fl (-[\w-]+)", call)}
            self.assertEqual(shown - {"--json"}, optionsOf(name) - common, name)
        codes = re.findall(r"^\.It (\d+)$", self.section("EXIT STATUS"), re.MULTILINE)
        self.assertEqual(codes, [*(str(each.value) for each in Exit), str(INTERRUPTED)])

    def test_format(self) -> None:
        """groff formats the page without warnings."""
        groff = shutil.which("groff")
        if groff is None:
            raise SkipTest("apt-get install groff")
        done = subprocess.run(
            [groff, "-mandoc", "-ww", "-z", "-Tutf8", "-"],
            input=self.text,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=True,
        )
        self.assertEqual(done.stderr, "")


class InstalledTests(SynchronousTestCase):
    """
    The installed script.
    """

    def test_script(self) -> None:
        """The script is beside Python, and works in every locale."""
        script = Path(sys.executable).parent / "usbipshare"
        done = subprocess.run(
            [script, "token", "--json"],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=True,
            cwd="/",
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
        )
        made = json.loads(done.stdout)
        self.assertTrue(isHashOf(made["hash"], made["token"]))
        self.assertEqual(done.stderr, "")
