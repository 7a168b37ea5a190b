"""
Tests of L{usbip_server.client.cli.eventprinter}.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from usbip_server.client.cli import SIGNALS
from usbip_server.client.cli.eventprinter import Interrupted, run
from usbip_server.net.resolver import Resolver


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
