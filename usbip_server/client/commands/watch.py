"""
C{usbipshare watch}.
"""

from __future__ import annotations

import datetime
from typing import Any

import click
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from usbip_server.client.core.answers import Answer, Notice
from usbip_server.client.core.following import Following
from usbip_server.client.core.servers import Server
from usbip_server.client.terminal.completing import devices, serialNumbers
from usbip_server.client.terminal.errand import Errand
from usbip_server.client.terminal.options import asking
from usbip_server.client.terminal.running import Interrupted, run
from usbip_server.errors import ShareError
from usbip_server.matching import CRITERIA
from usbip_server.timestamps import moment

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
def command(errand: Errand, **criteria: str | None) -> None:
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

    def __init__(self, errand: Errand) -> None:
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

    def _begun(self, server: Server, answer: Answer) -> None:
        if answer.data is not None:
            text = f"{server}: {len(answer.data)} devices"
            self._say(text, event="connected", server=server.name, devices=answer.data)

    def _told(self, server: Server, notice: Notice) -> None:
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


def _line(server: Server, notice: Notice) -> str:
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
