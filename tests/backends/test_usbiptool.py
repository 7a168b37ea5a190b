"""
Tests of L{usbip_server.backends.usbiptool}: with a fake C{usbip} program on a kernel in memory, and
with real child processes.
"""

from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path
from typing import Any, cast

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.support.timedreactor import OVER, TimedReactor
from usbip_server.backends.usbiptool import UsbipToolBackend, explain, makeBackend
from usbip_server.interfaces import IUsbBackend
from usbip_server.kernel.usbids import UsbIds
from usbip_server.model.device import DeviceState, UsbDevice
from usbip_server.model.errors import DeviceMounted, OperationFailed, OperationTimedOut
from usbip_server.model.options import InvalidOption
from usbip_server.runtime.process import ChildProcess, Finished
from usbip_server.testing import (
    FakeKernel,
    KernelConformance,
    KernelExportConformance,
    NoExportConformance,
)

DRIVERS = "bus/usb/drivers"

SECONDS = 300.0
"""The deadline of operations that are not to fail at it."""


class StockReactor:
    """
    The real reactor, except that each child process is a fake of the stock C{usbip} with its writes
    and messages.
    """

    def __init__(self, kernel: FakeKernel) -> None:
        self.kernel = kernel
        self.commands: list[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)

    def spawnProcess(
        self, protocol: Any, executable: str, args: list[str], env: dict[str, str], path: str
    ) -> None:
        """Run the program; it ends at the next turn."""
        self.commands.append(args)
        said = {"bind": self.bind, "unbind": self.unbind}[args[-3]](args[-1])
        if said:
            protocol.errReceived(f"usbip: error: {said}\n".encode())
        reason = ProcessTerminated(1) if said else ProcessDone(0)
        reactor.callLater(0, protocol.processEnded, Failure(reason))

    def write(self, *steps: tuple[str, str]) -> None:
        """Write attributes."""
        for attribute, text in steps:
            self.kernel.write(f"{DRIVERS}/{attribute}", text.encode())

    def bind(self, busId: str) -> str:
        """C{usbip bind}: it unbinds the driver before it knows whether it can bind."""
        self.write(("usb/unbind", busId))
        try:
            self.write(("usbip-host/match_busid", f"add {busId}"), ("usbip-host/bind", busId))
        except OSError:
            return f"unable to bind device on {busId}"
        return ""

    def unbind(self, busId: str) -> str:
        """C{usbip unbind}."""
        self.write(("usbip-host/unbind", busId), ("usbip-host/match_busid", f"del {busId}"))
        self.write(("usbip-host/rebind", busId))
        return ""


class UsbipToolCase(KernelConformance):
    """
    The conformance suite, and what only this backend does.
    """

    async def makeBackend(self) -> IUsbBackend:
        self.kernel = FakeKernel()
        self.kernel.plug("1-1", serial="A1", manufacturer="QEMU", product="QEMU USB HARDDRIVE")
        self.kernel.plug("1-2.4", "0403", "6001", interfaces=((255, 255, 255),))
        self.stock = StockReactor(self.kernel)
        command = ["/usr/sbin/usbip"]
        return UsbipToolBackend(self.kernel, self.stock, 30.0, command, UsbIds([]))

    async def importDevice(self, device: UsbDevice) -> None:
        self.kernel.importDevice(device.busId)

    async def unplug(self, device: UsbDevice) -> None:
        self.kernel.unplug(device.busId)

    async def plug(self, device: UsbDevice) -> None:
        self.kernel.plug(device.busId, serial="A1", manufacturer="QEMU", product="OTHER")

    async def test_givenBack(self) -> None:
        """A device that the program leaves without a driver is given back to its driver."""
        backend, device = await self.started()
        write = self.kernel.write

        def refuse(path: str, data: bytes) -> None:
            if path.endswith("match_busid"):
                raise OSError(12, "Cannot allocate memory")
            write(path, data)

        self.patch(self.kernel, "write", refuse)
        error = await self.failure(OperationFailed, backend.bind(device, SECONDS))
        self.assertIn("unable to bind device", str(error))
        self.assertEqual(self.kernel.driver(device.busId), "usb")
        await self.untilState(backend, device.busId, DeviceState.FREE)

    async def test_notStarted(self) -> None:
        """The program is not started if the bind cannot succeed: the disk is mounted, the driver is
        missing, or its table is full."""
        backend, device = await self.started()
        self.kernel.mount(device.busId, "/boot")
        error = await self.failure(DeviceMounted, backend.bind(device, SECONDS))
        self.assertIn("is mounted on /boot", str(error))
        bind = partial(backend.bind, device, SECONDS, allowMounted=True)
        self.kernel.loadable = self.kernel.loaded = False
        error = await self.failure(OperationFailed, bind())
        self.assertIn("modprobe usbip-host", str(error))
        self.kernel.loadable = self.kernel.loaded = True
        self.kernel.fillTable(*(f"9-{port}" for port in range(1, 17)))
        error = await self.failure(OperationFailed, bind())
        self.assertIn("all 16 places", str(error))
        self.assertEqual((self.stock.commands, self.kernel.writes), ([], []))


