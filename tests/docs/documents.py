"""Reading Markdown: the blocks, tables, links and headings of the documents.

The first word behind the fence is the kind of a block:

  - C{sh}, C{python}: executed, in their order, with one daemon for each document. A C{json}
    or C{text} block that follows immediately is the output.
  - C{json} with lines that begin with C{>} and C{<}: requests and answers
    (L{tests.docs.exchanges}). A second word is the circumstance: C{in-use}, or that the requests
    are sent to parts of a daemon in memory (L{tests.docs.exchanges.OUTCOMES},
    L{tests.docs.exchanges.MEMORY_SERVERS}).
  - C{yaml}: a configuration; with C{wrong} it is refused with the message in the block that
    follows; with C{plugin} its backend is not installed here. C{client} and
    C{client-wrong}: a file of servers for C{usbipshare}. C{service} and C{service-wrong}: a
    configuration of the client service. C{compose}, C{kubernetes}: a manifest that mounts its
    socket. C{other}: a file of another program.
  - C{console}: a transcript, with a prompt before each command, of a machine with hardware.
  - C{ini}: of a systemd unit.  C{js}: of a web page.  C{powershell}: typed on Windows.
    C{text}: anything else.  C{{toctree}}: the order of the pages, for Sphinx."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import msgspec

ROOT = Path(__file__).parents[2]

KINDS = (
    *("sh", "python", "json", "yaml", "console", "ini", "js", "powershell", "text", "{toctree}"),
)

PROMPT = re.compile("[$#] ")

SENT = re.compile("(>>?|<<?) (.*)")

ACTION = re.compile(r"\((.*)\)")


class Block(msgspec.Struct, kw_only=True):
    """The text between fences.

    @ivar where: file and line, for messages.
    @ivar kind: the first word behind the fence.
    @ivar circumstance: the second word.
    @ivar output: the text of the next block, if that is the output of this one.
    @ivar isOutput: is it the output of the block before?"""

    where: str
    kind: str
    circumstance: str
    text: str
    output: str | None = None
    isOutput: bool = False

    def commands(self) -> list[str]:
        """The commands of a transcript, without the prompt."""
        lines = self.text.replace("\\\n", "").splitlines()
        return [line[2:] for line in lines if PROMPT.match(line)]

    def steps(self) -> list[tuple[str, str]]:
        """Requests, answers and actions, in order: each text with its mark, which actions do not
        have."""
        found = []
        for line in self.text.splitlines():
            if sent := SENT.fullmatch(line):
                found.append((sent[1], sent[2]))
            elif action := ACTION.fullmatch(line):
                found.append(("", action[1]))
        return found

    def exchanges(self) -> list[tuple[str, str]]:
        """Pairs of a request and its answer, where each request has one answer."""
        steps = self.steps()
        marks = "".join(mark or "?" for mark, _ in steps)
        assert re.fullmatch("(><)*", marks), f"{self.where}: each > needs a <"
        texts = [text for _, text in steps]
        return list(zip(texts[::2], texts[1::2], strict=True))


class Document:
    """A Markdown file.

    @ivar blocks: its blocks.
    @ivar prose: its lines outside of blocks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path.relative_to(ROOT))
        self.blocks: list[Block] = []
        self.prose: list[str] = []
        self._read(path.read_text())

    def block(self, begin: str, kind: str) -> Block:
        """The only block of a kind that contains a text."""
        (found,) = (block for block in self.blocks if block.kind == kind and begin in block.text)
        return found

    def anchors(self) -> set[str]:
        """The anchors of its headings."""
        return {anchor(line.lstrip("# ")) for line in self.prose if line.startswith("#")}

    def links(self) -> list[str]:
        """The targets of its links."""
        return re.findall(r"\]\(([^)\s]+)\)", "\n".join(self.prose))

    def spans(self) -> list[str]:
        """The pieces of code in its prose."""
        return re.findall("`([^`]+)`", "\n".join(self.prose))

    def rows(self, heading: str, columns: int) -> dict[str, tuple[str, ...]]:
        """The rows of the tables between a heading and the next.

        @param columns: tables with another number of columns are left out.
        @return: the cells of each row, by the first without its backticks."""
        levels = [line for line in self.prose if line.lstrip("#").strip() == heading]
        assert levels, f"{self.name} has no heading {heading!r}"
        begin = self.prose.index(levels[0]) + 1
        found = {}
        for line in self.prose[begin:]:
            if line.startswith("#"):
                break
            cells = tuple(cell.strip() for cell in line.strip("|").split("|"))
            if line.startswith("|") and len(cells) == columns and "---" not in line:
                found[cells[0].strip("`")] = cells
        return found

    def _read(self, text: str) -> None:
        fence: str | None = None
        inside: list[str] = []
        begin = 0
        apart = True  # is there text between this block and the one before?
        for number, line in enumerate(text.splitlines(), 1):
            mark = line.strip()
            if fence is None and mark.startswith("```"):
                fence, begin, inside = mark[3:], number, []
            elif fence is not None and mark == "```":
                self._add(begin, fence, "\n".join(inside), apart)
                fence, apart = None, False
            elif fence is not None:
                inside.append(line)
            else:
                self.prose.append(line)
                apart = apart or bool(mark)
        assert fence is None, f"{self.name}:{begin}: this block has no end"

    def _add(self, line: int, info: str, text: str, apart: bool) -> None:
        kind, _, circumstance = info.partition(" ")
        block = Block(
            where=f"{self.name}:{line}",
            kind=kind,
            circumstance=circumstance,
            text=textwrap.dedent(text),
        )
        before = self.blocks[-1] if self.blocks and not apart else None
        if before and kind in ("json", "text") and before.kind in ("sh", "python", "yaml"):
            before.output, block.isOutput = block.text, True
        self.blocks.append(block)


def documents() -> Iterator[Document]:
    """The README, CONTRIBUTING and what is in C{docs}."""
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    ):
        yield Document(path)


def anchor(heading: str) -> str:
    """The anchor that GitHub gives to a heading."""
    text = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return text.replace(" ", "-")
