"""
The build backend of C{pyproject.toml}: setuptools, on a copy of the sources.

Without the copy C{sudo pip install FOLDER} leaves C{build/} and C{*.egg-info} in the folder, which
belong to root, and takes what an older version has left in C{build/}.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

build_meta: Any = importlib.import_module("setuptools.build_meta")
build_editable = build_meta.build_editable

__all__ = (
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
)

Config = Mapping[str, Any] | None

_IGNORED = shutil.ignore_patterns(
    *(".git", ".venv", ".cache", ".hypothesis", ".mypy_cache", ".ruff_cache", "__pycache__"),
    *("build", "dist", "site", "apidocs", "*.egg-info", "_trial_temp*", "dropin.cache"),
)


@contextlib.contextmanager
def _copied() -> Iterator[None]:
    """Work in a copy of the current folder."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory(prefix="usbipshare-build-") as folder:
        sources = os.path.join(folder, "sources")
        shutil.copytree(before, sources, symlinks=True, ignore=_IGNORED)
        os.chdir(sources)
        try:
            yield
        finally:
            os.chdir(before)


def get_requires_for_build_wheel(config_settings: Config = None) -> list[str]:
    """See PEP 517. Those of setuptools leave C{*.egg-info} in the folder."""
    return []


get_requires_for_build_sdist = get_requires_for_build_wheel
get_requires_for_build_editable = get_requires_for_build_wheel


def build_wheel(
    wheel_directory: str, config_settings: Config = None, metadata_directory: str | None = None
) -> str:
    """See PEP 517."""
    folder = os.path.abspath(wheel_directory)
    with _copied():
        return str(build_meta.build_wheel(folder, config_settings))


def build_sdist(sdist_directory: str, config_settings: Config = None) -> str:
    """See PEP 517."""
    folder = os.path.abspath(sdist_directory)
    with _copied():
        return str(build_meta.build_sdist(folder, config_settings))


def _forget() -> None:
    """Remove the bytecode of this file, which Python has written beside it."""
    bytecode = importlib.util.cache_from_source(__file__)
    with contextlib.suppress(OSError):
        os.unlink(bytecode)
        os.rmdir(os.path.dirname(bytecode))


_forget()
