"""
What is done to devices of other servers: their servers bind them, unbind them, and end the
sessions of clients.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError
from twisted.logger import Logger
from twisted.python.failure import Failure

from usbip_server.client.remote.mirror import Far, RemoteMirror
from usbip_server.client.remote.work import RemoteWork, inOurWords
from usbip_server.device import DeviceState, UsbDevice
from usbip_server.errors import DeviceInUse, OperationFailed, OperationTimedOut, ShareError
from usbip_server.threads import TookTooLong


class RemoteOperations:
    """
    Has it done.
    """

    _log = Logger()

    def __init__(self, mirror: RemoteMirror, work: RemoteWork) -> None:
        self._mirror = mirror
        self._work = work
        self._last: dict[str, object] = {}  # which operation on a device is the last one

    async def attach(self, device: UsbDevice, deadline: float) -> UsbDevice:
        """
        Bind a device. Parameters, result and errors of all three are those of
        L{usbip_server.interfaces.IUsbBackend}.
        """
        try:
            return await self._perform("attach", device, deadline)
        except OperationTimedOut:
            raise
        except OperationFailed as error:
            now = self._mirror.inventory.same(device)
            if now is not None and now.state is DeviceState.IN_USE:
                raise DeviceInUse(now, self._mirror.traffic(now)) from error
            raise

    async def detach(self, device: UsbDevice, deadline: float) -> UsbDevice:
        """Unbind a device."""
        return await self._perform("detach", device, deadline)

    async def kick(self, device: UsbDevice, deadline: float) -> UsbDevice:
        """End the session of the client that has a device."""
        return await self._perform("kick", device, deadline)

    async def _perform(self, verb: str, device: UsbDevice, deadline: float) -> UsbDevice:
        far, there = self._mirror.at(device)
        mark = self._last[device.busId] = object()

        def late(outcome: Any) -> None:
            self._work.begin(self._afterwards(far, verb, there, device.busId, mark, outcome))

        try:
            performing = far.requests.perform(verb, there, deadline)
            await self._work.within(deadline, performing, late)
        except TookTooLong:
            trouble = f"its server has not ended the {verb} within {deadline:g} s"
            self._mirror.stuck[device.busId] = device.deviceNumber, trouble
            self._mirror.showAgain(device.busId)
            raise OperationTimedOut(self._mirror.now(device), f"{device}: {trouble}") from None
        except (ShareError, CancelledError) as error:
            self._freed(device.busId)
            raise inOurWords(self._mirror.now(device), error) from error
        self._freed(device.busId)
        if verb != "attach":
            self._mirror.sessions.end(device.busId)  # if it has not heard of it yet
        return self._mirror.here(device)

    async def _afterwards(
        self, far: Far, verb: str, there: UsbDevice, busId: str, mark: object, outcome: Any
    ) -> None:
        """
        What nobody waits for any more has ended after all. A device that was bound, and that
        was said not to be, is given back. If something else was asked for since then that is
        what counts.
        """
        if self._last.get(busId) is not mark:
            return
        if verb == "attach" and not isinstance(outcome, Failure):
            try:
                await far.requests.perform("detach", there, 0)
            except ShareError as error:
                self._log.warn(
                    "{device} at {server} is not given back: {error}",
                    device=str(there),
                    server=str(far.host.server),
                    error=str(error),
                )
        if self._last.get(busId) is mark:
            self._freed(busId)
        if isinstance(outcome, Failure):
            outcome.trap(ShareError)

    def _freed(self, busId: str) -> None:
        """Nothing is being done there any more."""
        if self._mirror.stuck.pop(busId, None) is not None:
            self._mirror.showAgain(busId)
