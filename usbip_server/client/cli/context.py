"""
The context of a command: its servers, how to ask them, and this machine.
"""

from __future__ import annotations

import functools
import os
import socket
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from usbip_server.client.blocking import ask, askToTheEnd, devicesOf
from usbip_server.client.cli.discovery import DiscoveryResult, askAll, discover
from usbip_server.client.cli.output import Printer
from usbip_server.client.cli.stockusbipd import unlisted
from usbip_server.client.cli.tables import devicesTable
from usbip_server.client.config import DEFAULT, ClientSettings, find, load
from usbip_server.client.devices import RemoteDevice
from usbip_server.client.selection import Selector, SeveralFound, choose
from usbip_server.client.servers import Server
from usbip_server.model.criteria import describe
from usbip_server.model.errors import DeviceNotFound, ShareError, Unreachable
from usbip_server.model.options import nearest
from usbip_server.model.replies import Code, ReceivedNotice, Refused, Status

if TYPE_CHECKING:  # loaded by commands that attach and detach
    import ssl

    from usbip_server.client.attach import Attaching
    from usbip_server.kernel.system import ISystem
    from usbip_server.kernel.vhci.ports import Vhci
    from usbip_server.net.mdns import FoundServer

Request = dict[str, Any]

_WAIT = "--wait SECONDS waits for it, "

_OWNER = "give --lease OWNER if the lease is yours; --force ends it"

ADVICE = {
    ("attach", Code.IN_USE.value): "--force ends that session",
    ("attach", Code.LEASED.value): "--force ends that lease",
    ("attach", Code.AWAITED.value): "--force goes first",
    ("detach", Code.IN_USE.value): "--force ends that session",
    ("detach", Code.LEASED.value): _OWNER,
    ("kick", Code.LEASED.value): _OWNER,
}
"""The options that help after a refusal, by command and code of the reply."""


