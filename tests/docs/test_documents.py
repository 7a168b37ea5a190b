"""Tests of all documents, and of those that explain."""

from __future__ import annotations

import configparser
import re
import sys

from twisted.trial.unittest import SynchronousTestCase

from tests.docs import test_howto, test_reference
from tests.docs.documentcase import DocumentCase
from tests.docs.documents import ROOT, anchor, documents
from tests.docs.examples import child
from tests.docs.messages import PACKAGE
from tests.test_layering import ALLOWED
from usbip_server.model.device import Encryption


class ArchitectureTests(DocumentCase, SynchronousTestCase):
    """The document about the architecture."""

    name = "docs/explanation/architecture.md"

    def test_modules(self) -> None:
        """Each module that it names exists."""
        there = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")}
        named = re.findall(r"\b(?:\w+/)+\w+\.py", self.document.path.read_text())
        for name in named:
            isThere = any(f"/{path}".endswith(f"/{name}") for path in there)
            self.assertTrue(isThere or (ROOT / name).is_file(), name)
        self.assertGreater(len(named), 40)

    def test_length(self) -> None:
        """It has fewer than 2,500 words."""
        self.assertLess(len(self.document.path.read_text().split()), 2500)

    def test_dependencies(self) -> None:
        """Each dependency is explained."""
        setup = configparser.ConfigParser(interpolation=None)
        setup.read(ROOT / "setup.cfg")
        needed = setup["options"]["install_requires"]
        for extra in setup["options.extras_require"].values():
            needed += extra
        explained = self.document.spans()
        for package in re.findall(r"^([\w.\[\]-]+)", needed, re.MULTILINE):
            self.assertIn(package, explained)


class ContributingTests(DocumentCase, SynchronousTestCase):
    """CONTRIBUTING.md."""

    name = "CONTRIBUTING.md"

    def test_importLaw(self) -> None:
        """The table of the import law is the one that is enforced."""
        _, *rows = self.document.rows("The import law", 2).items()
        law = {name: " ".join(re.findall("`(.+?)`", cells[1])) for name, cells in rows}
        self.assertEqual(law, ALLOWED)


class SecurityTests(DocumentCase, SynchronousTestCase):
    """The document about security."""

    name = "docs/explanation/security.md"

    def test_encryption(self) -> None:
        """Each kind of encryption of USB traffic is explained."""
        told = {*self.document.rows("TLS", 4)} | {*self.document.spans()}
        self.assertLessEqual({encryption.value for encryption in Encryption}, told)


class AllDocumentsTests(SynchronousTestCase):
    """All documents together."""

    def test_all(self) -> None:
        """Each document that has a test exists."""
        fixtures = {"tests/docs/wrong_configurations.md"}
        self.assertEqual({case.name for case in OTHERS} - NAMES, fixtures)

    def test_changelog(self) -> None:
        """towncrier makes a changelog of all news fragments."""
        command = [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "9.9"]
        draft = child(command, ROOT)
        self.assertIn("## 9.9 (", draft)
        for fragment in (ROOT / "newsfragments").glob("*.md"):
            kind = fragment.name.split(".")[-2]
            self.assertIn(kind, ("feature", "bugfix", "doc", "removal", "misc"), fragment.name)
            if kind != "misc":
                self.assertIn(fragment.read_text()[:40], draft)

    def test_anchors(self) -> None:
        """Headings become anchors as GitHub makes them."""
        self.assertEqual(anchor("Limits and time-outs"), "limits-and-time-outs")
        self.assertEqual(anchor("Update, uninstall"), "update-uninstall")
        self.assertEqual(anchor("`id`, `bus`"), "id-bus")


NAMES = {document.name for document in documents()}

OTHERS: list[type[DocumentCase]] = [
    case
    for module in (test_howto, test_reference)
    for case in vars(module).values()
    if isinstance(case, type) and issubclass(case, DocumentCase) and case is not DocumentCase
]
"""The tests of documents in other modules."""


def caseOf(name: str) -> type[DocumentCase]:
    """Make the test case for a document without tests of its own."""
    words = re.findall("[a-z]+", name.lower().removeprefix("docs/").removesuffix(".md"))
    title = "".join(word.title() for word in words) + "Tests"
    members = {"name": name, "__doc__": name, "__module__": __name__}
    return type(title, (DocumentCase, SynchronousTestCase), members)


OWN = {case.name for case in (ArchitectureTests, ContributingTests, SecurityTests)} | {
    case.name for case in OTHERS
}

for _name in sorted(NAMES - OWN):
    globals()[caseOf(_name).__name__] = caseOf(_name)
