"""
C{usbipshare}, the command-line client.
"""

from __future__ import annotations

import os
import signal

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""The signals that end a command, with its exit code L{INTERRUPTED}."""

INTERRUPTED = 130
"""Exit code after ctrl-C or C{SIGTERM}: as shells have it, 128 and the number of SIGINT."""


def run() -> None:
    """
    The program. Signals end it from here on as they do later, also while modules are imported: at
    that time a C{KeyboardInterrupt} would be a traceback.
    """
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)
    from usbip_server.client.cli.main import main

    main()


def _end(number: int, frame: object) -> None:
    if "_USBIPSHARE_COMPLETE" not in os.environ:  # whose output is in a prompt
        os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)
