"""
What the configuration says of devices: rules that give them names, say how they are
shared, and whom to tell.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec

from usbip_server.model.device import UsbDevice, isBusId
from usbip_server.model.options import Seconds
from usbip_server.model.selector import CRITERIA, given, matching

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*", re.ASCII)
"""Nothing in it is special in a glob, in C{vid:pid} or in a path."""

LONGEST_NAME = 64

CLASSES = {
    "audio": "01",
    "communication": "02",
    "hid": "03",
    "image": "06",
    "printer": "07",
    "storage": "08",
    "smartcard": "0b",
    "video": "0e",
    "wireless": "e0",
    "vendor": "ff",
    "keyboard": "03/01/01",
    "mouse": "03/01/02",
}
"""Words for C{class} (usb.org, Defined Class Codes; HID 1.11, 4.2 and 4.3)."""

_CLASS = re.compile("[0-9a-f]{2}(/[0-9a-f]{2}){0,2}", re.ASCII)


UNSET: Any = None
"""For what may be left out, but not left empty: a key with nothing behind it is a mistake, and
must not mean "all"."""


class Share(enum.Enum):
    """
    How a device is shared.
    """

    ALWAYS = "always"
    """It is bound as soon as it appears."""

    ON_IMPORT = "on_import"
    """It is bound when a client asks for it, or imports it."""

    ON_REQUEST = "on_request"
    """It is bound when a client asks for it."""

    NEVER = "never"
    """It is not shown to clients, and never bound."""


class Occasion(enum.Enum):
    """
    What hooks are called on.
    """

    ADDED = "added"
    REMOVED = "removed"
    BOUND = "bound"
    UNBOUND = "unbound"
    IMPORTED = "imported"
    RELEASED = "released"
    CHANGED = "changed"
    LEASE = "lease"
    FAILED = "failed"
    """A bind or unbind went wrong."""

    BEFORE_BIND = "before_bind"
    """A device is about to be bound; the hook may say no."""


class Recipient(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    A program or an address to be told something.

    @ivar command: a program and its arguments; it gets what it is told on its standard input.
    @ivar url: where to POST it.
    @ivar timeout: seconds until it is given up.
    """

    command: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] | None = None
    url: str | None = None
    timeout: Seconds = 10.0

    def __post_init__(self) -> None:
        if (self.command is None) == (self.url is None):
            raise ValueError("a hook has either a `command` or a `url`")
        if self.url is not None and not re.match(r"https?://[!-~]+\Z", self.url):
            raise ValueError(f"{self.url!r} is not an address such as http://localhost:8080/usb")

    def __str__(self) -> str:
        return self.url or " ".join(self.command or ())


class Hook(Recipient, frozen=True, kw_only=True):
    """
    One that is told of events.

    @ivar events: what of.
    """

    events: Annotated[tuple[Occasion, ...], msgspec.Meta(min_length=1)]


class Match(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    Which devices are meant: all that is given has to match. The others as in requests.

    @ivar device_class: one of L{CLASSES}, or C{"03"} or C{"03/01/01"}; matches the
        device's class and those of its interfaces, in whichever configuration and setting.
    """

    id: str = UNSET
    bus: str | int = UNSET
    serial: str = UNSET
    desc: str = UNSET
    device_class: str = UNSET

    def __post_init__(self) -> None:
        if not given(self, (*CRITERIA, "device_class")):
            raise ValueError("no criterion: `id`, `bus`, `serial`, `desc` or `device_class`")
        if self.device_class is not None and not _CLASS.fullmatch(self._code):
            raise ValueError(
                f"{self.device_class!r} is not a class: two hexadecimal digits, or one of "
                + ", ".join(CLASSES)
            )

    def meets(self, device: UsbDevice) -> bool:
        """Is this one of those that are meant?"""
        if self.device_class is not None:
            codes = (device.deviceClass, *device.interfaces, *device.classes)
            if not any(f"{code}/".startswith(f"{self._code}/") for code in codes):
                return False
        return bool(matching(self, (device,)))

    @property
    def _code(self) -> str:
        wanted = (self.device_class or "").lower()
        return CLASSES.get(wanted, wanted)


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    What is said of some devices.

    @ivar match: which.
    @ivar name: what they are called.
    @ivar share: how they are shared.
    @ivar unbind_released: give it back when its client is done with it.
    @ivar allow_mounted: bind a disk even if this machine has mounted it.
    @ivar hooks: whom to tell.
    """

    match: Match
    name: str | None = None
    share: Share = Share.ON_REQUEST
    unbind_released: bool = False
    allow_mounted: bool = False
    hooks: tuple[Hook, ...] = ()

    def __post_init__(self) -> None:
        if self.name is not None:
            if len(self.name) > LONGEST_NAME or not NAME.fullmatch(self.name):
                raise ValueError(
                    f"{self.name!r} is not a name: letters, digits, '-', '_' and '.', "
                    f"{LONGEST_NAME} characters at the most"
                )
            if isBusId(self.name):
                raise ValueError(f"{self.name!r} is not a name: it looks like a bus id")
        if self.allow_mounted and self.name is None:
            raise ValueError("`allow_mounted` needs a `name`: say which disk you mean by it")


NO_RULE = Rule(match=Match(bus="*"))
"""For a device that none matches."""


class Rules:
    """
    All rules. The first that matches counts.
    """

    def __init__(self, rules: Iterable[Rule] = (), hooks: Iterable[Hook] = ()) -> None:
        """
        @param hooks: those for every device.
        """
        self.become(rules, hooks)

    def become(self, rules: Iterable[Rule], hooks: Iterable[Hook]) -> None:
        """From now on these."""
        self._rules = tuple(rules)
        self._hooks = tuple(hooks)

    def of(self, device: UsbDevice) -> Rule:
        """The rule for a device."""
        nameless = msgspec.structs.replace(device, name=None)
        return next((rule for rule in self._rules if rule.match.meets(nameless)), NO_RULE)

    def hooks(self, device: UsbDevice, occasion: Occasion) -> list[Hook]:
        """Whom to tell."""
        both = (*self._hooks, *self.of(device).hooks)
        return [hook for hook in both if occasion in hook.events]
