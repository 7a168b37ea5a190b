"""Facts about binding, unbinding, and the table of C{usbip-host}."""

from __future__ import annotations

import errno

from tests.kernel.facts.cases import DEVICES, HOST, HostFactCase
from usbip_server.model.device import busOrder

PLACES = 16
"""C{MAX_BUSID} (C{drivers/usb/usbip/stub_main.c})."""

PLUGGED = ("add", "add :1.0", "bind :1.0", "bind usb")
RESTORED = PLUGGED[1:]
UNPLUGGED = ("unbind :1.0", "remove :1.0", "unbind", "remove")
"""The uevents of a device that is plugged in, of one that C{usb} is bound to again, and of one that
is unplugged."""


class UsbipHostFacts(HostFactCase):
    """Mix this into a test case for each kind of machine."""

    def test_bindUnbind(self) -> None:
        """Section 1: bind and unbind in the recommended order. A bound device has no interfaces and
        its attributes can be read. The entry stays after the unbind; the next bind needs no
        C{add}."""
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
            self.assertEqual(self.assertRaises(OSError, self.status).errno, errno.ENOENT)
            self.bindAgain()

    def test_rebindOfUnboundFreesEntry(self) -> None:
        """Section 0, RECLAIM: C{rebind} of a device that C{usb} is bound to frees its entry, and
        leaves the device as it is."""
        self.bind()
        self.unbind()
        self.assertAnnounced(lambda: self.write(f"usbip-host/rebind={self.busId}"))
        self.assertEqual((self.table(), self.driver()), ([], "usb"))
        self.bind()
        self.assertEqual(self.status(), 1)

    def test_rebindWithoutDriverBindsUsb(self) -> None:
        """Section 1: C{rebind} of a device that has no driver binds it to C{usb}, also after
        C{del}, as stock C{usbip unbind} does it."""
        for deletes in (False, True):
            self.bind()
            self.write(f"usbip-host/unbind={self.busId}")
            self.assertIsNone(self.driver())
            if deletes:
                self.write(f"usbip-host/match_busid=del {self.busId}")
            self.assertAnnounced(lambda: self.write(f"usbip-host/rebind={self.busId}"), *RESTORED)
            self.assertEqual((self.table(), self.driver()), ([], "usb"))

    def test_errors(self) -> None:
        """Section 1: EBUSY for a device that has a driver, ENODEV for an unknown bus id and for a
        device without an entry, EINVAL for a bad verb and for names that are missing or too
        long."""
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

    def test_bindWithoutEntry(self) -> None:
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

    def test_tableFull(self) -> None:
        """D4: there are 16 entries; the 17th name is refused with ENOMEM, and its device cannot be
        bound. A name that is listed already can be added again."""
        names = [f"7-{number}.7" for number in range(PLACES)]
        for name in names:
            self.write(f"usbip-host/match_busid=add {name}")
        self.write(f"usbip-host/match_busid=add {names[-1]}")
        self.assertEqual(self.table(), names)
        self.refused(errno.ENOMEM, f"usbip-host/match_busid=add {self.busId}")
        self.take()
        self.refused(errno.ENODEV, f"usbip-host/bind={self.busId}")

    def test_delOfAdded(self) -> None:
        """D5: C{del} of an entry that was only added succeeds and does nothing."""
        self.write(f"usbip-host/match_busid=add {self.busId}")
        self.write(f"usbip-host/match_busid=del {self.busId}")
        self.assertEqual(self.table(), [self.busId])
        self.bindAgain()
        self.assertEqual(self.status(), 1)

    def test_unpluggedKeepsEntry(self) -> None:
        """D5: a bound device that is unplugged keeps its entry, and C{del} does not free it."""
        self.bind()
        self.unplug()
        self.write(f"usbip-host/match_busid=del {self.busId}")
        self.assertEqual(self.table(), [self.busId])

    def test_replugged(self) -> None:
        """D11: a device that is replugged gets the driver C{usb} although its entry is there; it is
        bound with the same entry."""
        self.bind()
        number = self.number("devnum")
        self.unplug()
        self.plug()
        self.assertEqual((self.driver(), self.table()), ("usb", [self.busId]))
        self.assertNotEqual(self.number("devnum"), number)
        self.bindAgain()
        self.assertEqual(self.status(), 1)

    def test_delOfBound(self) -> None:
        """D6: after C{del} of a bound device every later bind fails with ENODEV, whatever is added,
        until a C{rebind} frees the entry."""
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
        """D7: a line feed becomes a part of the name in C{match_busid}, which then matches no
        device and cannot be removed. C{bind}, C{unbind} and C{usbip_sockfd} tolerate one."""
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
        """D8: the kernel does not refuse to bind a device that was imported."""
        busId = self.importForeign()
        self.assertIn("vhci_hcd", self.system.readlink(f"{DEVICES}/{busId}"))
        self.write(f"usb/unbind={busId}", f"usbip-host/match_busid=add {busId}")
        self.write(f"usbip-host/bind={busId}")
        self.assertEqual(self.system.read(f"{DEVICES}/{busId}/usbip_status"), b"1\n")
        self.write(f"usbip-host/unbind={busId}", f"usb/bind={busId}")
        self.write(f"usbip-host/rebind={busId}")  # it will be gone when usbip-host is unloaded

    def test_unload(self) -> None:
        """Section 1: a device that is bound when C{usbip-host} is unloaded goes back to its driver,
        and its session ends. The driver's folder is another one after it was loaded again, with an
        empty table."""
        self.bind()
        client = self.begin()
        before = self.system.identity(HOST)
        self.assertEqual(self.system.identity(HOST), before)
        self.assertLessEqual({"bind", "match_busid", "rebind", "unbind"}, {*self.system.list(HOST)})
        self.assertAnnounced(self.unload, "unbind", *RESTORED)
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

    def test_rebindOfUnpluggedWithOpenNode(self) -> None:
        """D3: C{rebind} of a device that was unplugged is no use after free while its node in
        C{/dev/bus/usb} is open: it frees the entry."""
        self.bind()
        self.unbind()
        with self.system.holdDevice(busOrder(self.busId)[0], self.number("devnum")):
            self.unplug()
            self.write(f"usbip-host/rebind={self.busId}")
        self.assertEqual(self.table(), [])

    def test_uevents(self) -> None:
        """Section 2: the uevents of unplug, plug, bind and unbind, and of a bound device."""
        for act, uevents in (
            (self.unplug, UNPLUGGED),
            (self.plug, PLUGGED),
            (self.bind, (*UNPLUGGED[:3], "bind usbip-host")),
            (self.unbind, ("unbind", *RESTORED)),
            (self.bindAgain, (*UNPLUGGED[:3], "bind usbip-host")),
            (self.unplug, ("unbind", "remove")),
            (self.plug, PLUGGED),
        ):
            self.assertAnnounced(act, *uevents)

    def test_statusIsNotAnnounced(self) -> None:
        """Section 2: C{usbip_status} is 1, and 2 during a session; neither change is announced."""
        self.bind()
        uevents = self.ueventSocket()
        self.assertEqual(self.status(), 1)
        client = self.begin()
        self.assertEqual(self.status(), 2)
        self.leave(client)
        self.untilAvailable()
        self.assertEqual(self.announced(uevents), [])
