"""USB devices that this kernel itself plays: gadgets, made in configfs, on the emulated host
controllers of C{dummy_hcd} (C{Documentation/usb/gadget_configfs.rst})."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from functools import partial
from pathlib import Path

from tests.kernel.devices import (
    BORN_WITH,
    CONTROLLERS,
    GADGETS,
    Device,
    Kind,
    PlugError,
    controllerOf,
)
from tests.kernel.inside.command import check, waitUntil

_GADGETS = Path("/sys/kernel/config/usb_gadget")
_ENGLISH = "strings/0x409"

# SCSI's vendor (8 bytes), product (16) and revision.
_INQUIRY = "QEMU    QEMU HARDDISK   2.5+"

_MODULES = (
    *("libcomposite", "usb_f_acm", "usb_f_hid", "usb_f_mass_storage", "usb_f_ss_lb"),
    *("usb-storage", "cdc-acm", "usbhid"),
)

# Reports of eight bytes and no meaning (Device Class Definition for HID 1.11, 6.2.2): of a
# keyboard, and of a mouse.
_REPORT_BYTES = 8
_REPORTS = {
    Kind.KEYBOARD: bytes.fromhex("05010906a101150026ff00750895080507190029ff8100c0"),
    Kind.TABLET: bytes.fromhex("05010902a1010901a100150026ff0075089508093009318102c0c0"),
}
_PROTOCOLS = {Kind.KEYBOARD: 1, Kind.TABLET: 2}


class GadgetTestbed:
    """Where devices can be plugged in. Any thread may call this, and any process."""

    devices = GADGETS

    def begin(self) -> None:
        """Have the controllers and the drivers, and plug in the devices, at the first call."""
        if _GADGETS.exists():
            return
        check("modprobe", "dummy_hcd", f"num={CONTROLLERS}", "is_super_speed=1")
        for module in _MODULES:
            check("modprobe", module)
        check("mount", "-t", "configfs", "none", str(_GADGETS.parent))
        for name in BORN_WITH:
            if name in self.devices:
                self.plug(self.devices[name], 0.0)

    def plug(self, device: Device, seconds: float) -> None:
        """See L{tests.kernel.guest.plug}."""
        folder = _GADGETS / device.name
        if folder.exists():
            raise PlugError(f"there is a device {device.name}")
        _describe(folder, device)
        try:
            (folder / "UDC").write_text(f"dummy_udc.{controllerOf(device)}")
        except OSError as error:
            _remove(folder)
            raise PlugError(f"{device.busId}: {error.strerror}") from error

    def unplug(self, name: str, seconds: float) -> None:
        """See L{tests.kernel.guest.unplug}."""
        folder = _GADGETS / name
        if not folder.exists():
            raise PlugError(f"there is no device {name}")
        with contextlib.suppress(OSError):  # it was unplugged by other means
            (folder / "UDC").write_text("\n")
        _remove(folder)


def _describe(folder: Path, device: Device) -> None:
    """Make a gadget that is not plugged in yet."""
    configuration = folder / "configs" / "c.1"
    function = folder / "functions" / _FUNCTIONS[device.kind]
    strings = folder / _ENGLISH
    for made in (folder, strings, configuration, function):
        made.mkdir()
    vendor, _, product = device.vidPid.partition(":")
    (folder / "idVendor").write_text(f"0x{vendor}")
    (folder / "idProduct").write_text(f"0x{product}")
    (folder / "max_speed").write_text("super-speed" if device.isSuper else "high-speed")
    (strings / "manufacturer").write_text("QEMU")
    (strings / "product").write_text(device.product or device.kind.value)
    if device.serial is not None:
        (strings / "serialnumber").write_text(device.serial)
    if device.kind is Kind.DISK:
        image = Path(f"/run/{device.name}.img")
        shutil.copy(os.environ["USBIPSHARE_GUEST_DISK"], image)
        (function / "lun.0/inquiry_string").write_text(_INQUIRY)
        (function / "lun.0/file").write_text(str(image))
    elif device.kind in _REPORTS:
        (function / "subclass").write_text("1")
        (function / "protocol").write_text(str(_PROTOCOLS[device.kind]))
        (function / "report_length").write_text(str(_REPORT_BYTES))
        (function / "report_desc").write_bytes(_REPORTS[device.kind])
    (configuration / function.name).symlink_to(function)


_FUNCTIONS = {
    Kind.CARD_READER: "Loopback.0",
    Kind.DISK: "mass_storage.0",
    Kind.KEYBOARD: "hid.0",
    Kind.SERIAL: "acm.0",
    Kind.TABLET: "hid.0",
}


def _remove(folder: Path) -> None:
    """Take a gadget apart, in the opposite order."""
    configuration = folder / "configs" / "c.1"
    for link in configuration.iterdir():
        if link.is_symlink():
            link.unlink()
    (function,) = (folder / "functions").iterdir()
    for made in (configuration, function, folder / _ENGLISH, folder):
        waitUntil(partial(_isRemoved, made), f"{made} can be removed")


def _isRemoved(folder: Path) -> bool:
    """Remove a folder, unless a function's node is still open, as it may be for a moment."""
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True
