"""
What the scripts that start a guest are told.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from tests.kernel.cache import PROJECT
from tests.kernel.machine import Boot, IKernel

GUEST_SCRIPT = Path(__file__).with_name("guest.sh")


def settingsScript(kernel: IKernel, boot: Boot, terminal: str, notes: str) -> str:
    """
    A piece of shell that sets the variables of C{guest.sh}, and the positional parameters to the
    command that it runs.

    @param terminal: the device that the command writes to; empty to look for QEMU's.
    @param notes: the device on which the guest says how far it is; empty to look for QEMU's.
    """
    settings: dict[str, str | Path] = {
        "MODULES": kernel.modules,
        "RELEASE": kernel.release,
        "PROJECT": PROJECT,
        "GUEST_SCRIPT": GUEST_SCRIPT,
        "TERMINAL": terminal,
        "NOTES": notes,
    }
    lines = [f"{name}={shlex.quote(str(value))}" for name, value in settings.items()]
    return "\n".join([*lines, f"set -- {shlex.join(boot.command)}", ""])
