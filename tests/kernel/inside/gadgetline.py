"""Both ends of serial ports: the device's end of a gadget's line, and a host's tty."""

from __future__ import annotations

import contextlib
import os
import select
import termios
import tty
from pathlib import Path

from tests.kernel.devices import Device
from tests.kernel.inside.command import DEADLINE, DeadlineMissed, check


class GadgetLine:
    """What a serial device's own program would read and write, for as long as a C{with} lasts."""

    def __init__(self, device: Device) -> None:
        """@param device: a serial port that is plugged in, a gadget."""
        function = Path("/sys/kernel/config/usb_gadget", device.name, "functions/acm.0")
        self._node = f"/dev/ttyGS{(function / 'port_num').read_text().strip()}"
        self._line: int | None = None

    def __enter__(self) -> GadgetLine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def open(self) -> None:
        """Open the line to the host that has configured the device. It is dead as soon as another
        host configures the device."""
        self.close()
        self._line = os.open(self._node, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        tty.setraw(self._line)

    def close(self) -> None:
        """Close it, without a wait for unread output."""
        if self._line is not None:
            with contextlib.suppress(termios.error):  # it is dead
                termios.tcflush(self._line, termios.TCIOFLUSH)
            os.close(self._line)
            self._line = None

    def read(self, size: int) -> bytes:
        """What came from the USB side.

        @raise DeadlineMissed: it is less.
        @raise EOFError: the line is dead."""
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
        """Send something to the USB side. A few bytes: what does not fit is an error."""
        assert self._line is not None
        assert os.write(self._line, data) == len(data)


def checkEcho(node: str, text: bytes = b"Hello, USB!") -> None:
    """Write to a tty, and read the same from it.

    @param node: C{/dev/ttyACM0}
    @raise AssertionError: something else came, or nothing."""
    check("stty", "-F", node, "raw", "-echo")
    port = os.open(node, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        os.write(port, text)
        echo = b""
        while len(echo) < len(text) and select.select([port], [], [], DEADLINE)[0]:
            echo += os.read(port, 100)
    finally:
        os.close(port)
    if echo != text:
        raise AssertionError(f"{node}: wrote {text!r}, read {echo!r}")
