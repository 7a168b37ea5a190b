"""
Symlinks with stable names to device nodes: C{/dev/usbipshare/uno} points to C{/dev/ttyUSB0}, and
C{uno-1} to the next node of the device.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence

from twisted.logger import Logger

from usbip_server.client.service.config import LiveSettings

LAST = ("bsg/", "sg")
"""Prefixes of nodes that come last: the first of a disk is C{sda}, not C{sg0}."""


class Symlinks:
    """
    The symlinks in the configured directory. An error is logged and has no other effect.
    """

    _log = Logger()

    def __init__(self, settings: LiveSettings, nodes: str) -> None:
        """
        @param nodes: the directory of device nodes.
        """
        self._settings = settings
        self._nodes = nodes
        self._folders: dict[str, str] = {}
        self._lastError = ""

    def show(self, name: str, nodes: Sequence[str]) -> None:
        """
        Let C{name} point to the first of the nodes, and C{name-1} and so on to the others; remove
        what was shown before, also in another directory.
        """
        folder = self._settings.config.links
        before = self._folders.pop(name, folder)
        real = [node for node in nodes if not os.path.islink(node)]  # no names given by udev
        targets = {
            name if index == 0 else f"{name}-{index}": node
            for index, node in enumerate(sorted(real, key=self._isLast))
        }
        try:
            if before != folder:
                _remove(before, _symlinksOf(name, before))
            _remove(folder, _symlinksOf(name, folder) - targets.keys())
            for link, node in targets.items():
                self._folders[name] = folder
                _place(folder, link, node)
        except OSError as error:
            self._complain(folder, error)
        else:
            self._lastError = ""

    def isShown(self, name: str) -> bool:
        """Are there symlinks of this name that this process has made?"""
        return name in self._folders

    def hide(self, name: str) -> None:
        """Remove the symlinks of this name."""
        self.show(name, ())

    def _isLast(self, node: str) -> bool:
        return node.removeprefix(f"{self._nodes}/").startswith(LAST)

    def _complain(self, folder: str, error: OSError) -> None:
        text = str(error)
        if text != self._lastError:
            self._lastError = text
            self._log.warn(
                "no symlinks in {folder}: {error}. Let the service write there, or set `links` to "
                "another directory",
                folder=folder,
                error=text,
            )


def _symlinksOf(name: str, folder: str) -> set[str]:
    pattern = re.compile(rf"{re.escape(name)}(-[1-9][0-9]*)?")
    with contextlib.suppress(FileNotFoundError):
        entries = os.scandir(folder)
        return {each.name for each in entries if pattern.fullmatch(each.name) and each.is_symlink()}
    return set()


def _remove(folder: str, names: set[str]) -> None:
    for name in names:
        os.unlink(os.path.join(folder, name))


def _place(folder: str, name: str, node: str) -> None:
    path = os.path.join(folder, name)
    with contextlib.suppress(OSError):
        if os.readlink(path) == node:
            return
    os.makedirs(folder, 0o755, exist_ok=True)
    new = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)
    os.symlink(node, new)
    os.replace(new, path)
