"""
Tests of L{usbip_server.kernel.portpath} on the fake kernel.
"""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from usbip_server.kernel.portpath import portPath
from usbip_server.kernel.scan import Scanner, Strings
from usbip_server.kernel.system import System
from usbip_server.kernel.usbids import UsbIds
from usbip_server.model.devicerules import Match
from usbip_server.testing import FakeKernel

PCI = "pci0000:00/0000:00:14.0"


class PortPathTests(SynchronousTestCase):
    """
    Paths of ports.
    """

    def path(
        self, busId: str, controller: str, speed: str = "480", peer: str | None = None
    ) -> str | None:
        """The path of a device that is plugged in there."""
        kernel = FakeKernel()
        kernel.plug(busId, controller=controller, speed=speed, peer=peer)
        (attributes,) = Scanner(kernel, UsbIds([])).read([busId])
        return attributes.path

    def test_controllers(self) -> None:
        """A path begins with the nearest PCI or platform device, and what that is connected to;
        bridges of the same kind are left out. It ends with the ports."""
        for controller, busId, path in (
            (PCI, "1-2", "pci-0000:00:14.0-usb-0:2"),
            (PCI, "1-2.1.4", "pci-0000:00:14.0-usb-0:2.1.4"),
            ("pci0000:00/0000:00:1c.0/0000:03:00.0", "3-1", "pci-0000:03:00.0-usb-0:1"),
            ("platform/soc/3f980000.usb", "1-1.3", "platform-3f980000.usb-usb-0:1.3"),
            (
                "platform/soc@0/32f10100.usb/38100000.usb/xhci-hcd.0.auto",
                "1-1",
                "platform-xhci-hcd.0.auto-usb-0:1",
            ),
            (
                "platform/scb/fd500000.pcie/pci0000:00/0000:00:00.0/0000:01:00.0",
                "1-1.3",
                "platform-fd500000.pcie-pci-0000:01:00.0-usb-0:1.3",
            ),
        ):
            self.assertEqual(self.path(busId, controller), path)

    def test_unknown(self) -> None:
        """The path below another kind of controller is unknown, and may be any: a rule that forbids
        a path applies."""
        kernel = FakeKernel()
        kernel.plug("1-1", controller="acpi/unknown")
        scanner = Scanner(kernel, UsbIds([]))
        (attributes,) = scanner.read(["1-1"])
        device = scanner.device(attributes, Strings(), None)
        self.assertEqual((device.path, device.unknown), (None, ("path",)))
        self.assertTrue(Match(path="*-usb-0:7").mayMeet(device))

    def test_speeds(self) -> None:
        """A port has one path for all speeds: with the numbers of the port on the bus of USB 2, if
        the kernel has both as peers."""
        for busId, speed, peer, ports in (
            ("4-2", "480", "usb5-port2", "2"),
            ("5-2", "5000", "usb4-port2", "2"),
            ("5-1", "10000", "usb4-port7", "7"),
            ("5-2.3", "20000", "4-2.1-port4", "2.1.4"),
            ("5-2", "5000", None, "2"),
            ("5-2", "5000", "nonsense", "2"),
        ):
            self.assertEqual(self.path(busId, PCI, speed, peer), f"pci-0000:00:14.0-usb-0:{ports}")

    def test_reboot(self) -> None:
        """The path does not depend on the number of the bus."""
        self.assertEqual(self.path("1-2.1", PCI), self.path("7-2.1", PCI))

    def test_tree(self) -> None:
        """The links of sysfs are read as the kernel makes them, also through the link to a port."""
        root = self.mktemp()
        controller = f"{root}/devices/pci0000:00/0000:00:14.0"
        for directory in ("usb1/1-0:1.0/usb1-port7", "usb2/2-0:1.0/usb2-port1", "usb2/2-1"):
            os.makedirs(f"{controller}/{directory}")
        for directory in ("bus/pci", "bus/usb/devices"):
            os.makedirs(f"{root}/{directory}")
        for link, target in (
            (f"{controller}/subsystem", "../../../bus/pci"),
            (f"{controller}/usb2/2-1/port", "../2-0:1.0/usb2-port1"),
            (f"{controller}/usb2/2-0:1.0/usb2-port1/peer", "../../../usb1/1-0:1.0/usb1-port7"),
            (f"{root}/bus/usb/devices/2-1", "../../../devices/pci0000:00/0000:00:14.0/usb2/2-1"),
        ):
            os.symlink(target, link)
        path = portPath(System(root), "2-1", f"/sys/devices/{PCI}/usb2/2-1", "5000")
        self.assertEqual(path, "pci-0000:00:14.0-usb-0:7")
