"""
Tests of L{usbip_server.kernel.mounts}, in made trees.
"""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from usbip_server.kernel.mounts import usesOf
from usbip_server.kernel.system import System
from usbip_server.testing import FakeKernel

DISK = "bus/usb/devices/1-1/1-1:1.0/host0/target0:0:0/0:0:0:0/block/sda"


class MountsTests(SynchronousTestCase):
    """
    A device 1-1 that is the disk sda, with three partitions.
    """

    def setUp(self) -> None:
        self.root = self.mktemp()
        self.system = System(self.root)
        self.mounts: list[str] = []
        self.disk(DISK, "8:0")
        for number in (1, 2, 3):
            self.block(f"sda/sda{number}", f"8:{number}")
        for name in ("power", "queue"):
            os.makedirs(f"{self.root}/class/block/sda/{name}")

    def write(self, path: str, text: str) -> None:
        """Make a file."""
        os.makedirs(os.path.dirname(f"{self.root}/{path}"), exist_ok=True)
        with open(f"{self.root}/{path}", "w") as file:
            file.write(text)

    def link(self, path: str, target: str) -> None:
        """Make a link; its target need not exist."""
        os.makedirs(os.path.dirname(f"{self.root}/{path}"), exist_ok=True)
        os.symlink(target, f"{self.root}/{path}")

    def block(self, path: str, number: str) -> None:
        """Make a block device, C{sda} or C{sda/sda1}."""
        name = path.rpartition("/")[2]
        self.write(f"class/block/{path}/dev", f"{number}\n")
        os.makedirs(f"{self.root}/class/block/{path}/holders")
        if name != path:
            self.link(f"class/block/{name}", path)

    def disk(self, path: str, number: str) -> None:
        """Make a disk that is a part of a USB device."""
        os.makedirs(f"{self.root}/{path}")
        self.block(path.rpartition("/")[2], number)

    def hold(self, name: str, holder: str) -> None:
        """Make one block device a part of another."""
        self.link(f"class/block/{name}/holders/{holder}", f"../../{holder}")

    def mount(self, number: str, place: str, source: str, kind: str = "ext4") -> None:
        """Mount something."""
        self.mounts.append(f"36 25 {number} / {place} rw shared:1 - {kind} {source} rw\n")
        self.write("proc/1/mountinfo", "".join(self.mounts))

    def uses(self, *expected: str) -> None:
        """The disk has exactly these uses."""
        self.assertEqual(usesOf(self.system, "1-1"), expected)

    def test_mounted(self) -> None:
        """Partitions and the disk as a whole are found by their numbers, whatever their source is
        called. A disk of which nothing is mounted has no uses, nor has a device without disks."""
        self.mount("0:21", "/proc", "proc", "proc")
        self.mount("8:17", "/", "/dev/sdb1")
        self.uses()
        self.assertEqual(usesOf(self.system, "1-2"), ())
        self.mount("8:3", "/", "/dev/root")
        self.mount("8:1", "/boot", "/dev/sda1")
        self.mount("8:0", "/mnt", "none")
        self.uses(
            "/dev/sda is mounted on /mnt",
            "/dev/sda1 is mounted on /boot",
            "/dev/sda3 is mounted on /",
        )

    def test_severalPlaces(self) -> None:
        """Of several mount points one is named."""
        for place in ("/srv", "/boot", "/boot"):
            self.mount("8:1", place, "/dev/sda1")
        self.uses("/dev/sda1 is mounted on /boot and 1 other place")
        self.mount("8:1", "/var", "/dev/sda1")
        self.uses("/dev/sda1 is mounted on /boot and 2 other places")

    def test_escapes(self) -> None:
        """Blanks in a mount point are shown, control characters are not."""
        self.mount("8:1", r"/media/My\040Disk\134\012\033[31m", "/dev/sda1")
        self.uses("/dev/sda1 is mounted on /media/My Disk\\??[31m")

    def test_sources(self) -> None:
        """A mount without a device number is found by its source, through links."""
        self.link("dev/disk/by-uuid/4A-B", "../../sda2")
        self.link("dev/mapper/home", "/dev/dm-0")
        self.block("dm-0", "253:0")
        self.hold("sda3", "dm-0")
        self.mount("0:40", "/data", "/dev/disk/by-uuid/4A-B", "btrfs")
        self.mount("0:41", "/home", "/dev/mapper/home", "btrfs")
        self.uses(
            "/dev/sda2 is mounted on /data", "/dev/sda3 is part of dm-0, which is mounted on /home"
        )

    def test_btrfs(self) -> None:
        """All members of a mounted btrfs file system are in use, though the mount names one."""
        for name in ("sda2", "sdb1"):
            self.link(f"fs/btrfs/5f/devices/{name}", f"../../../../class/block/{name}")
        os.makedirs(f"{self.root}/fs/btrfs/features")
        self.uses("/dev/sda2 is part of a btrfs file system that is mounted")
        self.mount("0:40", "/data", "/dev/sdb1", "btrfs")
        self.uses("/dev/sda2 is mounted on /data")

    def test_swap(self) -> None:
        """Swap is a use; a swap file is on a file system that is mounted."""
        self.link("dev/mapper/swap", "../dm-0")
        self.block("dm-0", "253:0")
        self.hold("sda3", "dm-0")
        lines = (
            "Filename\tType",
            "/dev/sda2  partition",
            "/dev/mapper/swap  partition",
            "/swap  file",
        )
        self.write("proc/swaps", "".join(f"{line}\t1048572\t0\t-2\n" for line in lines))
        self.uses("/dev/sda2 is used for swap", "/dev/sda3 is part of dm-0, which is used for swap")

    def test_holders(self) -> None:
        """Holders are followed: LVM on an encrypted RAID with partitions."""
        for name, number in (("md0", "9:0"), ("md0/md0p1", "259:0")):
            self.block(name, number)
        for minor in (0, 1, 2):
            self.block(f"dm-{minor}", f"253:{minor}")
        for name, holder in (
            ("sda3", "md0"),
            ("md0p1", "dm-0"),
            ("dm-0", "dm-1"),
            ("dm-0", "dm-2"),
        ):
            self.hold(name, holder)
        self.mount("253:1", "/home", "/dev/mapper/vg-home")
        crypt = "/dev/sda3 is part of md0, whose md0p1 is part of dm-0, which is"
        self.uses(f"{crypt} part of dm-1, which is mounted on /home", f"{crypt} part of dm-2")

    def test_holdersNotMounted(self) -> None:
        """A holder is a use even if it is not mounted, or unknown; a circle of holders ends."""
        self.block("dm-0", "253:0")
        self.hold("sda1", "dm-0")
        self.hold("dm-0", "dm-0")
        self.hold("sda2", "dm-9")
        self.uses("/dev/sda1 is part of dm-0", "/dev/sda2 is part of dm-9")

    def test_cardReader(self) -> None:
        """All slots of a card reader are found, and a card that is not a SCSI disk; links below a
        device, such as C{driver}, are not followed."""
        scsi = "bus/usb/devices/1-1/1-1:1.0/host0/target0:0:0/0:0:0:1/block/sdb"
        card = "bus/usb/devices/1-1/1-1:1.1/rtsx_usb_sdmmc.1.auto/mmc_host/mmc0/mmc0:0001/block"
        self.disk(scsi, "8:16")
        self.disk(f"{card}/mmcblk0", "179:0")
        self.block("mmcblk0/mmcblk0p1", "179:1")
        self.disk("elsewhere/block/sdz", "65:144")
        self.link("bus/usb/devices/1-1/driver", "../../../../elsewhere")
        self.mount("8:16", "/b", "/dev/sdb")
        self.mount("179:1", "/c", "/dev/mmcblk0p1")
        self.mount("65:144", "/z", "/dev/sdz")
        self.uses("/dev/mmcblk0p1 is mounted on /c", "/dev/sdb is mounted on /b")

    def test_mountInfo(self) -> None:
        """Truncated lines do no harm. If the mounts of the first process cannot be read, those of
        this process are."""
        whole = "36 25 8:1 / /boot rw shared:1 - ext4 /dev/root rw"
        for end in range(len(whole)):
            self.write("proc/1/mountinfo", whole[:end])
            self.assertIn(usesOf(self.system, "1-1"), ((), ("/dev/sda1 is mounted on /boot",)))
        os.unlink(f"{self.root}/proc/1/mountinfo")
        self.write("proc/self/mountinfo", "36 25 8:1 / /boot rw - ext4 /dev/sda1 rw\n")
        self.uses("/dev/sda1 is mounted on /boot")

    def test_fakeAndReal(self) -> None:
        """The fake kernel can have a disk mounted; the real one has mounts."""
        kernel = FakeKernel()
        for busId in ("1-1", "1-2"):
            kernel.plug(busId)
        kernel.mount("1-2", "/boot")
        self.assertEqual(usesOf(kernel, "1-1"), ())
        [use] = usesOf(kernel, "1-2")
        self.assertRegex(use, r"\A/dev/sd[a-z]1 is mounted on /boot\Z")
        kernel.unmount("1-2")
        self.assertEqual(usesOf(kernel, "1-2"), ())
        self.assertIn(b" - ", System().mountInfo())
        self.assertEqual(usesOf(System(), "1-99"), ())
