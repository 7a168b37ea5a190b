"""
How Sphinx makes a site of these documents: C{make docs}.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.errors import SphinxError

project = "usbipshare"
html_title = "usbipshare"
extensions = ["myst_parser"]
exclude_patterns = ["example_backend"]
myst_heading_anchors = 4
man_pages: list[tuple[str, str, str, list[str], int]] = [
    ("reference/configuration", "usbipshare-server.yaml", "configuration of the server", [], 5),
    ("reference/client_configuration", "usbipshare-client.yaml", "of clients", [], 5),
]
html_theme = "furo"
html_copy_source = False
html_show_sphinx = False
# Exchanges are JSON with a mark before each line.
suppress_warnings = ["misc.highlighting_failure"]

LOADED = re.compile(r"""<(?:script|img|iframe|link\b(?=[^>]*stylesheet))[^>]*(?:https?:|["']//)""")
"""An element whose content a browser fetches from another server."""


def setup(app: Any) -> None:
    """
    Called by Sphinx.
    """
    app.connect("build-finished", checkLocal)


def checkLocal(app: Any, error: Exception | None) -> None:
    """
    Fail if a page loads anything from another server.
    """
    for page in Path(app.outdir).rglob("*.html") if error is None else ():
        if found := LOADED.search(page.read_text()):
            raise SphinxError(f"{page} loads something from outside: {found[0]}")
