"""
The messages that the code contains, and the rows of docs/reference/messages.md that explain them.

A message is a text of several words in a module, outside of docstrings: what an error says, what
is logged as a warning, what C{usbipshare doctor} finds. What is put into a text is shown as C{…}.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tests.docs.documents import Document

PACKAGE = Path(__file__).parents[2] / "usbip_server"

QUIET = {"info", "debug", "compile"}
"""Functions whose arguments are no messages about what is wrong."""

HELP = {"help", "short_help", "epilog", "metavar"}
"""Keyword arguments with texts of C{--help}."""

HELP_OF = {"longdesc", "synopsis", "optParameters", "optFlags", "description", "COMMANDS"}
"""Names that such texts are assigned to."""

NO_MESSAGES = (
    "Examples: …",  # of --help
    "Echoing Serial Port",  # the name of a device
    "USB/IP over TLS",  # what is logged of an endpoint
    "… (…) id=…",  # a device in a list
    "tlsv13 alert …",  # what OpenSSL says, for which there are messages of ours
    "sslv3 alert …",
    "ssl/tls alert …",
    "tlsv1 alert …",
    "_lines ends …",  # assertions
    "Result | Awaitable[Result]",  # a type
    "a request of … bytes",  # what is logged of a fault
    "one request at a time",
)
"""Patterns of other texts."""


CODE = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)")
"""Code in Markdown: between as many backticks at both ends."""


class Message(msgspec.Struct, frozen=True):
    """
    A text in the code.

    @ivar where: file and line.
    """

    where: str
    text: str


def messages() -> list[Message]:
    """
    All messages of the package.
    """
    return [
        message
        for message in texts()
        if isMessage(message.text)
        and not any(matches(other, message.text) for other in NO_MESSAGES)
    ]


def texts() -> list[Message]:
    """
    All texts of the package, messages or not.
    """
    return [
        Message(f"{path.relative_to(PACKAGE)}:{node.lineno}", " ".join(text.split()))
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] != "testing"
        for node, text in _texts(ast.parse(path.read_text()))
    ]


def matches(pattern: str, text: str) -> bool:
    """
    Is a text, or a part of it, what a pattern with C{…} describes?
    """
    pieces = (re.escape(piece.strip()) for piece in pattern.split("…"))
    return re.search(".*".join(pieces), text) is not None


def isMessage(text: str) -> bool:
    """
    Is it a sentence, or a part of one?
    """
    return len(re.findall(r"[A-Za-z]{2,}", text)) >= 3 and " " in text.strip()


def patternsOf(document: Document) -> list[str]:
    """
    The messages in the first columns of all tables with the heading C{message}.
    """
    found: list[str] = []
    inside = False
    for line in document.prose:
        first = line.split("|")[1].strip() if line.startswith("|") else ""
        inside = bool(first) and (inside or first == "message")
        if inside and first != "message" and set(first) != {"-"}:
            found += [
                span.strip() for _, span in re.findall(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", first)
            ]
    return found


def _texts(node: ast.AST) -> Iterator[tuple[ast.expr, str]]:
    """
    The texts below a node that are neither docstrings nor help, with C{…} for what is put in.
    """
    if isinstance(node, ast.JoinedStr):
        parts = [str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values]
        yield node, "".join(parts)
        return
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            yield node, re.sub(r"\{[a-zA-Z_.:]*\}", "…", node.value)
        return
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in QUIET:
        return
    if isinstance(node, ast.keyword) and node.arg in HELP:
        return
    if isinstance(node, ast.Assign | ast.AnnAssign):
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if ast.unparse(target) in HELP_OF:
            return
    for child in ast.iter_child_nodes(node):
        yield from _texts(child)
