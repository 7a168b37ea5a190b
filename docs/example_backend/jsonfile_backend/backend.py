"""
Devices that are listed in a JSON file, which another program writes. Adding a device to the file
plugs it in, removing it unplugs it:

    [{"bus_id": "1-1", "device_number": 2, "vendor_id": "2341", "product_id": "0043",
      "description": "Arduino SA Uno R3", "serial": "7533", "holder": null}]

C{holder} is the address of the client that has imported the device. Here C{bind} only shows the
device as bound, and C{release} only removes the holder from the file. Replace them with what makes
your devices importable, and what ends a client's session.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from twisted.internet.task import LoopingCall
from zope.interface import implementer

from usbip_server.interfaces import IUsbBackend
from usbip_server.model.device import DeviceState, Holder, Traffic, UsbDevice, isBusId
from usbip_server.model.errors import DeviceInUse, OperationFailed
from usbip_server.model.inventory import Inventory
from usbip_server.model.options import convert

Hex = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{4}$")]
Text = Annotated[str, msgspec.Meta(min_length=1)]


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    The options of this backend: the keys beside C{type} in C{backend:}.

    @ivar file: the path of the file.
    @ivar interval: seconds between two reads of it.
    """

    file: str
    interval: Annotated[float, msgspec.Meta(gt=0)] = 1.0


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    A device in the file.

    @ivar device_number: a different one for each plug.
    """

    bus_id: str
    device_number: int
    vendor_id: Hex
    product_id: Hex
    description: Text
    serial: Text | None = None
    holder: Text | None = None

    def __post_init__(self) -> None:
        if not isBusId(self.bus_id):
            raise ValueError(f"{self.bus_id!r} is not a bus id")


def makeBackend(options: Mapping[str, Any], reactor: Any) -> JsonFileBackend:
    """
    Make the backend. L{usbip_server.backends.plugin.BackendMaker} calls this.
    """
    chosen = convert(options, Options)  # refuses unknown keys and wrong types
    return JsonFileBackend(Path(chosen.file), chosen.interval, reactor)


@implementer(IUsbBackend)
class JsonFileBackend:
    """
    Reads the file at intervals, and before and after each operation.
    """

    def __init__(self, file: Path, interval: float, reactor: Any) -> None:
        self.inventory = Inventory()
        self._file = file
        self._interval = interval
        self._bound: set[tuple[str, int]] = set()
        self._loop = LoopingCall(self._look)
        self._loop.clock = reactor

    async def start(self) -> None:
        self._loop.start(self._interval)  # reads the file once before this returns

    async def stop(self) -> None:
        if self._loop.running:
            self._loop.stop()

    async def bind(
        self, device: UsbDevice, deadline: float, allowMounted: bool = False
    ) -> UsbDevice:
        # A disk that this machine has mounted would raise DeviceMounted; here are none.
        now = self._lookAt(device)
        if now.state is DeviceState.IN_USE:
            raise DeviceInUse(now)
        self._bound.add((now.busId, now.deviceNumber))
        return self._lookAt(device)

    async def unbind(self, device: UsbDevice, deadline: float) -> UsbDevice:
        now = self._lookAt(device)
        self._bound.discard((now.busId, now.deviceNumber))
        return self._lookAt(device)

    async def release(self, device: UsbDevice, deadline: float) -> UsbDevice:
        if self._lookAt(device).state is DeviceState.IN_USE:
            self._file.write_bytes(
                msgspec.json.encode(
                    [
                        msgspec.structs.replace(entry, holder=None)
                        if entry.bus_id == device.busId
                        else entry
                        for entry in self._read()
                    ]
                )
            )
        return self._lookAt(device)

    async def export(
        self, device: UsbDevice, connection: socket.socket, holder: Holder, deadline: float
    ) -> UsbDevice:
        raise OperationFailed(device, f"{device} cannot be exported by this daemon")

    async def refresh(self, device: UsbDevice) -> None:
        self._look()

    def traffic(self, device: UsbDevice) -> Traffic | None:
        return None  # not known

    def _lookAt(self, device: UsbDevice) -> UsbDevice:
        """
        Return the current value of a device.

        @raise OperationFailed: it is gone, or another device is in its place.
        """
        self._look()
        now = self.inventory.get(device.busId)
        if now is None or now.deviceNumber != device.deviceNumber:
            raise OperationFailed(device, f"{device} is gone: it was unplugged")
        return now

    def _look(self) -> None:
        """
        Read the file into the inventory. This blocks, which is acceptable for a small local file
        only: access to hardware or to the network has to run in a thread.
        """
        try:
            entries = self._read()
        except (OSError, msgspec.DecodeError) as error:
            self.inventory.trouble = f"cannot read the list of devices: {error}"
            self.inventory.replace([])
            return
        self.inventory.trouble = None
        self._bound &= {(entry.bus_id, entry.device_number) for entry in entries}
        self.inventory.replace([self._device(entry) for entry in entries])

    def _read(self) -> list[Entry]:
        return msgspec.json.decode(self._file.read_bytes(), type=list[Entry])

    def _device(self, entry: Entry) -> UsbDevice:
        bound = (entry.bus_id, entry.device_number) in self._bound
        holder = entry.holder if bound else None
        state = DeviceState.BOUND if bound else DeviceState.FREE
        return UsbDevice(
            busId=entry.bus_id,
            vendorId=entry.vendor_id,
            productId=entry.product_id,
            description=entry.description,
            serial=entry.serial,
            deviceNumber=entry.device_number,
            state=DeviceState.IN_USE if holder else state,
            holder=Holder(address=holder) if holder else None,
        )
