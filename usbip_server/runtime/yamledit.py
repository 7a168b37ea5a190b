"""
Adds to YAML files as a person would: the rest of the text, with its comments, stays as it is.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import textwrap
from collections.abc import Callable

from usbip_server.runtime.yamlfile import YamlFile, textOf

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*", re.ASCII)

_NO_TEXT = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
"""Words that YAML 1.1 does not read as text, in upper or lower case."""


class CannotInsert(Exception):
    """
    There is no place for the text. The message says why.
    """


def rewrite(path: str, change: Callable[[str], str]) -> None:
    """
    Change a file at once, or not at all. A file that does not exist is made.

    @param change: takes the text and returns the new one.
    @raise CannotInsert: of C{change}.
    @raise ConfigError: the file cannot be read, or is not YAML.
    @raise OSError: it cannot be written.
    """
    isNew = not os.path.exists(path)
    text = change("" if isNew else textOf(path))
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path) or ".", prefix=".new-")
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            if isNew:
                os.fchmod(descriptor, 0o644)
            else:
                shutil.copystat(path, temporary)
                owner = os.stat(path)
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def appended(text: str, block: str) -> str:
    """
    Append top-level keys to the text of a file.

    @param block: the keys as YAML.
    @raise CannotInsert: the file has one of them already.
    """
    before, added = YamlFile("", text).data, YamlFile("", block).data
    for key in added:
        if key in before:
            raise CannotInsert(f"it has `{key}` already")
    joint = "" if not text or text.endswith("\n\n") else "\n" if text.endswith("\n") else "\n\n"
    return _checked(f"{text}{joint}{block.rstrip()}\n", {**before, **added})


def inserted(text: str, section: str, entry: str) -> str:
    """
    Insert an entry into a top-level mapping, or append the mapping.

    @param section: the key of the mapping.
    @param entry: the entry as YAML: one key, whose value may be a mapping.
    @raise CannotInsert: the mapping has that key already, or is not one entry below the other.
    """
    before, added = YamlFile("", text).data, YamlFile("", entry).data
    (name,) = added
    mapping = before.get(section)
    if mapping is None and section not in before:
        return appended(text, f"{section}:\n{textwrap.indent(entry.rstrip(), '  ')}\n")
    if not isinstance(mapping, dict | None):
        raise CannotInsert(f"`{section}` is no mapping")
    if mapping and name in mapping:
        raise CannotInsert(f"it has `{section}.{name}` already")
    head = re.search(rf"^{re.escape(section)}:[ \t]*(#.*)?$\n?", text, re.MULTILINE)
    if head is None:
        raise CannotInsert(f"`{section}` is written on one line")
    following = re.search(r"^( +)[^\s#]", text[head.end() :], re.MULTILINE)
    indent = following[1] if mapping and following else "  "
    begin = head[0] if head[0].endswith("\n") else f"{head[0]}\n"
    block = textwrap.indent(entry.rstrip(), indent)
    result = f"{text[: head.start()]}{begin}{block}\n{text[head.end() :]}"
    return _checked(result, {**before, section: {**added, **(mapping or {})}})


def _checked(text: str, expected: object) -> str:
    """
    @raise CannotInsert: the text does not mean what is expected.
    """
    if YamlFile("", text).data != expected:
        raise CannotInsert("its layout is unusual")
    return text


def textKey(name: str) -> str:
    """
    A text as a key or a value in YAML, quoted where needed.
    """
    if _PLAIN.fullmatch(name) and name.lower() not in _NO_TEXT:
        return name
    return json.dumps(name, ensure_ascii=False)
