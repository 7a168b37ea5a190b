"""
What programs can open of a device.
"""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from usbip_server.kernel.system import System
from usbip_server.kernel.vhci.devnodes import Nodes

DEVICE = "devices/platform/vhci_hcd.0/usb3/3-1"
BLOCK = "3-1:1.0/host2/target2:0:0/2:0:0:0/block/sda"


class NodesTests(SynchronousTestCase):
    """
    A device at bus id 3-1, and a folder of nodes.
    """

    def setUp(self) -> None:
        self.root, self.dev = self.mktemp(), os.path.abspath(self.mktemp())
        self.nodes = Nodes(System(self.root), self.dev)
        self.node("", "bus/usb/003/002")

    def write(self, path: str, text: str) -> None:
        """Make a file of the device."""
        path = f"{self.root}/{DEVICE}/{path}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(text)

    def node(self, folder: str, name: str) -> None:
        """Have something that can be opened."""
        self.write(f"{folder}/dev", "1:2\n")
        self.write(f"{folder}/uevent", f"MAJOR=1\nMINOR=2\nDEVNAME={name}\nDEVTYPE=any\n")

    def link(self, name: str, target: str) -> None:
        """Have udev make a name."""
        path = f"{self.dev}/{name}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.symlink(f"../../{target}", path)

    def found(self) -> list[str]:
        """The nodes, below the folder."""
        return [name.removeprefix(f"{self.dev}/") for name in self.nodes.of(DEVICE)]

    def test_none(self) -> None:
        """A device without any has none: what is in the way of libusb is not meant."""
        self.write("3-1:1.0/uevent", "DEVTYPE=usb_interface\n")
        self.assertEqual(self.found(), [])

    def test_gone(self) -> None:
        """Nor has one that is gone."""
        self.assertEqual(self.nodes.of("devices/platform/vhci_hcd.0/usb3/3-2"), ())
        self.assertFalse(self.nodes.isDisk("devices/platform/vhci_hcd.0/usb3/3-2"))

    def test_probed(self) -> None:
        """A device is probed when each of its interfaces is there and has a driver, and udev has
        no events to handle."""
        queue = os.path.abspath(self.mktemp())
        nodes = Nodes(System(self.root), self.dev, queue)
        self.assertFalse(nodes.isProbed(DEVICE), "not known")
        self.write("bNumInterfaces", " 2\n")
        self.write("3-1:1.0/driver/module/x", "")
        self.assertFalse(nodes.isProbed(DEVICE), "an interface is missing")
        self.write("3-1:1.1/bInterfaceClass", "0a\n")
        self.assertFalse(nodes.isProbed(DEVICE), "an interface has no driver")
        self.write("3-1:1.1/driver/module/x", "")
        self.assertTrue(nodes.isProbed(DEVICE))
        open(queue, "w").close()
        self.assertFalse(nodes.isProbed(DEVICE), "udev is busy")

    def test_serial(self) -> None:
        """A serial port is one, and the folder of its driver is not."""
        self.write("3-1:1.0/ttyUSB0/uevent", "DRIVER=ftdi_sio\n")
        self.node("3-1:1.0/ttyUSB0/tty/ttyUSB0", "ttyUSB0")
        self.assertEqual(self.found(), ["ttyUSB0"])

    def test_disk(self) -> None:
        """A disk, its partitions, and the generic SCSI device."""
        self.node(BLOCK, "sda")
        self.node(f"{BLOCK}/sda1", "sda1")
        self.node(f"{BLOCK}/sda2", "sda2")
        self.node("3-1:1.0/host2/target2:0:0/2:0:0:0/scsi_generic/sg0", "sg0")
        self.node("3-1:1.0/host2/target2:0:0/2:0:0:0/bsg/2:0:0:0", "bsg/2:0:0:0")
        self.assertEqual(self.found(), ["sda", "sda1", "sda2", "sg0"])

    def test_several(self) -> None:
        """All interfaces count; nodes may be in folders."""
        self.node("3-1:1.0/0003:046D:C52B.0001/hidraw/hidraw0", "hidraw0")
        self.node("3-1:1.0/0003:046D:C52B.0001/input/input5/event3", "input/event3")
        self.node("3-1:1.1/usbmisc/hiddev0", "usb/hiddev0")
        self.assertEqual(self.found(), ["hidraw0", "input/event3", "usb/hiddev0"])

    def test_lasting(self) -> None:
        """What udev calls them comes first; other devices' names are not taken."""
        self.node(BLOCK, "sda")
        self.node(f"{BLOCK}/sda1", "sda1")
        self.node("3-1:1.1/ttyACM0/tty/ttyACM0", "ttyACM0")
        for name, target in (
            ("disk/by-id/usb-QEMU_DISK42-0:0", "sda"),
            ("disk/by-id/usb-QEMU_DISK42-0:0-part1", "sda1"),
            ("disk/by-id/ata-Other", "sdb"),
            ("disk/by-path/pci-0", "sda"),
            ("serial/by-id/usb-Board-if00", "ttyACM0"),
        ):
            self.link(name, target)
        self.assertEqual(
            self.found(),
            [
                "disk/by-id/usb-QEMU_DISK42-0:0",
                "disk/by-id/usb-QEMU_DISK42-0:0-part1",
                "serial/by-id/usb-Board-if00",
                "sda",
                "sda1",
                "ttyACM0",
            ],
        )

    def test_links(self) -> None:
        """Links in sysfs are not followed: they lead to all the rest of it."""
        self.node("3-1:1.0/tty/ttyUSB0", "ttyUSB0")
        os.symlink("../../..", f"{self.root}/{DEVICE}/3-1:1.0/subsystem")
        self.assertEqual(self.found(), ["ttyUSB0"])

    def test_deep(self) -> None:
        """Even a tree without an end has one."""
        self.node("/".join(14 * ["a"]), "near")
        self.node("/".join(30 * ["b"]), "far")
        self.assertEqual(self.found(), ["near"])

    def test_isDisk(self) -> None:
        """Disks are told by the class of an interface."""
        self.write("3-1:1.0/bInterfaceClass", "ff\n")
        self.assertFalse(self.nodes.isDisk(DEVICE))
        self.write("3-1:1.1/bInterfaceClass", "08\n")
        self.assertTrue(self.nodes.isDisk(DEVICE))
