"""
What guest and host say to each other, one JSON object a line: over a virtio-serial port of QEMU;
in user-mode Linux only the notes, over a serial line.
"""

from __future__ import annotations

import msgspec

from tests.kernel.devices import Device

# The names of the virtio-serial ports. guest.sh knows them too.
MONITOR_PORT = "usbipshare.monitor"
TRIAL_PORT = "usbipshare.trial"


class Booted(msgspec.Struct, frozen=True, tag="booted"):
    """The guest is up and begins with its tests."""


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """
    The tests are over.

    @ivar status: trial's exit status.
    """

    status: int


class Unplug(msgspec.Struct, frozen=True, tag="unplug"):
    """
    Pull a device out. Answered when it is gone from QEMU.

    @ivar number: comes back in the answer.
    @ivar device: QEMU's name of it.
    """

    number: int
    device: str


class Plug(msgspec.Struct, frozen=True, tag="plug"):
    """
    Put a device in. Answered when QEMU has it; the guest's kernel needs a while longer.

    @ivar number: comes back in the answer.
    @ivar device: what, and where. Neither its name nor its port may be in use.
    """

    number: int
    device: Device


class Answer(msgspec.Struct, frozen=True):
    """
    How it went.

    @ivar number: the request's.
    @ivar error: why it failed.
    """

    number: int
    error: str | None = None


Note = Booted | Finished
Request = Unplug | Plug
