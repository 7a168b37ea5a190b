"""
This machine's devices, bound by the C{usbip} program.

For daemons that run without root and may call C{sudo -n usbip}. Devices are listed from
sysfs, which anybody may read.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import msgspec
from twisted.internet.defer import Deferred
from zope.interface import implementer

from usbip_server.backends.local import Machine
from usbip_server.interfaces import IUsbBackend
from usbip_server.kernel.errors import NotPermitted
from usbip_server.kernel.scan import USBIP_HOST
from usbip_server.kernel.system import System
from usbip_server.model.device import Holder, Traffic, UsbDevice
from usbip_server.model.errors import OperationFailed, OperationTimedOut
from usbip_server.model.options import InvalidOption, convert
from usbip_server.runtime.process import PATH, CannotStart, ChildProcess, Finished
from usbip_server.runtime.threads import TookTooLong


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    @ivar command: the program, and what comes before its first argument.
    @ivar root: where sysfs is mounted.
    @ivar rescan: seconds between looks at everything, in case something went unannounced.
    """

    command: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = ("usbip",)
    root: str = "/sys"
    rescan: Annotated[float, msgspec.Meta(ge=1, le=86400)] = 30.0


def makeBackend(options: Mapping[str, Any], reactor: Any) -> UsbipToolBackend:
    """
    See L{usbip_server.interfaces.IUsbBackendMaker}.
    """
    chosen = convert(options, Options)
    program = shutil.which(chosen.command[0], path=PATH)
    if program is None:
        raise InvalidOption(
            ("command",),
            f"there is no program {chosen.command[0]!r}: install it (Debian: apt-get install "
            "usbip; Fedora: dnf install usbip), or take `backend: {type: sysfs}`, which "
            "needs none",
        )
    command = (os.path.abspath(program), *chosen.command[1:])
    machine = Machine(System(chosen.root), reactor, chosen.rescan)
    return UsbipToolBackend(machine, reactor, command)


