"""Base classes of the scenarios: a test case in a guest, and one with a daemon in it."""

from __future__ import annotations

import atexit
import signal
import statistics
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, ClassVar, TypeVar

from twisted.trial.unittest import SynchronousTestCase

from tests.kernel import guest
from tests.support.childdaemon import ChildDaemon

T = TypeVar("T")

DISK = guest.DISK.busId
SERIAL = guest.SERIAL.busId
KEYBOARD = guest.KEYBOARD.busId
TABLET = guest.TABLET.busId
CARD_READER = guest.CARD_READER.busId
FAST = guest.FAST_DISK.busId

BUS_IDS = [SERIAL, KEYBOARD, DISK, TABLET, CARD_READER]
"""The devices that a daemon lists at first, in its order."""

HOST = "127.0.0.1"

OTHER_STOCK_PORT = 3241
"""Of a C{usbipd} beside a daemon that exports at 3240."""

PATIENCE = 10.0
"""Seconds by which a timestamp may be later than what it is about, on an emulated machine."""


class GuestCase(SynchronousTestCase):
    """The devices as they were when the guest started.

    @cvar modules: the kernel modules that a test needs besides those of the devices."""

    modules: Sequence[str] = ("usbip-host", "vhci-hcd")

    def setUp(self) -> None:
        guest.awaitDevices()  # first: the controllers' buses have to get the lowest numbers
        for module in self.modules:
            guest.modprobe(module)
        self.addCleanup(guest.resetUsb)

    def enter(self, context: AbstractContextManager[T]) -> T:
        """Enter a context, and leave it at the end of the test."""
        entered = context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)
        return entered

    def plugFastDisk(self) -> str:
        """Plug in the super speed disk until the end of the test; returns its node."""
        guest.plug(guest.FAST_DISK)
        self.addCleanup(guest.waitGone, FAST)
        self.addCleanup(guest.unplug, guest.FAST_DISK)
        return guest.waitBlockDevice(FAST)


