"""
What C{usbip-host} does, whichever kernel it is in: each test shows one fact of the real kernel
and of L{usbip_server.testing.FakeKernel}.

C{D1} to C{D12} are the numbers of the dangerous facts, C{section 1} and so on the parts of the
description of the kernel's USB/IP.

C{tests.fakekernel.test_kernel} runs these classes on the kernel in memory,
C{tests.kernel.scenarios.facts} on real ones. L{tests.kernel.sessionfacts} has the facts about the
sessions of clients, L{tests.kernel.vhcifacts} those about C{vhci_hcd}.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.kernel.needs import dies
from usbip_server.kernel.system import ISystem, UeventSocket
from usbip_server.model.device import busOrder

if TYPE_CHECKING:
    from twisted.trial.unittest import SynchronousTestCase as Base
else:
    Base = object

DEVICES = "bus/usb/devices"
DRIVERS = "bus/usb/drivers"
HOST = f"{DRIVERS}/usbip-host"

PLACES = 16
"""C{MAX_BUSID} (C{drivers/usb/usbip/stub_main.c})."""

STUB_BUG = r"BUG\b.* at .*drivers/usb/usbip/stub_dev\.c:\d+"
"""C{BUG()} in C{stub_disconnect}: the entry of a bound device is not in the table."""

BAD_REBIND = r"\bdo_rebind[.\w]*\+0x[0-9a-f]+/0x[0-9a-f]+ \[usbip_host\]"
"""A line of a trace: C{do_rebind} followed a pointer that leads nowhere."""

BAD_UNLOAD = rf"(?s){BAD_REBIND}.*usbip_host_exit\+0x"
"""The same when C{usbip-host} is unloaded."""


class Machine(Base):
    """
    Mix a class that is derived from this into a C{twisted.trial.unittest.SynchronousTestCase}. The
    methods below that only raise say what happens to the machine. Each test begins with
    C{usbip-host} loaded and its table empty.

    @ivar system: the kernel.
    @ivar busId: of a device with one interface, plugged in and in use by its local drivers.
    """

    system: ISystem
    busId: str

    def plug(self) -> None:
        """Plug the device in again, and wait until its drivers have it."""
        raise NotImplementedError

    def unplug(self) -> None:
        """Unplug the device, and wait until the kernel has noticed."""
        raise NotImplementedError

    def importForeign(self) -> str:
        """
        Import a device of another machine until the end of the test.

        @return: its bus id here.
        """
        raise NotImplementedError

    def hub(self) -> str:
        """The bus id of a hub without devices. At the end of the test its driver has it again."""
        raise NotImplementedError

    def unload(self) -> None:
        """Unload C{usbip-host}."""
        raise NotImplementedError

    def load(self) -> None:
        """Load C{usbip-host}."""
        raise NotImplementedError

    def leave(self, client: socket.socket) -> None:
        """Close the client's end of a session, and let the kernel notice."""
        raise NotImplementedError

    def breakSession(self, client: socket.socket) -> None:
        """Have C{usbip-host} fail in a way that makes the device unusable."""
        raise NotImplementedError

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait until something is true; fail if it does not become true."""
        raise NotImplementedError

    def write(self, *steps: str) -> None:
        """Write to attributes of drivers: C{usbip-host/bind=1-1}."""
        for step in steps:
            attribute, _, text = step.partition("=")
            self.system.write(f"{DRIVERS}/{attribute}", text.encode())

    def refused(self, number: int, *steps: str) -> None:
        """Write to attributes of drivers, the last of which is refused with an errno."""
        self.write(*steps[:-1])
        error = self.assertRaises(OSError, self.write, steps[-1])
        self.assertEqual(errno.errorcode[error.errno], errno.errorcode[number], steps[-1])

    def bind(self) -> None:
        """Bind the device to C{usbip-host}, in the recommended order."""
        self.take()
        self.write(f"usbip-host/match_busid=add {self.busId}", f"usbip-host/bind={self.busId}")

    def take(self) -> None:
        """Take the device from its local driver."""
        self.write(f"usb/unbind={self.busId}")

    def unbind(self) -> None:
        """Give the device back to its local driver, in the recommended order."""
        self.write(f"usbip-host/unbind={self.busId}", f"usb/bind={self.busId}")

    def driver(self) -> str | None:
        """The driver that has the device."""
        try:
            return self.system.readlink(f"{DEVICES}/{self.busId}/driver").rpartition("/")[2]
        except OSError:
            return None

    def table(self) -> list[str]:
        """The names in C{match_busid}."""
        names = self.system.read(f"{HOST}/match_busid")
        self.assertTrue(names.endswith(b"\n"))
        return names[:-1].decode().split(" ")[:-1]

    def status(self) -> int:
        """C{usbip_status} of the device."""
        return int(self.system.read(f"{DEVICES}/{self.busId}/usbip_status"))

    def hasInterface(self) -> bool:
        """Are there interfaces of the device?"""
        return f"{self.busId}:1.0" in self.system.list(DEVICES)

    def hand(self, text: str) -> None:
        """Write to C{usbip_sockfd} of the device."""
        self.system.write(f"{DEVICES}/{self.busId}/usbip_sockfd", text.encode())

    def refusedSocket(self, number: int, text: str) -> None:
        """What is written to C{usbip_sockfd} is refused with an errno."""
        error = self.assertRaises(OSError, self.hand, text)
        self.assertEqual(errno.errorcode[error.errno], errno.errorcode[number], text)

    def pair(self, kind: socket.SocketKind = socket.SOCK_STREAM) -> list[socket.socket]:
        """Both ends of a connection that is none of TCP."""
        ends = socket.socketpair(type=kind)
        for end in ends:
            self.addCleanup(end.close)
        return list(ends)

    def begin(self) -> socket.socket:
        """
        Begin a session of the bound device.

        @return: the client's end.
        """
        ours, client = self.pair()
        self.hand(f"{ours.fileno()}\n")
        ours.close()
        client.settimeout(10)
        return client

    def deviceNumber(self) -> int:
        """C{devnum} of the device."""
        return int(self.system.read(f"{DEVICES}/{self.busId}/devnum"))

    def assertSays(self, act: Callable[[], object], *expected: str) -> None:
        """
        Assert that the kernel announces these changes of the device, and no others.

        @param expected: the action, then for a device C{usb} or C{usbip-host} if there is a key
            C{DRIVER}, for an interface C{:1.0}. The action C{change} is left out: the kernel
            sends it at some of the times.
        """
        uevents = self.system.ueventSocket()
        self.addCleanup(uevents.close)
        act()
        heard: list[str] = []

        def isComplete() -> bool:
            heard.extend(self.heard(uevents))
            return len(heard) >= len(expected)

        with contextlib.suppress(AssertionError):
            self.until(isComplete, f"{expected} is announced")
        self.assertEqual(heard, [*expected])

    def heard(self, uevents: UeventSocket, of: str = "") -> list[str]:
        """
        What has been announced since the last call.

        @param of: the bus id; by default that of the device.
        """
        said: list[str] = []
        while True:
            try:
                message, sender = uevents.recvfrom(8192)
            except BlockingIOError:
                return said
            self.assertEqual(sender, (0, 1))
            header, *lines, end = message.decode().split("\0")
            fields = dict(line.split("=", 1) for line in lines)
            self.assertEqual((header, end), ("{ACTION}@{DEVPATH}".format(**fields), ""))
            name = fields["DEVPATH"].rpartition("/")[2]
            busId, colon, number = name.partition(":")
            isOurs = busId == (of or self.busId) and fields["SUBSYSTEM"] == "usb"
            if not isOurs or fields["ACTION"] == "change":
                continue
            kind = "usb_interface" if colon else "usb_device"
            self.assertEqual(fields["DEVTYPE"], kind)
            words = [fields["ACTION"], f":{number}" if colon else fields.get("DRIVER", "")]
            said.append(" ".join(filter(None, words)))


class UsbipHostFacts(Machine):
    """Binding, unbinding, and the table of C{usbip-host}."""

    def test_bindUnbind(self) -> None:
        """
        Section 1: bind and unbind in the recommended order. A bound device has no interfaces and
        its attributes can be read. The entry stays after the unbind; the next bind needs no
        C{add}.
        """
        self.assertTrue(self.hasInterface())
        descriptors = self.system.read(f"{DEVICES}/{self.busId}/descriptors")
        self.assertEqual(descriptors[:2], b"\x12\x01")
        self.bind()
        for _ in range(3):
            self.assertEqual((self.driver(), self.status()), ("usbip-host", 1))
            self.assertEqual(self.table(), [self.busId])
            self.assertFalse(self.hasInterface())
            self.assertEqual(self.system.read(f"{DEVICES}/{self.busId}/descriptors"), descriptors)
            for name in ("busnum", "devnum", "speed", "product"):
                self.assertTrue(self.system.read(f"{DEVICES}/{self.busId}/{name}"))
            self.unbind()
            self.assertEqual((self.driver(), self.table()), ("usb", [self.busId]))
            self.assertTrue(self.hasInterface())
            error = self.assertRaises(OSError, self.status)
            self.assertEqual(error.errno, errno.ENOENT)
            self.take()
            self.write(f"usbip-host/bind={self.busId}")

    def test_reclaim(self) -> None:
        """
        Section 0, RECLAIM: C{rebind} of a device that its own driver has again frees its place,
        and leaves the device as it is.
        """
        self.bind()
        self.unbind()
        self.assertSays(lambda: self.write(f"usbip-host/rebind={self.busId}"))
        self.assertEqual((self.table(), self.driver()), ([], "usb"))
        self.bind()
        self.assertEqual(self.status(), 1)

    def test_rebindWithoutDriver(self) -> None:
        """
        Section 1: C{rebind} of a device that has no driver gives it to the driver C{usb}, also
        after C{del}, as stock C{usbip unbind} does it.
        """
        for deletes in (False, True):
            self.bind()
            self.write(f"usbip-host/unbind={self.busId}")
            self.assertIsNone(self.driver())
            if deletes:
                self.write(f"usbip-host/match_busid=del {self.busId}")
            self.assertSays(
                lambda: self.write(f"usbip-host/rebind={self.busId}"),
                *("add :1.0", "bind :1.0", "bind usb"),
            )
            self.assertEqual((self.table(), self.driver()), ([], "usb"))

    def test_errors(self) -> None:
        """
        Section 1: EBUSY for a device that has a driver, ENODEV for an unknown bus id and for a
        device without an entry, EINVAL for a bad verb and for names that are missing or too long.
        """
        busId = self.busId
        self.refused(errno.EBUSY, f"usbip-host/match_busid=add {busId}", f"usbip-host/bind={busId}")
        self.refused(errno.ENODEV, f"usbip-host/unbind={busId}")
        for step in ("usb/unbind", "usb/bind", "usbip-host/bind", "usbip-host/unbind"):
            self.refused(errno.ENODEV, f"{step}=7-7.7")
        self.refused(errno.ENODEV, "usbip-host/rebind=7-7.7")
        self.refused(errno.ENODEV, "usbip-host/match_busid=del 7-7.7")
        for text in ("put 7-7.7", "add", "add ", "del ", "add " + "x" * 32, "del " + "x" * 32):
            self.refused(errno.EINVAL, f"usbip-host/match_busid={text}")
        self.refused(errno.EINVAL, "usbip-host/rebind=" + "x" * 32)
        self.bind()
        self.refused(errno.EBUSY, f"usbip-host/bind={busId}")
        self.refused(errno.EBUSY, f"usb/bind={busId}")
        self.refused(errno.ENODEV, f"usb/unbind={busId}")

    def test_noEntry(self) -> None:
        """Section 1: a device without an entry is not bound, and C{usb/bind} restores it."""
        self.take()
        self.refused(errno.ENODEV, f"usbip-host/bind={self.busId}")
        self.write(f"usb/bind={self.busId}")
        self.assertEqual(self.driver(), "usb")

    def test_hub(self) -> None:
        """Section 1: a hub's name is accepted, but the hub is never bound."""
        hub = self.hub()
        self.refused(errno.EBUSY, f"usbip-host/match_busid=add {hub}", f"usbip-host/bind={hub}")
        self.refused(errno.ENODEV, f"usb/unbind={hub}", f"usbip-host/bind={hub}")

    def test_full(self) -> None:
        """
        D4: there are 16 places; the 17th name is refused with ENOMEM, and its device cannot be
        bound. A name that is listed already can be added again.
        """
        names = [f"7-{number}.7" for number in range(PLACES)]
        for name in names:
            self.write(f"usbip-host/match_busid=add {name}")
        self.write(f"usbip-host/match_busid=add {names[-1]}")
        self.assertEqual(self.table(), names)
        self.refused(errno.ENOMEM, f"usbip-host/match_busid=add {self.busId}")
        self.take()
        self.refused(errno.ENODEV, f"usbip-host/bind={self.busId}")

    def test_delAdded(self) -> None:
        """D5: C{del} of an entry that was only added succeeds and does nothing."""
        self.write(f"usbip-host/match_busid=add {self.busId}")
        self.write(f"usbip-host/match_busid=del {self.busId}")
        self.assertEqual(self.table(), [self.busId])
        self.take()
        self.write(f"usbip-host/bind={self.busId}")
        self.assertEqual(self.status(), 1)

    def test_unpluggedKeepsPlace(self) -> None:
        """D5: a bound device that is unplugged keeps its place, and C{del} does not free it."""
        self.bind()
        self.unplug()
        self.write(f"usbip-host/match_busid=del {self.busId}")
        self.assertEqual(self.table(), [self.busId])

    def test_replugged(self) -> None:
        """
        D11: a device that is replugged gets the driver C{usb} although its entry is there; it is
        bound with the same entry.
        """
        self.bind()
        number = self.deviceNumber()
        self.unplug()
        self.plug()
        self.assertEqual((self.driver(), self.table()), ("usb", [self.busId]))
        self.assertNotEqual(self.deviceNumber(), number)
        self.take()
        self.write(f"usbip-host/bind={self.busId}")
        self.assertEqual(self.status(), 1)

    def test_delBound(self) -> None:
        """
        D6: after C{del} of a bound device every later bind fails with ENODEV, whatever is added,
        until a C{rebind} frees the entry.
        """
        busId = self.busId
        self.bind()
        self.write(f"usbip-host/match_busid=del {busId}", f"usbip-host/unbind={busId}")
        self.write(f"usbip-host/match_busid=add {busId}")
        self.assertEqual(self.table(), [busId])
        self.refused(errno.ENODEV, f"usbip-host/bind={busId}")
        self.write(f"usb/bind={busId}", f"usbip-host/rebind={busId}")
        self.assertEqual(self.table(), [])
        self.bind()
        self.assertEqual(self.status(), 1)

    def test_lineFeed(self) -> None:
        """
        D7: a line feed becomes a part of the name in C{match_busid}, which then matches no
        device and cannot be removed. C{bind}, C{unbind} and C{usbip_sockfd} tolerate one.
        """
        self.write(f"usbip-host/match_busid=add {self.busId}\n", f"usb/unbind={self.busId}\n")
        self.assertEqual(self.table(), [f"{self.busId}\n"])
        self.refused(errno.ENODEV, f"usbip-host/bind={self.busId}")
        self.refused(errno.ENODEV, f"usbip-host/rebind={self.busId}")
        self.write(f"usbip-host/match_busid=del {self.busId}\n")
        self.assertEqual(self.table(), [f"{self.busId}\n"])
        self.write(f"usbip-host/match_busid=add {self.busId}")
        self.write(f"usbip-host/bind={self.busId}\n")
        self.assertEqual(self.status(), 1)
        self.begin()
        self.write(f"usbip-host/unbind={self.busId}\n", f"usb/bind={self.busId}\n")
        self.assertEqual(self.driver(), "usb")

    def test_bindImported(self) -> None:
        """
        D8: the kernel does not refuse to bind a device that was imported from another machine.
        """
        busId = self.importForeign()
        self.assertIn("vhci_hcd", self.system.readlink(f"{DEVICES}/{busId}"))
        self.write(f"usb/unbind={busId}", f"usbip-host/match_busid=add {busId}")
        self.write(f"usbip-host/bind={busId}")
        self.assertEqual(self.system.read(f"{DEVICES}/{busId}/usbip_status"), b"1\n")
        self.write(f"usbip-host/unbind={busId}", f"usb/bind={busId}")
        self.write(f"usbip-host/rebind={busId}")  # it will be gone when usbip-host is unloaded

    def test_unload(self) -> None:
        """
        Section 1: a device that is bound when C{usbip-host} is unloaded goes back to its driver,
        and its client is dropped. The driver's folder is another one after it was loaded again,
        with an empty table.
        """
        self.bind()
        client = self.begin()
        before = self.system.identity(HOST)
        self.assertEqual(self.system.identity(HOST), before)
        self.assertLessEqual({"bind", "match_busid", "rebind", "unbind"}, {*self.system.list(HOST)})
        self.assertSays(self.unload, *("unbind", "add :1.0", "bind :1.0", "bind usb"))
        self.assertEqual((self.driver(), client.recv(1)), ("usb", b""))
        for act in (
            lambda: self.system.list(HOST),
            lambda: self.system.identity(HOST),
            self.table,
            self.bind,
        ):
            self.assertEqual(self.assertRaises(OSError, act).errno, errno.ENOENT)
        self.write(f"usb/bind={self.busId}")
        self.load()
        self.assertNotEqual(self.system.identity(HOST), before)
        self.assertEqual(self.table(), [])
        self.bind()
        self.assertEqual(self.status(), 1)

    def test_rebindHeld(self) -> None:
        """
        D3: C{rebind} of a device that was unplugged is no use after free while its node in
        C{/dev/bus/usb} is open: it frees the place.
        """
        self.bind()
        self.unbind()
        with self.system.holdDevice(busOrder(self.busId)[0], self.deviceNumber()):
            self.unplug()
            self.write(f"usbip-host/rebind={self.busId}")
        self.assertEqual(self.table(), [])

    # What the kernel announces (section 2).

    def test_ueventsPlug(self) -> None:
        """Section 2: what is announced when a device is unplugged and plugged in."""
        self.assertSays(self.unplug, "unbind :1.0", "remove :1.0", "unbind", "remove")
        self.assertSays(self.plug, "add", "add :1.0", "bind :1.0", "bind usb")

    def test_ueventsBind(self) -> None:
        """Section 2: what is announced when a device is bound and unbound."""
        self.assertSays(self.bind, *("unbind :1.0", "remove :1.0", "unbind", "bind usbip-host"))
        self.assertSays(self.unbind, "unbind", "add :1.0", "bind :1.0", "bind usb")

    def test_ueventsUnplugBound(self) -> None:
        """Section 2: what is announced when a bound device is unplugged and plugged in."""
        self.bind()
        self.assertSays(self.unplug, "unbind", "remove")
        self.assertSays(self.plug, "add", "add :1.0", "bind :1.0", "bind usb")

    def test_ueventsStatus(self) -> None:
        """Section 2: C{usbip_status} is 1, and 2 during a session; neither change is announced."""
        self.bind()
        uevents = self.system.ueventSocket()
        self.addCleanup(uevents.close)
        self.assertEqual(self.status(), 1)
        client = self.begin()
        self.assertEqual(self.status(), 2)
        self.leave(client)
        self.until(lambda: self.status() == 1, "the device is available")
        self.assertEqual([*self.heard(uevents)], [])


