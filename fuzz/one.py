"""Run one target with atheris: C{python -m fuzz.one TARGET [OPTION OR FILE ...]}.

Options and files are those of libFuzzer: with files, only they are tried."""

from __future__ import annotations

import importlib
import sys

import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]


def main() -> None:
    """Entry point; does not return."""
    program, name, *options = sys.argv
    with atheris.instrument_imports(include=["usbip_server"]):
        target = importlib.import_module(f"fuzz.{name}")
    atheris.Setup([program, *options], target.check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
