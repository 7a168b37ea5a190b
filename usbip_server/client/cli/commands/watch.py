"""
C{usbipshare watch}.
"""

from __future__ import annotations

import datetime
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import click
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from usbip_server.client.cli.completion import devices, serialNumbers
from usbip_server.client.cli.context import CommandContext
from usbip_server.client.cli.discovery import allowManyConnections
from usbip_server.client.cli.options import asking
from usbip_server.client.servers import Server
from usbip_server.client.watch import Following
from usbip_server.model.errors import ShareError
from usbip_server.model.replies import ReceivedNotice, ReceivedReply
from usbip_server.model.selector import CRITERIA
from usbip_server.model.timestamps import moment
from usbip_server.net.resolver import Resolver

_EXAMPLES = """\b
Examples:
  usbipshare watch
  usbipshare watch --serial '7533*' --json
"""


@click.command("watch", short_help="Tell what happens.", epilog=_EXAMPLES)
@click.option(
    "--id",
    metavar="ID",
    shell_complete=devices,
    help="Only what has this bus id, name or vid:pid, or a glob of one.",
)
@click.option(
    "--bus",
    metavar="BUS",
    shell_complete=devices,
    help="Only what is on this bus or has this bus id.",
)
@click.option(
    "--serial",
    metavar="NUMBER",
    shell_complete=serialNumbers,
    help="Only what has this serial number, or a glob of it.",
)
@click.option("--desc", metavar="TEXT", help="Only what has this in its description, or a glob.")
@asking
def command(errand: CommandContext, **criteria: str | None) -> None:
    """
    Tell what happens at all servers, a line for each event, until ctrl-C.

    A server that is away is asked again until it is back, and tells what was missed.
    """
    said = {name: criteria[name] for name in CRITERIA if criteria.get(name) is not None}
    try:
        run(lambda reactor: _Watch(errand).watch(reactor, said))
    except Interrupted:
        return  # that is how it ends


class _Watch:
    """
    All servers.
    """

    def __init__(self, errand: CommandContext) -> None:
        self._errand = errand
        self._show = errand.show
        self._over: Deferred[None] = Deferred()

    async def watch(self, reactor: Any, criteria: dict[str, Any]) -> None:
        """
        Follow them until it is over.

        @raise OSError: nobody reads what is told.
        """
        following = [
            Following(
                server,
                reactor,
                self._begun,
                self._told,
                self._lost,
                criteria=criteria,
                seconds=self._errand.seconds,
            )
            for server in self._errand.servers
        ]
        try:
            for each in following:
                each.start()
            await self._over
        finally:
            for each in following:
                each.stop()

    def _begun(self, server: Server, answer: ReceivedReply) -> None:
        if answer.data is not None:
            text = f"{server}: {len(answer.data)} devices"
            self._say(text, event="connected", server=server.name, devices=answer.data)

    def _told(self, server: Server, notice: ReceivedNotice) -> None:
        try:
            if self._show.asJson:
                self._show.event(**{**notice, "server": server.name})
            else:
                self._show.line(_line(server, notice))
        except OSError:
            self._fail(Failure())

    def _lost(self, server: Server, error: Exception) -> None:
        text = str(error)
        if isinstance(error, ShareError):
            self._say(text, event="disconnected", server=server.name, message=text)
        else:
            self._fail(Failure(error))

    def _say(self, note: str, **fields: Any) -> None:
        try:
            if self._show.asJson:
                self._show.event(**fields)
            else:
                self._show.note(note)
        except OSError:
            self._fail(Failure())

    def _fail(self, failure: Failure) -> None:
        if not self._over.called:
            self._over.errback(failure)


def _line(server: Server, notice: ReceivedNotice) -> str:
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


T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """
    Somebody has ended it before its end: ctrl-C, or C{SIGTERM}.
    """


def run(work: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
    """
    Run a coroutine on the reactor. This can be done as often as one likes, but not within
    itself.

    @param work: takes the reactor.
    @return: what it returns; what it raises is raised.
    @raise Interrupted: it was ended.
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
        # Connections that were cut off are closed in the turn after this one.
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
        # Not stop(): that would be for good, and wait for the threads of the pool.
        reactor.run()
    finally:
        for number, does in signals.items():
            signal.signal(number, does)
        reactor.installNameResolver(before)
        for call in {*reactor.getDelayedCalls()} - others:
            call.cancel()  # nobody waits for it any more
    for error in errors:
        raise error
    return results[0]
