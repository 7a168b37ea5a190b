"""
Tests of L{usbip_server.client.cli.output} and L{usbip_server.client.cli.tables}.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
import unicodedata
from collections.abc import Iterator

import click
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fixtures import UNO, changed
from usbip_server.client.cli.output import Printer
from usbip_server.client.cli.tables import devicesTable, deviceTable, userOf
from usbip_server.client.cli.text import Cell, plain
from usbip_server.client.devices import RemoteDevice
from usbip_server.client.servers import serverAt
from usbip_server.model.device import DeviceState, Holder, Lease, UsbDevice


class Terminal(io.StringIO):
    """
    A stream that is a terminal.
    """

    def isatty(self) -> bool:
        return True


def found(device: UsbDevice = UNO) -> RemoteDevice:
    """A device at a server."""
    return RemoteDevice(server=serverAt("raspi"), device=device, raw={})


class OutputTestCase(SynchronousTestCase):
    """
    Captured output.
    """

    @contextlib.contextmanager
    def said(self, isTerminal: bool = False) -> Iterator[tuple[io.StringIO, io.StringIO]]:
        """Standard output and error."""
        kind = Terminal if isTerminal else io.StringIO
        out, err = kind(), kind()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield out, err


class PrinterTests(OutputTestCase):
    """
    Results, messages, progress.
    """

    def test_text(self) -> None:
        """Results go to standard output, messages to standard error; with JSON, standard output
        has one line."""
        for asJson in (False, True):
            show = Printer(asJson)
            with self.said() as (out, err):
                show.line("/dev/ttyUSB0")
                show.note("it is plugged in")
                show.trouble("raspi", "raspi: no answer")
                show.result([{"server": "bench"}], "not_found", "none", extra=1)
            self.assertEqual(err.getvalue(), "it is plugged in\nraspi: no answer\n")
            if not asJson:
                self.assertEqual(out.getvalue(), "/dev/ttyUSB0\n")
                continue
            self.assertEqual(
                json.loads(out.getvalue()),
                {
                    "status": "not_found",
                    "devices": [{"server": "bench"}],
                    "errors": [{"server": "raspi", "message": "raspi: no answer"}],
                    "message": "none",
                    "extra": 1,
                },
            )

    def test_progress(self) -> None:
        """On a terminal progress is one line; elsewhere each important text is a line, once."""
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

    def test_controlCharacters(self) -> None:
        """Whatever can control a terminal or the direction of its text is replaced."""
        self.assertEqual(plain("Größe 機械"), "Größe 機械")
        self.assertEqual(plain("no\xa0break\u2007space"), "no break space")
        for order in ("\x1b", "\x9b", "\n", "\r", "\u202e", "\ud800", "\x7f"):
            self.assertEqual(plain(f"a{order}b"), "a\N{REPLACEMENT CHARACTER}b")
        for each in map(chr, range(sys.maxunicode + 1)):
            if unicodedata.category(each) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
                self.assertNotIn(each, plain(each))


class TableTests(OutputTestCase):
    """
    Tables.
    """

    def test_longTexts(self) -> None:
        """Where there is no terminal, texts are not cut off."""
        with self.said() as (out, _):
            Printer().table(devicesTable([found(changed(UNO, description="x" * 500))]))
        self.assertEqual(len(out.getvalue().splitlines()), 2)
        self.assertIn("x" * 500, out.getvalue())

    def test_widths(self) -> None:
        """On a wide terminal a table has the same text as elsewhere, also with wide characters. On
        a narrower one descriptions are wrapped between words, and no id is broken; on one that is
        too narrow for columns the cells follow one another."""
        texts = ("Gro\u0308\u00dfe", "\u6a5f\u68b0", "Arduino SA Uno R3 (CDC ACM)")
        devices = [found(changed(UNO, description=text, name="uno")) for text in texts]
        words = {UNO.busId, "2341:0043", str(UNO.serial), "uno", "raspi", "free", *texts[:2]}
        for table in (devicesTable(devices), deviceTable(devices[1]), devicesTable([])):
            for width in (300, 120, 90, 72, 60, 40, 20):
                self.patch(os, "environ", {"COLUMNS": str(width), "TERM": "dumb"})
                lines = table.lines(Terminal())
                if width == 300:
                    self.assertEqual(lines, table.lines(io.StringIO()))
                if table.titles and table.rows:
                    self.assertLessEqual(words, {*" ".join(lines).split()}, width)
                for line in lines:
                    isWord = len(line.split()) == 1
                    self.assertTrue(isWord or Cell(line).width <= width, (width, line))
        self.patch(os, "environ", {"COLUMNS": "67", "TERM": "dumb"})
        self.assertEqual(
            devicesTable([found(changed(UNO, serial=None))]).lines(Terminal()),
            [
                "SERVER  BUS ID  NAME  ID         SERIAL  DESCRIPTION     STATE  WHO",
                "raspi   1-1.4   -     2341:0043  -       Arduino SA Uno  free   -",
                "                                         R3 (CDC ACM)",
            ],
        )
        self.patch(os, "environ", {"COLUMNS": "60", "TERM": "dumb"})
        self.assertEqual(
            devicesTable(devices[2:]).lines(Terminal())[-2:],
            [
                "raspi  1-1.4  uno  2341:0043  75330303035351F0A1C1",
                "    Arduino SA Uno R3 (CDC ACM)  free",
            ],
        )

    def test_colours(self) -> None:
        """Colours are for terminals that have them, unless C{NO_COLOR} is set; C{FORCE_COLOR} takes
        precedence over C{TERM}, and changes no width."""
        table = devicesTable([found(changed(UNO, state=DeviceState.BOUND))])
        for more, isColoured in (
            ({"TERM": "xterm-256color"}, True),
            ({}, True),
            ({"TERM": "xterm-256color", "NO_COLOR": "1"}, False),
            ({"TERM": "dumb"}, False),
            ({"TERM": "dumb", "FORCE_COLOR": "0"}, False),
            ({"TERM": "dumb", "FORCE_COLOR": "1"}, True),
            ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ):
            self.patch(os, "environ", {"COLUMNS": "150", **more})
            printed = "\n".join(table.lines(Terminal()))
            self.assertEqual("\x1b[32mbound" in printed, isColoured, more)
            self.assertEqual(click.unstyle(printed).splitlines(), table.lines(io.StringIO()))
            self.assertNotIn("\x1b", "".join(table.lines(io.StringIO())))

    def test_sameDescription(self) -> None:
        """Devices with the same description are told apart by their own product strings, where the
        description does not contain it."""
        devices = [
            found(changed(UNO, description=text, product=product, serial=None))
            for text, product in (
                ("CP210x Bridge", "Zigbee stick"),
                ("CP210x Bridge", None),
                ("CP210x Bridge", "CP210x Bridge"),
                ("CH340 converter", "USB Serial"),
            )
        ]
        descriptions = ["CP210x Bridge, Zigbee stick", *2 * ["CP210x Bridge"], "CH340 converter"]
        shown = [row[5].text for row in devicesTable(devices).rows]
        self.assertEqual(shown, descriptions)

    def test_classes(self) -> None:
        """Classes have words, the most specific ones; that of a device whose interfaces have
        classes of their own is not shown."""
        interfaces = ("02/02/01", "0a/00/00", "03/01/01")
        for code, shown in (("02", "02 communication"), ("ef", "ef"), ("00", None)):
            device = found(changed(UNO, deviceClass=code, interfaces=interfaces))
            rows = {name.text: value.text for name, value in deviceTable(device).rows}
            self.assertEqual(rows.get("class"), shown)
            shown = "02/02/01 communication, 0a/00/00, 03/01/01 keyboard"
            self.assertEqual(rows["interfaces"], shown)

    def test_numbered(self) -> None:
        """Rows can be numbered."""
        with self.said() as (_, err):
            Printer(asJson=True).table(devicesTable([found(), found()], numbered=True), err=True)
        _, first, second = err.getvalue().splitlines()
        self.assertTrue(first.startswith("1  raspi"), first)
        self.assertTrue(second.startswith("2  raspi"), second)

    def test_user(self) -> None:
        """The user of a device and its lease are shown in local time."""
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
            (changed(UNO, holder=Holder()), "an unknown client"),
            (
                changed(UNO, state=DeviceState.IN_USE, holder=Holder(since=noon), lease=lease),
                "an unknown client since 2026-01-02 12:00, leased by ci until 2026-01-02 12:00",
            ),
        ):
            self.assertEqual(userOf(device), said)
        self.assertRegex(
            userOf(changed(UNO, holder=Holder(since=time.time()))),
            r"\Aan unknown client since \d\d:\d\d\Z",
        )
