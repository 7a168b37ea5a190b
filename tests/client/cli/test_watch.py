"""
Tests of L{usbip_server.client.cli.eventprinter} and L{usbip_server.net.resolver}.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IHostnameResolver,
    IHostResolution,
    IResolutionReceiver,
)
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from usbip_server.client.cli.eventprinter import SIGNALS, Interrupted, run
from usbip_server.net.resolver import Lookup, Resolver
from usbip_server.testing import FakeReactor


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


@implementer(IResolutionReceiver)
class Receiver:
    """
    Is told addresses.

    @ivar addresses: those, when they are complete.
    """

    def __init__(self) -> None:
        self.addresses: list[IAddress] | None = None
        self._found: list[IAddress] = []

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        verifyObject(IHostResolution, resolutionInProgress)

    def addressResolved(self, address: IAddress) -> None:
        self._found.append(address)

    def resolutionComplete(self) -> None:
        self.addresses = self._found


class ResolverTests(SynchronousTestCase):
    """
    Name resolution.
    """

    def resolver(self) -> tuple[Resolver, list[Callable[[], None]]]:
        """A resolver, and the functions that it runs in threads."""
        threads: list[Callable[[], None]] = []
        return Resolver(FakeReactor(), threads.append), threads

    def test_interface(self) -> None:
        """The resolver provides Twisted's interface."""
        verifyObject(IHostnameResolver, self.resolver()[0])
        Lookup("raspi").cancel()

    def test_addresses(self) -> None:
        """An address is resolved without a thread."""
        resolver, threads = self.resolver()
        for host, kind in (("127.0.0.1", IPv4Address), ("::1", IPv6Address)):
            receiver = Receiver()
            resolver.resolveHostName(receiver, host, 5055)
            assert receiver.addresses is not None
            [address] = receiver.addresses
            assert isinstance(address, kind)
            self.assertEqual((address.host, address.port), (host, 5055))
        self.assertEqual(threads, [])

    def test_names(self) -> None:
        """A name is resolved in a thread."""
        resolver, threads = self.resolver()
        receiver = Receiver()
        resolver.resolveHostName(receiver, "localhost", 5055, [IPv4Address])
        self.assertIsNone(receiver.addresses)
        [thread] = threads
        thread()
        self.assertEqual(receiver.addresses, [IPv4Address("TCP", "127.0.0.1", 5055)])

    def test_invalidNames(self) -> None:
        """An invalid name has no addresses."""
        for name in ("", "a" * 70, "a..b"):
            resolver, threads = self.resolver()
            receiver = Receiver()
            resolver.resolveHostName(receiver, f"{name}.invalid", 5055)
            for thread in threads:
                thread()
            self.assertEqual(receiver.addresses, [])
