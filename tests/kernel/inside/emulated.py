"""
QEMU's devices, plugged and unplugged from inside: the guest asks the harness, which asks QEMU.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import select
import threading
import time
from pathlib import Path

import msgspec

from tests.kernel.devices import EMULATED, Device
from tests.kernel.inside.command import check
from tests.kernel.inside.testbed import PlugError
from tests.kernel.inside.waiting import DeadlineMissed
from tests.kernel.requests import MONITOR_PORT, Answer, Plug, Request, Unplug

_PORTS = Path("/sys/class/virtio-ports")
_PAUSE = 0.02

# Of the host controller and of the devices. There is no udev to load them.
_MODULES = ("xhci-pci", "usb-storage", "sd_mod", "ftdi_sio", "usbhid")

_lock = threading.Lock()
_numbers = itertools.count(int.from_bytes(os.urandom(4), "big"))


class EmulatedTestbed:
    """An L{tests.kernel.inside.testbed.ITestbed}."""

    devices = EMULATED

    def begin(self) -> None:
        """Load the drivers: the devices are there."""
        for module in _MODULES:
            check("modprobe", module)

    def plug(self, device: Device, seconds: float) -> None:
        """See L{tests.kernel.inside.testbed.ITestbed.plug}."""
        _ask(Plug(next(_numbers), device), seconds)

    def unplug(self, name: str, seconds: float) -> None:
        """See L{tests.kernel.inside.testbed.ITestbed.unplug}."""
        _ask(Unplug(next(_numbers), name), seconds)


def _ask(request: Request, seconds: float) -> None:
    end = time.monotonic() + seconds
    with _lock:
        port = _open(end)
        try:
            os.write(port, msgspec.json.encode(request) + b"\n")
            answer = _answerTo(request.number, port, end)
        finally:
            os.close(port)
    if answer.error is not None:
        raise PlugError(answer.error)


def _open(end: float) -> int:
    """The port takes one at a time, in the whole guest."""
    (node,) = (
        f"/dev/{port.name}"
        for port in _PORTS.iterdir()
        if (port / "name").read_text().strip() == MONITOR_PORT
    )
    while True:
        with contextlib.suppress(BlockingIOError):
            try:
                return os.open(node, os.O_RDWR | os.O_CLOEXEC)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
        if time.monotonic() > end:
            raise DeadlineMissed(f"{node} was in use all the time")
        time.sleep(_PAUSE)


def _answerTo(number: int, port: int, end: float) -> Answer:
    """Skips what comes too late for somebody who asked earlier."""
    poll = select.poll()
    poll.register(port, select.POLLIN)
    received = b""
    while True:
        if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
            raise DeadlineMissed("the host did not answer")
        received += os.read(port, 4096)
        *lines, received = received.split(b"\n")
        for line in lines:
            answer = msgspec.json.decode(line, type=Answer)
            if answer.number == number:
                return answer
