"""
Reads the strings of devices (C{serial}, C{manufacturer}, C{product}) in threads, once for each
time a device is plugged in.

Reading a string takes the device's lock in the kernel, so the read blocks while the device hangs
in a driver. After L{SECONDS} the strings are unknown (C{UsbDevice.unknown}) until the read
returns. They are unknown, too, if the read fails; then it is repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from functools import partial

from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from usbip_server.kernel.scan import UNREAD, Attributes, Scanner, Strings
from usbip_server.model.device import PlugId
from usbip_server.runtime.threads import BlockingCalls, CallTimedOut

SECONDS = 0.5
"""How long to wait for the devices of a lane, and again after each that does not answer."""

LANES = 16
"""How many devices are read at the same time. Each lane has a thread, and reads its devices one
after the other."""


class StringReader:
    """
    Reads strings and caches them.
    """

    _log = Logger()

    def __init__(
        self, scanner: Scanner, calls: BlockingCalls, onRead: Callable[[Iterable[str]], None]
    ) -> None:
        """
        @param onRead: called with the bus ids of devices whose strings were read, or are not
            waited for any longer.
        """
        self._scanner = scanner
        self._calls = calls
        self._onRead = onRead
        self._known: dict[PlugId, Strings] = {}
        self._silent: set[PlugId] = set()  # those that have not answered
        self._failed: set[PlugId] = set()
        self._reading: set[PlugId] = set()
        self._idle: list[Deferred[None]] = []

    def of(self, attributes: Attributes) -> Strings | None:
        """
        The strings of a device: C{UNREAD} for a device that does not answer, C{None} if they are
        being read or are to be read.
        """
        if attributes.plugId in self._silent | self._failed:
            return UNREAD
        return None if attributes.plugId in self._reading else self._known.get(attributes.plugId)

    def read(self, devices: Iterable[Attributes]) -> None:
        """
        Start reading the strings of devices, except those that are being read already.
        """
        unread = [device for device in devices if device.plugId not in self._reading]
        if not unread:
            return
        self._reading.update(device.plugId for device in unread)
        lanes = [lane for start in range(LANES) if (lane := unread[start::LANES])]
        reading = [Deferred.fromCoroutine(self._readLane(lane)) for lane in lanes]
        gatherResults(reading).addCallback(self._rest)

    def retry(self, devices: Iterable[Attributes]) -> None:
        """
        Read the strings of those of the devices again whose read has failed.
        """
        self.read([device for device in devices if device.plugId in self._failed])

    async def idle(self) -> bool:
        """
        Wait until no strings are being read.

        @return: C{False} if none were.
        """
        if not self._reading:
            return False
        done: Deferred[None] = Deferred()
        self._idle.append(done)
        await done
        return True

    def keepOnly(self, plugIds: Set[PlugId]) -> None:
        """Remove all other devices from the cache."""
        for plugId in self._known.keys() - plugIds:
            del self._known[plugId]
        self._silent &= plugIds
        self._failed &= plugIds

    async def _readLane(self, devices: list[Attributes]) -> None:
        """
        Read the devices of one lane. A device that does not answer delays those behind it by
        L{SECONDS}: they are read in another thread then.
        """
        rest = devices
        while rest:
            read = partial(self._scanner.readStrings, rest, self._store)
            try:
                await self._calls.call(object(), SECONDS, read, late=partial(self._readLate, rest))
                break
            except CallTimedOut:
                done = self._known.keys() | self._failed
                unread = [device for device in rest if device.plugId not in done]
                self._silent.update(device.plugId for device in unread[:1])
                rest = unread[1:]
            except Exception:
                self._log.failure("cannot read strings")
                self._failed.update(device.plugId for device in rest)
                break
        self._failed -= self._known.keys()
        self._reading.difference_update(device.plugId for device in devices)
        self._onRead([device.busId for device in devices])

    def _store(self, plugId: PlugId, strings: Strings) -> None:
        """
        Called in a thread.
        """
        if strings.areRead:
            self._known[plugId] = strings
        else:
            self._failed.add(plugId)

    def _readLate(self, devices: list[Attributes]) -> None:
        """
        A thread that is not waited for any longer has read its devices.
        """
        done = self._known.keys() | self._failed
        late = {device.plugId for device in devices} & self._silent & done
        self._silent -= late
        self._onRead([plugId.busId for plugId in late])

    def _rest(self, _: object) -> None:
        if not self._reading:
            idle, self._idle = self._idle, []
            for done in idle:
                done.callback(None)