class CommandContext:
    """
    What a command works with.

    @ivar machine: this machine.
    @ivar printer: prints what the command reports.
    @ivar settings: the configured servers.
    @ivar seconds: for each server's reply.
    """

    def __init__(
        self,
        machine: Machine,
        printer: Printer,
        settings: ClientSettings,
        named: tuple[Server, ...] | None,
        seconds: float,
    ) -> None:
        """
        @param named: the servers that are named; C{None}: none is.
        """
        self.machine = machine
        self.printer = printer
        self.settings = settings
        self._named = named
        self.seconds = seconds

    def requireNamed(self, server: Server) -> None:
        """
        @raise Refused: the server has only announced itself, as anybody in the network can: a
            device of it may be a keyboard that types.
        """
        if self._named is None and server.host != DEFAULT:
            raise Refused(
                Status.FAILURE,
                f"{server} is not named by you, and has only announced itself in the network, "
                f"which anybody can: to attach a device from it, give --host {server.address}",
            )

    @functools.cached_property
    def servers(self) -> tuple[Server, ...]:
        """The servers to ask: if none is named, those in the local network, or this machine."""
        if self._named is not None:
            return self._named
        return self.machine.nearby() or self.settings.servers((), {})

    @classmethod
    def of(
        cls,
        machine: Machine,
        printer: Printer,
        hosts: Sequence[str] = (),
        config: str | None = None,
        timeout: float | None = None,
    ) -> CommandContext:
        """
        The context that the options of a command line make.

        @param hosts: of C{--host}.
        @param config: the path of client.yaml; C{None}: in the usual places.
        @param timeout: seconds; C{None}: as in client.yaml.
        @raise ConfigError: client.yaml is wrong.
        @raise click.UsageError: one of C{hosts} is not an address.
        """
        settings = find(machine.environment, machine.etc) if config is None else load(config)
        for warning in settings.warnings:
            printer.note(f"warning: {warning}")
        try:
            servers = settings.servers(hosts, machine.environment)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        isUnnamed = settings.namesNone(hosts, machine.environment)
        named = None if isUnnamed else servers
        return cls(machine, printer, settings, named, timeout or settings.timeout)

    def discover(self) -> DiscoveryResult:
        """
        Ask all servers for their devices, and report those that do not answer.

        @raise Refused: no server answers, and one refuses.
        @raise Unreachable: no server answers.
        """
        result = self.discoverQuietly()
        for server in result.stock:
            if server not in self.settings.stock:
                self.printer.note(
                    f"{server}: port {server.port} is closed, but port {server.exportPort} is "
                    "open: taken for a stock usbipd"
                )
        return self.required(result)

    def required(self, result: DiscoveryResult) -> DiscoveryResult:
        """
        Report the servers that have not answered.

        @raise Refused: no server answers, and one refuses.
        @raise Unreachable: no server answers.
        """
        self.report(result.troubles)
        if not result.answered:
            refusals = [error for _, error in result.troubles if isinstance(error, Refused)]
            if refusals:
                raise Refused(refusals[0].status, self._none("accepts the request", "refuses"))
            raise Unreachable(self._none("answers", "does not answer"))
        return result

    def discoverQuietly(self) -> DiscoveryResult:
        """
        Ask all servers for their devices, without reports nor errors.
        """
        return discover(self.servers, self.seconds, self.settings.stock)

    def awayQuietly(self) -> DiscoveryResult:
        """
        Ask all servers for the devices that are attached and not plugged in, without reports nor
        errors.
        """
        asked = [server for server in self.servers if server not in self.settings.stock]
        replies = askAll(asked, lambda server: devicesOf(server, self.seconds, away=True))
        return DiscoveryResult(
            found=tuple(each for _, devices in replies.answers for each in devices),
            answered=tuple(server for server, _ in replies.answers),
            troubles=tuple(replies.troubles),
        )

    def choose(self, selector: Selector, result: DiscoveryResult) -> RemoteDevice:
        """
        The one device that matches. If there are several, the user is asked on a terminal.

        @raise DeviceNotFound: none matches.
        @raise SeveralFound: several match, and there is no terminal.
        """
        try:
            return choose(selector, result.found)
        except DeviceNotFound as error:
            hint = unlisted(result.stock, selector.busId)
            reasons = "".join(f"; {reason}" for reason in self._reasons(selector, result))
            raise DeviceNotFound(f"{error}{reasons}{hint}") from error
        except SeveralFound as several:
            if self.printer.asJson or not self.machine.isTerminal:
                raise
            self.printer.note(f"{several}:")
            self.printer.table(devicesTable(several.found, numbered=True), err=True)
            numbers = click.IntRange(1, len(several.found))
            number: int = click.prompt("Which one", type=numbers, err=True)
            return several.found[number - 1]

    def ask(
        self,
        server: Server,
        request: Request,
        onNotice: Callable[[ReceivedNotice], None] = lambda notice: None,
    ) -> Any:
        """
        Send a request, and repeat it while the server replies that it is still in progress.

        @param onNotice: called with each event before the reply.
        @return: the C{data} of the reply.
        @raise Refused: the server refuses.
        @raise Unreachable: the server does not reply.
        """
        reply = askToTheEnd(
            server,
            request,
            self.seconds,
            onNotice,
            lambda reply: self.printer.progress(f"{server}: {reply.message}", isNews=True),
        )
        if reply.status is not Status.SUCCESS:
            command = request["command"]
            advice = ADVICE.get((command, reply.code or ""), "")
            if advice and command == "attach" and "wait" not in request:
                advice = _WAIT + advice
            message = f"{server}: {reply.message}{advice and f' ({advice})'}"
            raise Refused(reply.status, message)
        return reply.data

    def report(self, troubles: Iterable[tuple[Server, ShareError]]) -> None:
        """
        Report the servers that do not answer: for a range only their number, as most addresses of
        a range may be unused.
        """
        silent: dict[str, int] = {}
        for server, error in troubles:
            name = self.settings.rangeOf(server)
            if name is not None:
                silent[name] = silent.get(name, 0) + 1
                continue
            isUnknown = isinstance(error.__cause__, socket.gaierror)
            hint = nearest(server.name, self.settings.known) if isUnknown else ""
            self.printer.trouble(server.name, f"{error}{hint}")
        for name, count in silent.items():
            addresses = len(self.settings.known[name])
            message = f"{name}: {count} of its {addresses} addresses do not answer"
            self.printer.trouble(name, message)

    def _reasons(self, selector: Selector, result: DiscoveryResult) -> list[str]:
        """
        Why servers do not list a device that matches: it may be a hub, imported from elsewhere, or
        unplugged. A server that has nothing to add to that none matches is left out.
        """
        servers = [server for server in result.answered if not result.isStock(server)]
        reasons: dict[Server, str] = {}
        for criteria in selector.requests:
            request = {"command": "find", **criteria}
            replies = askAll(servers, partial(ask, request=request, seconds=self.seconds))
            for server, reply in replies.answers:
                none = f"no device matches {describe(criteria)}"
                if reply.status is Status.NOT_FOUND and reply.message != none:
                    reason = reply.message.removeprefix(f"{none}: ")
                    reasons.setdefault(server, f"{server}: {reason}")
        return [*reasons.values()]

    def _none(self, several: str, alone: str) -> str:
        """
        The message of a command that no server answers.

        @param several: what none of several servers does.
        @param alone: what the only server does.
        """
        message = f"none of {len(self.servers)} servers {several}"
        if len(self.servers) == 1:
            message = f"{self.servers[0]} {alone}"
        if not self.settings.known and [server.host for server in self.servers] == [DEFAULT]:
            message += (
                ", and no server announces itself in the local network: name a server with "
                "--host, USBIPSHARE_HOSTS or client.yaml"
            )
        if self.machine.environment.get("SUDO_USER") and not self.settings.known:
            message += (
                ": sudo hides USBIPSHARE_HOSTS and the client.yaml of your own account, so give "
                "--host, or create /etc/usbipshare/client.yaml"
            )
        return message


