"""The daemon compared with usb-remote and with Debian's programs, on the same devices in the same
boot of user-mode Linux. Run it with C{python -m tests.kernel benchmarks.rivals}; it prints its
figures and asserts none."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from tests.kernel import guest
from tests.kernel.daemoncase import DISK, FAST, HOST, SERIAL, DaemonCase
from tests.support.childdaemon import EXPORT
from usbip_server.kernel.system import System
from usbip_server.kernel.uevents import deviceOf
from usbip_server.server.devices.view import OFTEN, WINDOW

ROUNDS = 9
RIVAL_PORT = 5056
LIST = b'{"command":"list"}'

TYPED = 5
"""Rounds of commands: each starts several programs, which an emulated machine takes long for."""

PAIRS = 3
PASSES = 32


class ThroughputCase(DaemonCase):
    """A super speed disk that is imported and read."""

    def speed(self, attach: Callable[[], object], passes: int) -> float:
        """Import the fast disk, read it, and detach it.

        @param attach: begins the import.
        @return: bytes in a second, as C{dd} has measured it."""
        attach()
        vhciPort, imported = guest.waitImport()
        speed = speedOf(guest.waitBlockDevice(imported), passes)
        guest.stockDetach(vhciPort, imported)
        guest.waitUntil(lambda: guest.usbipStatus(FAST) == 1, "it can be imported again")
        return speed


class RivalTests(ThroughputCase):
    """Medians of alternating rounds."""

    timeouts = "{}"
    more = EXPORT

    def setUp(self) -> None:
        super().setUp()
        self.server = self.daemon()

    def compare(
        self,
        what: str,
        ours: Callable[[], object],
        rival: str,
        theirs: Callable[[], object],
        restore: Callable[[], object] = lambda: None,
    ) -> None:
        """Print how long each takes, and the ratio.

        @param restore: called after each, restores the state before it."""
        mine, other = [], []
        for _ in range(ROUNDS):
            other.append(seconds(theirs))
            restore()
            mine.append(seconds(ours))
            restore()
        a, b = statistics.median(mine), statistics.median(other)
        print(
            f"\n{what}: usbipshare {1000 * a:.2f} ms, {rival} {1000 * b:.1f} ms: "
            f"{b / a:.1f} times as fast"
        )

    def test_list(self) -> None:
        """C{list}: usb-remote's server."""
        with usbRemoteServer():
            self.compare(
                "list of 5 devices",
                lambda: ask(self.server.port),
                "usb-remote 2.3.2",
                lambda: ask(RIVAL_PORT),
            )

    def test_attach(self) -> None:
        """C{attach}: the C{usbip bind} program alone, without any server."""
        for busId in (DISK, guest.TABLET.busId, SERIAL):
            self.compare(
                f"attach of {busId}",
                partial(self.attach, busId),
                "`usbip bind` alone",
                partial(guest.check, "usbip", "bind", "-b", busId),
                partial(self.server.ask, "detach", id=busId),
            )

    def attach(self, busId: str) -> None:
        """Attach a device."""
        self.succeeds(self.server.ask("attach", id=busId))

    def test_command(self) -> None:
        """The commands C{attach}, until the device's node exists: usb-remote's, with its own server
        and C{usbipd}."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        ports = f"port: {self.server.port}, export_port: {self.server.exportPort}"
        servers = folder / "client.yaml"
        servers.write_text(f"servers: {{lab: {{host: {HOST}, {ports}}}}}\ntimeout: 60\n")
        servers.chmod(0o600)
        rival = folder / "usb-remote.yaml"
        rival.write_text(f"server_port: {RIVAL_PORT}\ntimeout: 60\n")
        environment = {**os.environ, "USB_REMOTE_CONFIG_PATH": str(rival)}

        def ours(command: str) -> str:
            return typed("usbipshare", command, "--config", str(servers), "--bus", SERIAL)

        def theirs(command: str) -> str:
            return typed(
                "usb-remote", command, "--host", HOST, "--bus", SERIAL, environment=environment
            )

        mine: list[float] = []
        other: list[float] = []
        with usbRemoteServer(), guest.stockUsbipd():
            for _ in range(TYPED):
                for way, took in ((theirs, other), (ours, mine)):
                    began = time.perf_counter()
                    printed = way("attach")
                    took.append(time.perf_counter() - began)
                    self.assertIn(guest.SERIAL_NODES, printed)
                    way("detach")
                    guest.waitUntil(lambda: not guest.imports(), "it is pulled out")
                    guest.waitPresent(SERIAL, "usb")
        a, b = statistics.median(mine), statistics.median(other)
        print(
            f"\nattach of {SERIAL}, typed: usbipshare {a:.2f} s, usb-remote 2.3.2 {b:.2f} s: "
            f"{a / b:.2f} of its time"
        )

    def test_plug(self) -> None:
        """From the kernel's last uevent for a plug until the device is in C{list}. Plugs come so
        slowly that the bus id does not count as flapping."""
        delays = []
        for round in range(ROUNDS):
            time.sleep(WINDOW / (OFTEN - 1))
            guest.unplug(guest.DISK)
            guest.waitGone(DISK)
            uevents = System().ueventSocket()
            plug = threading.Thread(target=guest.plug, args=(guest.DISK.withSerial(f"P{round}"),))
            plug.start()
            last = listed = 0.0
            end = time.monotonic() + guest.DEADLINE
            while (plug.is_alive() or not listed) and time.monotonic() < end:
                with contextlib.suppress(BlockingIOError):
                    while True:
                        if deviceOf(uevents.recvfrom(8192)[0]) == DISK:
                            last = time.monotonic()
                if not listed and last and f'"P{round}"'.encode() in ask(self.server.port):
                    listed = time.monotonic()
            uevents.close()
            delays.append(max(0.0, listed - last))
        print(
            f"\nplug: in the list {1000 * statistics.median(delays):.0f} ms (median) and "
            f"{1000 * max(delays):.0f} ms (worst of {ROUNDS}) after the last uevent"
        )

    def test_throughput(self) -> None:
        """C{dd} of an imported disk: the daemon and Debian's C{usbipd}."""
        self.plugFastDisk()
        self.attach(FAST)
        ours, stock = [], []
        for _ in range(PAIRS):
            with guest.stockUsbipd():
                stock.append(self.speed(partial(guest.stockAttach, FAST), PASSES))
            attach = partial(guest.stockAttach, FAST, port=self.server.exportPort)
            ours.append(self.speed(attach, PASSES))
        print(
            f"\ndd of an imported disk: usbipshare {rates(ours)}, stock usbipd {rates(stock)}: "
            f"{statistics.median(ours) / statistics.median(stock):.2f} times as fast (medians)"
        )
        self.server.ask("detach", id=FAST)


