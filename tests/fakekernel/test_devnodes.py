"""
Tests of L{usbip_server.kernel.vhci.devnodes}.
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
        """Make a folder with a device node."""
        self.write(f"{folder}/dev", "1:2\n")
        self.write(f"{folder}/uevent", f"MAJOR=1\nMINOR=2\nDEVNAME={name}\nDEVTYPE=any\n")

    def link(self, name: str, target: str) -> None:
        """Make a persistent name, as udev does."""
        path = f"{self.dev}/{name}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.symlink(f"../../{target}", path)

    def found(self) -> list[str]:
        """The nodes, as paths below the folder."""
        return [name.removeprefix(f"{self.dev}/") for name in self.nodes.of(DEVICE)]

    def test_nodes(self) -> None:
        """The nodes of a device are those of all its interfaces, in any folder, except for that of
        the device itself, C{bsg}, and what links lead to. A device that is gone has none."""
        self.write("3-1:1.0/uevent", "DEVTYPE=usb_interface\n")
        self.assertEqual(self.found(), [])
        os.symlink("../../..", f"{self.root}/{DEVICE}/3-1:1.0/subsystem")
        host = "3-1:1.0/host2/target2:0:0/2:0:0:0"
        for folder, name in (
            ("3-1:1.0/ttyUSB0/tty/ttyUSB0", "ttyUSB0"),
            (BLOCK, "sda"),
            (f"{BLOCK}/sda1", "sda1"),
            (f"{host}/scsi_generic/sg0", "sg0"),
            (f"{host}/bsg/2:0:0:0", "bsg/2:0:0:0"),
            ("3-1:1.1/0003:046D:C52B.0001/hidraw/hidraw0", "hidraw0"),
            ("3-1:1.1/0003:046D:C52B.0001/input/input5/event3", "input/event3"),
            ("/".join(14 * ["a"]), "near"),
            ("/".join(30 * ["b"]), "far"),  # deeper than is searched
        ):
            self.node(folder, name)
        expected = ["hidraw0", "input/event3", "near", "sda", "sda1", "sg0", "ttyUSB0"]
        self.assertEqual(self.found(), expected)
        gone = "devices/platform/vhci_hcd.0/usb3/3-2"
        self.assertEqual((self.nodes.of(gone), self.nodes.isDisk(gone)), ((), False))

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

    def test_persistentNames(self) -> None:
        """udev's persistent names come first, and only those of the device."""
        self.node(BLOCK, "sda")
        self.node(f"{BLOCK}/sda1", "sda1")
        self.node("3-1:1.1/ttyACM0/tty/ttyACM0", "ttyACM0")
        names = {
            "disk/by-id/usb-QEMU_DISK42-0:0": "sda",
            "disk/by-id/usb-QEMU_DISK42-0:0-part1": "sda1",
            "serial/by-id/usb-Board-if00": "ttyACM0",
        }
        others = {"disk/by-id/ata-Other": "sdb", "disk/by-path/pci-0": "sda"}
        for name, target in {**names, **others}.items():
            self.link(name, target)
        self.assertEqual(self.found(), [*names, "sda", "sda1", "ttyACM0"])

    def test_isDisk(self) -> None:
        """A disk has an interface of the class for disks."""
        self.write("3-1:1.0/bInterfaceClass", "ff\n")
        self.assertFalse(self.nodes.isDisk(DEVICE))
        self.write("3-1:1.1/bInterfaceClass", "08\n")
        self.assertTrue(self.nodes.isDisk(DEVICE))
