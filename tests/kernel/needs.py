"""What a scenario needs of the machine that it runs in.

A scenario without a need runs on both kinds of machine. One with a need runs where that is offered:

    @needs(Need.STOCK_KERNEL)
    class AutoloadTests(SynchronousTestCase): ...

A scenario that crashes the kernel has a pattern for the console, and a boot of its own:

    @dies("NULL pointer dereference")
    def test_rebindNeverBound(self) -> None: ...

A case may be booted with further options of the kernel, where each case has a boot of its own:

    @boots("ipv6.disable=1")
    class NoIpv6Tests(SynchronousTestCase): ..."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_NEEDS = "kernelNeeds"
_DIES = "kernelDies"
_BOOTS = "kernelBoots"


class Need(enum.Enum):
    """Something that not every kind of machine has."""

    GADGETS = "USB gadgets that a test makes and changes"
    HUB = "a USB hub"
    STOCK_KERNEL = "a Debian kernel as it is packaged"
    SYSTEMD = "systemd as it is installed"


def needs(*wanted: Need) -> Callable[[T], T]:
    """Decorate a test case or a test method that needs something."""

    def decorate(decorated: T) -> T:
        setattr(decorated, _NEEDS, frozenset(wanted) | getattr(decorated, _NEEDS, frozenset()))
        return decorated

    return decorate


def dies(pattern: str) -> Callable[[T], T]:
    """Decorate a test method whose last step kills the kernel.

    @param pattern: a regular expression that the console has to match afterwards."""

    def decorate(decorated: T) -> T:
        setattr(decorated, _DIES, pattern)
        return decorated

    return decorate


def boots(*options: str) -> Callable[[type[T]], type[T]]:
    """Decorate a test case that needs further options of the kernel."""

    def decorate(decorated: type[T]) -> type[T]:
        setattr(decorated, _BOOTS, options)
        return needs(Need.GADGETS)(decorated)

    return decorate


def optionsOf(test: object) -> tuple[str, ...]:
    """The further options of the kernel that a test needs."""
    options: tuple[str, ...] = getattr(test, _BOOTS, ())
    return options


def needsOf(test: object) -> frozenset[Need]:
    """What a test needs: its case and its method together."""
    needed: frozenset[Need] = getattr(test, _NEEDS, frozenset())
    more: frozenset[Need] = getattr(_methodOf(test), _NEEDS, frozenset())
    return needed | more


def deathOf(test: object) -> str | None:
    """What the console shows when the kernel has died of a test; none if it must not."""
    pattern: str | None = getattr(_methodOf(test), _DIES, None)
    return pattern


def _methodOf(test: object) -> object:
    return getattr(test, str(getattr(test, "_testMethodName", "")), None)
