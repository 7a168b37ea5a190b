"""
How Sphinx makes a site of these documents: C{make docs}.
"""

project = "usbipshare"
html_title = "usbipshare"
extensions = ["myst_parser"]
exclude_patterns = ["example_backend"]
myst_heading_anchors = 4
html_theme = "furo"
html_copy_source = False
html_show_sphinx = False
suppress_warnings = [
    "misc.highlighting_failure",  # exchanges are JSON with marks before each line
    "toc.not_included",
]
