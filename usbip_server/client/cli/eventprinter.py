"""
C{usbipshare watch}: prints the events of all servers. The only command that runs a reactor.
"""

from __future__ import annotations

import contextlib
import datetime
import signal
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from usbip_server.client.cli import SIGNALS
from usbip_server.client.cli.context import CommandContext
from usbip_server.client.cli.discovery import allowManyConnections
from usbip_server.client.servers import Server
from usbip_server.client.watch import ServerWatch
from usbip_server.model.errors import ShareError
from usbip_server.model.replies import ReceivedNotice, ReceivedReply
from usbip_server.model.timestamps import moment
from usbip_server.net.resolver import Resolver

T = TypeVar("T")


class EventPrinter:
    """
    Watches all servers of a command.
    """

    def __init__(self, context: CommandContext) -> None:
        self._context = context
        self._printer = context.printer
        self._over: Deferred[None] = Deferred()
        self._troubles: dict[Server, str] = {}
        self._silent: dict[Server, ShareError] = {}
        self._isReported = False

    async def watch(self, reactor: Any, criteria: dict[str, Any]) -> None:
        """
        Print events until cancelled.

        @param criteria: the devices to watch, as in the command C{watch} of the protocol.
        @raise OSError: standard output cannot be written.
        """
        watches = [
            ServerWatch(
                server,
                reactor,
                self,
                criteria=criteria,
                seconds=self._context.seconds,
            )
            for server in self._context.servers
        ]
        try:
            for each in watches:
                each.start()
            await self._over
        finally:
            for each in watches:
                each.stop()

    def watchBegun(self, server: Server, answer: ReceivedReply) -> None:
        self._troubles[server] = ""
        self._silent.pop(server, None)
        if answer.data is not None:
            text = f"{server}: {len(answer.data)} devices"
            self._say(text, event="connected", server=server.name, devices=answer.data)
        self._reportSilent()

    def watchEvent(self, server: Server, notice: ReceivedNotice) -> None:
        with self._writing():
            if self._printer.asJson:
                self._printer.event(**{**notice, "server": server.name})
            else:
                self._printer.line(eventLine(server, notice))

    def watchLost(self, server: Server, error: Exception) -> None:
        text = str(error)
        if not isinstance(error, ShareError):
            self._fail(Failure(error))
            return
        before = self._troubles.get(server)
        self._troubles[server] = text
        if before is None and self._context.settings.rangeOf(server) is not None:
            self._silent[server] = error
            self._reportSilent()
        elif text != before and server not in self._silent:
            self._say(text, event="disconnected", server=server.name, message=text)

    def _reportSilent(self) -> None:
        """
        Once all servers have been tried, report how many addresses of ranges do not answer. Most
        addresses of a range may be unused, so that there is no message for each.
        """
        if len(self._troubles) == len(self._context.servers) and not self._isReported:
            self._isReported = True
            with self._writing():
                self._context.report(self._silent.items())

    def _say(self, note: str, **fields: Any) -> None:
        with self._writing():
            if self._printer.asJson:
                self._printer.event(**fields)
            else:
                self._printer.note(note)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """End the watch if the output cannot be written."""
        try:
            yield
        except OSError:
            self._fail(Failure())

    def _fail(self, failure: Failure) -> None:
        if not self._over.called:
            self._over.errback(failure)


def eventLine(server: Server, notice: ReceivedNotice) -> str:
    """An event for people."""
    device = notice.get("data")
    if not isinstance(device, dict):
        device = {}
    try:
        when = datetime.datetime.fromtimestamp(moment(str(notice.get("time"))))
        time = when.strftime("%H:%M:%S")
    except ValueError:
        time = "--:--:--"
    words = [time, server.name, str(device.get("bus_id", "-")), str(notice.get("event"))]
    called = device.get("name") or device.get("description") or ""
    about = notice.get("holder") or {}
    lease = notice.get("lease") or {}
    more = about.get("address") or lease.get("owner")
    return "  ".join([*words, f"{called} ({more})" if more else str(called)])


class Interrupted(KeyboardInterrupt):
    """
    The coroutine was ended by ctrl-C or C{SIGTERM}.
    """


def run(work: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
    """
    Run a coroutine on the reactor. This can be repeated, but not nested.

    @param work: called with the reactor.
    @return: the result of the coroutine, whose errors are raised.
    @raise Interrupted: ctrl-C or C{SIGTERM}.
    """
    from twisted.internet import reactor as installed

    reactor: Any = installed
    results: list[T] = []
    errors: list[BaseException] = []
    working: list[Deferred[None]] = []

    def interrupt(number: int, frame: object) -> None:
        reactor.callFromThread(callOff)

    def callOff() -> None:
        errors.insert(0, Interrupted())
        for deferred in working:
            deferred.cancel()
        soon()

    def soon() -> None:
        # Aborted connections are closed in the reactor's next turn.
        reactor.callLater(0, reactor.callLater, 0, reactor.crash)

    def begin() -> None:
        for number in SIGNALS:
            signal.signal(number, interrupt)
        done = Deferred.fromCoroutine(work(reactor)).addCallbacks(
            results.append, lambda failure: errors.append(failure.value)
        )
        working.append(done)
        done.addBoth(lambda nothing: soon())

    allowManyConnections()
    others = {*reactor.getDelayedCalls()}
    before = reactor.installNameResolver(Resolver(reactor))
    signals = {number: signal.getsignal(number) for number in SIGNALS}
    reactor.callWhenRunning(begin)
    try:
        # Not stop(): after that a reactor cannot run again, and it waits for the thread pool.
        reactor.run()
    finally:
        for number, does in signals.items():
            signal.signal(number, does)
        reactor.installNameResolver(before)
        for call in {*reactor.getDelayedCalls()} - others:
            call.cancel()
    for error in errors:
        raise error
    return results[0]
