"""
The usbip backend, with a program that does to the kernel in memory what the stock one does
to a real one, and with real child processes that misbehave.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessTerminated
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
"""That an operation may take which is not to be late."""


class StockReactor:
    """
    The real reactor, but for child processes: those are the stock C{usbip}, whose writes
    and messages are reproduced here.
    """

    def __init__(self, kernel: FakeKernel) -> None:
        self.kernel = kernel
        self.commands: list[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)

    def spawnProcess(
        self, protocol: Any, executable: str, args: list[str], env: dict[str, str], path: str
    ) -> None:
        """Run it; it has ended before long."""
        self.commands.append(args)
        said = {"bind": self.bind, "unbind": self.unbind}[args[-3]](args[-1])
        if said:
            protocol.errReceived(f"usbip: error: {said}\n".encode())
        reason = ProcessTerminated(1) if said else ProcessDone(0)
        reactor.callLater(0, protocol.processEnded, Failure(reason))

    def write(self, *steps: tuple[str, str]) -> None:
        """Write attributes, one after the other."""
        for attribute, text in steps:
            self.kernel.write(f"{DRIVERS}/{attribute}", text.encode())

    def bind(self, busId: str) -> str:
        """C{usbip bind}: it unbinds first and asks later."""
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
    A backend on a kernel in memory, with the stock program.
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
        """A device that the program leaves without a driver gets it back."""
        backend, device = await self.started()
        with contextlib.ExitStack() as stack:
            match = self.kernel.write

            def refuse(path: str, data: bytes) -> None:
                if path.endswith("match_busid"):
                    raise OSError(12, "Cannot allocate memory")
                match(path, data)

            self.kernel.write = refuse  # type: ignore[method-assign]
            stack.callback(setattr, self.kernel, "write", match)
            error = await self.failure(OperationFailed, backend.bind(device, SECONDS))
        self.assertIn("unable to bind device", str(error))
        self.assertEqual(self.kernel.driver(device.busId), "usb")
        await self.untilState(backend, device.busId, DeviceState.FREE)

    async def test_mounted(self) -> None:
        """A disk that this machine uses itself is left alone, unless it shall not be."""
        backend, device = await self.started()
        self.kernel.mount(device.busId, "/boot")
        error = await self.failure(DeviceMounted, backend.bind(device, SECONDS))
        self.assertIn("is mounted on /boot", str(error))
        self.assertEqual((self.stock.commands, self.kernel.writes), ([], []))
        bound = await backend.bind(device, SECONDS, allowMounted=True)
        self.assertIs(bound.state, DeviceState.BOUND)

    async def test_notTried(self) -> None:
        """What cannot go well is not tried: no driver, no room."""
        backend, device = await self.started()
        self.kernel.loadable = self.kernel.loaded = False
        error = await self.failure(OperationFailed, backend.bind(device, SECONDS))
        self.assertIn("modprobe usbip-host", str(error))
        self.kernel.loaded = True
        self.kernel.fillTable(*(f"9-{port}" for port in range(1, 17)))
        error = await self.failure(OperationFailed, backend.bind(device, SECONDS))
        self.assertIn("all 16 places", str(error))
        self.assertEqual(self.stock.commands, [])


class UsbipToolConformanceTests(UsbipToolCase, KernelExportConformance, TestCase):
    """
    It is a backend as every other.
    """


class WithoutRootTests(UsbipToolCase, NoExportConformance, TestCase):
    """
    The same where only the program may write.
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
        """A device cannot be exported: what can be done about it is said."""
        backend, device = await self.started()
        bound = await backend.bind(device, SECONDS)
        for self.refusal in (errno.EACCES, errno.EPERM):
            ours, _ = self.connect()
            exporting = backend.export(bound, ours, self.holder(), SECONDS)
            error = await self.failure(OperationFailed, exporting)
            self.assertIn("or run the daemon as root", str(error))
            self.assertIn("Or say `export: off`, and run usbipd as root", str(error))

    async def test_releaseByProgram(self) -> None:
        """A session is ended by an unbind, and the device bound anew."""
        backend, device = await self.held()
        self.stock.commands.clear()
        for self.refusal in (errno.EACCES, errno.EPERM, errno.EROFS):
            await backend.release(device, SECONDS)
            self.kernel.importDevice(device.busId)
        words = [command[1] for command in self.stock.commands]
        self.assertEqual(words, ["unbind", "bind"] * 3)

    async def test_releaseRefused(self) -> None:
        """What is no matter of permission is a failure, and nothing else is tried."""
        backend, device = await self.held()
        self.stock.commands.clear()
        self.refusal = errno.EIO
        error = await self.failure(OperationFailed, backend.release(device, SECONDS))
        self.assertIn("Input/output error", str(error))
        self.assertEqual(self.stock.commands, [])

    async def test_releaseHalf(self) -> None:
        """If it cannot be bound anew that is a failure; its driver has it."""
        backend, device = await self.held()
        self.stock.unbind = self.unloading  # type: ignore[method-assign]
        error = await self.failure(OperationFailed, backend.release(device, SECONDS))
        self.assertIn("modprobe usbip-host", str(error))
        self.assertEqual(self.kernel.driver(device.busId), "usb")

    def unloading(self, busId: str) -> str:
        """Somebody unloads usbip-host when it has no device any more."""
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
        A backend whose program is a shell script; C{$LATE} is a file that it can make.
        """
        self.kernel = FakeKernel()
        self.kernel.plug("1-1")
        path = os.path.abspath(self.mktemp())
        with open(path, "w") as file:
            file.write(f"#!/bin/sh\nLATE={self.late.absolute()}\n{script}\n")
        os.chmod(path, 0o755)
        backend = UsbipToolBackend(self.kernel, self.timed, 30.0, [path, "--"], UsbIds([]))
        await backend.start()
        self.addCleanup(lambda: Deferred.fromCoroutine(backend.stop()))
        return backend, backend.inventory.snapshot.devices[0]

    async def test_stderr(self) -> None:
        """What it says becomes our message, with advice where we know some."""
        backend, device = await self.started(
            "echo 'usbip: error: could not unbind driver from device' >&2; exit 1"
        )
        with self.assertRaises(OperationFailed) as caught:
            await backend.bind(device, SECONDS)
        self.assertIn(
            "could not unbind driver from device. The program needs root", str(caught.exception)
        )

    async def test_environment(self) -> None:
        """It runs with a clean environment, in English, with the right arguments."""
        os.environ["USBIPSHARE_SECRET"] = "x"
        self.addCleanup(os.environ.pop, "USBIPSHARE_SECRET")
        backend, device = await self.started('echo "$* $LC_ALL [$USBIPSHARE_SECRET]"; exit 3')
        with self.assertRaises(OperationFailed) as caught:
            await backend.bind(device, SECONDS)
        self.assertIn("-- bind -b 1-1 C []", str(caught.exception))

    async def test_noise(self) -> None:
        """A program that prints without end costs a bounded amount of memory."""
        backend, device = await self.started("head -c 3000000 /dev/zero | tr '\\0' x; exit 1")
        with self.assertRaises(OperationFailed) as caught:
            await backend.bind(device, SECONDS)
        self.assertLess(len(str(caught.exception)), 20_000)

    async def test_hanging(self) -> None:
        """A program that hangs is killed when its time is over."""
        backend, device = await self.started("touch $LATE; exec sleep 1000")
        said = await self.tooLate(backend, device)
        # What was left when it was started.
        self.assertRegex(said, r"has not ended within (1000|9\d\d)\.\d s")
        await self.untilFree(backend)

    async def tooLate(self, backend: UsbipToolBackend, device: UsbDevice) -> str:
        """What is said when the time of a bind is over as soon as the script has made its file."""
        binding = Deferred.fromCoroutine(backend.bind(device, OVER))
        while not self.late.exists():
            await self.tick()
        self.timed.timeIsOver()
        with self.assertRaises(OperationTimedOut) as caught:
            await binding
        return str(caught.exception)

    async def test_endsAtOnce(self) -> None:
        """A device is not shown as stuck any more when the program that hung has ended, also if
        that was noticed while it was being killed."""
        kill = ChildProcess.kill

        def killAndWait(child: ChildProcess) -> None:
            child.signal("KILL")
            transport: Any = child.transport
            os.waitid(os.P_PID, transport.pid, os.WEXITED | os.WNOWAIT)  # to be reaped at once
            kill(child)

        self.patch(ChildProcess, "kill", killAndWait)
        backend, device = await self.started("touch $LATE; exec sleep 1000")
        await self.tooLate(backend, device)
        await self.untilFree(backend)

    async def untilFree(self, backend: UsbipToolBackend) -> None:
        """Wait until a device is not shown as stuck any more: then it is free."""
        shown = backend.inventory.get("1-1")
        while shown is not None and shown.state is DeviceState.ERROR:
            await self.tick()
            shown = backend.inventory.get("1-1")
        self.assertIs(shown and shown.state, DeviceState.FREE)

    async def tick(self) -> None:
        """Let the reactor turn."""
        done: Deferred[None] = Deferred()
        reactor.callLater(0.01, done.callback, None)
        await done

    async def test_noFork(self) -> None:
        """When the program cannot be started that is a failure, and it is tried again."""
        backend, device = await self.started("exit 0")
        self.patch(reactor, "spawnProcess", self.refuse)
        for _ in range(2):
            with self.assertRaises(OperationFailed) as caught:
                await backend.bind(device, SECONDS)
            self.assertIn("cannot be started", str(caught.exception))

    def refuse(self, *arguments: object) -> None:
        """There are too many processes."""
        raise BlockingIOError(11, "Resource temporarily unavailable")

    async def test_killed(self) -> None:
        """A program that is killed is a failure."""
        backend, device = await self.started("kill -9 $$")
        with self.assertRaises(OperationFailed) as caught:
            await backend.bind(device, SECONDS)
        self.assertIn("it was killed", str(caught.exception))


class OptionTests(SynchronousTestCase):
    """
    C{command} and the others.
    """

    def test_path(self) -> None:
        """The program is looked up at the start."""
        backend = makeBackend({"command": ["sh", "-c", "usbip"]}, reactor)
        self.assertIsInstance(backend, UsbipToolBackend)

    def test_missing(self) -> None:
        """A program that is not there: the message says how to get it."""
        error = self.assertRaises(InvalidOption, makeBackend, {"command": ["usbipp"]}, reactor)
        self.assertEqual(error.path, ("command",))
        self.assertIn("apt-get install usbip", error.reason)

    def test_wrong(self) -> None:
        """An empty command, a string for a list."""
        for command in ([], "usbip", [3]):
            self.assertRaises(InvalidOption, makeBackend, {"command": command}, reactor)

    def test_explain(self) -> None:
        """Known troubles come with advice."""
        for output, advice in (
            ("sudo: a password is required", "NOPASSWD"),
            ('sudo: The "no new privileges" flag is set', "NoNewPrivileges="),
            ("usbip: error: unable to bind device on 1-1", "modprobe"),
            ("", "exit status 1"),
        ):
            self.assertIn(advice, explain(["usbip"], Finished(1, output)))
