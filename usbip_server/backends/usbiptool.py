"""
This machine's devices, bound by the C{usbip} program.

For daemons that run without root and may call C{sudo -n usbip}. Devices are listed from
sysfs, which anybody may read.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from usbip_server.backends.options import convert
from usbip_server.device import DeviceState, UsbDevice
from usbip_server.errors import InvalidOption, OperationFailed, OperationTimedOut
from usbip_server.interfaces import IUsbBackend
from usbip_server.inventory import Inventory
from usbip_server.kernel.scan import Scanner
from usbip_server.kernel.system import ISystem, System
from usbip_server.kernel.threads import BlockingCalls, Spawn, StillOut, TookTooLong, startThread
from usbip_server.kernel.usbids import UsbIds
from usbip_server.kernel.usbip_host import UsbipHost
from usbip_server.kernel.watch import KernelWatch

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where the program is looked for, and its own search path."""

OUTPUT = 16 * 1024
"""Bytes of its output that are kept."""


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
    return UsbipToolBackend(System(chosen.root), reactor, command, chosen.rescan)


class Finished(msgspec.Struct, frozen=True):
    """
    What a child process has left behind.

    @ivar status: its exit status; C{None} if a signal ended it.
    @ivar output: what it printed on either stream.
    """

    status: int | None
    output: str


class ToolProcess(ProcessProtocol):
    """
    The program while it runs.

    @ivar ended: called when it has ended, once.
    """

    def __init__(self, ended: Callable[[Finished], None]) -> None:
        self._ended = ended
        self._output = b""

    def outReceived(self, data: bytes) -> None:
        self._output = (self._output + data)[:OUTPUT]

    errReceived = outReceived

    def processEnded(self, reason: Failure) -> None:
        status = reason.value.exitCode  # type: ignore[union-attr]
        self._ended(Finished(status, self._output.decode("utf-8", "replace").strip()))

    def kill(self) -> None:
        """End it, as far as it lets us: it may be root's, or stuck in the kernel."""
        with contextlib.suppress(ProcessExitedAlready, OSError):
            self.transport.signalProcess("KILL")  # type: ignore[union-attr]
        self.transport.loseConnection()  # type: ignore[union-attr]


@implementer(IUsbBackend)
class UsbipToolBackend:
    """
    Binds and unbinds by running C{usbip bind} and C{usbip unbind}.
    """

    def __init__(
        self,
        system: ISystem,
        reactor: Any,
        command: Sequence[str],
        rescan: float = 30.0,
        names: UsbIds | None = None,
        spawn: Spawn = startThread,
    ) -> None:
        """
        @param command: the program, with an absolute path, and its first arguments.
        """
        self.inventory = Inventory()
        self._reactor = reactor
        self._command = tuple(command)
        self._calls = BlockingCalls(reactor, spawn)
        self._host = UsbipHost(system)
        scanner = Scanner(system, names or UsbIds())
        self._watch = KernelWatch(system, scanner, self.inventory, self._calls, reactor, rescan)
        self._running: dict[str, ToolProcess] = {}

    async def start(self) -> None:
        await self._watch.start()

    async def stop(self) -> None:
        self._watch.stop()

    async def bind(self, device: UsbDevice, deadline: float) -> UsbDevice:
        # The program takes the device from its driver first and then finds out that it
        # cannot bind it: all that can be known before is found out before.
        try:
            bound = await self._ask(device, deadline, partial(self._isBound, device))
        finally:
            await self._watch.look({device.busId})
        if bound:
            return self._here(device)
        try:
            await self._run("attach", "bind", device, deadline)
        except OperationTimedOut:
            raise
        except OperationFailed:
            await self._ask(device, deadline, partial(self._host.giveBack, device.busId))
            await self._watch.look({device.busId})
            raise
        return self._here(device)

    async def unbind(self, device: UsbDevice, deadline: float) -> UsbDevice:
        await self._watch.look({device.busId})
        if self._here(device).state is DeviceState.FREE:
            return self._here(device)
        await self._run("detach", "unbind", device, deadline)
        return self._here(device)

    def _isBound(self, device: UsbDevice) -> bool:
        """
        In a thread: is it bound already? If not, can it be?
        """
        bound = self._host.check(device)
        if not bound:
            self._host.ensureSlot(device)
        return bound

    async def _ask(self, device: UsbDevice, deadline: float, question: Callable[[], Any]) -> Any:
        try:
            return await self._calls.call(device.busId, deadline, question)
        except (TookTooLong, StillOut):
            raise OperationTimedOut(device, f"{device}: the kernel does not answer") from None

    async def _run(self, verb: str, argument: str, device: UsbDevice, deadline: float) -> None:
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
                Deferred.fromCoroutine(self._watch.setTrouble(busId, None))
            else:
                timer.cancel()
                done.callback(finished)

        def giveUp() -> None:
            nonlocal late
            late = True
            process.kill()
            done.errback(TookTooLong(busId))

        process = ToolProcess(ended)
        command = [*self._command, argument, "-b", busId]
        environment = {"PATH": PATH, "LC_ALL": "C"}
        timer = self._reactor.callLater(deadline, giveUp)
        self._running[busId] = process
        self._reactor.spawnProcess(process, command[0], command, environment, "/")
        try:
            finished = await done
        except TookTooLong:
            trouble = f"`{' '.join(command)}` has not ended within {deadline:g} s"
            await self._watch.setTrouble(busId, trouble)
            raise OperationTimedOut(
                self.inventory.get(busId) or device,
                f"{device}: {trouble}. Unplug the device, or wait until it answers",
            ) from None
        await self._watch.look({busId})
        if finished.status != 0:
            raise OperationFailed(device, f"cannot {verb} {device}: {explain(command, finished)}")

    def _here(self, device: UsbDevice) -> UsbDevice:
        now = self.inventory.get(device.busId)
        if now is None or now.deviceNumber != device.deviceNumber:
            raise OperationFailed(device, f"{device} was unplugged in the meantime")
        return now


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
