"""
Tests of L{usbip_server.client.cli.eventprinter}.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from usbip_server.client.cli import SIGNALS
from usbip_server.client.cli.context import CommandContext, Machine
from usbip_server.client.cli.eventprinter import EventPrinter, Interrupted, run
from usbip_server.client.cli.output import Printer
from usbip_server.client.config import ClientSettings
from usbip_server.client.servers import Server
from usbip_server.model.errors import Unreachable
from usbip_server.model.replies import ReceivedReply, Status
from usbip_server.net.resolver import Resolver


class PrinterTests(SynchronousTestCase):
    """
    Servers that do not answer.
    """

    def test_troubles(self) -> None:
        """A server that does not answer is reported once, until that changes; for the addresses of
        a range that have never answered, their number is."""
        alone, *lab = (Server(name=name, host=name) for name in ("raspi", "10.0.0.1", "10.0.0.2"))
        settings = ClientSettings()
        settings.known = {"raspi": (alone,), "lab": tuple(lab)}
        context = CommandContext(Machine(), Printer(), settings, (alone, *lab), 1.0)
        begun = ReceivedReply(status=Status.SUCCESS, data=[], seq=1)
        printer = EventPrinter(context)
        for server, said in (
            (alone, "raspi: refused"),
            (alone, None),
            (lab[0], None),
            (lab[1], "lab: 2 of its 2 addresses do not answer"),
            (lab[0], None),
            (alone, "raspi: no route"),
        ):
            text = said or ("raspi: refused" if server is alone else f"{server}: refused")
            with contextlib.redirect_stderr(io.StringIO()) as err:
                printer.watchLost(server, Unreachable(text))
            self.assertEqual(err.getvalue(), f"{said}\n" if said else "")
        for server in (alone, lab[0]):
            with contextlib.redirect_stderr(io.StringIO()) as err:
                printer.watchBegun(server, begun)
                for _ in range(2):
                    printer.watchLost(server, Unreachable(f"{server}: lost"))
            self.assertEqual(err.getvalue(), f"{server}: 0 devices\n{server}: lost\n")


class RunTests(SynchronousTestCase):
    """
    Coroutines on the reactor.
    """

    def test_result(self) -> None:
        """The result is returned, errors are raised, and this can be repeated."""

        async def works(reactor: Any) -> int:
            later: Deferred[None] = Deferred()
            reactor.callLater(0, later.callback, None)
            await later
            return 7

        async def fails(reactor: Any) -> int:
            raise ValueError("no")

        for _ in range(2):
            self.assertEqual(run(works), 7)
            self.assertRaises(ValueError, run, fails)

    def test_interrupted(self) -> None:
        """A signal ends the coroutine; then the former signal handlers are back."""

        before = [signal.getsignal(each) for each in SIGNALS]
        for number in SIGNALS:

            async def waits(reactor: Any, number: int = number) -> None:
                reactor.callLater(0, os.kill, os.getpid(), number)
                await Deferred()

            self.assertRaises(Interrupted, run, waits)
        self.assertEqual([signal.getsignal(each) for each in SIGNALS], before)

    def test_resolver(self) -> None:
        """Names are resolved in daemon threads, only while the coroutine runs."""

        async def which(reactor: Any) -> object:
            return reactor.nameResolver

        self.assertIsInstance(run(which), Resolver)
        from twisted.internet import reactor as installed

        reactor: Any = installed
        self.assertNotIsInstance(reactor.nameResolver, Resolver)
