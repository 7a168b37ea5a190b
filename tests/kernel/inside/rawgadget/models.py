"""Devices that misbehave, and one that does not."""

from __future__ import annotations

import os
import struct

from tests.kernel.inside.rawgadget.controller import RawGadget, Setup
from tests.kernel.inside.rawgadget.descriptors import (
    ISOCHRONOUS,
    Configuration,
    Description,
    Endpoint,
    Interface,
)
from tests.kernel.inside.rawgadget.device import RawDevice, Refusal, Reply, isSetInterface

VENDOR = 0x1209
"""The vendor id of all of them but one."""

SOURCE, SINK = Endpoint(0x81), Endpoint(0x02)
"""Bulk endpoints: C{ep1in-bulk} and C{ep2out-bulk} of C{dummy_udc}."""

ISOCHRONOUS_SETTING = 120
"""The kernel takes 128 settings of an interface (C{USB_MAXALTSETTING},
C{drivers/usb/core/config.c})."""

_USBTEST_IDS = 0x0525, 0xA4A0
"""What the driver C{usbtest} takes for Linux' own C{Gadget Zero}
(C{drivers/usb/misc/usbtest.c})."""


def plain(serial: str | None = "PLAIN1", product: int = 1) -> RawDevice:
    """A device with nothing wrong.

    @param product: its product id."""
    return RawDevice(_described(product, serial, Interface(endpoints=(SOURCE, SINK))))


class Hanging(RawDevice):
    """Answers until an interface is set, and then no control request any more.

    The driver C{usbtest} binds to it. Before each test it sets the interface, and its test 10
    then waits for an answer to C{GET_DESCRIPTOR} without a limit, with the device locked
    (C{test_ctrl_queue}, C{drivers/usb/misc/usbtest.c})."""

    def __init__(self, serial: str = "HANG1") -> None:
        interface = Interface(endpoints=(SOURCE, SINK))
        super().__init__(Description(*_USBTEST_IDS, (Configuration((interface,)),), serial=serial))
        self._hangs = False

    def answer(self, setup: Setup) -> Reply:
        """See L{RawDevice}."""
        if self._hangs:
            return Refusal.SILENCE
        self._hangs = isSetInterface(setup)
        return super().answer(setup)

    def wake(self) -> None:
        """See L{RawDevice}."""
        self._hangs = False


class Silent(RawDevice):
    """Answers until a request of a client silences it, and then no control request any more. The
    kernel waits five seconds for each answer (C{USB_CTRL_SET_TIMEOUT}, C{include/linux/usb.h})."""

    def __init__(self) -> None:
        super().__init__(_described(9, "SILENT1", Interface(endpoints=(SOURCE, SINK))))
        self._isSilent = False

    def answer(self, setup: Setup) -> Reply:
        """See L{RawDevice}."""
        if self._isSilent:
            return Refusal.SILENCE
        return super().answer(setup)

    def special(self, setup: Setup) -> Reply:
        """See L{RawDevice}: any request that is not a standard one silences it."""
        self._isSilent = True
        return bytes(setup.length)

    def wake(self) -> None:
        """See L{RawDevice}."""
        self._isSilent = False


class MuteDisk(RawDevice):
    """A disk that answers all control requests, and no SCSI command: C{usb-storage} waits for the
    answer to its first C{INQUIRY} (USB Mass Storage Class, Bulk-Only Transport 1.0)."""

    def __init__(self) -> None:
        interface = Interface(triple=(8, 6, 0x50), endpoints=(SOURCE, SINK))
        super().__init__(_described(10, "MUTE1", interface))

    def special(self, setup: Setup) -> Reply:
        """See L{RawDevice}: it has one logical unit, and can be reset."""
        return bytes(setup.length)


