"""
What a command works with: the servers that are meant, and how to ask them.
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import click

from usbip_server.client.attach import Attaching
from usbip_server.client.blocking import askToTheEnd
from usbip_server.client.cli.discovery import DiscoveryResult, survey
from usbip_server.client.cli.output import Show
from usbip_server.client.cli.stockusbipd import unlisted
from usbip_server.client.cli.tables import devicesTable
from usbip_server.client.config import DEFAULT, ClientSettings, find, load
from usbip_server.client.devices import RemoteDevice
from usbip_server.client.selection import Selection, SeveralFound
from usbip_server.client.servers import Server
from usbip_server.kernel.system import ISystem, System
from usbip_server.kernel.vhci import records as vhcirecords
from usbip_server.kernel.vhci.devnodes import Nodes
from usbip_server.kernel.vhci.ports import Vhci
from usbip_server.kernel.vhci.records import Records
from usbip_server.model.errors import DeviceNotFound, ShareError, Unreachable
from usbip_server.model.replies import ReceivedNotice, Refused, Status

Request = dict[str, Any]


class CommandContext:
    """
    One command's.

    @ivar servers: those that are meant.
    @ivar seconds: for each to answer.
    """

    def __init__(
        self,
        machine: Machine,
        show: Show,
        settings: ClientSettings,
        servers: tuple[Server, ...],
        seconds: float,
    ) -> None:
        self.machine = machine
        self.show = show
        self.settings = settings
        self.servers = servers
        self.seconds = seconds

    @classmethod
    def of(
        cls,
        machine: Machine,
        show: Show,
        hosts: Sequence[str] = (),
        config: str | None = None,
        timeout: float | None = None,
    ) -> CommandContext:
        """
        The one that options tell of.

        @param hosts: whom to ask.
        @param config: the file of servers.
        @param timeout: seconds.
        @raise ConfigError: the file is wrong.
        @raise click.UsageError: one of C{hosts} is none.
        """
        known = find(machine.environment, machine.etc) if config is None else load(config)
        for warning in known.warnings:
            show.note(f"warning: {warning}")
        try:
            servers = known.servers(hosts, machine.environment)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        return cls(machine, show, known, servers, timeout or known.timeout)

    def survey(self) -> DiscoveryResult:
        """
        What all servers have. Those that do not answer are told of.

        @raise Refused: none lets us.
        @raise Unreachable: none does.
        """
        stock = self.settings.stock
        found = self.look()
        self.tell(found.troubles)
        for server in found.stock:
            if server not in stock:
                self.show.note(
                    f"{server}: nobody at port {server.port}, but at {server.exportPort}: taken "
                    "for a stock usbipd"
                )
        if not found.answered:
            refusals = [error for _, error in found.troubles if isinstance(error, Refused)]
            if refusals:
                raise Refused(refusals[0].status, self._nobody("lets us"))
            raise Unreachable(self._nobody("answers"))
        return found

    def look(self) -> DiscoveryResult:
        """
        Likewise, but nothing is told of those that do not answer.
        """
        return survey(self.servers, self.seconds, self.settings.stock)

    def pick(self, meant: Selection, found: DiscoveryResult) -> RemoteDevice:
        """
        The one device that is meant; if there are several, the one that somebody chooses.

        @raise DeviceNotFound: there is none.
        @raise SeveralFound: there are several, and nobody can be asked.
        """
        try:
            return meant.choose(found.found)
        except DeviceNotFound as error:
            why = unlisted(found.stock, meant.busId)
            raise DeviceNotFound(f"{error}{why}") from error
        except SeveralFound as several:
            if self.show.asJson or not self.machine.isTerminal:
                raise
            self.show.note(f"{several}:")
            self.show.table(devicesTable(several.found, numbered=True), err=True)
            numbers = click.IntRange(1, len(several.found))
            number: int = click.prompt("Which one", type=numbers, err=True)
            return several.found[number - 1]

    def ask(
        self,
        server: Server,
        request: Request,
        told: Callable[[ReceivedNotice], None] = lambda notice: None,
    ) -> Any:
        """
        Ask a server for something, and again for as long as it is at it.

        @return: the C{data} of its answer.
        @raise Refused: it does not do it.
        @raise Unreachable: it does not answer.
        """
        answer = askToTheEnd(
            server,
            request,
            self.seconds,
            told,
            lambda answer: self.show.progress(f"{server}: {answer.message}", isNews=True),
        )
        if answer.status is not Status.SUCCESS:
            raise Refused(answer.status, f"{server}: {answer.message}")
        return answer.data

    def tell(self, troubles: Iterable[tuple[Server, ShareError]]) -> None:
        """
        Say which servers do not answer: of a range, how many, as most of its addresses may be
        nobody's.
        """
        silent: dict[str, int] = {}
        for server, error in troubles:
            name = self.settings.rangeOf(server)
            if name is None:
                self.show.trouble(server.name, str(error))
            else:
                silent[name] = silent.get(name, 0) + 1
        for name, count in silent.items():
            addresses = len(self.settings.known[name])
            self.show.trouble(name, f"{name}: {count} of its {addresses} addresses do not answer")

    def _nobody(self, does: str) -> str:
        several = f"none of {len(self.servers)} servers {does}"
        alone = f"{self.servers[0]} {'does not answer' if does == 'answers' else 'refuses'}"
        said = several if len(self.servers) > 1 else alone
        if not self.settings.known and [server.name for server in self.servers] == [DEFAULT]:
            said += ": say with --host, USBIPSHARE_HOSTS or client.yaml which server you mean"
        if self.machine.environment.get("SUDO_USER") and not self.settings.known:
            said += (
                ": with sudo neither USBIPSHARE_HOSTS nor the client.yaml of your own account "
                "counts, so say --host, or have /etc/usbipshare/client.yaml"
            )
        return said


Relay = Callable[[ssl.SSLSocket, socket.socket], None]


class Machine:
    """
    What a test replaces, in click's C{obj}.

    @ivar environment: variables.
    @ivar system: the kernel.
    @ivar etc: the folder of settings for everybody.
    """

    def __init__(
        self,
        system: ISystem | None = None,
        environment: Mapping[str, str] = os.environ,
        etc: str = "/etc/usbipshare",
        nodes: str = "/dev",
        records: str = vhcirecords.FOLDER,
        isTerminal: bool | None = None,
    ) -> None:
        """
        @param system: the kernel; C{None}: the real one.
        @param nodes: where its nodes are.
        @param records: where notes on imported devices are.
        @param isTerminal: is there somebody who can be asked? C{None}: look.
        """
        self.environment = environment
        self.etc = etc
        self.system: ISystem = system or System()
        self._nodes = nodes
        self._records = records
        self._isTerminal = isTerminal

    @property
    def isTerminal(self) -> bool:
        """Is there somebody who can be asked something?"""
        if self._isTerminal is not None:
            return self._isTerminal
        return sys.stdin.isatty() and sys.stderr.isatty()

    def vhci(self) -> Vhci:
        """The ports that devices are plugged in at."""
        return Vhci(self.system)

    def attaching(self, relay: Relay) -> Attaching:
        """What plugs devices in and out."""
        nodes, records = Nodes(self.system, self._nodes), Records(self._records)
        return Attaching(self.vhci(), nodes, records, relay)
