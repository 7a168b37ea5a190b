"""
The rules for devices in the configuration: names, when a device is shared, and hooks.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from functools import cached_property
from typing import Annotated, Any

import msgspec

from usbip_server.model.criteria import CRITERIA, NAME, given, isName
from usbip_server.model.device import UsbDevice, isBusId
from usbip_server.model.options import Seconds
from usbip_server.model.selector import Selector

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
"""Names for values of C{device_class} (usb.org, Defined Class Codes; HID 1.11, 4.2 and 4.3)."""

_WORD_OF = {code: word for word, code in CLASSES.items()}

_CLASS = re.compile("[0-9a-f]{2}(/[0-9a-f]{2}){0,2}", re.ASCII)


UNSET: Any = None
"""The default of optional keys that must not be null in the file: a key without a value is a
mistake, and must not mean "all"."""


def requireName(name: str) -> None:
    """
    @raise ValueError: a text is not a name.
    """
    if len(name) > LONGEST_NAME or not NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is not a name: letters, digits, '-', '_' and '.', {LONGEST_NAME} characters "
            "at the most"
        )


class Share(enum.Enum):
    """
    When a device is bound.
    """

    ALWAYS = "always"
    """As soon as it is plugged in."""

    ON_IMPORT = "on_import"
    """When a client attaches or imports it."""

    ON_REQUEST = "on_request"
    """When a client attaches it."""

    NEVER = "never"
    """Never; and clients do not see it."""


class Occasion(enum.Enum):
    """
    The events that hooks can be run on.
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
    """A bind or unbind has failed."""

    BEFORE_BIND = "before_bind"
    """A device is about to be bound; the hook may veto it."""


_ORIGIN = re.compile(
    r"(https?)://(?:[^/?#@]*@)?([\w.-]+(?::\d+)?|\[[\da-f:.]+\](?::\d+)?)(?=[/?#]|\Z)", re.I
)
"""The scheme and the host of a URL, without a user and a password."""


