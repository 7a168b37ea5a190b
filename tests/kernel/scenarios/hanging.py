"""A device that hangs while a program or a driver waits for it in the kernel: requests about other
devices are not delayed."""

from __future__ import annotations

import json
import signal
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.kernel import guest
from tests.kernel.daemoncase import HOST
from tests.kernel.inside.rawgadget import models
from tests.kernel.inside.usbfs import isStuck, locked
from tests.kernel.misbehavingcase import OTHER, MisbehavingCase
from tests.support.childdaemon import ChildDaemon

GET_MAX_LUN = 0xFE
"""C{US_BULK_GET_MAX_LUN} (C{include/linux/usb/storage.h})."""


class HangingCase(MisbehavingCase):
    """A device that answers no control request any more, while a program waits for an answer and
    holds the lock of the device: reads and writes of its attributes block, and no signal ends
    that."""

    def setUp(self) -> None:
        super().setUp()
        self.bad = self.plugged(models.Hanging())
        self.other = self.plugged(models.plain(), OTHER)

    def hang(self) -> None:
        """Let the device hang until it is unplugged."""
        self.enter(locked(self.bad.busId))
        self.addCleanup(self.bad.unplug)

    def assertOtherWorks(self, daemon: ChildDaemon) -> None:
        """All requests about the other device are answered promptly."""
        self.assertIn(
            self.other.busId, [d["bus_id"] for d in self.promptly(daemon, "list")["data"]]
        )
        self.succeeds(self.promptly(daemon, "list", detail=True))
        self.succeeds(self.promptly(daemon, "find", serial="PLAIN1"))
        self.succeeds(self.promptly(daemon, "attach", serial="PLAIN1"))
        self.assertEqual(guest.driverOf(self.other.busId), "usbip-host")
        self.assertIn(f"{self.other.busId}:", self.importable(daemon))
        self.succeeds(self.promptly(daemon, "detach", serial="PLAIN1"))
        self.assertEqual(guest.driverOf(self.other.busId), "usb")

    def attachHangs(self, daemon: ChildDaemon) -> dict[str, Any]:
        """Attach the device that hangs: it is answered, while the kernel goes on."""
        answer = daemon.ask("attach", serial="HANG1")
        guest.waitUntil(lambda: isStuck(daemon.child.pid), "the daemon's thread is stuck")
        return answer

    def assertReplaced(self, daemon: ChildDaemon) -> None:
        """A device that is plugged in at the same place can be attached and detached."""
        self.bad.unplug()
        self.awaitRawListed(daemon, self.other.busId)
        fresh = self.plugged(models.plain("FRESH1"))
        self.assertEqual(fresh.busId, self.bad.busId)
        self.awaitRawListed(daemon, fresh.busId, self.other.busId)
        self.succeeds(daemon.ask("attach", serial="FRESH1"))
        self.assertIn(f"{fresh.busId}:", self.importable(daemon))
        self.succeeds(daemon.ask("detach", serial="FRESH1"))
        self.assertEqual(self.detail(daemon, fresh.busId)["state"], "free")
        self.assertOtherWorks(daemon)


class HangingTests(HangingCase):
    """With the default timeouts."""

    def test_otherDevicesAreNotDelayed(self) -> None:
        """The attach of a device that hangs is answered with "goes on". Other requests are answered
        promptly. After an unplug another device works in its place."""
        daemon = self.daemon()
        self.hang()
        self.fails(self.attachHangs(daemon), "takes longer than 1.8 s and goes on")
        self.assertOtherWorks(daemon)
        detach = daemon.ask("detach", serial="HANG1")
        self.assertEqual(detach["status"], "error", detach)
        self.assertIn("still in progress", detach["message"])
        found = self.succeeds(self.promptly(daemon, "find", id=self.bad.busId, detail=True))
        self.assertEqual(found["serial"], "HANG1")
        self.assertOtherWorks(daemon)
        self.assertReplaced(daemon)

    def test_deviceAnswersAgain(self) -> None:
        """When the device answers again the attach ends, and the device can be imported and
        detached."""
        daemon = self.daemon()
        self.hang()
        self.attachHangs(daemon)
        self.bad.wake()
        self.awaitState(daemon, "bound", self.bad.busId)
        self.succeeds(self.promptly(daemon, "attach", serial="HANG1"))
        with self.imported(daemon, self.bad.busId) as imported:
            self.assertEqual(guest.attribute(imported, "serial"), "HANG1")
        self.awaitState(daemon, "bound", self.bad.busId)
        self.succeeds(daemon.ask("detach", serial="HANG1"))
        self.assertOtherWorks(daemon)

    def test_startedWhileDeviceHangs(self) -> None:
        """A daemon that is started while a device hangs lists it without its strings."""
        self.hang()
        began = time.monotonic()
        daemon = self.daemon()
        print(f"\nready {time.monotonic() - began:.1f} s after the start, with a device that hangs")
        self.awaitRawListed(daemon, self.bad.busId, self.other.busId)
        found = self.detail(daemon, self.bad.busId)
        self.assertEqual((found["vendor_id"], found["serial"]), ("0525", None))
        self.assertOtherWorks(daemon)
        self.assertReplaced(daemon)

    def test_neverHoldsWithoutStrings(self) -> None:
        """C{share: never} for a serial number holds for a device whose strings cannot be read, as
        it hangs: it is neither listed nor bound by a further rule, then nor when it answers. A rule
        C{share: always} for its serial number binds it when it answers."""
        self.hang()
        rules = [
            {"match": {"serial": "HANG1"}, "share": "never"},
            {"match": {"id": "*"}, "share": "always"},
        ]
        daemon = self.daemon(self.config(more=f"devices: {json.dumps(rules)}\n"))
        guest.waitPresent(self.other.busId, "usbip-host")
        for isAwake in (False, True):
            if isAwake:
                self.bad.wake()
                guest.check("cat", f"{guest.DEVICES_FOLDER}/{self.bad.busId}/serial")
            self.awaitRawListed(daemon, self.other.busId)
            for command in ("find", "attach"):
                answer = self.promptly(daemon, command, id=self.bad.busId)
                self.assertEqual(answer["status"], "not_found", answer)
            self.assertEqual(guest.driverOf(self.bad.busId), "usb")
            self.assertNotIn(f"{self.bad.busId}:", self.importable(daemon))
        rules[0]["share"] = "always"
        daemon.reload(self.config(more=f"devices: {json.dumps(rules[:1])}\n"))
        guest.waitPresent(self.bad.busId, "usbip-host")

    def test_stoppedWithStuckThread(self) -> None:
        """A daemon with a thread that is stuck in the kernel stops on SIGTERM. Another one can use
        its port and its state file."""
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
        print(f"\nstopped after {time.monotonic() - began:.1f} s, with a thread that is stuck")
        second = self.daemon(config)
        self.assertEqual(second.port, port)
        self.assertEqual(self.detail(second, self.other.busId)["state"], "bound")
        self.assertOtherWorks(second)
        self.assertReplaced(second)
        self.assertEqual(first.child.wait(guest.DEADLINE), -signal.SIGTERM)


