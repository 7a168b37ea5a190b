"""
Plugging and unplugging, from inside.
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

from tests.kernel.devices import DEVICES, DISK, SERIAL
from tests.kernel.inside.waiting import DEADLINE, DeadlineMissed
from tests.kernel.requests import MONITOR_PORT, Answer, Plug, Request, Unplug

_PORTS = Path("/sys/class/virtio-ports")
_PAUSE = 0.02

_lock = threading.Lock()
_numbers = itertools.count(int.from_bytes(os.urandom(4), "big"))


class HotplugError(Exception):
    """
    QEMU refused. The message is QEMU's own.
    """


def unplug(deviceId: str, seconds: float = DEADLINE) -> None:
    """
    Pull a device out. The guest's kernel learns of it a moment later.

    Blocks until the host has answered. Any thread may call this, and any process.

    @param deviceId: C{disk}, C{serial}..., see L{tests.kernel.devices}.
    """
    _ask(Unplug(next(_numbers), deviceId), seconds)


def replug(deviceId: str, seconds: float = DEADLINE) -> None:
    """
    Put one of the devices that the guest was born with back where it was.
    """
    (device,) = (device for device in DEVICES if device.deviceId == deviceId)
    plug(deviceId, device.driver, device.port, device.serial, seconds)


def plugDisk(
    port: str = DISK.port, serial: str = "DISK42", deviceId: str = "disk", seconds: float = DEADLINE
) -> None:
    """
    Put a disk in. It has the content of the image, whatever was written to an earlier one.

    At a port of the controller itself, 5 to 8, it comes as super speed: C{2-5}.
    """
    plug(deviceId, "usb-storage", port, serial, seconds)


def plugSerial(
    port: str = SERIAL.port,
    serial: str = "QSER1",
    deviceId: str = "serial",
    seconds: float = DEADLINE,
) -> None:
    """
    Put a serial converter in.
    """
    plug(deviceId, "usb-serial", port, serial, seconds)


def plug(
    deviceId: str, driver: str, port: str, serial: str | None = None, seconds: float = DEADLINE
) -> None:
    """
    Put any device in that QEMU knows.

    @param deviceId: a name for L{unplug}, not in use.
    @param driver: QEMU's word for its kind.
    """
    _ask(Plug(next(_numbers), deviceId, driver, port, serial), seconds)


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
        raise HotplugError(answer.error)


def _open(end: float) -> int:
    """
    The port takes one at a time, in the whole guest.
    """
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
    """
    Skips what comes too late for somebody who asked earlier.
    """
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
