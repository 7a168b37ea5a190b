"""
The names of vendors and products, from the C{usb.ids} file that C{lsusb} uses
(http://www.linux-usb.org/usb-ids.html).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from twisted.logger import Logger

PATHS = (
    "/usr/share/misc/usb.ids",
    "/usr/share/hwdata/usb.ids",
    "/var/lib/usbutils/usb.ids",
    "/usr/share/usb.ids",
)
"""Where distributions keep it: Debian, Fedora and Arch, older Debian, Alpine."""


_ID = re.compile("[0-9a-fA-F]{4}")


class UsbIds:
    """
    Names by id. The file is read when the first name is needed.
    """

    _log = Logger()

    def __init__(self, paths: Sequence[str] = PATHS) -> None:
        self._paths = paths
        self._names: dict[str, str] | None = None

    def describe(
        self, vendorId: str, productId: str, manufacturer: str | None, product: str | None
    ) -> str:
        """
        The description that C{lsusb} prints: vendor and product, each by its name in the file or
        else by the device's own string.
        """
        if self._names is None:
            self._names = self._read()
        vendor = self._names.get(vendorId) or manufacturer or ""
        model = self._names.get(vendorId + productId) or product or ""
        return f"{vendor} {model}".strip() or f"USB device {vendorId}:{productId}"

    def _read(self) -> dict[str, str]:
        for path in self._paths:
            try:
                with open(path, encoding="utf-8", errors="replace") as file:
                    return parse(file)
            except OSError:
                continue
        self._log.info(
            "no usb.ids file found, so devices are described by their own strings "
            "(Debian: apt-get install usb.ids)"
        )
        return {}


def parse(lines: Iterable[str]) -> dict[str, str]:
    """
    Read vendors and products: C{"1234"} and C{"12345678"} to their names.

    A vendor is its id, two spaces and its name, in the first column; its products are
    below it, behind one tab. The lists that follow (classes, languages, ...) begin with a word.
    """
    names: dict[str, str] = {}
    vendor = ""
    for line in lines:
        key, _, name = line.strip().partition("  ")
        if line[:1] not in "\t#\n":
            vendor = key if _ID.fullmatch(key) else ""
            if vendor:
                names[vendor.lower()] = name
        elif line[:1] == "\t" and line[1:2] != "\t" and vendor and _ID.fullmatch(key):
            names[(vendor + key).lower()] = name
    return names
