"""QEMU's devices, plugged and unplugged from inside the guest: a virtio-serial port is connected to
QEMU's own control socket.

QMP: JSON objects, one a line. QEMU sends a greeting and expects C{qmp_capabilities}. From then on
each C{{"execute":..., "id":...}} is answered by a C{return} or an C{error} with that id. Events
come in between."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.kernel.devices import EMULATED, Device, Kind, PlugError, qemuDrive, qemuProperties
from tests.kernel.inside.command import DeadlineMissed, check

# Of the host controller and of the devices. There is no udev to load them.
_MODULES = ("xhci-pci", "usb-storage", "sd_mod", "ftdi_sio", "usbhid", "cdc_ether", "rndis_host")

_lock = threading.Lock()
_numbers = itertools.count(int.from_bytes(os.urandom(4), "big"))


class EmulatedTestbed:
    """Where devices can be plugged in. Any thread may call this, and any process."""

    devices = EMULATED

    def begin(self) -> None:
        """Load the drivers: the devices are there."""
        for module in _MODULES:
            check("modprobe", module)

    def plug(self, device: Device, seconds: float) -> None:
        """See L{tests.kernel.guest.plug}."""
        properties = qemuProperties(device)
        backing = f"plugged{next(_numbers)}"
        with _connected(seconds) as monitor:
            if device.kind is Kind.DISK:
                # QEMU removes a drive together with its device.
                line = f"drive_add 0 {qemuDrive(backing)}"
                added = monitor.execute("human-monitor-command", **{"command-line": line})
                if added.strip() != "OK":
                    raise PlugError(added.strip())
                properties["drive"] = backing
            elif device.kind is Kind.SERIAL:
                null = {"type": "null", "data": {}}
                monitor.execute("chardev-add", id=backing, backend=null)
                properties["chardev"] = backing
            elif device.kind is Kind.NETWORK:
                monitor.execute("netdev_add", type="hubport", id=backing, hubid=0)
                properties["netdev"] = backing
            monitor.execute("device_add", **properties)

    def unplug(self, name: str, seconds: float) -> None:
        """See L{tests.kernel.guest.unplug}."""
        with _connected(seconds) as monitor:
            monitor.execute("device_del", id=name)
            monitor.awaitDeleted(name)


class _Monitor:
    """A connection to QEMU, with a deadline by the monotonic clock."""

    def __init__(self, port: int, end: float) -> None:
        self._port = port
        self._end = end
        self._received = b""
        self._deleted: list[str | None] = []

    def execute(self, command: str, **arguments: object) -> Any:
        """Execute a command.

        @raise PlugError: QEMU has refused it."""
        number = next(_numbers)
        message = {"execute": command, "arguments": arguments, "id": number}
        os.write(self._port, json.dumps(message).encode() + b"\n")
        answer = self._read(lambda message: message.get("id") == number)
        if "error" in answer:
            raise PlugError(answer["error"]["desc"])
        return answer["return"]

    def awaitDeleted(self, device: str) -> None:
        """Wait until a device is gone, unless it has gone since this connection was opened."""
        if device not in self._deleted:
            self._read(lambda message: device in self._deleted)

    def _read(self, isMeant: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Read until a message comes. Answers to an earlier process, which did not wait, are
        skipped."""
        poll = select.poll()
        poll.register(self._port, select.POLLIN)
        while True:
            line, separator, rest = self._received.partition(b"\n")
            if separator:
                self._received = rest
                message: dict[str, Any] = json.loads(line)
                if message.get("event") == "DEVICE_DELETED":
                    self._deleted.append(message["data"].get("device"))
                if isMeant(message):
                    return message
            elif poll.poll(max(0.0, self._end - time.monotonic()) * 1000):
                self._received += os.read(self._port, 4096)
            else:
                raise DeadlineMissed("QEMU did not answer")


@contextlib.contextmanager
def _connected(seconds: float) -> Iterator[_Monitor]:
    """Connect to QEMU. One process of the guest can at a time.

    @param seconds: until the deadline of all commands."""
    end = time.monotonic() + seconds
    names = Path("/sys/class/virtio-ports").glob("*/name")
    (node,) = (
        f"/dev/{name.parent.name}"
        for name in names
        if name.read_text().strip() == "usbipshare.guestqmp"
    )
    with _lock:
        port = _open(node, end)
        try:
            monitor = _Monitor(port, end)
            with contextlib.suppress(PlugError):  # an earlier process has done it
                monitor.execute("qmp_capabilities")
            yield monitor
        finally:
            os.close(port)


def _open(node: str, end: float) -> int:
    while True:
        try:
            return os.open(node, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.EAGAIN):
                raise
        if time.monotonic() > end:
            raise DeadlineMissed(f"{node} was in use all the time")
        time.sleep(0.02)
