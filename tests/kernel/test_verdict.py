"""Tests of L{tests.kernel.verdict}."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.kernel.verdict import complaintsOf, excerptOf, hasDied

_WARNING = """\
[   12.300000] ------------[ cut here ]------------
[   12.300001] WARNING: CPU: 0 PID: 9 at {where} thing+0x1/0x2 [{module}]
[   12.300002] Modules linked in: sd_mod usbip_host usbip_core
[   12.300003]  vhci_hcd xhci_pci
[   12.300004] CPU: 0 PID: 9 Comm: kworker/0:1 Not tainted 6.1.0-56-amd64 #1
[   12.300005] Call Trace:
[   12.300006]  thing_else+0x1/0x2
[   12.300007] ---[ end trace 0000000000000000 ]---
[   12.300008] usbip-host 1-1: device reset
"""


class ComplaintTests(SynchronousTestCase):
    """Reading a kernel's console."""

    def test_complaints(self) -> None:
        """Bugs, oopses, panics and tasks that hang are complaints."""
        for line in (
            "kernel BUG at drivers/usb/usbip/stub_dev.c:439!",
            "BUG: kernel NULL pointer dereference, address: 00000000000000e8",
            "Oops: 0000 [#1] PREEMPT SMP NOPTI",
            "general protection fault, probably for non-canonical address",
            "Kernel panic - not syncing: Attempted to kill init!",
            "INFO: task kworker/0:1:9 blocked for more than 120 seconds.",
        ):
            self.assertEqual([line], complaintsOf(f"[    1.500000] {line}\r\n[    1.6] x"))

    def test_warningWithUsbipInTrace(self) -> None:
        """A warning counts if usbip or vhci is in its trace. That their modules are loaded does not
        make it theirs, nor what is printed afterwards."""
        ours = _WARNING.format(where="drivers/usb/usbip/vhci_hcd.c:10", module="vhci_hcd")
        other = _WARNING.format(where="kernel/time/timer.c:10", module="timer")
        self.assertEqual(1, len(complaintsOf(ours)))
        self.assertEqual([], complaintsOf(other))
        self.assertEqual([], complaintsOf("[    0.1] Spectre V2 : WARNING: not for us\n"))

    def test_warningAboutRequest(self) -> None:
        """A warning about a client's request is no complaint; one without such a request is."""
        warning = _WARNING.format(where="drivers/usb/core/urb.c:411", module="usbip_host")
        line = "usbip-host 1-1: BOGUS control dir, pipe 80000280 doesn't match bRequestType 21"
        console = warning.replace("WARNING", f"{line}\n[   12.300001] WARNING")
        self.assertEqual([], complaintsOf(console))
        self.assertEqual(1, len(complaintsOf(console + warning)))

    def test_expectedCrash(self) -> None:
        """A kernel has died of what was expected if it has panicked and shows it."""
        console = "[    1.500000] BUG: failure at here.c:1\n[    1.5] Kernel panic - not syncing\n"
        self.assertTrue(hasDied(console, r"BUG: failure at here\.c"))
        self.assertFalse(hasDied(console, "there"))
        self.assertFalse(hasDied("BUG: failure at here.c:1\n", "here"))

    def test_panicByHarness(self) -> None:
        """What the harness itself does to a guest that hangs is no complaint."""
        console = (
            "Uhhuh. NMI received for unknown reason 20 on CPU 0.\nKernel panic - not syncing\n"
        )
        self.assertEqual([], complaintsOf(console))

    def test_excerpt(self) -> None:
        """The first complaint is shown with what came before and after; else the tasks that hang;
        else the end."""
        quiet = [f"[    1.{number:06}] line {number}" for number in range(200)]
        self.assertEqual(quiet[-50:], excerptOf("\n".join(quiet)))
        loud = [*quiet[:100], "kernel BUG at here", *quiet[100:]]
        self.assertEqual(loud[90:150], excerptOf("\n".join(loud)))
        hanging = ["task:tee state:D", " <TASK>", " schedule"]
        tasks = [*hanging, " </TASK>", "task:sh state:S", " <TASK>", " schedule", " </TASK>"]
        self.assertEqual(hanging, excerptOf("\n".join([*quiet, *tasks, *quiet])))
