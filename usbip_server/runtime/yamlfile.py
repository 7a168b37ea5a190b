"""
Reads YAML files, with errors that contain the line and the key.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from usbip_server.model.options import InvalidOption, invalid

if TYPE_CHECKING:  # loaded when there is a file to read: a command without one starts sooner
    import yaml

T = TypeVar("T")

Path = tuple[str | int, ...]

_DECIMAL = re.compile("[-+]?(0|[1-9][0-9]*)", re.ASCII)
"""YAML 1.1 also has octal numbers (C{010} is 8) and numbers to the base of 60 (C{1:30} is 90)."""

Choices = Mapping[str, type[enum.Enum]]
"""The enumerations of keys that have one of several values."""


class ConfigError(Exception):
    """
    A configuration file is wrong. The text is C{file:line: key: reason}.
    """


class YamlFile:
    """
    A file, and the line of each key.

    @ivar data: its content, unchecked; an empty mapping if the file is empty.
    """

    def __init__(self, name: str, text: str) -> None:
        """
        @param name: the file's name, for messages.
        @raise ConfigError: it is not YAML, or a key occurs twice.
        """
        import yaml
        from yaml.reader import ReaderError

        self._name = name
        self._lines: dict[Path, int] = {(): 1}
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
            data = None if node is None else self._take(node, ())
            self.data = {} if data is None else data
        except ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            raise ConfigError(f"{name}:{line}: this is not YAML: {error.reason}") from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = mark.line + 1 if mark else 1
            problem = getattr(error, "problem", None) or str(error)
            raise ConfigError(f"{name}:{line}: this is not YAML: {problem}") from None
        except RecursionError:
            raise ConfigError(f"{name}:1: it is nested too deeply") from None

    def checked(self, kind: type[T], choices: Choices | None = None) -> T:
        """
        The content as a C{msgspec.Struct}.

        @raise ConfigError: a key or a value is wrong.
        """
        if not isinstance(self.data, dict):
            raise self.error((), "the file has to be a mapping, `key: value` on each line")
        try:
            return msgspec.convert(self.data, kind)
        except msgspec.ValidationError as error:
            wrong = invalid(error, kind)
            raise self.error(wrong.path, wrong.reason + _choices(wrong, choices or {})) from None

    def checkEach(self, path: Path, kind: Any) -> None:
        """
        Check the values of a mapping one by one, as an error of msgspec does not contain the key of
        a mapping.

        @param path: the path of the mapping; nothing is checked if there is none.
        @raise ConfigError: a value is wrong.
        """
        mapping = self.at(path)
        for name, value in mapping.items() if isinstance(mapping, dict) else ():
            try:
                msgspec.convert(value, kind)
            except msgspec.ValidationError as error:
                wrong = invalid(error, kind)
                raise self.error((*path, name, *wrong.path), wrong.reason) from None

    def at(self, path: Path) -> Any:
        """
        The value at some keys, one below the other, unchecked; C{None} if there is none.
        """
        value = self.data
        for step in path:
            value = value.get(step) if isinstance(value, dict) else None
        return value

    def error(self, path: Path, reason: str) -> ConfigError:
        """
        The error for a key, or for one that is missing.
        """
        known = path
        while known not in self._lines:
            known = known[:-1]
        key = ".".join(map(str, path))
        what = f"{key}: {reason}" if key else reason
        return ConfigError(f"{self._name}:{self._lines[known]}: {what}")

    def _take(self, node: yaml.Node, path: Path) -> Any:
        """
        Make plain data of a node, and note where its parts stand.
        """
        import yaml

        self._lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.SequenceNode):
            return [self._take(part, (*path, index)) for index, part in enumerate(node.value)]
        if not isinstance(node, yaml.MappingNode):
            value = _scalar(node)
            if type(value) is int and not _DECIMAL.fullmatch(node.value):
                raise self.error(
                    path,
                    f"{node.value} is the number {value} in YAML: put it in quotes if it is text, "
                    f"or write {value}",
                )
            return value
        mapping: dict[str, Any] = {}
        for keyNode, valueNode in node.value:
            key = _scalar(keyNode) if isinstance(keyNode, yaml.ScalarNode) else None
            line = keyNode.start_mark.line + 1
            if not isinstance(key, str):
                raise ConfigError(
                    f"{self._name}:{line}: a key has to be a word ("
                    "YAML takes on, off, yes and no for true and false: put them in quotes)"
                )
            if key in mapping:
                raise ConfigError(
                    f"{self._name}:{line}: {'.'.join(map(str, (*path, key)))}: occurs twice"
                )
            self._lines[(*path, key)] = line
            mapping[key] = self._take(valueNode, (*path, key))
        return mapping


def textOf(path: str) -> str:
    """
    The content of a file.

    @raise ConfigError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: it is not UTF-8") from None


def _choices(wrong: InvalidOption, choices: Choices) -> str:
    """
    The end of an error about a wrong value: the values that are allowed.
    """
    key = next((step for step in reversed(wrong.path) if isinstance(step, str)), "")
    if key not in choices or "enum value" not in wrong.reason:
        return ""
    return f": it is one of {', '.join(choice.value for choice in choices[key])}"


def _scalar(node: yaml.Node) -> Any:
    import yaml

    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node)
    except yaml.YAMLError:
        raise
    except Exception:  # each type has its own; 2026-99-99 looks like a date
        kind = node.tag.rpartition(":")[2]
        raise yaml.MarkedYAMLError(
            problem=f"{node.value!r} is no {kind}: if it is text, put it in quotes",
            problem_mark=node.start_mark,
        ) from None
    finally:
        loader.dispose()
