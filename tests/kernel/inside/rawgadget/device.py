"""What a device does, in the process that is the device."""

from __future__ import annotations

import contextlib
import enum
import errno
import signal
import threading

from tests.kernel.inside.rawgadget.controller import RawGadget, Setup
from tests.kernel.inside.rawgadget.descriptors import Description, Endpoint

_STANDARD = 0x60
"""The bits of C{bmRequestType} that are zero for a standard request (USB 2.0, table 9-2)."""

_GET_DESCRIPTOR, _GET_CONFIGURATION, _SET_CONFIGURATION = 6, 8, 9
_GET_INTERFACE, _SET_INTERFACE = 10, 11
"""C{bRequest} (USB 2.0, table 9-4)."""

_RETRY = 0.02


def isSetInterface(setup: Setup) -> bool:
    """Does the host choose a setting of an interface?"""
    return (setup.requestType, setup.request) == (1, _SET_INTERFACE)


class Refusal(enum.Enum):
    """What a device may do with a control request other than answer it."""

    STALL = "stalls"
    SILENCE = "never answers"


Reply = bytes | Refusal
"""The data that the host expects, which may be empty, or a refusal."""


class RawDevice:
    """A well-behaved device, which answers all standard requests, stalls all others, and neither
    sends nor takes anything at its endpoints.

    Subclasses change that. They have to be importable and picklable: a device runs in another
    process than the one that has made it."""

    def __init__(self, description: Description) -> None:
        self.description = description

    def answer(self, setup: Setup) -> Reply:
        """What to do with any control request that the controller has not answered itself.
        C{dummy_hcd} does that with C{SET_ADDRESS}, C{SET_FEATURE}, C{CLEAR_FEATURE} and
        C{GET_STATUS}.

        @return: the answer. Data that the host sends is taken and dropped."""
        if setup.requestType & _STANDARD == 0:
            return self._standard(setup)
        return self.special(setup)

    def special(self, setup: Setup) -> Reply:
        """What to do with a request of the device's class, or of its vendor."""
        return Refusal.STALL

    def serve(self, gadget: RawGadget, endpoint: Endpoint, handle: int) -> None:
        """What to do at an endpoint, in a thread of its own, from the choice of a configuration to
        the next one.

        Ends by an C{OSError} when the device is reset or the host chooses something else."""

    def wake(self) -> None:
        """Answer again from now on, if it did not."""

    def _standard(self, setup: Setup) -> Reply:
        if setup.request == _GET_DESCRIPTOR:
            found = self.description.descriptor(setup.value >> 8, setup.value & 0xFF)
            return Refusal.STALL if found is None else found
        if setup.request == _SET_CONFIGURATION:
            wanted = setup.value & 0xFF
            known = wanted == 0 or self.description.configuration(wanted) is not None
            return b"" if known else Refusal.STALL
        return b"" if setup.request == _SET_INTERFACE else Refusal.STALL


class RunningDevice:
    """A device that is plugged in."""

    def __init__(self, device: RawDevice, gadget: RawGadget) -> None:
        self._device = device
        self._gadget = gadget
        self._configuration = 0
        self._alternates: dict[int, int] = {}
        self._servers: dict[Endpoint, EndpointServer] = {}

    def run(self) -> None:
        """Answer one request after the other, until the process is killed."""
        while True:
            setup = self._gadget.fetch()
            state = self._state(setup)
            reply = self._device.answer(setup) if state is None else state
            if reply is Refusal.SILENCE:
                log(f"{setup} never answered")
                continue
            try:
                if isinstance(reply, bytes):
                    self._carryOut(setup)
                    if setup.isIn:
                        self._gadget.send(reply[: setup.length])
                    else:
                        self._gadget.receive(setup.length)
                    log(f"{setup} answered")
                else:
                    self._gadget.stall()
                    log(f"{setup} stalled")
            except OSError as error:
                if error.errno not in (errno.ESHUTDOWN, errno.EOVERFLOW, errno.EBUSY):
                    raise
                log(f"{setup} was given up by the host: {error}")

    def wake(self) -> None:
        """Make a device answer again. A request that it has left unanswered is stalled."""
        self._device.wake()
        with contextlib.suppress(OSError):  # no request is unanswered
            self._gadget.stall()

    def _state(self, setup: Setup) -> bytes | None:
        """The answer to a request that asks how things are."""
        if (setup.requestType, setup.request) == (0x80, _GET_CONFIGURATION):
            return bytes((self._configuration,))
        if (setup.requestType, setup.request) == (0x81, _GET_INTERFACE):
            return bytes((self._alternates.get(setup.index, 0),))
        return None

    def _carryOut(self, setup: Setup) -> None:
        """Do what a request that was accepted is for."""
        if (setup.requestType, setup.request) == (0, _SET_CONFIGURATION):
            self._configuration = setup.value & 0xFF
            self._alternates.clear()
        elif isSetInterface(setup):
            self._alternates[setup.index] = setup.value
        else:
            return
        self._switch()

    def _switch(self) -> None:
        """Serve those endpoints that the host has chosen, and no others."""
        chosen = self._device.description.configuration(self._configuration)
        endpoints = () if chosen is None else chosen.endpoints(self._alternates)
        for endpoint in set(self._servers).difference(endpoints):
            self._servers.pop(endpoint).stop()
        for endpoint in endpoints:
            if endpoint not in self._servers:
                try:
                    handle = self._gadget.enable(endpoint)
                except OSError as error:
                    log(f"{endpoint} refused: {error}")
                    continue
                server = EndpointServer(self._device, self._gadget, endpoint, handle)
                self._servers[endpoint] = server
            self._servers[endpoint].start()
        if chosen is not None:
            self._gadget.configured()


class EndpointServer:
    """The thread that serves an endpoint."""

    def __init__(
        self, device: RawDevice, gadget: RawGadget, endpoint: Endpoint, handle: int
    ) -> None:
        self._device = device
        self._gadget = gadget
        self._endpoint = endpoint
        self._handle = handle
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, if it does not run: a reset has ended it."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End, and wait for that."""
        while self._thread is not None and self._thread.is_alive():
            assert self._thread.ident is not None
            signal.pthread_kill(self._thread.ident, signal.SIGUSR1)
            self._thread.join(_RETRY)
        self._gadget.disable(self._handle)

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            self._device.serve(self._gadget, self._endpoint, self._handle)


def log(line: str) -> None:
    """Print a line for L{tests.kernel.inside.rawgadget.plugged.PluggedIn.log}."""
    print(line, flush=True)