class UsbipToolConformanceTests(UsbipToolCase, KernelExportConformance, TestCase):
    """
    With permission to write C{usbip_sockfd}.
    """


class WithoutRootTests(UsbipToolCase, NoExportConformance, TestCase):
    """
    Without this permission: only the program has it.
    """

    async def makeBackend(self) -> IUsbBackend:
        backend = await super().makeBackend()
        write = self.kernel.write

        def refuse(path: str, data: bytes) -> None:
            if path.endswith("usbip_sockfd"):
                raise OSError(self.refusal, os.strerror(self.refusal), path)
            write(path, data)

        self.kernel.write = refuse  # type: ignore[method-assign]
        return backend

    refusal = errno.EACCES

    async def test_exportRefused(self) -> None:
        """The error of an export contains advice."""
        backend, device = await self.started()
        bound = await backend.bind(device, SECONDS)
        for self.refusal in (errno.EACCES, errno.EPERM):
            ours, _ = self.connect()
            exporting = backend.export(bound, ours, self.holder(), SECONDS)
            error = await self.failure(OperationFailed, exporting)
            self.assertIn("or run the daemon as root", str(error))
            self.assertIn("Or say `export: off`, and run usbipd as root", str(error))

    async def test_release(self) -> None:
        """A release is an unbind and a bind. An error that is not about permission fails it without
        running the program; if the bind fails, the device is free."""
        backend, device = await self.held()
        self.refusal = errno.EIO
        error = await self.failure(OperationFailed, backend.release(device, SECONDS))
        self.assertIn("Input/output error", str(error))
        self.stock.commands.clear()
        for self.refusal in (errno.EACCES, errno.EPERM, errno.EROFS):
            await backend.release(device, SECONDS)
            self.kernel.importDevice(device.busId)
        words = [command[1] for command in self.stock.commands]
        self.assertEqual(words, ["unbind", "bind"] * 3)
        self.stock.unbind = self.unload  # type: ignore[method-assign]
        error = await self.failure(OperationFailed, backend.release(device, SECONDS))
        self.assertIn("modprobe usbip-host", str(error))
        self.assertEqual(self.kernel.driver(device.busId), "usb")

    def unload(self, busId: str) -> str:
        """The driver is unloaded when it has no device any more."""
        self.kernel.unload()
        self.kernel.loadable = False
        return ""