class GivenUpTests(HangingCase):
    """With a short C{timeouts.bind}."""

    timeouts = "{bind: 3}"

    def test_shownAsErrorAfterTimeout(self) -> None:
        """After the timeout the state of the device is C{error}, with the reason and what to do. A
        further attach fails promptly with the same."""
        daemon = self.daemon()
        self.hang()
        self.attachHangs(daemon)
        self.awaitState(daemon, "error", self.bad.busId)
        found = self.succeeds(self.promptly(daemon, "find", id=self.bad.busId, detail=True))
        self.assertIn("the kernel has not finished the attach within 3 s", found["trouble"])
        self.assertIn("Unplug the device", found["trouble"])
        self.fails(daemon.ask("attach", serial="HANG1"), "Unplug the device")
        again = self.promptly(daemon, "attach", serial="HANG1")
        self.fails(again, "an earlier attach, detach, kick or export is still stuck in the kernel")
        self.assertOtherWorks(daemon)
        self.assertReplaced(daemon)

    def test_deviceAnswersAfterTimeout(self) -> None:
        """A device that answers after the timeout is not in state C{error} any more, and can be
        attached."""
        daemon = self.daemon()
        self.hang()
        self.attachHangs(daemon)
        self.awaitState(daemon, "error", self.bad.busId)
        self.bad.wake()
        guest.waitUntil(
            lambda: self.detail(daemon, self.bad.busId)["trouble"] is None, "the trouble is over"
        )
        self.assertIn(self.detail(daemon, self.bad.busId)["state"], ("bound", "free"))
        self.awaitAttached(daemon, "HANG1")
        self.succeeds(daemon.ask("detach", serial="HANG1"))
        self.assertOtherWorks(daemon)


class MuteDiskTests(MisbehavingCase):
    """A disk that answers no SCSI command: C{usb-storage} can be unbound from it only after its
    C{INQUIRY} has timed out, and the wait cannot be interrupted."""

    timeouts = "{bind: 6}"

    def test_attachEndsAfterScsiTimeout(self) -> None:
        """The attach is answered before it ends, and the state is C{error} after C{timeouts.bind};
        the other device works. When the driver has given up the disk can be attached."""
        guest.modprobe("usb-storage")
        timeout = Path("/sys/module/scsi_mod/parameters/inq_timeout")
        self.addCleanup(timeout.write_text, timeout.read_text())
        timeout.write_text("14")  # seconds, and there are usually 20
        other = self.plugged(models.plain(), OTHER)
        daemon = self.daemon()
        disk = self.plugged(models.MuteDisk())
        self.awaitRawListed(daemon, disk.busId, other.busId)
        guest.waitUntil(
            lambda: any(f"request={GET_MAX_LUN}," in line for line in disk.log()),
            "usb-storage asks how many units there are, and INQUIRY is next",
        )
        began = time.monotonic()
        self.fails(daemon.ask("attach", id=disk.busId), "takes longer than 1.8 s and goes on")
        guest.waitUntil(lambda: isStuck(daemon.child.pid), "the daemon's thread is stuck")
        self.succeeds(self.promptly(daemon, "attach", id=other.busId))
        self.awaitState(daemon, "error", disk.busId)
        self.succeeds(self.promptly(daemon, "detach", id=other.busId))
        guest.waitUntil(
            lambda: self.detail(daemon, disk.busId)["trouble"] is None, "the trouble is over"
        )
        print(f"\nusb-storage lets go of it {time.monotonic() - began:.1f} s after the attach")
        self.awaitAttached(daemon, "MUTE1")
        self.assertIn(f"{disk.busId}:", self.importable(daemon))


def hasExited(process: int) -> bool:
    """Has a process ended, except threads that are stuck in the kernel? Its first thread then is in
    the state C{Z}."""
    stat = Path(f"/proc/{process}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "Z"


del MisbehavingCase, HangingCase  # base classes are not run
