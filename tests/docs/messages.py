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

PACKAGE = Path(__file__).parents[2] / "usbip_server"

QUIET = {"info", "debug", "compile"}
"""Functions whose arguments are no messages about what is wrong."""

HELP = {"help", "short_help", "epilog", "metavar"}
"""Keyword arguments with texts of C{--help}."""

HELP_OF = {"longdesc", "synopsis", "optParameters", "optFlags", "description"}
"""Names that such texts are assigned to."""


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
        Message(f"{path.relative_to(PACKAGE)}:{node.lineno}", text)
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] != "testing"
        for node, text in _texts(ast.parse(path.read_text()))
        if isMessage(text)
    ]


def isMessage(text: str) -> bool:
    """
    Is it a sentence, or a part of one?
    """
    return len(re.findall(r"[A-Za-z]{2,}", text)) >= 3 and " " in text.strip()


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
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in HELP_OF:
        return
    for child in ast.iter_child_nodes(node):
        yield from _texts(child)
