"""
A backend that binds this machine's devices by running C{usbip bind} and C{usbip unbind}, for a
daemon that runs without root and may call C{sudo -n usbip}. The devices are read from sysfs, which
needs no permission.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import msgspec
from twisted.internet.defer import Deferred
from zope.interface import implementer

from usbip_server.backends.local import LocalBackend
from usbip_server.interfaces import IUsbBackend
from usbip_server.kernel.attributes import USBIP_HOST
from usbip_server.kernel.errors import NotPermitted
from usbip_server.kernel.system import ISystem, System
from usbip_server.kernel.usbids import UsbIds
from usbip_server.model.device import UsbDevice
from usbip_server.model.errors import OperationFailed, OperationTimedOut
from usbip_server.model.options import InvalidOption, convert
from usbip_server.runtime.process import PATH, CannotStart, ChildProcess, Finished
from usbip_server.runtime.threads import CallTimedOut


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    @ivar command: the program, and the arguments that come first.
    @ivar root: where sysfs is mounted.
    @ivar rescan: seconds between scans of all devices, in case a uevent was lost.
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
            "usbip; Fedora: dnf install usbip), or use `backend: {type: sysfs}`, which needs no "
            "program",
        )
    command = (os.path.abspath(program), *chosen.command[1:])
    return UsbipToolBackend(System(chosen.root), reactor, chosen.rescan, command)


@implementer(IUsbBackend)
class UsbipToolBackend(LocalBackend):
    """
    Binds and unbinds by running the program.
    """

    def __init__(
        self,
        system: ISystem,
        reactor: Any,
        rescan: float,
        command: Sequence[str],
        names: UsbIds | None = None,
    ) -> None:
        """
        @param command: the program, with an absolute path, and its first arguments.
        """
        super().__init__(system, reactor, rescan, names)
        self._reactor = reactor
        self._command = tuple(command)
        self._running: dict[str, ChildProcess] = {}

    async def bind(
        self, device: UsbDevice, deadline: float, allowMounted: bool = False
    ) -> UsbDevice:
        # The program unbinds the device from its driver before it checks whether the device can
        # be bound to usbip-host: so everything that can be checked is checked first.
        end = self._reactor.seconds() + deadline
        try:
            work = partial(self._isBound, device, allowMounted)
            bound = await self.call("attach", device, deadline, work)
        finally:
            await self.refresh(device)
        if not bound:
            try:
                await self._run("attach", "bind", device, end)
            except OperationTimedOut:
                raise
            except OperationFailed as error:
                raise await self._afterFailedBind(error, end) from error
        return self.current(device)

    async def unbind(self, device: UsbDevice, deadline: float) -> UsbDevice:
        end = self._reactor.seconds() + deadline
        await self.refresh(device)
        now = self.current(device)
        if now.driver == USBIP_HOST:
            await self._run("detach", "unbind", device, end)
        elif now.driver is None:  # after a bind that failed
            work = partial(self.host.unbind, device)
            await self.call("detach", device, deadline, work)
            await self.refresh(device)
        return self.current(device)

    async def release(self, device: UsbDevice, deadline: float) -> UsbDevice:
        end = self._reactor.seconds() + deadline
        try:
            return await super().release(device, deadline)
        except NotPermitted:  # only root may, and the program has no command for it
            await self._run("kick", "unbind", device, end)
        return await self.bind(device, max(0.0, end - self._reactor.seconds()))

    def _isBound(self, device: UsbDevice, allowMounted: bool) -> bool:
        """
        Called in a thread: check that the device can be bound.

        @return: whether it is bound already.
        @raise OperationFailed: it cannot be bound.
        """
        bound = self.host.check(device, allowMounted)
        if not bound:
            self.host.ensureSlot(device)
            self.host.settle(device, threading.Event())
        return bound

    async def _afterFailedBind(self, error: OperationFailed, end: float) -> OperationFailed:
        """
        Give a device that the program could not bind back to its driver: the program leaves it
        without one.

        @return: C{error}; if the device has no driver still, an error that contains this too.
        """
        device = error.device
        left = max(0.1, end - self._reactor.seconds())
        work = partial(self.host.giveBack, device.busId)
        try:
            await self.call("attach", device, left, work)
        except OperationTimedOut as worse:
            return worse
        await self.refresh(device)
        now = self.inventory.same(device)
        if now is None or now.driver is not None:
            return error
        return OperationFailed(
            now,
            f"{error}. The device is left without a driver; as root: "
            f"echo {device.busId} > /sys/bus/usb/drivers/usb/bind",
        )

    async def _run(self, verb: str, argument: str, device: UsbDevice, end: float) -> None:
        """
        Run the program for a device, and update the inventory.

        @param verb: the operation, for messages.
        @param argument: the program's subcommand.
        @param end: the deadline, by the reactor's clock.
        @raise OperationTimedOut: the program has not ended by then. It is killed.
        @raise OperationFailed: the program cannot be started, or has failed.
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
                Deferred.fromCoroutine(self.recovered(busId))
            else:
                timer.cancel()
                done.callback(finished)

        def giveUp() -> None:
            nonlocal late
            late = True
            done.errback(CallTimedOut(busId))  # sets the trouble, before `ended` clears it
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
        except CallTimedOut:
            raise await self.stuck(
                device, f"`{' '.join(command)}` has not ended within {left:.1f} s"
            ) from None
        await self.refresh(device)
        if finished.status != 0:
            raise OperationFailed(device, f"cannot {verb} {device}: {explain(command, finished)}")


def explain(command: Sequence[str], finished: Finished) -> str:
    """
    A message with the reason why the program failed, and what to do.
    """
    errors = [
        line.removeprefix("usbip: ").removeprefix("error: ").strip()
        for line in finished.output.splitlines()
        if line.strip()
    ]
    said = "; ".join(errors) or (
        "it was killed" if finished.status is None else f"exit status {finished.status}"
    )
    message = f"`{' '.join(command)}` failed: {said}"
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
