"""
What runs on Debian's own kernels in QEMU, where everything takes ten times as long: the scenarios
that need such a machine, and of the others a smoke test of each feature.
"""

from __future__ import annotations

from tests.kernel.selection import fullName

SMOKE = [
    fullName(name)
    for name in (
        # The machine itself, its hub, its modules.
        "stock",
        # List, attach, import, detach, with both backends; unplug and replug; kill -9.
        "sharing.SysfsTests.test_listsDevicesWithDescriptionsOfLsusb",
        "sharing.SysfsTests.test_share",
        "sharing.SysfsTests.test_stress",
        "sharing.UsbipToolTests.test_share",
        "sharing.SysfsTests.test_hotplug",
        "sharing.SysfsTests.test_killed",
        # The exporter with a stock client, TLS with and without the kernel's help.
        "exporting.ExportingTests.test_killed",
        "secured.KtlsTests.test_ktls",
        # The command and the client service.
        "typed.TypedTests.test_session",
        "clientservice.ClientServiceTests.test_request",
        # systemd, udev, the packaged units.
        "service",
        "clientservice.UnitTests",
    )
]
