"""Write sequences that crash the kernel. The order of the steps matters."""

from __future__ import annotations

from collections.abc import Callable

from tests.kernel.facts.cases import HostFactCase
from tests.kernel.needs import dies

STUB_BUG = r"BUG\b.* at .*drivers/usb/usbip/stub_dev\.c:\d+"
"""C{BUG()} in C{stub_disconnect}: the entry of a bound device is not in the table."""

BAD_REBIND = r"\bdo_rebind[.\w]*\+0x[0-9a-f]+/0x[0-9a-f]+ \[usbip_host\]"
"""A line of a trace: C{do_rebind} followed an invalid pointer."""

BAD_UNLOAD = rf"(?s){BAD_REBIND}.*usbip_host_exit\+0x"
"""The same when C{usbip-host} is unloaded."""


def _crash(console: str, sentence: str, *steps: str) -> Callable[[CrashFacts], None]:
    """Make a test.

    @param console: a regular expression that the console matches after the crash.
    @param sentence: the docstring.
    @param steps: methods, or writes as in L{HostFactCase.write}. The last one crashes the kernel.
    """

    def test(self: CrashFacts) -> None:
        *first, last = steps
        for step in first:
            self.do(step)
        self.assertDies(lambda: self.do(last))

    test.__doc__ = sentence
    return dies(console)(test)


_ADD = "usbip-host/match_busid=add {busId}"
_REBIND = "usbip-host/rebind={busId}"
_UNBIND = "usbip-host/unbind={busId}"


class CrashFacts(HostFactCase):
    """Mix this into a test case for each kind of machine.

    @ivar assertDies: asserts that a call crashes the kernel. Not called twice in a test."""

    assertDies: Callable[[Callable[[], object]], None]

    def do(self, step: str) -> None:
        """Carry out a step of a test."""
        if "=" in step:
            self.write(step.format(busId=self.busId))
        else:
            getattr(self, step)()

    def assertEntryLost(self) -> None:
        """Assert that the device is bound, and has no entry."""
        self.assertEqual((self.table(), self.driver()), ([], "usbip-host"))

    test_rebindBoundThenUnbind = _crash(
        STUB_BUG,
        "D1: C{rebind} of a bound device, then C{unbind}.",
        *("bind", _REBIND, "assertEntryLost", _UNBIND),
    )
    test_rebindBoundThenUnplug = _crash(
        STUB_BUG,
        "D1: C{rebind} of a bound device, then it is unplugged.",
        *("bind", _REBIND, "unplug"),
    )
    test_rebindNeverBound = _crash(
        BAD_REBIND, "D2: C{rebind} of a bus id that was added and never bound.", _ADD, _REBIND
    )
    test_rebindUnplugged = _crash(
        BAD_REBIND,
        "D3: C{rebind} of a bus id whose bound device was unplugged: use after free.",
        *("bind", "unplug", _REBIND),
    )
    test_rebindUnboundThenUnplugged = _crash(
        BAD_REBIND,
        "D3: C{rebind} of a bus id whose device was unbound, and then unplugged.",
        *("bind", "unbind", "unplug", _REBIND),
    )
    test_rebindReplugged = _crash(
        BAD_REBIND,
        "D3: C{rebind} of a bus id whose bound device was unplugged, and then replugged.",
        *("bind", "unplug", "plug", _REBIND),
    )
    test_unloadAfterUnplug = _crash(
        BAD_UNLOAD,
        "D3: C{usbip-host} is unloaded after a bound device was unplugged.",
        *("bind", "unplug", "unload"),
    )
    test_unloadAfterUnbindAndUnplug = _crash(
        BAD_UNLOAD,
        "D3: C{usbip-host} is unloaded after a device was unbound, and then unplugged.",
        *("bind", "unbind", "unplug", "unload"),
    )
