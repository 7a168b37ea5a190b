"""
A daemon in the guest, and what tests ask it.
"""

from __future__ import annotations

import atexit
from collections.abc import Sequence
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.kernel import guest
from tests.support.childdaemon import ChildDaemon

DISK = guest.DISK.busId
SERIAL = guest.SERIAL.busId
KEYBOARD = guest.KEYBOARD.busId
TABLET = guest.TABLET.busId
CARD_READER = guest.CARD_READER.busId

BUS_IDS = [SERIAL, KEYBOARD, DISK, TABLET, CARD_READER]
"""What a daemon lists, in its order."""


class DaemonCase(SynchronousTestCase):
    """
    The devices as they were at the boot, and a daemon.

    @cvar backend: the YAML of the backend.
    @cvar prefix: what the daemon's command begins with.
    @cvar listen: where it listens.
    """

    backend: str
    prefix: Sequence[str] = ()
    listen = "tcp:0:interface=127.0.0.1"

    def setUp(self) -> None:
        guest.awaitDevices()  # first: bus 1 is the first one there
        guest.modprobe("usbip-host")
        guest.modprobe("vhci-hcd")
        self.addCleanup(guest.resetUsb)

    def config(self, state: str = "{file: null, remember: false}", more: str = "") -> str:
        """
        The YAML. An emulated machine may well need longer for an answer.

        @param state: what is remembered.
        @param more: further keys.
        """
        timeouts = "{answer: 60, bind: 60}"
        return f"backend: {self.backend}\ntimeouts: {timeouts}\nstate: {state}\n{more}"

    def daemon(self, config: str | None = None) -> ChildDaemon:
        """A daemon that runs until the test ends."""
        leave(self.listen)
        daemon = self._made(config or self.config())
        daemon.__enter__()
        self.addCleanup(daemon.__exit__, None, None, None)
        return daemon

    def shared(self) -> ChildDaemon:
        """
        A daemon that goes on to the next test: it takes seconds to start one. When the test
        ends it wants nothing any more.
        """
        key = (self.backend, self.listen, *self.prefix)
        if key not in _daemons or _daemons[key].child.poll() is not None:
            _daemons[key] = self._made(self.config())
            _daemons[key].__enter__()
            atexit.register(_daemons[key].__exit__, None, None, None)
        daemon = _daemons[key]
        self.addCleanup(self.detachAll, daemon)
        self.listsSoon(daemon)
        return daemon

    def detachAll(self, daemon: ChildDaemon) -> None:
        """Have it detach whatever is bound."""
        for device in self.succeeds(daemon.ask("list", detail=True)):
            if device["state"] != "free":
                daemon.ask("detach", id=device["bus_id"], force=True)

    def importDisk(self) -> tuple[int, str]:
        """
        Import the disk with stock C{usbip}, and wait until it can be read. The session is
        the kernel's: C{usbipd} is not needed for it any more.

        @return: vhci's port, and the bus id there.
        """
        with guest.StockUsbipd():
            guest.check("usbip", "attach", "-r", "127.0.0.1", "-b", DISK)
            port, imported = guest.waitImport()
        guest.waitBlockDevice(imported)
        return port, imported

    def listsSoon(self, daemon: ChildDaemon, without: str = "") -> None:
        """It lists all devices but one before long."""
        wanted = [busId for busId in BUS_IDS if busId != without]
        guest.waitUntil(lambda: self.listed(daemon) == wanted, f"{wanted} are listed")

    def succeeds(self, answer: dict[str, Any]) -> Any:
        """The data of an answer that has to be a success."""
        self.assertEqual(answer["status"], "success", answer)
        return answer["data"]

    def fails(self, answer: dict[str, Any], text: str) -> None:
        """An answer that has to be a failure, and to say why."""
        self.assertEqual(answer["status"], "failure", answer)
        self.assertIn(text, answer["message"])

    def listed(self, daemon: ChildDaemon) -> list[str]:
        """The bus ids it lists."""
        return [device["bus_id"] for device in self.succeeds(daemon.ask("list"))]

    def state(self, daemon: ChildDaemon, busId: str = DISK) -> str | None:
        """What it says of a device."""
        answer = daemon.ask("find", id=busId, detail=True)
        return answer["data"]["state"] if answer["status"] == "success" else None

    def stateSoon(self, daemon: ChildDaemon, state: str, busId: str = DISK) -> None:
        """It says that before long."""
        guest.waitUntil(lambda: self.state(daemon, busId) == state, f"{busId} is {state}")

    def _made(self, config: str) -> ChildDaemon:
        return ChildDaemon(config, prefix=self.prefix, listen=[self.listen])


class ElsewhereCase(DaemonCase):
    """
    A server, and clients on another machine, as far as the network goes.

    @ivar elsewhere: that machine.
    @ivar server: serves requests and USB/IP at their usual ports.
    """

    backend = "{type: sysfs}"
    listen = "tcp:5055"

    def setUp(self) -> None:
        super().setUp()
        self.elsewhere = guest.Elsewhere()
        self.elsewhere.__enter__()
        self.addCleanup(self.elsewhere.__exit__, None, None, None)
        self.server = self.daemon(self.config(more="export: {listen: ['tcp:3240']}\n"))


def leave(listen: str) -> None:
    """
    Have nobody listen at a port: a daemon that was shared by the tests before may still do.

    @param listen: as in the configuration.
    """
    for key, daemon in tuple(_daemons.items()):
        if key[1] == listen and listen != DaemonCase.listen:
            del _daemons[key]
            daemon.__exit__(None, None, None)


_daemons: dict[tuple[str, ...], ChildDaemon] = {}
