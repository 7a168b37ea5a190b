"""A network adapter."""

from __future__ import annotations

from tests.kernel import guest
from tests.kernel.daemoncase import DaemonCase
from tests.kernel.devices import Device, Kind
from tests.kernel.needs import Need, needs

ADAPTER = Device("adapter", Kind.NETWORK, "1-6", "0525:a4a2")


@needs(Need.STOCK_KERNEL)
class NetworkAdapterTests(DaemonCase):
    """An adapter of QEMU, with the driver that Debian's kernel has for it."""

    def test_defaultRoute(self) -> None:
        """An adapter that has the default route, as a Raspberry Pi's built-in one may, is attached
        only with C{force}."""
        guest.plug(ADAPTER)
        self.addCleanup(guest.waitGone, ADAPTER.busId)
        self.addCleanup(guest.unplug, ADAPTER)
        interfaces = guest.DEVICES_FOLDER / ADAPTER.busId
        guest.waitUntil(lambda: [*interfaces.glob("*:*/net/*")], "it has an interface")
        daemon = self.daemon()
        self.addCleanup(guest.forget, ADAPTER.busId)
        (name,) = (path.name for path in interfaces.glob("*:*/net/*"))
        guest.check("ip", "address", "add", "192.0.2.1/24", "dev", name)
        guest.check("ip", "link", "set", name, "up")
        guest.check("ip", "route", "add", "default", "via", "192.0.2.2", "dev", name)
        self.fails(daemon.ask("attach", id=ADAPTER.busId), f"{name} has the default route")
        self.assertEqual(guest.driverOf(ADAPTER.busId), "usb")
        self.succeeds(daemon.ask("attach", id=ADAPTER.busId, force=True))
        self.assertEqual(guest.driverOf(ADAPTER.busId), "usbip-host")
        self.succeeds(daemon.ask("detach", id=ADAPTER.busId))


del DaemonCase  # base classes are not run
