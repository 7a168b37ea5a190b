"""C{python -m tests.kernel.inside.withoutktls}: what C{python -m twisted} is, where OpenSSL keeps
the keys to itself as one does that was built without kernel TLS."""

from __future__ import annotations

import runpy

from usbip_server.net import certificates


def main() -> None:
    """Entry point."""
    certificates.OP_ENABLE_KTLS = 0
    runpy.run_module("twisted", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
