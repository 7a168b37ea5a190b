"""
The gate that every command and every import comes through: who asks is found out, and what is
decided is written down.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

from usbip_server.model.device import UsbDevice
from usbip_server.model.policy import Principal, Right
from usbip_server.model.replies import Devices, Reply
from usbip_server.model.requests import Command, FindDevice, ListDevices, WatchDevices
from usbip_server.net.caller import Caller
from usbip_server.runtime.eventlog import Subscription
from usbip_server.server.access.audit import Audit
from usbip_server.server.access.authorizer import Authorizer, rightOf
from usbip_server.server.devices.events import DeviceEvents, Event
from usbip_server.server.devices.view import DeviceView


class Gate:
    """
    Knows who may do what, and keeps the audit trail.
    """

    def __init__(self, access: Authorizer) -> None:
        self._access = access
        self._audit = Audit()

    @contextlib.contextmanager
    def passing(
        self, caller: Caller, command: Command, right: Right | None = None
    ) -> Iterator[Callable[[UsbDevice], None]]:
        """
        Carry a request out in here: C{caller.principal} is who asks, and an error is written
        down as what became of it.

        @param right: what it is for, if that is not what the command is called.
        @return: to be called with the device, if it went well.
        @raise NotAllowed: its token is none of ours, or there is no device that they may do
            this to.
        """
        right = right or rightOf(command)
        caller.principal = caller.peer
        try:
            caller.principal = self._access.identify(caller.peer, command.token)
            self._access.of(caller.principal).require(right)
            yield partial(self._audit.done, caller.principal, right, command)
        except Exception as error:
            self._audit.failed(caller.principal, right, command, error)
            raise


class Looking:
    """
    Shows devices.
    """

    def __init__(self, access: Authorizer, catalogue: DeviceView, feed: DeviceEvents) -> None:
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

    def watch(
        self, request: WatchDevices, principal: Principal
    ) -> tuple[Reply, Subscription[Event]]:
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
