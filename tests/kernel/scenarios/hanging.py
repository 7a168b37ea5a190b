"""
A device that hangs, with a program of this machine or a driver waiting for it in the kernel:
nobody else waits.
"""

from __future__ import annotations

import signal
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.kernel import guest
from tests.kernel.guest import models
from tests.kernel.misbehavingcase import HOST, IN_TIME, OTHER, MisbehavingCase
from tests.support.childdaemon import ChildDaemon

GET_MAX_LUN = 0xFE
"""C{US_BULK_GET_MAX_LUN} (C{include/linux/usb/storage.h})."""

STOP = 5.0
"""Seconds: the default of C{timeouts.stop}."""


class HangingCase(MisbehavingCase):
    """
    A device that answers no control request any more, while a program waits for one and has
    the device locked: whatever is written to or read from the kernel about it blocks, and no
    signal ends that.
    """

    def setUp(self) -> None:
        super().setUp()
        self.bad = self.plugged(models.Hanging())
        self.other = self.plugged(models.plain(), OTHER)

    def hang(self) -> None:
        """From now on it hangs, until it is unplugged."""
        locked = guest.Locked(self.bad.busId)
        locked.__enter__()
        self.addCleanup(locked.__exit__, None, None, None)
        self.addCleanup(self.bad.unplug)

    def otherIsWell(self, daemon: ChildDaemon) -> None:
        """All is possible with the other device, and at once."""
        self.assertIn(self.other.busId, [d["bus_id"] for d in self.atOnce(daemon, "list")["data"]])
        self.succeeds(self.atOnce(daemon, "list", detail=True))
        self.succeeds(self.atOnce(daemon, "find", serial="PLAIN1"))
        self.succeeds(self.atOnce(daemon, "attach", serial="PLAIN1"))
        self.assertEqual(guest.driverOf(self.other.busId), "usbip-host")
        self.assertIn(f"{self.other.busId}:", self.importable(daemon))
        self.succeeds(self.atOnce(daemon, "detach", serial="PLAIN1"))
        self.assertEqual(guest.driverOf(self.other.busId), "usb")

    def attachHangs(self, daemon: ChildDaemon) -> dict[str, Any]:
        """
        The attach of the device that hangs is answered in time, and goes on in the kernel.
        """
        began = time.monotonic()
        answer = daemon.ask("attach", serial="HANG1")
        self.assertLess(time.monotonic() - began, IN_TIME, answer)
        guest.waitUntil(lambda: guest.isStuck(daemon.child.pid), "the daemon's thread is stuck")
        return answer

    def wellAgain(self, daemon: ChildDaemon) -> None:
        """What is plugged in where the device was can be attached and detached."""
        self.bad.unplug()
        self.lists(daemon, self.other.busId)
        fresh = self.plugged(models.plain("FRESH1"))
        self.assertEqual(fresh.busId, self.bad.busId)
        self.lists(daemon, fresh.busId, self.other.busId)
        self.succeeds(daemon.ask("attach", serial="FRESH1"))
        self.assertIn(f"{fresh.busId}:", self.importable(daemon))
        self.succeeds(daemon.ask("detach", serial="FRESH1"))
        self.assertEqual(self.detail(daemon, fresh.busId)["state"], "free")
        self.otherIsWell(daemon)


class HangingTests(HangingCase):
    """
    What is said and done while a device hangs, with the usual timeouts.
    """

    def test_delaysNobody(self) -> None:
        """
        The attach of a device that hangs is answered in time: it goes on. Meanwhile everything
        else is answered at once, and when the device is unplugged all is as before.
        """
        daemon = self.daemon()
        self.hang()
        self.fails(self.attachHangs(daemon), "takes longer than 1.8 s and goes on")
        self.otherIsWell(daemon)
        detach = daemon.ask("detach", serial="HANG1")
        self.assertEqual(detach["status"], "error", detach)
        self.assertIn("still in progress", detach["message"])
        found = self.succeeds(self.atOnce(daemon, "find", id=self.bad.busId, detail=True))
        self.assertEqual(found["serial"], "HANG1")
        self.otherIsWell(daemon)
        self.wellAgain(daemon)

    def test_answersAfterAll(self) -> None:
        """
        When the device answers after all the attach comes to its end, and the device can be
        imported and detached.
        """
        daemon = self.daemon()
        self.hang()
        self.attachHangs(daemon)
        self.bad.wake()
        self.stateSoon(daemon, "bound", self.bad.busId)
        self.succeeds(self.atOnce(daemon, "attach", serial="HANG1"))
        with self.imported(daemon, self.bad.busId) as imported:
            self.assertEqual(guest.attribute(imported, "serial"), "HANG1")
        self.stateSoon(daemon, "bound", self.bad.busId)
        self.succeeds(daemon.ask("detach", serial="HANG1"))
        self.otherIsWell(daemon)

    def test_before(self) -> None:
        """
        A daemon that is started while a device hangs lists it, without its strings, and all
        the others.
        """
        self.hang()
        began = time.monotonic()
        daemon = self.daemon()
        print(f"\nready {time.monotonic() - began:.1f} s after the start, with a device that hangs")
        self.lists(daemon, self.bad.busId, self.other.busId)
        found = self.detail(daemon, self.bad.busId)
        self.assertEqual((found["vendor_id"], found["serial"]), ("0525", None))
        self.otherIsWell(daemon)
        self.wellAgain(daemon)

    def test_stop(self) -> None:
        """
        A daemon with a thread that is stuck in the kernel stops listening in time when it is
        told to stop, and another one can take its place: the same ports, the same state.
        """
        with socket.create_server((HOST, 0)) as probe:
            port = probe.getsockname()[1]
        self.listen = f"tcp:{port}:interface={HOST}"
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        config = self.config(state=f"{{file: {folder.name}/state}}")
        first = self.daemon(config)
        self.succeeds(first.ask("attach", serial="PLAIN1"))
        self.hang()
        self.attachHangs(first)
        began = time.monotonic()
        first.child.send_signal(signal.SIGTERM)
        guest.waitUntil(lambda: not guest.isListening(port), "it does not listen any more")
        guest.waitUntil(lambda: hasExited(first.child.pid), "it has ended, but for the thread")
        took = time.monotonic() - began
        print(f"\nstopped after {took:.1f} s, with a thread that is stuck")
        self.assertLess(took, STOP + IN_TIME)
        second = self.daemon(config)
        self.assertEqual(second.port, port)
        self.assertEqual(self.detail(second, self.other.busId)["state"], "bound")
        self.otherIsWell(second)
        self.wellAgain(second)
        self.assertEqual(first.child.wait(guest.DEADLINE), -signal.SIGTERM)


