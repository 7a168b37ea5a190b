"""
Links with names that stay, to nodes whose names do not: C{/dev/usbipshare/uno} leads to
C{/dev/ttyUSB0}, and C{uno-1} to the device's next one.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence

from twisted.logger import Logger

LAST = ("bsg/", "sg")
"""What begins like this is hardly ever what is meant: a disk is C{sda}."""


class Symlinks:
    """
    In one folder, which is ours. What cannot be is logged.
    """

    _log = Logger()

    def __init__(self, folder: str, nodes: str = "/dev") -> None:
        """
        @param nodes: where nodes are.
        """
        self._folder = folder
        self._nodes = nodes
        self._complaint = ""

    def become(self, folder: str) -> None:
        """Let it be another folder from now on."""
        self._folder = folder

    def show(self, name: str, nodes: Sequence[str]) -> None:
        """
        Let these be a device's nodes: the first by its name alone, each other with a number.
        """
        wanted = {
            name if index == 0 else f"{name}-{index}": node
            for index, node in enumerate(self._real(nodes))
        }
        try:
            for old in self._linksOf(name) - wanted.keys():
                os.unlink(os.path.join(self._folder, old))
            for link, node in wanted.items():
                self._place(link, node)
        except OSError as error:
            self._complain(error)
        else:
            self._complaint = ""

    def hide(self, name: str) -> None:
        """It has none any more."""
        self.show(name, ())

    def _real(self, nodes: Sequence[str]) -> list[str]:
        """
        The nodes themselves, without udev's names for them; what is most likely meant first.
        """
        real = [node for node in nodes if not os.path.islink(node)]
        return sorted(real, key=self._isLast)

    def _isLast(self, node: str) -> bool:
        return node.removeprefix(f"{self._nodes}/").startswith(LAST)

    def _linksOf(self, name: str) -> set[str]:
        with contextlib.suppress(FileNotFoundError):
            ours = re.compile(rf"{re.escape(name)}(-[1-9][0-9]*)?")
            return {
                entry.name
                for entry in os.scandir(self._folder)
                if ours.fullmatch(entry.name) and entry.is_symlink()
            }
        return set()

    def _place(self, name: str, node: str) -> None:
        path = os.path.join(self._folder, name)
        with contextlib.suppress(OSError):
            if os.readlink(path) == node:
                return
        os.makedirs(self._folder, 0o755, exist_ok=True)
        beside = f"{path}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
        os.symlink(node, beside)
        os.replace(beside, path)

    def _complain(self, error: OSError) -> None:
        """
        Once, until it has been right again.
        """
        text = str(error)
        if text != self._complaint:
            self._complaint = text
            self._log.warn(
                "no links in {folder}: {error}. Let the service write there, or set `links` to "
                "another folder",
                folder=self._folder,
                error=text,
            )
