"""
Tests of L{usbip_server.net.resolver}.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import (
    IAddress,
    IHostnameResolver,
    IHostResolution,
    IResolutionReceiver,
)
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from usbip_server.net.resolver import Lookup, Resolver
from usbip_server.testing import FakeReactor


@implementer(IResolutionReceiver)
class Receiver:
    """
    Collects addresses.

    @ivar addresses: the addresses, once they are complete.
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

    def test_resolve(self) -> None:
        """
        An address is resolved without a thread, and keeps its interface; a name is resolved in a
        thread; an invalid name has no addresses.
        """
        loopback = IPv4Address("TCP", "127.0.0.1", 5055)
        for host, kind, isThreaded, addresses in (
            ("127.0.0.1", IPv4Address, False, [loopback]),
            ("::1", IPv6Address, False, [IPv6Address("TCP", "::1", 5055)]),
            ("fe80::1%lo", IPv6Address, False, [IPv6Address("TCP", "fe80::1%1", 5055, 0, 1)]),
            ("localhost", IPv4Address, True, [loopback]),
            *((f"{name}.invalid", IPv4Address, None, []) for name in ("", "a" * 70, "a..b")),
        ):
            threads: list[Callable[[], None]] = []
            resolver = Resolver(FakeReactor(), threads.append)
            verifyObject(IHostnameResolver, resolver)
            receiver = Receiver()
            resolver.resolveHostName(receiver, host, 5055, [kind])
            if isThreaded is not None:
                self.assertEqual((len(threads) == 1, receiver.addresses is None), 2 * (isThreaded,))
            for thread in threads:
                thread()
            self.assertEqual(receiver.addresses, addresses)
        Lookup("raspi").cancel()