class GivenUpTests(HangingCase):
    """
    What is said of a device that hangs when the time for a bind is over.
    """

    timeouts = "{bind: 3}"

    def test_givenUp(self) -> None:
        """
        When the time is over the device is shown as C{error}, with what is the matter and what
        to do; a further attach says the same at once. The other devices work all the time.
        """
        daemon = self.daemon()
        self.hang()
        self.attachHangs(daemon)
        self.stateSoon(daemon, "error", self.bad.busId)
        found = self.succeeds(self.atOnce(daemon, "find", id=self.bad.busId, detail=True))
        self.assertIn("the kernel has not finished the attach within 3 s", found["trouble"])
        self.assertIn("Unplug the device", found["trouble"])
        self.fails(daemon.ask("attach", serial="HANG1"), "Unplug the device")
        again = self.atOnce(daemon, "attach", serial="HANG1")
        self.fails(again, "an earlier attach, detach, kick or export is still stuck in the kernel")
        self.otherIsWell(daemon)
        self.wellAgain(daemon)

    def test_answersLate(self) -> None:
        """
        When the device answers after the time is over it is shown as it is, and can be
        attached.
        """
        daemon = self.daemon()
        self.hang()
        self.attachHangs(daemon)
        self.stateSoon(daemon, "error", self.bad.busId)
        self.bad.wake()
        guest.waitUntil(
            lambda: self.detail(daemon, self.bad.busId)["trouble"] is None, "the trouble is over"
        )
        self.assertIn(self.detail(daemon, self.bad.busId)["state"], ("bound", "free"))
        self.attachesSoon(daemon, "HANG1")
        self.succeeds(daemon.ask("detach", serial="HANG1"))
        self.otherIsWell(daemon)


class MuteDiskTests(MisbehavingCase):
    """
    A disk that answers no SCSI command: C{usb-storage} does not let go of it before its
    C{INQUIRY} has timed out, and that cannot be interrupted.
    """

    timeouts = "{bind: 3}"

    def test_endsByItself(self) -> None:
        """
        The attach is answered in time, and is shown as C{error} when the time for it is over;
        the other device works. When the driver has given up the disk can be attached.
        """
        guest.modprobe("usb-storage")
        timeout = Path("/sys/module/scsi_mod/parameters/inq_timeout")
        self.addCleanup(timeout.write_text, timeout.read_text())
        timeout.write_text("8")  # seconds, and there are usually 20
        other = self.plugged(models.plain(), OTHER)
        daemon = self.daemon()
        disk = self.plugged(models.MuteDisk())
        self.lists(daemon, disk.busId, other.busId)
        guest.waitUntil(
            lambda: any(f"request={GET_MAX_LUN}," in line for line in disk.log()),
            "usb-storage asks how many units there are, and INQUIRY is next",
        )
        began = time.monotonic()
        self.fails(daemon.ask("attach", id=disk.busId), "takes longer than 1.8 s and goes on")
        self.assertLess(time.monotonic() - began, IN_TIME)
        guest.waitUntil(lambda: guest.isStuck(daemon.child.pid), "the daemon's thread is stuck")
        self.succeeds(self.atOnce(daemon, "attach", id=other.busId))
        self.stateSoon(daemon, "error", disk.busId)
        self.succeeds(self.atOnce(daemon, "detach", id=other.busId))
        guest.waitUntil(
            lambda: self.detail(daemon, disk.busId)["trouble"] is None, "the trouble is over"
        )
        print(f"\nusb-storage lets go of it {time.monotonic() - began:.1f} s after the attach")
        self.attachesSoon(daemon, "MUTE1")
        self.assertIn(f"{disk.busId}:", self.importable(daemon))


def hasExited(process: int) -> bool:
    """
    Has a process ended, but for threads that the kernel does not let go? Its first thread then
    is in the state C{Z}.
    """
    stat = Path(f"/proc/{process}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "Z"


del MisbehavingCase, HangingCase  # they are not to be run themselves
