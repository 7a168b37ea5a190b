"""
The USB devices that the guest is born with.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EmulatedDevice:
    """
    A USB device that QEMU emulates.

    @ivar deviceId: QEMU's name of it
    @ivar driver: QEMU's word for its kind
    @ivar port: where it sits on the host controller, C{2.4} is the hub's fourth port
    @ivar vidPid: what it calls itself
    @ivar serial: its serial number, where this can be chosen
    """

    deviceId: str
    driver: str
    port: str
    vidPid: str
    serial: str | None = None

    @property
    def busId(self) -> str:
        """
        The guest's name of it. All of them are on the controller's USB 2 bus.
        """
        return f"1-{self.port}"


SERIAL = EmulatedDevice("serial", "usb-serial", "1", "0403:6001", "QSER1")
HUB = EmulatedDevice("hub", "usb-hub", "2", "0409:55aa")
KEYBOARD = EmulatedDevice("keyboard", "usb-kbd", "2.2", "0627:0001")
DISK = EmulatedDevice("disk", "usb-storage", "2.4", "46f4:0001", "DISK42")
TABLET = EmulatedDevice("tablet", "usb-tablet", "3", "0627:0001")
CARD_READER = EmulatedDevice("ccid", "usb-ccid", "4", "08e6:4433")

DEVICES = (SERIAL, HUB, KEYBOARD, DISK, TABLET, CARD_READER)
