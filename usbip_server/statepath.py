"""
Where what is to be remembered is kept.
"""

from __future__ import annotations

from collections.abc import Mapping


def statePath(
    file: str | None, environment: Mapping[str, str], isRoot: bool, name: str = "state.json"
) -> str | None:
    """
    Where the state file is.

    @param file: as configured; C{"auto"} is systemd's C{StateDirectory=} (systemd.exec(5)),
        root's place for such things (file-hierarchy(7)), or the user's (XDG Base Directory).
    @param name: what it is called there.
    """
    if file != "auto":
        return file
    folder = environment.get("STATE_DIRECTORY", "").partition(":")[0]
    if not folder and isRoot:
        folder = "/var/lib/usbipshare"
    if not folder:
        home = environment.get("HOME") or "/"
        folder = f"{environment.get('XDG_STATE_HOME') or f'{home}/.local/state'}/usbipshare"
    return f"{folder}/{name}"