class Recipient(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    A program to run or a URL to post to.

    @ivar name: what clients and the log call it.
    @ivar command: a program and its arguments. It receives the event on its standard input.
    @ivar url: the URL that the event is posted to.
    @ivar timeout: the time limit, in seconds.
    """

    name: str | None = None
    command: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] | None = None
    url: str | None = None
    timeout: Seconds = 10.0

    def __post_init__(self) -> None:
        if self.name is not None:
            requireName(self.name)
        if (self.command is None) == (self.url is None):
            raise ValueError("a hook requires either `command` or `url`")
        if self.url is not None and not re.match(r"https?://[!-~]+\Z", self.url):
            raise ValueError(f"{self.url!r} is not a URL such as http://localhost:8080/usb")

    def __str__(self) -> str:
        """
        The name, for the log. Without a name, the program or the host: arguments, passwords and
        paths of URLs may be secret.
        """
        if self.name is not None:
            return self.name
        if self.command is not None:
            return self.command[0]
        found = _ORIGIN.match(self.url or "")
        return f"{found[1]}://{found[2]}" if found else "a URL"


class Hook(Recipient, frozen=True, kw_only=True):
    """
    A program or URL, and the events that it receives.
    """

    events: Annotated[tuple[Occasion, ...], msgspec.Meta(min_length=1)]


def classWord(code: str) -> str | None:
    """
    The word of L{CLASSES} for the class of a device or an interface, C{"08"} or C{"08/06/50"}: the
    most specific one.
    """
    return next(filter(None, (_WORD_OF.get(code[:length]) for length in (8, 5, 2))), None)


class Match(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """
    Criteria for devices: a device has to match all that are given. The criteria other than
    C{device_class} are those of requests (L{usbip_server.model.selector}).

    @ivar device_class: one of L{CLASSES}, or a code such as C{"03"} or C{"03/01/01"}. Matches the
        class of the device and those of its interfaces, in all configurations and settings.
    """

    id: str = UNSET
    bus: str | int = UNSET
    serial: str = UNSET
    desc: str = UNSET
    path: str = UNSET
    device_class: str = UNSET

    def __post_init__(self) -> None:
        if not given(self, (*CRITERIA, "device_class")):
            raise ValueError(
                "no criterion: `id`, `bus`, `serial`, `desc`, `path` or `device_class`"
            )
        self.selector  # noqa: B018 - raises ValueError if a criterion is malformed
        if self.device_class is not None and not _CLASS.fullmatch(self._code):
            raise ValueError(
                f"{self.device_class!r} is not a class: two hexadecimal digits, or one of "
                + ", ".join(CLASSES)
            )

    @cached_property
    def selector(self) -> Selector:
        """The criteria other than C{device_class}, compiled."""
        return Selector(self, isStrict=True)

    def meets(self, device: UsbDevice) -> bool:
        """Whether a device matches. What is not known of it does not match."""
        return self._hasClass(device) and self.selector.matches(device)

    def mayMeet(self, device: UsbDevice) -> bool:
        """Whether a device matches, or may do so: fields of it are not known."""
        isClassKnown = "classes" not in device.unknown
        return (self._hasClass(device) or not isClassKnown) and self.selector.mayMatch(device)

    def _hasClass(self, device: UsbDevice) -> bool:
        if self.device_class is None:
            return True
        codes = (device.deviceClass, *device.interfaces, *device.classes)
        return any(f"{code}/".startswith(f"{self._code}/") for code in codes)

    @property
    def _code(self) -> str:
        wanted = (self.device_class or "").lower()
        return CLASSES.get(wanted, wanted)


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    The settings for some devices.

    @ivar match: the devices.
    @ivar name: the name of the device.
    @ivar share: when the device is bound.
    @ivar unbind_released: unbind the device when the client that has imported it releases it.
    @ivar allow_mounted: bind a disk even if this machine has mounted it.
    @ivar hooks: hooks for events of the device.
    """

    match: Match
    name: str | None = None
    share: Share = Share.ON_REQUEST
    unbind_released: bool = False
    allow_mounted: bool = False
    hooks: tuple[Hook, ...] = ()

    def __post_init__(self) -> None:
        if self.match.id is not None and isName(self.match.id):
            raise ValueError(
                f"`match.id`: {self.match.id!r} is not a bus id such as 1-1.4, `vid:pid` or a "
                "glob; a rule gives names, and cannot select by one"
            )
        if self.name is not None:
            requireName(self.name)
            if isBusId(self.name):
                raise ValueError(f"{self.name!r} is not a name: it looks like a bus id")
        if self.allow_mounted and self.name is None:
            raise ValueError("`allow_mounted` requires a `name` for the disk")


STRICTER = (Share.ALWAYS, Share.ON_IMPORT, Share.ON_REQUEST, Share.NEVER)
"""From the most to the least permissive."""

NO_RULE = Rule(match=Match(bus="*"))
"""The rule for a device that no other matches."""


class Rules:
    """
    All rules; the first one that matches a device applies to it.
    """

    def __init__(self, rules: Iterable[Rule] = (), hooks: Iterable[Hook] = ()) -> None:
        """
        @param hooks: hooks for events of all devices.
        """
        self._rules = tuple(rules)
        self._hooks = tuple(hooks)

    def of(self, device: UsbDevice) -> Rule:
        """
        The rule that applies to a device. If something of the device is not known, rules before
        it may apply as well: then the device is shared as the strictest of them says.
        """
        nameless = msgspec.structs.replace(device, name=None)
        rule, possible = self._match(nameless)
        strictest = max((rule, *possible), key=lambda it: STRICTER.index(it.share))
        if strictest.share is Share.NEVER or not possible:
            return strictest
        allowMounted = all(it.allow_mounted for it in (rule, *possible))
        return msgspec.structs.replace(rule, share=strictest.share, allow_mounted=allowMounted)

    def hooks(self, device: UsbDevice, occasion: Occasion) -> list[Hook]:
        """The hooks to run on an event of a device."""
        nameless = msgspec.structs.replace(device, name=None)
        rule, possible = self._match(nameless)
        rules = (rule, *possible) if occasion is Occasion.BEFORE_BIND else (rule,)
        hooks = (*self._hooks, *(hook for each in rules for hook in each.hooks))
        return [hook for hook in hooks if occasion in hook.events]

    def _match(self, device: UsbDevice) -> tuple[Rule, list[Rule]]:
        """The first rule that matches, and those before it that may match."""
        possible: list[Rule] = []
        for rule in self._rules:
            if rule.match.meets(device):
                return rule, possible
            if device.unknown and rule.match.mayMeet(device):
                possible.append(rule)
        return NO_RULE, possible
