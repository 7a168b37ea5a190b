"""
Finds out whether this machine itself uses a disk: mounted file systems, swap, LVM, md and btrfs.

Read from the directories below the device in sysfs and from C{/proc}, without the device's lock and
without opening a disk. Mounts in other mount namespaces are not found, nor are ZFS pools.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

import msgspec

from usbip_server.kernel.attributes import DEVICES
from usbip_server.kernel.system import ISystem

BLOCK = "class/block"
BTRFS = "fs/btrfs"

DEPTH = 8
"""
How many directories down from its device a disk may be: a card in a reader is seven down
(C{drivers/mmc/host/rtsx_usb_sdmmc.c}). Also how many layers of LVM, md and the like are
followed.
"""

_ESCAPE = re.compile(rb"\\([0-7]{3})")


def usesOf(system: ISystem, busId: str) -> tuple[str, ...]:
    """
    The uses of the disks in a device: C{"/dev/sda1 is mounted on /boot"}.

    @return: a sentence for each use; empty if the device has no disks, or they are not used.
    """
    disks = sorted(_disks(system, f"{DEVICES}/{busId}", DEPTH))
    if not disks:
        return ()
    uses = _Uses(system)
    return tuple(
        f"/dev/{name.replace('!', '/')} {use}"
        for disk in disks
        for name in (disk, *_partitions(system, disk))
        for use in uses.of(name)
    )


class _Mount(msgspec.Struct, frozen=True):
    """
    A line of C{mountinfo} (proc_pid_mountinfo(5)).

    @ivar number: C{major:minor} of the device; of no device there is for btrfs and others.
    @ivar place: the mount point.
    @ivar source: the path of the device, as given to mount(8).
    """

    number: str
    place: str
    source: str


class _Uses:
    """
    Mounts and swap, by the kernel's names for block devices: C{sda1}, C{dm-0}.
    """

    def __init__(self, system: ISystem) -> None:
        self._system = system
        self._byNumber: defaultdict[str, list[str]] = defaultdict(list)
        self._byName: defaultdict[str, list[str]] = defaultdict(list)
        for mount in _mounts(system.mountInfo()):
            self._byNumber[mount.number].append(mount.place)
            if mount.source.startswith("/dev/"):
                self._byName[self._named(mount.source)].append(mount.place)
        self._btrfs: set[str] = set()
        for members in _btrfs(system):
            # A mount has the name of only one of them.
            places = [place for name in members for place in self._byName.get(name, ())]
            self._btrfs.update(members)
            self._byName.update(dict.fromkeys(members, places))
        self._swaps = {
            self._named(_decode(line.split()[0]))
            for line in system.swaps().split(b"\n")
            if line.startswith(b"/dev/")  # a file is on something that is mounted
        }

    def of(self, name: str, above: tuple[str, ...] = ()) -> Iterator[str]:
        """
        The uses of a block device: C{"is mounted on /boot"}.

        @param above: the holders that have led to it.
        """
        number = _read(self._system, f"{BLOCK}/{name}/dev")
        places = {*self._byNumber.get(number, ()), *self._byName.get(name, ())}
        if places:
            yield f"is mounted on {_some(sorted(places))}"
        elif name in self._btrfs:
            yield "is part of a btrfs file system that is mounted"
        if name in self._swaps:
            yield "is used for swap"
        if len(above) < DEPTH:
            for holder in _list(self._system, f"{BLOCK}/{name}/holders"):
                if holder not in above:
                    yield from self._held(holder, (*above, holder))

    def _held(self, holder: str, above: tuple[str, ...]) -> Iterator[str]:
        uses = [f"which {use}" for use in self.of(holder, above)]
        for part in _partitions(self._system, holder):
            uses.extend(f"whose {part} {use}" for use in self.of(part, above))
        if not uses:
            yield f"is part of {holder}"
        for use in uses:
            yield f"is part of {holder}, {use}"

    def _named(self, path: str) -> str:
        return self._system.resolve(path).removeprefix("/dev/").replace("/", "!")


def _disks(system: ISystem, path: str, depth: int) -> Iterator[str]:
    for name in _directories(system, path):
        if name == "block":
            yield from _directories(system, f"{path}/{name}")
        elif depth > 1:
            yield from _disks(system, f"{path}/{name}", depth - 1)


def _partitions(system: ISystem, disk: str) -> list[str]:
    names = [n for n in _directories(system, f"{BLOCK}/{disk}") if n.startswith(disk)]
    return sorted(names, key=lambda name: (len(name), name))


def _btrfs(system: ISystem) -> Iterator[list[str]]:
    """
    The members of each btrfs file system that is mounted (C{fs/btrfs/sysfs.c}).
    """
    for name in _list(system, BTRFS):
        if members := _list(system, f"{BTRFS}/{name}/devices"):
            yield members


def _mounts(text: bytes) -> Iterator[_Mount]:
    for line in text.split(b"\n"):
        before, _, after = line.partition(b" - ")
        fields, rest = before.split(b" "), after.split(b" ")
        if len(fields) >= 6 and len(rest) >= 2:
            yield _Mount(*map(_decode, (fields[2], fields[4], rest[1])))


def _decode(field: bytes) -> str:
    """
    A field of C{mountinfo} or C{swaps}: blanks in it are written C{\\040}.
    """
    raw = _ESCAPE.sub(lambda found: bytes([int(found[1], 8) & 0xFF]), field)
    text = raw.decode("utf-8", "replace")
    return "".join(char if char.isprintable() else "?" for char in text)


def _some(places: list[str]) -> str:
    others = len(places) - 1
    if others == 0:
        return places[0]
    return f"{places[0]} and {others} other place{'s' if others > 1 else ''}"


def _read(system: ISystem, path: str) -> str:
    try:
        return system.read(path).decode("ascii", "replace").strip()
    except OSError:
        return ""


def _list(system: ISystem, path: str) -> list[str]:
    try:
        return sorted(system.list(path))
    except OSError:
        return []


def _directories(system: ISystem, path: str) -> list[str]:
    try:
        return system.directories(path)
    except OSError:
        return []
