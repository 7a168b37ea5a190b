"""
Something that takes its time and that several may wait for.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from usbip_server.device import UsbDevice
from usbip_server.errors import ShareError
from usbip_server.policy import Principal

Settle = Callable[[ShareError | None], None]
"""To be told, once, what went wrong; C{None}: nothing."""


class Event:
    """
    Happens once; any number of coroutines may wait for it, each as long as it likes.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self.happened = False
        self._clock = clock
        self._waiting: list[Deferred[bool]] = []

    def happen(self) -> None:
        """Let everybody go on."""
        self.happened = True
        waiting, self._waiting = self._waiting, []
        for deferred in waiting:
            deferred.callback(True)

    async def within(self, seconds: float) -> bool:
        """
        Wait for it.

        @return: has it happened, when C{seconds} have passed at the latest?
        """
        if self.happened or seconds <= 0:
            return self.happened
        deferred: Deferred[bool] = Deferred()
        self._waiting.append(deferred)
        giveUp = self._clock.callLater(seconds, self._giveUp, deferred)
        try:
            return await deferred
        finally:
            if giveUp.active():
                giveUp.cancel()
            if deferred in self._waiting:  # it was cancelled
                self._waiting.remove(deferred)

    def _giveUp(self, deferred: Deferred[bool]) -> None:
        self._waiting.remove(deferred)
        deferred.callback(False)


class Operation:
    """
    The attach, detach or kick of one device, while it lasts and until somebody has heard how
    it went.

    @ivar verb: C{"attach"}, C{"detach"}, C{"kick"} or C{"forced attach"}.
    @ivar device: the device as it was when it was asked for.
    @ivar principal: who asked first.
    @ivar ended: happens when it has come to an end.
    @ivar result: the device after it, if it went well.
    @ivar error: what went wrong, if it did not.
    @ivar heard: has somebody been told?
    @ivar settles: whom to tell how it went, each once.
    @ivar known: what has gone wrong before in the same way: it is not told again.
    @ivar endedAt: when it came to its end, by the reactor's clock.
    """

    def __init__(
        self,
        verb: str,
        device: UsbDevice,
        principal: Principal,
        ended: Event,
        heard: bool = False,
    ) -> None:
        self.verb = verb
        self.device = device
        self.principal = principal
        self.ended = ended
        self.result: UsbDevice | None = None
        self.error: ShareError | None = None
        self.heard = heard
        self.settles: list[Settle] = []
        self.known: str | None = None
        self.endedAt = 0.0

    def isAbout(self, verb: str, device: UsbDevice) -> bool:
        """Is it this, on the very device that is there now?"""
        return (self.verb, self.device.busId, self.device.deviceNumber) == (
            verb,
            device.busId,
            device.deviceNumber,
        )

    def outcome(self) -> UsbDevice:
        """
        The device after it.

        @raise ShareError: it went wrong.
        """
        if self.error is not None:
            raise self.error
        assert self.result is not None, "asked before it ended"
        return self.result