def speedOf(node: str, passes: int) -> float:
    """Read a disk, past the page cache.

    @param passes: how often.
    @return: bytes in a second, as C{dd} has measured it."""
    took = 0.0
    for _ in range(passes):
        printed = guest.run("dd", f"if={node}", "of=/dev/null", "bs=1M", "iflag=direct").err
        size, _, more = printed.splitlines()[-1].partition(" bytes ")
        found = re.search(r"copied, ([0-9.]+) s", more)
        assert found is not None and int(size) == len(guest.diskBytes()), printed
        took += float(found[1])
    return passes * int(size) / took


def typed(program: str, *words: str, environment: Mapping[str, str] | None = None) -> str:
    """Run a command of a package in this Python's environment, which has to succeed.

    @return: what it prints."""
    path = Path(sys.executable).with_name(program)
    # Not the script itself: guest.run() would fork it from a process that has loaded its modules.
    ended = guest.run(sys.executable, str(path), *words, env=environment)
    if ended.rc != 0:
        raise AssertionError(ended)
    return ended.out


def rates(speeds: list[float]) -> str:
    """Speeds as text."""
    return "/".join(f"{speed / 1e6:.1f}" for speed in speeds) + " MB/s"


def seconds(function: Callable[[], object]) -> float:
    """The seconds that a call takes."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def ask(port: int) -> bytes:
    """Request the list as old clients do: one connection, no line feed."""
    with socket.create_connection((HOST, port), guest.DEADLINE) as connection:
        connection.sendall(LIST)
        answer = b""
        while more := connection.recv(65536):
            answer += more
    if b'"success"' not in answer:
        raise AssertionError(answer)
    return answer


@contextlib.contextmanager
def usbRemoteServer() -> Iterator[None]:
    """Run usb-remote's server until the C{with} ends."""
    environment = {**os.environ, "USB_REMOTE_SERVER_PORT": str(RIVAL_PORT)}
    child = subprocess.Popen([sys.executable, "-m", "usb_remote", "server"], env=environment)
    try:
        guest.waitUntil(lambda: guest.isListening(RIVAL_PORT), "usb-remote listens", seconds=120)
        yield
    finally:
        child.kill()
        child.wait()


del DaemonCase  # base classes are not run
