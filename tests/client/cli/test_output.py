"""
Tests of L{usbip_server.client.cli.output} and L{usbip_server.client.cli.tables}.
"""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Iterator

from twisted.trial.unittest import SynchronousTestCase

from tests.support.fixtures import UNO, changed
from usbip_server.client.cli.output import Printer, plain
from usbip_server.client.cli.tables import devicesTable, deviceTable, userOf
from usbip_server.client.devices import RemoteDevice
from usbip_server.client.servers import serverAt
from usbip_server.model.device import DeviceState, Holder, Lease, UsbDevice


class Terminal(io.StringIO):
    """
    Somebody looks at it.
    """

    def isatty(self) -> bool:
        return True


def found(device: UsbDevice = UNO) -> RemoteDevice:
    """A device at a server."""
    return RemoteDevice(server=serverAt("raspi"), device=device, raw={})


class ShowTestCase(SynchronousTestCase):
    """
    What is said, to whom.
    """

    @contextlib.contextmanager
    def said(self, isTerminal: bool = False) -> Iterator[tuple[io.StringIO, io.StringIO]]:
        """Standard output and error."""
        kind = Terminal if isTerminal else io.StringIO
        out, err = kind(), kind()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield out, err


class ShowTests(ShowTestCase):
    """
    Results, notes, progress.
    """

    def test_people(self) -> None:
        """Results go to standard output, and all else to standard error."""
        show = Printer()
        with self.said() as (out, err):
            show.line("/dev/ttyUSB0")
            show.note("it is plugged in")
            show.trouble("raspi", "raspi: no answer")
            show.result([{"server": "raspi"}])
        self.assertEqual(out.getvalue(), "/dev/ttyUSB0\n")
        self.assertEqual(err.getvalue(), "it is plugged in\nraspi: no answer\n")

    def test_json(self) -> None:
        """In JSON there is one line of result, and nothing else."""
        show = Printer(asJson=True)
        with self.said() as (out, err):
            show.line("/dev/ttyUSB0")
            show.table(devicesTable([found()]))
            show.trouble("raspi", "no answer")
            show.result([{"server": "bench"}], "not_found", "none", extra=1)
        self.assertEqual(
            json.loads(out.getvalue()),
            {
                "status": "not_found",
                "devices": [{"server": "bench"}],
                "errors": [{"server": "raspi", "message": "no answer"}],
                "message": "none",
                "extra": 1,
            },
        )
        self.assertEqual(err.getvalue(), "no answer\n")

    def test_progress(self) -> None:
        """On a terminal what goes on has one line; elsewhere a line each,
        none twice, if it is worth that."""
        show = Printer()
        with self.said(isTerminal=True) as (_, err):
            show.progress("one")
            show.progress("two" * 1000)
            show.note("done")
        one, two, done = err.getvalue().split("\r\x1b[K")
        self.assertEqual((one, done), ("one", "done\n"))
        self.assertLess(len(two), 3000)
        with self.said() as (_, err):
            for text in ("one", "one", "two"):
                show.progress(text, isNews=True)
            show.progress("three")
        self.assertEqual(err.getvalue(), "one\ntwo\n")

    def test_plain(self) -> None:
        """What would be an order to a terminal shows that there is something."""
        self.assertEqual(plain("Größe 機械"), "Größe 機械")
        for order in ("\x1b", "\x9b", "\n", "\r", "\u202e", "\ud800", "\x7f"):
            self.assertEqual(plain(f"a{order}b"), "a\N{REPLACEMENT CHARACTER}b")


class TableTests(ShowTestCase):
    """
    Tables.
    """

    def test_wide(self) -> None:
        """What no terminal shows is not cut off, however long it is."""
        with self.said() as (out, _):
            Printer().table(devicesTable([found(changed(UNO, description="x" * 500))]))
        self.assertEqual(len(out.getvalue().splitlines()), 2)
        self.assertIn("x" * 500, out.getvalue())

    def test_numbered(self) -> None:
        """Those of which one is to be chosen have numbers."""
        with self.said() as (_, err):
            Printer(asJson=True).table(devicesTable([found(), found()], numbered=True), err=True)
        _, first, second = err.getvalue().splitlines()
        self.assertTrue(first.startswith("1  raspi"), first)
        self.assertTrue(second.startswith("2  raspi"), second)

    def test_markup(self) -> None:
        """A text is not taken for an order to the one who makes the table."""
        with self.said() as (out, _):
            Printer().table(deviceTable(found(changed(UNO, description="[red]:smile: x[/]"))))
        self.assertIn("[red]:smile: x[/]", out.getvalue())

    def test_who(self) -> None:
        """Who has a device, and until when, is said as one reads it."""
        noon = time.mktime((2026, 1, 2, 12, 0, 0, 0, 0, -1))
        lease = Lease(owner="ci", address="192.0.2.7", ttl=60, until=noon)
        for device, said in (
            (UNO, ""),
            (changed(UNO, lease=lease), "leased by ci until 2026-01-02 12:00"),
            (
                changed(UNO, lease=Lease(owner="ci", address="")),
                "leased by ci while it is connected",
            ),
            (changed(UNO, holder=Holder(address="::1")), "::1"),
            (changed(UNO, holder=Holder()), "somebody"),
            (
                changed(UNO, state=DeviceState.IN_USE, holder=Holder(since=noon), lease=lease),
                "somebody since 2026-01-02 12:00, leased by ci until 2026-01-02 12:00",
            ),
        ):
            self.assertEqual(userOf(device), said)
        self.assertRegex(
            userOf(changed(UNO, holder=Holder(since=time.time()))), r"\Asomebody since \d\d:\d\d\Z"
        )