class Stalling(RawDevice):
    """Has interfaces like a disk's, and stalls whatever makes it one: the requests of its class,
    and both of its endpoints."""

    def __init__(self, triple: tuple[int, int, int] = (0xFF, 0, 0)) -> None:
        """@param triple: class, subclass and protocol of the interface."""
        interface = Interface(triple=triple, endpoints=(SOURCE, SINK))
        super().__init__(_described(2, "STALL1", interface))

    def serve(self, gadget: RawGadget, endpoint: Endpoint, handle: int) -> None:
        """See L{RawDevice}."""
        gadget.wedge(handle)


class Vanishing(RawDevice):
    """Sends counted words at its bulk endpoint, and unplugs itself in the middle of a transfer.

    @cvar sent: how many bytes it sends first."""

    sent = 8192

    def __init__(self) -> None:
        super().__init__(_described(3, "VANISH1", Interface(endpoints=(SOURCE, SINK))))

    def serve(self, gadget: RawGadget, endpoint: Endpoint, handle: int) -> None:
        """See L{RawDevice}."""
        if endpoint == SOURCE:
            gadget.write(handle, counted(self.sent))
            os._exit(0)


class Counting(RawDevice):
    """Sends counted words at its bulk endpoint for as long as it is plugged in."""

    def __init__(self) -> None:
        super().__init__(_described(4, "COUNT1", Interface(endpoints=(SOURCE, SINK))))

    def serve(self, gadget: RawGadget, endpoint: Endpoint, handle: int) -> None:
        """See L{RawDevice}."""
        while endpoint == SOURCE:
            gadget.write(handle, counted(endpoint.packet))


def crowded() -> RawDevice:
    """300 interface descriptors of different numbers as far as there are any, and then from 0 on
    again, all of setting 0. It claims 255 interfaces."""
    interfaces = tuple(
        Interface(number % 256, 0, (0xFF, 0, number // 256)) for number in range(300)
    )
    configuration = Configuration(interfaces, claimed=255)
    return RawDevice(Description(VENDOR, 5, (configuration,), serial="MANY1"))


def manySettings() -> RawDevice:
    """One interface with 200 alternate settings. L{ISOCHRONOUS_SETTING} has an isochronous
    endpoint, as webcams have; C{dummy_udc} has none."""
    settings = [Interface(alternate=number) for number in range(200)]
    endpoint = Endpoint(0x83, ISOCHRONOUS, 192, 4)
    settings[ISOCHRONOUS_SETTING] = Interface(0, ISOCHRONOUS_SETTING, endpoints=(endpoint,))
    return RawDevice(_described(6, "SETTINGS1", *settings))


def twoConfigurations() -> RawDevice:
    """Two configurations, with different interfaces and endpoints. The kernel takes the first
    (C{usb_choose_configuration}, C{drivers/usb/core/generic.c})."""
    first = Configuration((Interface(triple=(0xFE, 1, 1), endpoints=(SOURCE,)),), 1)
    second = Configuration(
        (Interface(triple=(0xFE, 2, 2), endpoints=(SINK,)), Interface(1, triple=(0xFE, 3, 3))), 2
    )
    return RawDevice(Description(VENDOR, 7, (first, second), serial="TWO1"))


def hiddenDisk(isActive: bool = True) -> RawDevice:
    """A disk in its second configuration. The kernel takes that if the first interface of the first
    one is of a vendor's class (C{usb_choose_configuration}, C{drivers/usb/core/generic.c}).

    @param isActive: whether the kernel takes it."""
    triple = (0xFF, 0, 0) if isActive else (0xFE, 1, 1)
    first = Configuration((Interface(triple=triple, endpoints=(SOURCE,)),), 1)
    second = Configuration((Interface(triple=(8, 6, 0x50), endpoints=(SOURCE, SINK)),), 2)
    return RawDevice(Description(VENDOR, 11, (first, second), serial="HIDDEN1"))


def counted(size: int) -> bytes:
    """As many bytes, of which each four are the number of those before them."""
    return b"".join(struct.pack("<I", number) for number in range(size // 4))


def _described(product: int, serial: str | None, *interfaces: Interface) -> Description:
    return Description(VENDOR, product, (Configuration(interfaces),), serial=serial)
