"""
Tests of L{usbip_server.client.cli.stockusbipd}; for those with Windows see
L{tests.client.test_usbipdwin}.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.support.fixtures import UNO, changed
from usbip_server.client.cli.stockusbipd import binding, remedy, unlisted
from usbip_server.client.servers import Server
from usbip_server.model.usbip import NotGiven, OpStatus

LINUX = "/sys/devices/pci0000:00/usb1/1-1/1-1.4"
WINDOWS = "USB\\VID_2341&PID_0043\\75330303035351F0A1C1"


class RemedyTests(SynchronousTestCase):
    """
    Advice about a stock usbipd.
    """

    def test_kinds(self) -> None:
        """For a server known to run Linux or Windows only its own command is named."""
        self.assertEqual(binding("1-1.4", LINUX), "sudo usbip bind -b 1-1.4")
        windows = "as administrator, usbipd bind --busid 1-4"
        self.assertEqual(binding("1-4", WINDOWS), windows)
        for path in ("", "1-1.4"):
            self.assertEqual(binding("1-4", path), f"sudo usbip bind -b 1-4; on Windows, {windows}")
        self.assertIn("-b BUSID;", binding(None))

    def test_refused(self) -> None:
        """There is advice only for refusals whose cause is known."""
        for path in (LINUX, None, WINDOWS):
            device = changed(UNO, sysfsPath=path)
            for status in (*range(1, 6), 255):
                said = remedy(NotGiven(status), device)
                isKnown = path == WINDOWS or status == OpStatus.NODEV
                self.assertEqual(said.startswith("; "), isKnown, (path, status))
        self.assertEqual(
            remedy(NotGiven(OpStatus.NODEV), changed(UNO, sysfsPath=LINUX)),
            "; on the server: sudo usbip bind -b 1-1.4",
        )

    def test_unlisted(self) -> None:
        """Servers that list only bound devices are named."""
        servers = [Server(name=name, host=name) for name in ("old", "desktop")]
        self.assertEqual(unlisted([], "1-4"), "")
        self.assertIn("a stock usbipd (old, desktop) lists only", unlisted(servers, "1-4"))
