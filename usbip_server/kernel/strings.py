"""
The strings of devices, each read once for each stay.

To read them takes the device's lock in the kernel, so a device that hangs in a driver does
not answer. It is waited for a moment, and then done without until it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from functools import partial

from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from usbip_server.kernel.scan import Glance, Scanner, Strings
from usbip_server.runtime.threads import BlockingCalls, TookTooLong

Stay = tuple[str, int]
"""Bus id and device number."""

SECONDS = 0.5
"""How long a device is waited for."""

LANES = 16
"""How many devices are read at the same time, each lane in a thread."""


class StringReader:
    """
    Reads strings, and remembers them.
    """

    _log = Logger()

    def __init__(
        self, scanner: Scanner, calls: BlockingCalls, onRead: Callable[[Iterable[str]], None]
    ) -> None:
        """
        @param onRead: called with the bus ids of devices whose strings have come, or will
            not be waited for any longer.
        """
        self._scanner = scanner
        self._calls = calls
        self._onRead = onRead
        self._known: dict[Stay, Strings] = {}
        self._silent: set[Stay] = set()
        self._reading: set[Stay] = set()
        self._idle: list[Deferred[None]] = []

    def of(self, glance: Glance) -> Strings | None:
        """
        A device's strings: none of them for a device that does not answer, and C{None} if
        they have not been read yet.
        """
        if glance.stay in self._silent:
            return Strings()
        return None if glance.stay in self._reading else self._known.get(glance.stay)

    def read(self, glances: Iterable[Glance]) -> None:
        """
        Begin to read the strings of devices.
        """
        fresh = [glance for glance in glances if glance.stay not in self._reading]
        if not fresh:
            return
        self._reading.update(glance.stay for glance in fresh)
        lanes = [lane for start in range(LANES) if (lane := fresh[start::LANES])]
        reading = [Deferred.fromCoroutine(self._readLane(lane)) for lane in lanes]
        gatherResults(reading).addCallback(self._rest)

    async def idle(self) -> bool:
        """
        Wait until nothing is being read.

        @return: did that take any waiting?
        """
        if not self._reading:
            return False
        done: Deferred[None] = Deferred()
        self._idle.append(done)
        await done
        return True

    def keepOnly(self, stays: Set[Stay]) -> None:
        """Forget all devices but these."""
        for stay in self._known.keys() - stays:
            del self._known[stay]
        self._silent &= stays

    async def _readLane(self, glances: list[Glance]) -> None:
        """
        Read some devices, one after the other. One that does not answer holds up the
        others once.
        """
        rest = glances
        while rest:
            read = partial(self._scanner.readStrings, rest, self._note)
            try:
                await self._calls.call(object(), SECONDS, read, late=partial(self._spoke, rest))
                break
            except TookTooLong:
                unread = [glance for glance in rest if glance.stay not in self._known]
                self._silent.update(glance.stay for glance in unread[:1])
                rest = unread[1:]
            except Exception:
                self._log.failure("cannot read strings")
                self._silent.update(glance.stay for glance in rest)
                break
        self._reading.difference_update(glance.stay for glance in glances)
        self._onRead([glance.busId for glance in glances])

    def _note(self, glance: Glance, strings: Strings) -> None:
        self._known[glance.stay] = strings

    def _spoke(self, glances: list[Glance]) -> None:
        """
        What was not waited for any longer has come.
        """
        late = {glance.stay for glance in glances} & self._silent & self._known.keys()
        self._silent -= late
        self._onRead([busId for busId, _ in late])

    def _rest(self, _: object) -> None:
        if not self._reading:
            idle, self._idle = self._idle, []
            for done in idle:
                done.callback(None)