class DeadlyFacts(Machine):
    """What the kernel does not survive."""

    def assertDies(self, act: Callable[[], object]) -> None:
        """Assert that the kernel dies of something. Not called twice in a test."""
        raise NotImplementedError

    @dies(STUB_BUG)
    def test_rebindBoundUnbind(self) -> None:
        """D1: C{rebind} of a bound device, then C{unbind}."""
        self.bind()
        self.write(f"usbip-host/rebind={self.busId}")
        self.assertEqual((self.table(), self.driver()), ([], "usbip-host"))
        self.assertDies(lambda: self.write(f"usbip-host/unbind={self.busId}"))

    @dies(STUB_BUG)
    def test_rebindBoundUnplug(self) -> None:
        """D1: C{rebind} of a bound device, then it is unplugged."""
        self.bind()
        self.write(f"usbip-host/rebind={self.busId}")
        self.assertDies(self.unplug)

    @dies(BAD_REBIND)
    def test_rebindNeverBound(self) -> None:
        """D2: C{rebind} of a bus id that was added and never bound."""
        self.write(f"usbip-host/match_busid=add {self.busId}")
        self.assertDies(lambda: self.write(f"usbip-host/rebind={self.busId}"))

    @dies(BAD_REBIND)
    def test_rebindUnplugged(self) -> None:
        """D3: C{rebind} of a bus id whose bound device was unplugged: use after free."""
        self.bind()
        self.unplug()
        self.assertDies(lambda: self.write(f"usbip-host/rebind={self.busId}"))

    @dies(BAD_REBIND)
    def test_rebindUnpluggedUnbound(self) -> None:
        """D3: C{rebind} of a bus id whose device was unbound, and then unplugged."""
        self.bind()
        self.unbind()
        self.unplug()
        self.assertDies(lambda: self.write(f"usbip-host/rebind={self.busId}"))

    @dies(BAD_REBIND)
    def test_rebindReplugged(self) -> None:
        """D3: C{rebind} of a bus id whose bound device was unplugged, and then replugged."""
        self.bind()
        self.unplug()
        self.plug()
        self.assertDies(lambda: self.write(f"usbip-host/rebind={self.busId}"))

    @dies(BAD_UNLOAD)
    def test_unloadUnplugged(self) -> None:
        """D3: C{usbip-host} is unloaded after a bound device was unplugged."""
        self.bind()
        self.unplug()
        self.assertDies(self.unload)

    @dies(BAD_UNLOAD)
    def test_unloadUnpluggedUnbound(self) -> None:
        """D3: C{usbip-host} is unloaded after a device was unbound, and then unplugged."""
        self.bind()
        self.unbind()
        self.unplug()
        self.assertDies(self.unload)
