"""The messages that the code contains, and the rows of docs/reference/messages.md that explain
them.

A message is a text of several words in a module, outside of docstrings and help: of an error, of a
warning in the log, or of C{usbipshare doctor}. C{…} stands for inserted values."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tests.docs.documents import Document

PACKAGE = Path(__file__).parents[2] / "usbip_server"

QUIET = {"info", "debug", "compile", "EventCounter", "Histogram", "Metric", "_gauge", "_value"}
"""Functions whose arguments are not messages about errors."""

HELP = {"help", "short_help", "epilog", "metavar"}
"""Keyword arguments with texts of C{--help}."""

HELP_OF = {"longdesc", "synopsis", "optParameters", "optFlags", "description", "COMMANDS"}
"""Names that such texts are assigned to."""

OTHERS = (
    "Examples: …",  # of --help
    "Echoing Serial Port",  # the name of a device
    "USB/IP over TLS",  # what is logged of an endpoint
    "… (…) id=…",  # a device in a list
    "tlsv13 alert …",  # texts of OpenSSL, which are replaced by messages
    "sslv3 alert …",
    "no shared cipher",
    "peer did not return a certificate",
    "certificate verify failed",
    "wrong version number",
    "packet length too long",
    "record layer failure",
    "ssl/tls alert …",
    "tlsv1 alert …",
    "_lines ends …",  # assertions
    "it has not ended",
    "Result | Awaitable[Result]",  # a type
    "a request of … bytes",  # what is logged of a fault
    "one request at a time",
    "usb/ip tls",  # a column of a table
    "/, /events, /metrics and /health",
    "listen: [tcp…",  # YAML that is printed
    "…: port: … export_port: …",
)
"""Patterns of texts that are not messages."""

HEADINGS = {"message", "message on the client"}
"""Of the first column of a table that explains messages."""

CODE = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)")
"""Code in Markdown: between as many backticks at both ends."""


class Text(msgspec.Struct, frozen=True):
    """A text in the code.

    @ivar where: file and line.
    @ivar isQuiet: it is an argument of one of L{QUIET}."""

    where: str
    text: str
    isQuiet: bool

    def isMessage(self) -> bool:
        """Is it a message that a user may see?"""
        words = re.findall(r"[A-Za-z]{2,}", self.text)
        isOther = any(matches(other, self.text) for other in OTHERS)
        return len(words) >= 3 and " " in self.text and not (self.isQuiet or isOther)


def texts() -> list[Text]:
    """All texts of the package, but for docstrings and help."""
    return [
        Text(f"{path.relative_to(PACKAGE)}:{line}", " ".join(text.split()), isQuiet)
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] not in ("testing", "interfaces.py")
        for line, text, isQuiet in _texts(ast.parse(path.read_text()), False)
    ]


def matches(pattern: str, text: str) -> bool:
    """Does a text contain what a pattern with C{…} matches?"""
    pieces = (re.escape(piece.strip()) for piece in pattern.split("…"))
    return re.search(".*".join(pieces), text) is not None


def patternsOf(document: Document) -> list[str]:
    """The messages in the first columns of all tables with one of L{HEADINGS}."""
    found: list[str] = []
    inside = False
    for line in document.prose:
        first = line.split("|")[1].strip() if line.startswith("|") else ""
        inside = bool(first) and (inside or first in HEADINGS)
        found += [span.strip() for _, span in CODE.findall(first)] if inside else []
    return found


def _texts(node: ast.AST, isQuiet: bool) -> Iterator[tuple[int, str, bool]]:
    """The texts below a node, each with its line."""
    if isinstance(node, ast.JoinedStr):
        parts = [str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values]
        yield node.lineno, "".join(parts), isQuiet
        return
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            yield node.lineno, re.sub(r"\{[a-zA-Z_.:]*\}", "…", node.value), isQuiet
        return
    if _isNoMessage(node):
        return
    if isinstance(node, ast.Call):
        isQuiet = ast.unparse(node.func).rpartition(".")[2] in QUIET
    for child in ast.iter_child_nodes(node):
        yield from _texts(child, isQuiet)


def _isNoMessage(node: ast.AST) -> bool:
    """Is it a docstring or help?"""
    match node:
        case ast.Expr(value=ast.Constant()):
            return True
        case ast.keyword(arg=name):
            return name in HELP
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            return name in HELP_OF
    return False
