"""
L{usbip_server.runtime.yamledit}.
"""

import stat
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from usbip_server.runtime.yamledit import CannotInsert, appended, inserted, rewrite, textKey

COMMENTED = """\
# my servers
timeout: 5

servers:  # in the lab
    attic: {port: 5056}  # upstairs

    cellar:
        export_port: 3241
"""


class AppendedTests(SynchronousTestCase):
    """
    Top-level keys.
    """

    def test_appended(self) -> None:
        """Keys are appended after an empty line, and nothing else changes."""
        for before, after in (
            ("", "tls: {a: 1}\n"),
            ("x: 1", "x: 1\n\ntls: {a: 1}\n"),
            ("x: 1\n", "x: 1\n\ntls: {a: 1}\n"),
            ("# only a comment\n\n", "# only a comment\n\ntls: {a: 1}\n"),
        ):
            self.assertEqual(appended(before, "tls: {a: 1}\n"), after)

    def test_existing(self) -> None:
        """A key that exists is not appended, also if it is empty."""
        for text in ("tls: null\n", "tls:\n  a: 2\n"):
            error = self.assertRaises(CannotInsert, appended, text, "tls: {a: 1}")
            self.assertEqual(str(error), "it has `tls` already")


class InsertedTests(SynchronousTestCase):
    """
    An entry of a mapping.
    """

    def test_inserted(self) -> None:
        """An entry is inserted as the first, indented as the others, and comments stay."""
        self.assertEqual(
            inserted(COMMENTED, "servers", "raspi:\n  port: 1\n"),
            COMMENTED.replace("    attic", "    raspi:\n      port: 1\n    attic"),
        )

    def test_noMapping(self) -> None:
        """Where the mapping is missing or empty it is made."""
        for before in ("", "servers:\n", "servers:", "timeout: 5\n"):
            result = inserted(before, "servers", "raspi: {port: 1}")
            self.assertIn("servers:\n  raspi: {port: 1}\n", result)

    def test_impossible(self) -> None:
        """Where a person would have to look, the text is not changed."""
        for before, why in (
            ("servers: {raspi: null}\n", "it has `servers.raspi` already"),
            ("servers: {attic: null}\n", "`servers` is written on one line"),
            ("servers:\n- raspi\n", "`servers` is no mapping"),
            ("? servers\n:\n  attic: null\n", "`servers` is written on one line"),
        ):
            error = self.assertRaises(CannotInsert, inserted, before, "servers", "raspi: {port: 1}")
            self.assertEqual(str(error), why)


class RewriteTests(SynchronousTestCase):
    """
    Files.
    """

    def setUp(self) -> None:
        self.path = Path(self.mktemp())

    def test_made(self) -> None:
        """A file that does not exist is made, readable for everybody."""
        rewrite(str(self.path), lambda text: f"{text}a: 1\n")
        self.assertEqual(self.path.read_text(), "a: 1\n")
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o644)

    def test_kept(self) -> None:
        """The permissions of a file stay, and after an error also its content."""
        self.path.write_text("a: 1\n")
        self.path.chmod(0o640)
        rewrite(str(self.path), lambda text: appended(text, "b: 2"))
        self.assertRaises(
            CannotInsert, rewrite, str(self.path), lambda text: appended(text, "b: 3")
        )
        self.assertEqual(self.path.read_text(), "a: 1\n\nb: 2\n")
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o640)
        self.assertEqual([*self.path.parent.glob(".new-*")], [])


class TextKeyTests(SynchronousTestCase):
    """
    Texts as YAML.
    """

    def test_quoted(self) -> None:
        """A text that YAML would read as something else is quoted."""
        for text, shown in (
            ("ci", "ci"),
            ("on", '"on"'),
            ("Null", '"Null"'),
            ("12", '"12"'),
            ("192.0.2.7", '"192.0.2.7"'),
            ("a: b", '"a: b"'),
        ):
            self.assertEqual(textKey(text), shown)
