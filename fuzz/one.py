"""
One target, run by atheris: C{python -m fuzz.one TARGET [OPTION OR FILE ...]}.

What comes behind the target is libFuzzer's: with files, these are tried and nothing else.
"""

from __future__ import annotations

import importlib
import sys

import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]


def main() -> None:
    """
    Entry point; does not return.
    """
    program, name, *options = sys.argv
    with atheris.instrument_imports(include=["usbip_server"]):
        target = importlib.import_module(f"fuzz.{name}")
    atheris.Setup([program, *options], target.check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
