"""Plugging in a device that is implemented in Python."""

from __future__ import annotations

import contextlib
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.kernel.cache import PROJECT
from tests.kernel.inside.command import stop, waitUntil
from tests.kernel.inside.rawgadget.device import RawDevice
from tests.kernel.inside.usb import driverOf, waitGone
from tests.support.forking import spawn

_CONTROLLERS = Path("/sys/devices/platform")

_HIGH_SPEED = "480"


def busIdAt(controller: int) -> str:
    """Where a high speed device is that is plugged in at a controller of C{dummy_hcd}. Each has a
    bus for high speed, with one port, and one for super speed if the module has that parameter."""
    for speed in (_CONTROLLERS / f"dummy_hcd.{controller}").glob("usb*/speed"):
        if speed.read_text().strip() == _HIGH_SPEED:
            return f"{speed.parent.name.removeprefix('usb')}-1"
    raise AssertionError(f"there is no controller {controller}")


class PluggedIn:
    """A process that is a device, plugged in until the C{with} ends or L{unplug}.

    @ivar busId: where it is."""

    def __init__(self, device: RawDevice, controller: int) -> None:
        """@param controller: the number of a controller of C{dummy_hcd} that has no device."""
        self._device = device
        self._controller = controller
        self.busId = busIdAt(controller)

    def __enter__(self) -> PluggedIn:
        self._output = tempfile.TemporaryFile()
        self._child = spawn(
            [
                sys.executable,
                "-m",
                "tests.kernel.inside.rawgadget",
                f"dummy_udc.{self._controller}",
            ],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )
        try:
            assert self._child.stdin is not None
            self._child.stdin.write(pickle.dumps(self._device))
            self._child.stdin.flush()
            waitUntil(self._isThere, f"{self.busId} is plugged in")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        stop(self._child)
        with contextlib.suppress(BrokenPipeError):
            assert self._child.stdin is not None
            self._child.stdin.close()
        waitGone(self.busId)

    @property
    def isIn(self) -> bool:
        """Is it still plugged in?"""
        return self._child.returncode is None

    def unplug(self) -> None:
        """Unplug it, unless that has been done, and wait until the kernel has noticed."""
        if self.isIn:
            self.__exit__()

    def wake(self) -> None:
        """Make a device that does not answer do so again."""
        assert self._child.stdin is not None
        self._child.stdin.write(b"\n")
        self._child.stdin.flush()

    def log(self) -> list[str]:
        """The control requests so far and how they were answered, a line each."""
        self._output.seek(0)
        return self._output.read().decode("utf-8", "replace").splitlines()

    def _isThere(self) -> bool:
        if self._child.poll() is not None:
            raise AssertionError(f"the device has ended: {self.log()}")
        return driverOf(self.busId) is not None
