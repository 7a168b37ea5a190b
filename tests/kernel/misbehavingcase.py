"""
A daemon, a device that misbehaves, and one beside it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.kernel import guest
from tests.kernel.daemoncase import DaemonCase
from tests.kernel.guest import PluggedIn, RawDevice, models
from tests.kernel.needs import Need, needs
from tests.support.childdaemon import EXPORT, ChildDaemon

HOST = "127.0.0.1"

BAD, OTHER = 10, 11
"""The controllers of the device that misbehaves, and of one beside it."""

AT_ONCE = 1.8
"""Seconds: the default of C{timeouts.answer}. What takes no time has to be answered before."""

IN_TIME = AT_ONCE + 1.0
"""Seconds until the answer about something that takes longer; the machine may be busy."""


@needs(Need.GADGETS)
class MisbehavingCase(DaemonCase):
    """
    A daemon with the sysfs backend, and the usual timeouts, that also serves USB/IP.
    """

    backend = "{type: sysfs}"
    timeouts = "{}"

    def setUp(self) -> None:
        if not Path("/sys/module/dummy_hcd").exists():
            guest.modprobe("dummy_hcd", "num=20", "is_super_speed=1")
        for module in ("raw_gadget", "usbtest", "usbip-host", "vhci-hcd"):
            guest.modprobe(module)
        self._plugged: list[PluggedIn] = []
        self.addCleanup(self._unplugAll)  # the last thing, when there is no daemon any more

    def config(self, state: str = "{file: null, remember: false}", more: str = "") -> str:
        return f"backend: {self.backend}\ntimeouts: {self.timeouts}\nstate: {state}\n{EXPORT}{more}"

    def plugged(self, device: RawDevice, controller: int = BAD) -> PluggedIn:
        """A device that is plugged in until the test ends."""
        plugged = PluggedIn(device, controller)
        plugged.__enter__()
        self._plugged.append(plugged)
        return plugged

    def lists(self, daemon: ChildDaemon, *busIds: str) -> None:
        """These are the devices of ours that it lists before long."""
        ours = {guest.busIdAt(controller) for controller in (BAD, OTHER)}
        guest.waitUntil(
            lambda: [each for each in self.listed(daemon) if each in ours] == [*busIds],
            f"{busIds} are listed",
        )

    def detail(self, daemon: ChildDaemon, busId: str) -> Any:
        """All that it says of a device."""
        return self.succeeds(daemon.ask("find", id=busId, detail=True))

    def atOnce(self, daemon: ChildDaemon, command: str, **more: object) -> dict[str, Any]:
        """
        The answer to a request, which has to come in time for the oldest of clients. It is asked
        up to three times, as the machine may be busy: who waits for a device that hangs does
        so each time.
        """
        times = []
        for _ in range(3):
            began = time.monotonic()
            answer = daemon.ask(command, **more)
            times.append(time.monotonic() - began)
            if times[-1] < AT_ONCE:
                return answer
        raise AssertionError(f"{command} {more}: {answer} after {times} s")

    def attachesSoon(self, daemon: ChildDaemon, serial: str) -> None:
        """
        A device can be attached, if not at the first try: that may be told how an earlier one
        has ended that nobody has heard of yet.
        """
        guest.waitUntil(
            lambda: daemon.ask("attach", serial=serial)["status"] == "success",
            f"{serial} is attached",
        )

    def importable(self, daemon: ChildDaemon) -> str:
        """What stock C{usbip} says that it can import."""
        return guest.check("usbip", "--tcp-port", str(daemon.exportPort), "list", "-r", HOST)

    @contextlib.contextmanager
    def imported(self, daemon: ChildDaemon, busId: str) -> Iterator[str]:
        """
        Have stock C{usbip} import a device for as long as a C{with} lasts, or until it is
        unplugged. Gives the bus id of the imported one.
        """
        before = guest.imports()
        port = str(daemon.exportPort)
        guest.check("usbip", "--tcp-port", port, "attach", "-r", HOST, "-b", busId)

        def new() -> list[tuple[int, str]]:
            return [each for each in guest.imports().items() if each[0] not in before]

        ((vhciPort, imported),) = guest.waitUntil(new, f"{busId} is imported")
        guest.waitPresent(imported)
        self.assertEqual(self.detail(daemon, busId)["state"], "in_use")
        try:
            yield imported
        finally:
            guest.run("usbip", "detach", "-p", str(vhciPort))
            guest.waitGone(imported)

    def _unplugAll(self) -> None:
        for plugged in reversed(self._plugged):
            if plugged.isIn:
                leaveNoPlace(plugged.busId)
                plugged.unplug()
        for controller in (BAD, OTHER):
            if guest.busIdAt(controller) in guest.matchBusIds():
                with PluggedIn(models.plain(), controller) as fresh:
                    leaveNoPlace(fresh.busId)


def leaveNoPlace(busId: str) -> None:
    """
    Free a device's place in C{usbip-host}'s table. The entry has to point at the device that is
    there, so that is bound first: it may point at one that was there before.
    """
    if busId not in guest.matchBusIds():
        return
    if guest.driverOf(busId) == "usb":
        for step in ("usb/unbind", "usbip-host/bind"):
            (guest.DRIVERS_FOLDER / step).write_text(busId)
    if guest.driverOf(busId) == "usbip-host":
        guest.forget(busId)
