"""The process that is a device. Its standard input is the pickled device, and then open for as long
as the device is to be plugged in. Each further line wakes a device that does not answer."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading

from tests.kernel.inside.rawgadget.controller import RawGadget
from tests.kernel.inside.rawgadget.device import RunningDevice

_DRIVER = "dummy_udc"


def main(controller: str) -> None:
    """Run the device that standard input describes, until that is closed."""
    device = pickle.load(sys.stdin.buffer)
    signal.signal(signal.SIGUSR1, lambda number, frame: None)
    running = RunningDevice(device, RawGadget(controller, _DRIVER))
    threading.Thread(target=_listen, args=(running,), daemon=True).start()
    running.run()


def _listen(running: RunningDevice) -> None:
    """Read from the parent until the pipe is closed."""
    for _ in sys.stdin.buffer:
        running.wake()
    os._exit(0)


main(*sys.argv[1:])
