"""A network namespace as another machine, whose network can be cut."""

from __future__ import annotations

from tests.kernel.inside.command import check, run

_NAME = "elsewhere"
_OURS, _THEIRS = "usbipshare0", "usbipshare1"


class Elsewhere:
    """A network namespace, connected by a pair of veth devices, until the C{with} ends. Kernel,
    file system and vhci are those of the guest.

    @cvar name: of the namespace.
    @cvar server: the address of this side.
    @cvar address: the address of the other side.
    @cvar prefix: what a command begins with that runs there."""

    name = _NAME
    server = "10.55.32.1"
    address = "10.55.32.2"
    prefix = ("nsenter", f"--net=/run/netns/{_NAME}")

    def __enter__(self) -> Elsewhere:
        check("modprobe", "veth")
        check("ip", "netns", "add", _NAME)
        check("ip", "link", "add", _OURS, "type", "veth", "peer", "name", _THEIRS, "netns", _NAME)
        check("ip", "address", "add", f"{self.server}/24", "dev", _OURS)
        check("ip", "link", "set", _OURS, "up")
        self.check("ip", "address", "add", f"{self.address}/24", "dev", _THEIRS)
        self.check("ip", "link", "set", _THEIRS, "up")
        return self

    def __exit__(self, *exception: object) -> None:
        run("ip", "link", "delete", _OURS)
        run("ip", "netns", "delete", _NAME)

    def check(self, *argv: str) -> str:
        """Run a program there that must succeed.

        @return: what it printed."""
        return check(*self.prefix, *argv)

    def vanish(self) -> None:
        """Cut the network."""
        self.check("ip", "link", "set", _THEIRS, "down")

    def appear(self) -> None:
        """Restore the network."""
        self.check("ip", "link", "set", _THEIRS, "up")

    def unsent(self) -> int:
        """The number of bytes to it that are not acknowledged."""
        lines = check("ss", "--tcp", "--numeric", "--no-header", "dst", self.address).splitlines()
        return sum(int(line.split()[2]) for line in lines)  # state, Recv-Q, Send-Q