class DaemonCase(GuestCase):
    """A daemon, and helpers that ask it.

    @cvar backend: the YAML of the backend.
    @cvar prefix: what the daemon's command begins with.
    @cvar listen: the endpoint of its JSON port.
    @cvar timeouts: the YAML of C{timeouts}. An emulated machine may need long for an answer.
    @cvar more: further YAML of each configuration."""

    backend = "{type: sysfs}"
    prefix: Sequence[str] = ()
    listen = "tcp:0:interface=127.0.0.1"
    timeouts = "{answer: 60, bind: 60}"
    more: ClassVar[str] = ""

    def config(self, state: str = "{file: null, remember: false}", more: str = "") -> str:
        """The YAML of a configuration.

        @param state: of C{state}.
        @param more: further keys."""
        return (
            f"backend: {self.backend}\ntimeouts: {self.timeouts}\nstate: {state}\n{self.more}{more}"
        )

    def makeDaemon(self, config: str) -> ChildDaemon:
        """A daemon that is not started yet."""
        return ChildDaemon(config, prefix=self.prefix, listen=[self.listen])

    def daemon(self, config: str | None = None) -> ChildDaemon:
        """Run a daemon until the end of the test."""
        stopSharedDaemons(self.listen)
        return self.enter(self.makeDaemon(config or self.config()))

    def sharing(self, *busIds: str, config: str | None = None) -> ChildDaemon:
        """Run a daemon that has bound some devices, until the end of the test."""
        daemon = self.daemon(config)
        for busId in busIds:
            self.succeeds(daemon.ask("attach", id=busId))
        return daemon

    def sharedDaemon(self) -> ChildDaemon:
        """A daemon that is kept for the next tests, as starting one takes seconds. At the end of
        the test all devices are detached."""
        key = (self.backend, self.listen, *self.prefix)
        if key not in _daemons or _daemons[key].child.poll() is not None:
            _daemons[key] = self.makeDaemon(self.config())
            _daemons[key].__enter__()
            atexit.register(_daemons[key].__exit__, None, None, None)
        daemon = _daemons[key]
        self.addCleanup(self.detachAll, daemon)
        self.awaitListed(daemon)
        return daemon

    def detachAll(self, daemon: ChildDaemon) -> None:
        """Detach all devices that are not free."""
        for device in self.succeeds(daemon.ask("list", detail=True)):
            if device["state"] != "free":
                daemon.ask("detach", id=device["bus_id"], force=True)

    def importDisk(self) -> tuple[int, str]:
        """Import the disk with Debian's C{usbipd} and C{usbip}, and wait until it can be read. The
        session does not end with C{usbipd}.

        @return: the vhci port, and the bus id of the imported disk."""
        with guest.stockUsbipd():
            port, imported = guest.stockAttach(DISK)
        guest.waitBlockDevice(imported)
        return port, imported

    def succeeds(self, answer: dict[str, Any]) -> Any:
        """Assert that an answer is a success; returns its data."""
        self.assertEqual(answer["status"], "success", answer)
        return answer["data"]

    def fails(self, answer: dict[str, Any], text: str) -> None:
        """Assert that an answer is a failure whose message contains a text."""
        self.assertEqual(answer["status"], "failure", answer)
        self.assertIn(text, answer["message"])

    def listed(self, daemon: ChildDaemon) -> list[str]:
        """The bus ids that a daemon lists."""
        return [device["bus_id"] for device in self.succeeds(daemon.ask("list"))]

    def awaitListed(self, daemon: ChildDaemon, without: str = "") -> None:
        """Wait until a daemon lists all devices but one."""
        wanted = [busId for busId in BUS_IDS if busId != without]
        guest.waitUntil(lambda: self.listed(daemon) == wanted, f"{wanted} are listed")

    def detail(self, daemon: ChildDaemon, busId: str = DISK) -> dict[str, Any]:
        """All that a daemon shows of a device."""
        detail: dict[str, Any] = self.succeeds(daemon.ask("find", id=busId, detail=True))
        return detail

    def holder(self, daemon: ChildDaemon) -> dict[str, Any]:
        """The client that has imported the disk."""
        holder: dict[str, Any] = self.detail(daemon)["holder"]
        return holder

    def state(self, daemon: ChildDaemon, busId: str = DISK) -> str | None:
        """The state of a device; C{None} if the daemon does not list it."""
        answer = daemon.ask("find", id=busId, detail=True)
        return answer["data"]["state"] if answer["status"] == "success" else None

    def awaitState(self, daemon: ChildDaemon, state: str, busId: str = DISK) -> None:
        """Wait until a device is in a state."""
        guest.waitUntil(lambda: self.state(daemon, busId) == state, f"{busId} is {state}")

    def assertSessionSurvives(
        self, daemon: ChildDaemon, node: str, address: str | None = HOST
    ) -> None:
        """Kill the daemon, start it, stop it, start it: the session of the disk's client goes on.

        @param node: of the imported disk, which is read all the time.
        @param address: of the client, as the started daemon shows it. It looks for it among the
            connections at the usual port."""
        with guest.diskReader(node) as reader:
            reader.awaitRead()
            for number in (signal.SIGKILL, signal.SIGTERM):
                daemon.child.send_signal(number)
                self.assertEqual(daemon.child.wait(guest.DEADLINE), -number)
                reader.awaitRead()
                daemon.start()
                self.assertEqual(self.state(daemon), "in_use")
                holder = self.holder(daemon)
                self.assertEqual((holder["address"], holder["since"]), (address, None))
                reader.awaitRead()

    def assertNothingLogged(self, daemon: ChildDaemon) -> None:
        """Assert that a daemon has logged no warnings and no errors."""
        daemon.reload(self.config())  # what was logged before this is read
        logged = [e for e in daemon.events if e["log_level"]["name"] not in ("debug", "info")]
        self.assertEqual(logged, [])


class ElsewhereCase(DaemonCase):
    """A server, and clients in another network namespace.

    @ivar elsewhere: the namespace.
    @ivar server: a daemon that serves requests and USB/IP at their usual ports."""

    listen = "tcp:5055"
    more = "export: {listen: ['tcp:3240']}\n"

    def setUp(self) -> None:
        super().setUp()
        self.elsewhere = self.enter(guest.Elsewhere())
        self.server = self.daemon()


def stopSharedDaemons(listen: str) -> None:
    """Stop the daemons of earlier tests that listen at a fixed port.

    @param listen: the endpoint."""
    for key, daemon in tuple(_daemons.items()):
        if key[1] == listen and listen != DaemonCase.listen:
            del _daemons[key]
            daemon.__exit__(None, None, None)


_daemons: dict[tuple[str, ...], ChildDaemon] = {}


def timestamp(text: Any) -> float:
    """An RFC 3339 time of an answer, as seconds since the epoch."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def summary(durations: Sequence[float]) -> str:
    """The median and the maximum of durations, as text.

    @param durations: in seconds."""
    middle, worst = 1000 * statistics.median(durations), 1000 * max(durations)
    return f"{middle:.0f} ms (median of {len(durations)}; worst {worst:.0f} ms)"
