"""
Shares the reactor's time between clients: no address can keep the others waiting by the number of
its requests.

The requests of an address are answered as they arrive, for L{DIRECT} seconds in a turn of the
reactor. Then its connections are not read, and wait: in each turn one connection of each waiting
address is served for L{SLICE} seconds, in rotation, and at most L{SERVED} of them together for
L{TURN} seconds.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from usbip_server.model.policy import Principal
from usbip_server.net.caller import networkOf

DIRECT = 0.004
"""Seconds in a turn of the reactor for the requests of an address that does not wait."""

SLICE = 0.0003
"""Seconds in a turn of the reactor for a connection that waits."""

TURN = 0.002
"""Seconds in a turn of the reactor for all connections that wait."""

SERVED = 4
"""Connections that wait and are served in a turn of the reactor: their answers have to be sent."""


class Waiting(Protocol):
    """
    What can wait for a turn.
    """

    def takeTurn(self) -> None:
        """Go on, for as long as the account allows. It may wait again."""


class Account:
    """
    The time that is used for one address.

    @ivar until: by the reactor's clock, when no further request is begun in this turn.
    @ivar users: the number of connections of the address.
    """

    __slots__ = ("_began", "_isNoted", "_isServed", "_spent", "_turns", "until", "users", "waiting")

    def __init__(self, turns: Turns) -> None:
        self.until = 0.0
        self.users = 0
        self.waiting: deque[Waiting] = deque()
        self._turns = turns
        self._began = 0.0
        self._spent = 0.0
        self._isNoted = False
        self._isServed = False

    def begin(self) -> None:
        """Called before requests of the address are answered."""
        self._began = now = self._turns.seconds()
        if not self._isServed:
            self.until = now if self.waiting else now + DIRECT - self._spent

    def end(self) -> None:
        """Called after that."""
        self._spent += self._turns.seconds() - self._began
        if self._spent > DIRECT / 2 and not self._isNoted:
            self._isNoted = True
            self._turns.note(self)

    def wait(self, connection: Waiting) -> None:
        """Have a connection take a turn later."""
        if not self.waiting:
            self._turns.add(self)
        self.waiting.append(connection)

    def renew(self) -> None:
        """Called when another turn begins."""
        self._spent = 0.0
        self._isNoted = False

    def serve(self) -> None:
        """Let one connection take its turn."""
        connection = self.waiting.popleft()
        if self.waiting:
            self._turns.add(self)
        self.until = self._turns.seconds() + SLICE
        self._isServed = True
        try:
            connection.takeTurn()
        finally:
            self._isServed = False


class Turns:
    """
    The accounts of all addresses with connections.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self.seconds = clock.seconds
        self._clock = clock
        self._accounts: dict[str, Account] = {}
        self._spent: list[Account] = []
        self._waiting: deque[Account] = deque()
        self._next: IDelayedCall | None = None

    def join(self, principal: Principal) -> Account:
        """
        Return the account for a new connection: that of its network.
        """
        key = networkOf(principal)
        account = self._accounts.get(key)
        if account is None:
            account = self._accounts[key] = Account(self)
        account.users += 1
        return account

    def leave(self, principal: Principal) -> None:
        """Called when the connection has ended."""
        key = networkOf(principal)
        account = self._accounts[key]
        account.users -= 1
        if not account.users:
            del self._accounts[key]

    def note(self, account: Account) -> None:
        """Renew an account when the next turn begins."""
        self._spent.append(account)
        self._schedule()

    def add(self, account: Account) -> None:
        """Serve a connection of an account in one of the next turns."""
        self._waiting.append(account)
        self._schedule()

    def _schedule(self) -> None:
        if self._next is None:
            self._next = self._clock.callLater(0, self._turn)

    def _turn(self) -> None:
        self._next = None
        spent, self._spent = self._spent, []
        for account in spent:
            account.renew()
        until = self.seconds() + TURN
        served = 0
        while self._waiting and served < SERVED and self.seconds() < until:
            served += 1
            try:
                self._waiting.popleft().serve()
            except Exception:
                self._log.failure("a bug in serving a connection")
        if self._waiting:
            self._schedule()
