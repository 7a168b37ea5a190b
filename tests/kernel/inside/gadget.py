"""
A serial port that this kernel itself is the device of.
"""

from __future__ import annotations

import contextlib
import os
import select
import termios
import tty
from pathlib import Path
from types import TracebackType

from tests.kernel.inside.command import check
from tests.kernel.inside.usb import DEVICES_FOLDER, forget, waitGone, waitPresent
from tests.kernel.inside.waiting import DEADLINE, DeadlineMissed, waitUntil

_CONFIGFS = Path("/sys/kernel/config")
_CONTROLLER = "dummy_udc.0"
_PORT = Path("/dev/ttyGS0")


class SerialGadget:
    """
    A USB device of the class CDC-ACM, plugged in for as long as a C{with} lasts, and the end
    of its line that is not USB. QEMU has no such device.

    @cvar vendorId: what it calls itself.
    @cvar productId: likewise.
    @ivar busId: where it is plugged in.
    """

    vendorId = 0x1209
    productId = 0x0ACE

    def __enter__(self) -> SerialGadget:
        for module in ("libcomposite", "usb_f_acm", "dummy_hcd"):
            check("modprobe", module)
        if not os.path.ismount(_CONFIGFS):
            check("mount", "-t", "configfs", "none", str(_CONFIGFS))
        self._folder = _CONFIGFS / "usb_gadget" / "port"
        function = self._folder / "functions" / "acm.0"
        configuration = self._folder / "configs" / "c.1"
        for folder in (function, configuration):
            folder.mkdir(parents=True)
        (self._folder / "idVendor").write_text(f"{self.vendorId:#06x}")
        (self._folder / "idProduct").write_text(f"{self.productId:#06x}")
        (configuration / "acm.0").symlink_to(function)
        (self._folder / "UDC").write_text(_CONTROLLER)
        self.busId = waitUntil(self._where, "the gadget is plugged in")
        waitPresent(self.busId)
        self._line: int | None = None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
        forget(self.busId)
        (self._folder / "UDC").write_text("\n")
        waitGone(self.busId)
        (self._folder / "configs" / "c.1" / "acm.0").unlink()
        for name in ("configs/c.1", "functions/acm.0", "."):
            (self._folder / name).rmdir()
        check("modprobe", "-r", "dummy_hcd")

    def open(self) -> None:
        """
        Have a line to whoever has configured it. It is dead as soon as another one does.
        """
        self.close()
        waitUntil(_PORT.exists, f"{_PORT} is there")
        self._line = os.open(_PORT, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        tty.setraw(self._line)

    def close(self) -> None:
        """
        Close it, without a wait for what nobody reads.
        """
        if self._line is not None:
            with contextlib.suppress(termios.error):  # it is dead
                termios.tcflush(self._line, termios.TCIOFLUSH)
            os.close(self._line)
            self._line = None

    def read(self, size: int) -> bytes:
        """
        What came from the USB side.

        @raise DeadlineMissed: it is less.
        @raise EOFError: the line is dead.
        """
        assert self._line is not None
        found = b""
        while len(found) < size:
            if not select.select([self._line], [], [], DEADLINE)[0]:
                raise DeadlineMissed(f"of {size} bytes only {found!r} came")
            more = os.read(self._line, size - len(found))
            if not more:
                raise EOFError(f"of {size} bytes only {found!r} came")
            found += more
        return found

    def write(self, data: bytes) -> None:
        """
        Send something to the USB side. A few bytes: what does not fit is an error.
        """
        assert self._line is not None
        assert os.write(self._line, data) == len(data)

    def _where(self) -> str:
        wanted = f"{self.vendorId:04x}"
        for found in DEVICES_FOLDER.glob("*/idVendor"):
            if found.read_text().strip() == wanted:
                return found.parent.name
        return ""
