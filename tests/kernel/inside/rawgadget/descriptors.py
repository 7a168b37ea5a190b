"""USB descriptors, as values and as bytes.

The formats are those of USB 2.0, section 9.6."""

from __future__ import annotations

import struct
from dataclasses import dataclass

DEVICE, CONFIGURATION, STRING, INTERFACE, ENDPOINT, QUALIFIER, OTHER_SPEED = range(1, 8)
"""C{bDescriptorType} (USB 2.0, table 9-5)."""

ISOCHRONOUS, BULK, INTERRUPT = 1, 2, 3
"""C{bmAttributes} of an endpoint (USB 2.0, table 9-13)."""

_IN = 0x80
_BUS_POWERED = 0x80
_ENGLISH = 0x0409


@dataclass(frozen=True, slots=True)
class Endpoint:
    """@ivar address: with bit 7 set for IN.
    @ivar kind: L{BULK}, L{INTERRUPT} or L{ISOCHRONOUS}.
    @ivar packet: C{wMaxPacketSize}. C{dummy_hcd} takes 512 for bulk at high speed, no other.
    @ivar interval: C{bInterval}"""

    address: int
    kind: int = BULK
    packet: int = 512
    interval: int = 0

    @property
    def isIn(self) -> bool:
        """Does the host read from it?"""
        return bool(self.address & _IN)

    def encode(self) -> bytes:
        """The descriptor."""
        return struct.pack(
            "<BBBBHB", 7, ENDPOINT, self.address, self.kind, self.packet, self.interval
        )


@dataclass(frozen=True, slots=True)
class Interface:
    """One setting of an interface.

    @ivar number: C{bInterfaceNumber}
    @ivar alternate: C{bAlternateSetting}
    @ivar triple: class, subclass and protocol."""

    number: int = 0
    alternate: int = 0
    triple: tuple[int, int, int] = (0xFF, 0, 0)
    endpoints: tuple[Endpoint, ...] = ()

    def encode(self) -> bytes:
        """The descriptor, and those of the endpoints."""
        head = (9, INTERFACE, self.number, self.alternate, len(self.endpoints), *self.triple, 0)
        return bytes(head) + b"".join(endpoint.encode() for endpoint in self.endpoints)


@dataclass(frozen=True, slots=True)
class Configuration:
    """@ivar value: C{bConfigurationValue}
    @ivar interfaces: all settings of all interfaces.
    @ivar claimed: C{bNumInterfaces}, if it is not to be the number of different interfaces."""

    interfaces: tuple[Interface, ...]
    value: int = 1
    claimed: int | None = None

    def encode(self, kind: int = CONFIGURATION) -> bytes:
        """The descriptor, and all that belong to it.

        @param kind: L{CONFIGURATION} or L{OTHER_SPEED}."""
        rest = b"".join(interface.encode() for interface in self.interfaces)
        numbers = len({interface.number for interface in self.interfaces})
        claimed = numbers if self.claimed is None else self.claimed
        return (
            struct.pack(
                "<BBHBBBBB", 9, kind, 9 + len(rest), claimed, self.value, 0, _BUS_POWERED, 50
            )
            + rest
        )

    def endpoints(self, alternates: dict[int, int]) -> tuple[Endpoint, ...]:
        """Those that are in use.

        @param alternates: which setting each interface has; 0 by default."""
        return tuple(
            endpoint
            for interface in self.interfaces
            if interface.alternate == alternates.get(interface.number, 0)
            for endpoint in interface.endpoints
        )


@dataclass(frozen=True, slots=True)
class Description:
    """A high speed device.

    @ivar triple: class, subclass and protocol; zeros if its interfaces have them.
    @ivar release: C{bcdDevice}
    @ivar serial: its serial number; C{None} for a device without one. The same holds for the other
        strings."""

    vendorId: int
    productId: int
    configurations: tuple[Configuration, ...]
    triple: tuple[int, int, int] = (0, 0, 0)
    release: int = 0x0100
    manufacturer: str | None = "Raw"
    product: str | None = "Gadget"
    serial: str | None = None

    def device(self) -> bytes:
        """The device descriptor."""
        indices = (
            number if text is not None else 0 for number, text in enumerate(self._strings(), 1)
        )
        return struct.pack(
            "<BBHBBBBHHHBBBB",
            18,
            DEVICE,
            0x0200,
            *self.triple,
            64,
            self.vendorId,
            self.productId,
            self.release,
            *indices,
            len(self.configurations),
        )

    def qualifier(self) -> bytes:
        """The device qualifier: the same at full speed."""
        return struct.pack(
            "<BBHBBBBBB", 10, QUALIFIER, 0x0200, *self.triple, 64, len(self.configurations), 0
        )

    def string(self, index: int) -> bytes | None:
        """A string descriptor.

        @return: C{None} if it has no such string."""
        if index == 0:
            return struct.pack("<BBH", 4, STRING, _ENGLISH)
        strings = self._strings()
        text = strings[index - 1] if index <= len(strings) else None
        if text is None:
            return None
        encoded = text.encode("utf-16-le", "surrogatepass")
        return bytes((2 + len(encoded), STRING)) + encoded

    def descriptor(self, kind: int, index: int) -> bytes | None:
        """The answer to C{GET_DESCRIPTOR}.

        @return: C{None} if it has no such descriptor."""
        if kind == DEVICE:
            return self.device()
        if kind in (CONFIGURATION, OTHER_SPEED) and index < len(self.configurations):
            return self.configurations[index].encode(kind)
        if kind == STRING:
            return self.string(index)
        return self.qualifier() if kind == QUALIFIER else None

    def configuration(self, value: int) -> Configuration | None:
        """The configuration of that value."""
        return next((each for each in self.configurations if each.value == value), None)

    def _strings(self) -> tuple[str | None, ...]:
        return self.manufacturer, self.product, self.serial
