"""
What touches no device: list, find and watch, each with what somebody may see.
"""

from __future__ import annotations

from usbip_server.access import Access
from usbip_server.catalogue import Catalogue
from usbip_server.commands import FindDevice, ListDevices, WatchDevices
from usbip_server.device import UsbDevice
from usbip_server.feed import Event, Feed
from usbip_server.history import Stream
from usbip_server.policy import Principal, Right
from usbip_server.replies import Devices, Reply


class Looking:
    """
    Shows devices.
    """

    def __init__(self, access: Access, catalogue: Catalogue, feed: Feed) -> None:
        self._access = access
        self._catalogue = catalogue
        self._feed = feed

    def list(self, command: ListDevices, principal: Principal) -> Devices:
        """
        All devices that somebody may have listed.
        """
        return self._access.of(principal).among(Right.LIST, self._devices)

    def find(self, request: FindDevice, principal: Principal) -> UsbDevice:
        """
        The device that is meant.

        @raise ShareError: there is none, or there are several, or they may not know.
        """
        return self._access.of(principal).select(request, self._devices)

    def watch(self, request: WatchDevices, principal: Principal) -> tuple[Reply, Stream[Event]]:
        """
        What a watcher is answered, and what it is told from then on.

        @raise ShareError: it cannot be told that.
        """
        return self._feed.watch(
            request, lambda device: self._access.of(principal).may(Right.WATCH, device)
        )

    @property
    def _devices(self) -> tuple[UsbDevice, ...]:
        return self._catalogue.inventory.snapshot.devices