@implementer(IUsbBackend)
class UsbipToolBackend:
    """
    Binds and unbinds by running C{usbip bind} and C{usbip unbind}.
    """

    def __init__(self, machine: Machine, reactor: Any, command: Sequence[str]) -> None:
        """
        @param command: the program, with an absolute path, and its first arguments.
        """
        self.inventory = machine.inventory
        self._machine = machine
        self._reactor = reactor
        self._command = tuple(command)
        self._running: dict[str, ChildProcess] = {}

    async def start(self) -> None:
        await self._machine.start()

    async def stop(self) -> None:
        self._machine.stop()

    async def bind(
        self, device: UsbDevice, deadline: float, evenMounted: bool = False
    ) -> UsbDevice:
        # The program takes the device from its driver first and then finds out that it
        # cannot bind it: all that can be known before is found out before.
        end = self._reactor.seconds() + deadline
        try:
            work = partial(self._isBound, device, evenMounted)
            bound = await self._machine.call("attach", device, deadline, work)
        finally:
            await self._machine.look({device.busId})
        if not bound:
            try:
                await self._run("attach", "bind", device, end)
            except OperationTimedOut:
                raise
            except OperationFailed as error:
                raise await self._givenBack(error, end) from error
        return self._machine.here(device)

    async def unbind(self, device: UsbDevice, deadline: float) -> UsbDevice:
        end = self._reactor.seconds() + deadline
        await self._machine.look({device.busId})
        now = self._machine.here(device)
        if now.driver == USBIP_HOST:
            await self._run("detach", "unbind", device, end)
        elif now.driver is None:  # left so by a bind that failed
            work = partial(self._machine.host.unbind, device)
            await self._machine.call("detach", device, deadline, work)
            await self._machine.look({device.busId})
        return self._machine.here(device)

    async def release(self, device: UsbDevice, deadline: float) -> UsbDevice:
        end = self._reactor.seconds() + deadline
        try:
            return await self._machine.release(device, deadline)
        except NotPermitted:  # it takes root, and the program has no word for it
            await self._run("kick", "unbind", device, end)
        return await self.bind(device, max(0.0, end - self._reactor.seconds()))

    async def export(
        self, device: UsbDevice, connection: socket.socket, holder: Holder, deadline: float
    ) -> UsbDevice:
        return await self._machine.export(device, connection, holder, deadline)

    async def look(self, device: UsbDevice) -> None:
        await self._machine.look({device.busId})

    def traffic(self, device: UsbDevice) -> Traffic | None:
        return None  # the kernel does not say

    def _isBound(self, device: UsbDevice, evenMounted: bool) -> bool:
        """
        In a thread: is it bound already? If not, can it be?
        """
        bound = self._machine.host.check(device, evenMounted)
        if not bound:
            self._machine.host.ensureSlot(device)
        return bound

    async def _givenBack(self, error: OperationFailed, end: float) -> OperationFailed:
        """
        The program leaves a device that it cannot bind without a driver: give it back.

        @return: C{error}, or one that says that this did not go well.
        """
        device = error.device
        left = max(0.1, end - self._reactor.seconds())
        work = partial(self._machine.host.giveBack, device.busId)
        try:
            await self._machine.call("attach", device, left, work)
        except OperationTimedOut as worse:
            return worse
        await self._machine.look({device.busId})
        now = self.inventory.same(device)
        if now is None or now.driver is not None:
            return error
        return OperationFailed(
            now,
            f"{error}. It is left without a driver; as root: "
            f"echo {device.busId} > /sys/bus/usb/drivers/usb/bind",
        )

    async def _run(self, verb: str, argument: str, device: UsbDevice, end: float) -> None:
        """
        Run the program on a device, and look what became of it.
        """
        busId = device.busId
        if busId in self._running:
            raise OperationTimedOut(
                device, f"{device}: an earlier run of {self._command[-1]} is still stuck"
            )
        done: Deferred[Finished] = Deferred()
        late = False

        def ended(finished: Finished) -> None:
            del self._running[busId]
            if late:
                Deferred.fromCoroutine(self._machine.setTrouble(busId, None))
            else:
                timer.cancel()
                done.callback(finished)

        def giveUp() -> None:
            nonlocal late
            late = True
            done.errback(TookTooLong(busId))  # first: the trouble is set, and then taken back
            child.kill()

        child = ChildProcess(self._reactor, ended)
        command = [*self._command, argument, "-b", busId]
        try:
            child.start(command)
        except CannotStart as error:
            raise OperationFailed(device, f"cannot {verb} {device}: {error}") from error
        self._running[busId] = child
        left = max(0.0, end - self._reactor.seconds())
        timer = self._reactor.callLater(left, giveUp)
        try:
            finished = await done
        except TookTooLong:
            raise await self._machine.stuck(
                device, f"`{' '.join(command)}` has not ended within {left:.1f} s"
            ) from None
        await self._machine.look({busId})
        if finished.status != 0:
            raise OperationFailed(device, f"cannot {verb} {device}: {explain(command, finished)}")


def explain(command: Sequence[str], finished: Finished) -> str:
    """
    Why the program failed, and what to do.
    """
    errors = [
        line.removeprefix("usbip: ").removeprefix("error: ").strip()
        for line in finished.output.splitlines()
        if line.strip()
    ]
    said = "; ".join(errors) or (
        "it was killed" if finished.status is None else f"exit status {finished.status}"
    )
    message = f"`{' '.join(command)}` says: {said}"
    for sign, advice in _ADVICE.items():
        if sign in finished.output:
            return f"{message}. {advice}"
    return message


_ADVICE = {
    "password is required": "Let the daemon's user run it without a password: in /etc/sudoers.d/"
    "usbipshare put `USER ALL=(root) NOPASSWD: /usr/sbin/usbip bind -b *, /usr/sbin/usbip "
    "unbind -b *`",
    "no new privileges": "sudo cannot work under NoNewPrivileges=: drop that from the systemd "
    "unit, or run the daemon as root with `backend: {type: sysfs}`",
    "could not unbind": "The program needs root: set `command: [sudo, -n, usbip]`, or run the "
    "daemon as root",
    "unable to unbind": "The program needs root: set `command: [sudo, -n, usbip]`, or run the "
    "daemon as root",
    "unable to bind": "Is usbip-host loaded (modprobe usbip-host)? Does the program run as root "
    "(`command: [sudo, -n, usbip]`)?",
}