class ChildTests(TestCase):
    """
    Real child processes.
    """

    timeout = 300

    def setUp(self) -> None:
        self.timed = TimedReactor()
        self.late = Path(self.mktemp())

    async def started(self, script: str) -> tuple[UsbipToolBackend, UsbDevice]:
        """
        A backend whose program is a shell script; C{$LATE} is a file that the script can make.
        """
        self.kernel = FakeKernel()
        self.kernel.plug("1-1")
        path = Path(self.mktemp()).absolute()
        path.write_text(f"#!/bin/sh\nLATE={self.late.absolute()}\n{script}\n")
        path.chmod(0o755)
        backend = UsbipToolBackend(self.kernel, self.timed, 30.0, [str(path), "--"], UsbIds([]))
        await backend.start()
        self.addCleanup(lambda: Deferred.fromCoroutine(backend.stop()))
        return backend, backend.inventory.snapshot.devices[0]

    async def failure(self, script: str) -> str:
        """The error of a bind with a script."""
        backend, device = await self.started(script)
        with self.assertRaises(OperationFailed) as caught:
            await backend.bind(device, SECONDS)
        return str(caught.exception)

    async def test_failures(self) -> None:
        """The error contains the program's output, bounded, with advice where there is some. The
        program has a clean environment, in English."""
        self.addCleanup(os.environ.pop, "USBIPSHARE_SECRET")
        os.environ["USBIPSHARE_SECRET"] = "x"
        for script, text in (
            (
                "echo 'usbip: error: could not unbind driver from device' >&2; exit 1",
                "could not unbind driver from device. The program needs root",
            ),
            ('echo "$* $LC_ALL [$USBIPSHARE_SECRET]"; exit 3', "-- bind -b 1-1 C []"),
            ("kill -9 $$", "it was killed"),
            ("head -c 3000000 /dev/zero | tr '\\0' x; exit 1", "xxx"),
        ):
            message = await self.failure(script)
            self.assertIn(text, message)
            self.assertLess(len(message), 20_000)

    async def test_cannotStart(self) -> None:
        """If the program cannot be started the bind fails, each time."""

        def refuse(*arguments: object) -> None:
            raise BlockingIOError(11, "Resource temporarily unavailable")

        self.patch(reactor, "spawnProcess", refuse)
        for _ in range(2):
            self.assertIn("cannot be started", await self.failure("exit 0"))

    async def hang(self) -> None:
        """A bind whose program hangs fails at its deadline; then the program is killed, and the
        device is free."""
        backend, device = await self.started("touch $LATE; exec sleep 1000")
        binding = Deferred.fromCoroutine(backend.bind(device, OVER))
        while not self.late.exists():
            await deferLater(cast(Any, reactor), 0.01)
        self.timed.timeIsOver()
        with self.assertRaises(OperationTimedOut) as caught:
            await binding
        # The time that was left when it was started.
        self.assertRegex(str(caught.exception), r"has not ended within (1000|9\d\d)\.\d s")
        while (shown := backend.inventory.get("1-1")) and shown.state is DeviceState.ERROR:
            await deferLater(cast(Any, reactor), 0.01)
        self.assertIs(shown and shown.state, DeviceState.FREE)

    async def test_hanging(self) -> None:
        """A program that hangs is killed at the deadline."""
        await self.hang()

    async def test_killedAtOnce(self) -> None:
        """The same if its end is noticed while it is being killed."""
        kill = ChildProcess.kill

        def killAndWait(child: ChildProcess) -> None:
            child.signal("KILL")
            transport: Any = child.transport
            os.waitid(os.P_PID, transport.pid, os.WEXITED | os.WNOWAIT)  # to be reaped at once
            kill(child)

        self.patch(ChildProcess, "kill", killAndWait)
        await self.hang()


class OptionTests(SynchronousTestCase):
    """
    The options, and the advice.
    """

    def test_command(self) -> None:
        """The program is looked up when the backend is made; an invalid command is refused."""
        makeBackend({"command": ["sh", "-c", "usbip"]}, reactor)
        for command, reason in (
            (["usbipp"], "apt-get install usbip"),
            ([], "length"),
            ("usbip", "list"),
            ([3], "text"),
        ):
            error = self.assertRaises(InvalidOption, makeBackend, {"command": command}, reactor)
            self.assertEqual(error.path[:1], ("command",))
            self.assertIn(reason, error.reason)

    def test_explain(self) -> None:
        """Known errors have advice."""
        for output, advice in (
            ("sudo: a password is required", "NOPASSWD"),
            ('sudo: The "no new privileges" flag is set', "NoNewPrivileges="),
            ("usbip: error: unable to bind device on 1-1", "modprobe"),
            ("", "exit status 1"),
        ):
            self.assertIn(advice, explain(["usbip"], Finished(1, output)))