class Machine:
    """
    This machine. Tests replace it, in click's C{obj}.

    @ivar environment: the environment variables.
    @ivar etc: the folder of the settings for all users.
    """

    def __init__(
        self,
        system: ISystem | None = None,
        environment: Mapping[str, str] = os.environ,
        etc: str = "/etc/usbipshare",
        nodes: str = "/dev",
        records: str | None = None,
        isTerminal: bool | None = None,
        addresses: Sequence[str] | None = None,
    ) -> None:
        """
        @param system: the kernel; C{None}: the real one.
        @param nodes: the folder of device nodes.
        @param records: the folder of the records of attached devices; C{None}: that of C{usbip}.
        @param isTerminal: can the user be asked? C{None}: find out.
        @param addresses: of this machine, where servers are looked for; C{None}: find out.
        """
        self.environment = environment
        self.etc = etc
        self._system = system
        self._nodes = nodes
        self._records = records
        self._isTerminal = isTerminal
        self._addresses = addresses

    @property
    def isTerminal(self) -> bool:
        """Can the user be asked?"""
        if self._isTerminal is not None:
            return self._isTerminal
        return sys.stdin.isatty() and sys.stderr.isatty()

    @property
    def system(self) -> ISystem:
        """The kernel."""
        if self._system is None:
            from usbip_server.kernel.system import System

            self._system = System()
        return self._system

    def browse(self, seconds: float) -> list[FoundServer]:
        """The servers that announce themselves in the local network."""
        from usbip_server.net.mdns import browse

        return browse(seconds, self._addresses)

    def nearby(self) -> tuple[Server, ...]:
        """The servers to ask if none is named."""
        from usbip_server.client.nearby import serversNearby

        return serversNearby(self.browse)

    def vhci(self) -> Vhci:
        """The ports that devices are attached at."""
        from usbip_server.kernel.vhci.ports import Vhci

        return Vhci(self.system)

    def attaching(self, relay: Callable[[ssl.SSLSocket, socket.socket], None]) -> Attaching:
        """
        Attaches and detaches devices.

        @param relay: see L{Attaching}.
        """
        from usbip_server.client.attach import Attaching
        from usbip_server.kernel.vhci import records
        from usbip_server.kernel.vhci.devnodes import Nodes

        nodes = Nodes(self.system, self._nodes)
        kept = records.Records(self._records or records.FOLDER)
        return Attaching(self.vhci(), nodes, kept, relay)
