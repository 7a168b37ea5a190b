"""The base class of the scenarios with devices that misbehave."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.kernel import guest
from tests.kernel.daemoncase import HOST, DaemonCase
from tests.kernel.inside.rawgadget import models
from tests.kernel.inside.rawgadget.device import RawDevice
from tests.kernel.inside.rawgadget.plugged import PluggedIn, busIdAt
from tests.kernel.needs import Need, needs
from tests.support.childdaemon import EXPORT, ChildDaemon

BAD, OTHER = 10, 11
"""The controllers of the device that misbehaves, and of the one beside it."""

ANSWER_SECONDS = 1.8
"""The default of C{timeouts.answer}."""


@needs(Need.GADGETS)
class MisbehavingCase(DaemonCase):
    """A daemon with the sysfs backend, and the usual timeouts, that also serves USB/IP."""

    timeouts = "{}"
    more = EXPORT

    def setUp(self) -> None:
        if not Path("/sys/module/dummy_hcd").exists():
            guest.modprobe("dummy_hcd", "num=20", "is_super_speed=1")
        for module in ("raw_gadget", "usbtest", "usbip-host", "vhci-hcd"):
            guest.modprobe(module)
        self._plugged: list[PluggedIn] = []
        self.addCleanup(self._unplugAll)  # runs last, when the daemon has ended

    def plugged(self, device: RawDevice, controller: int = BAD) -> PluggedIn:
        """Plug in a device until the end of the test."""
        plugged = PluggedIn(device, controller)
        plugged.__enter__()
        self._plugged.append(plugged)
        return plugged

    def awaitRawListed(self, daemon: ChildDaemon, *busIds: str) -> None:
        """Wait until the daemon lists these raw gadgets and no others."""
        ours = {busIdAt(controller) for controller in (BAD, OTHER)}
        guest.waitUntil(
            lambda: [each for each in self.listed(daemon) if each in ours] == [*busIds],
            f"{busIds} are listed",
        )

    def promptly(self, daemon: ChildDaemon, command: str, **more: object) -> dict[str, Any]:
        """The answer to a request, which has to come within the default of C{timeouts.answer}. The
        request is sent up to three times, as the machine may be busy: one that waits for a device
        that hangs is late each time."""
        times = []
        for _ in range(3):
            began = time.monotonic()
            answer = daemon.ask(command, **more)
            times.append(time.monotonic() - began)
            if times[-1] < ANSWER_SECONDS:
                return answer
        raise AssertionError(f"{command} {more}: {answer} after {times} s")

    def awaitAttached(self, daemon: ChildDaemon, serial: str) -> None:
        """Attach a device. The first request may be answered with the outcome of an earlier
        attach."""
        guest.waitUntil(
            lambda: daemon.ask("attach", serial=serial)["status"] == "success",
            f"{serial} is attached",
        )

    def importable(self, daemon: ChildDaemon) -> str:
        """The devices that Debian's C{usbip} lists."""
        return guest.check("usbip", "--tcp-port", str(daemon.exportPort), "list", "-r", HOST)

    @contextlib.contextmanager
    def imported(self, daemon: ChildDaemon, busId: str) -> Iterator[str]:
        """Import a device with Debian's C{usbip} until the C{with} ends, or the device is
        unplugged. Gives the bus id of the imported device."""
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
                freeEntry(plugged.busId)
                plugged.unplug()
        for controller in (BAD, OTHER):
            if busIdAt(controller) in guest.matchBusIds():
                with PluggedIn(models.plain(), controller) as fresh:
                    freeEntry(fresh.busId)


def freeEntry(busId: str) -> None:
    """Free a device's entry in C{usbip-host}'s table. The entry may point at an earlier device with
    the same bus id, so the present device is bound first."""
    if busId not in guest.matchBusIds():
        return
    if guest.driverOf(busId) == "usb":
        for step in ("usb/unbind", "usbip-host/bind"):
            (guest.DRIVERS_FOLDER / step).write_text(busId)
    if guest.driverOf(busId) == "usbip-host":
        guest.forget(busId)
