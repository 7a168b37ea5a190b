"""
The Twisted service of C{twistd usbipshare}: reads the configuration, listens, reloads, stops.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.threads import deferToThread
from twisted.logger import Logger
from twisted.python.failure import Failure

from usbip_server.interfaces import IUsbBackend
from usbip_server.model.options import InvalidOption
from usbip_server.net.certificates import Certificates, Credentials
from usbip_server.net.certificates import read as readCredentials
from usbip_server.net.endpoints import (
    CannotListen,
    Listener,
    Listeners,
    Purpose,
    Wrong,
    descriptorsPerConnection,
    explain,
)
from usbip_server.protocols.exporter import ExporterFactory
from usbip_server.protocols.exporter_tls import SecuredFactory
from usbip_server.protocols.multiplexer import FirstByteFactory
from usbip_server.runtime.exposition import EventCounter, Kind, Metric, Sample
from usbip_server.runtime.service import ReloadOnHangup, allowConnections, notify
from usbip_server.runtime.statefile import StateFile, statePath
from usbip_server.runtime.yamlfile import ConfigError
from usbip_server.server.advertiser import Advertiser
from usbip_server.server.advice import utcNow, warningsAbout
from usbip_server.server.config import Config, Export, Settings, Source, load
from usbip_server.server.core import Core
from usbip_server.server.devices.desireddevice import State

CLOSING_SECONDS = 2.0
"""Time for clients to read their last replies when the daemon stops."""

NEED_RESTART = ("backend", "state.file")
"""Keys that a reload does not change."""


MakeBackend = Callable[[str, Mapping[str, Any], Any], IUsbBackend]
"""Takes the name of a backend, its options and the reactor; raises L{InvalidOption}."""


class CommandLine(NamedTuple):
    """
    What the command line gives.

    @ivar config: the configuration file; C{None}: the defaults.
    @ivar backend: the backend type in place of the file's.
    @ivar listen: endpoint descriptions in place of the file's C{listen}.
    @ivar export: endpoint descriptions in place of the file's C{export.listen}, or C{off}.
    """

    config: str | None
    backend: str | None
    listen: Sequence[str]
    export: Sequence[str]


class Plan(NamedTuple):
    """
    What one reading of the configuration file and the command line comes to.
    """

    commandLine: CommandLine
    source: Source
    config: Config
    credentials: Credentials | None
    listeners: Sequence[Listener]

    @property
    def warnings(self) -> list[str]:
        """What is valid, and most likely not what is meant."""
        validities = () if self.credentials is None else self.credentials.validities
        return warningsAbout(self.config, self.listeners, validities, utcNow())

    @property
    def backendType(self) -> str:
        """The name of the backend."""
        return self.commandLine.backend or self.config.backendType

    @property
    def backendOptions(self) -> Mapping[str, Any]:
        """Its options: those in the file are for the type in the file."""
        isInFile = self.backendType == self.config.backendType
        return self.config.backendOptions if isInFile else {}

    def makeBackend(self, make: MakeBackend, reactor: Any) -> IUsbBackend:
        """
        Make the backend.

        @param make: makes a backend by its name.
        @raise ConfigError: its name or one of its options is wrong.
        """
        try:
            return make(self.backendType, self.backendOptions, reactor)
        except InvalidOption as error:
            raise self._backendError(error) from None

    def _backendError(self, error: InvalidOption) -> ConfigError:
        """An error that names where the wrong option of the backend stands."""
        keys = ".".join(map(str, error.path))
        if self.commandLine.backend and (keys == "type" or not self.backendOptions):
            reason = error.reason if keys in ("", "type") else f"{keys}: {error.reason}"
            return ConfigError(f"--backend: {reason}")
        return self.source.error(("backend", *error.path), error.reason)

    def stateFile(self, reactor: Any) -> StateFile[State] | None:
        """
        The state file; C{None} if there is none. A trial with virtual devices and without a
        configuration leaves no file behind.
        """
        isTrial = self.commandLine.backend == "virtual" and not self.commandLine.config
        file = None if isTrial else self.config.state.file
        path = statePath(file, os.environ, os.geteuid() == 0)
        return None if path is None else StateFile(path, State, reactor)

    def settings(self) -> Settings:
        """
        The settings to put in force: with no more connections than there can be descriptors,
        for which the limit on open files is raised.
        """
        settings = self.config.settings
        wanted, each = settings.limits.connections, descriptorsPerConnection(self.listeners)
        limits = msgspec.structs.replace(
            settings.limits, connections=allowConnections(wanted, each)
        )
        return msgspec.structs.replace(settings, limits=limits)


class ConfigReader:
    """
    Reads the configuration, at the start and for each reload.

    @ivar certificates: for the listeners with TLS; a reload replaces what is in it.
    @ivar reloads: counts reloads.
    """

    def __init__(self, commandLine: CommandLine, reactor: Any) -> None:
        self.certificates = Certificates()
        self.reloads = EventCounter(
            "usbipshare_reloads_total", "Reloads of the configuration by result.", ("result",)
        )
        self._commandLine = commandLine
        self._reactor = reactor

    def read(self) -> Plan:
        """
        Read the configuration.

        @raise ConfigError: something in it is wrong.
        """
        path = self._commandLine.config
        source = load(path) if path else Source("defaults", "")
        config = source.config()
        credentials = _credentials(source, config)
        return Plan(self._commandLine, source, config, credentials, self._listeners(source, config))

    def metrics(self) -> Iterator[Metric]:
        """The number of reloads, and when the certificates expire."""
        yield self.reloads.metric()
        yield Metric(
            "usbipshare_certificate_expiry_timestamp_seconds",
            Kind.GAUGE,
            "When the first certificate in a file expires.",
            [Sample(until, (path,)) for path, until in self.certificates.expiries.items()],
            ("file",),
        )

    def _listeners(self, source: Source, config: Config) -> list[Listener]:
        listeners = Listeners(self._reactor, None if config.tls is None else self.certificates)
        given = self._commandLine
        exports = [text for text in given.export if text != "off"]
        inFile = config.export.listen if isinstance(config.export, Export) else ()

        def onLine(option: str) -> Wrong:
            return lambda index, reason: ConfigError(f"{option}: {reason}")

        def at(*path: str) -> Wrong:
            return lambda index, reason: source.error((*path, index), reason)

        return [
            *listeners.requests(given.listen, onLine("--listen")),
            *listeners.requests(() if given.listen else config.listen, at("listen")),
            *listeners.export(exports, onLine("--export")),
            *listeners.export(() if given.export else inFile, at("export", "listen")),
        ]


def _credentials(source: Source, config: Config) -> Credentials | None:
    try:
        return None if config.tls is None else readCredentials(config.tls)
    except InvalidOption as error:
        raise source.error(error.path, error.reason) from None


class _Port(NamedTuple):
    """
    A listener, and the port it has opened.
    """

    listener: Listener
    port: IListeningPort


class Daemon(Service):
    """
    Listens, and has connections served by the factory for the purpose of the port.
    """

    _log = Logger()

    def __init__(
        self,
        core: Core,
        requests: FirstByteFactory,
        exporters: tuple[ExporterFactory, SecuredFactory],
        reader: ConfigReader,
        plan: Plan,
        reactor: Any,
    ) -> None:
        """
        @param requests: makes the connections for requests.
        @param exporters: make the connections for USB/IP, without and with TLS.
        @param reader: reads the configuration again for a reload, on SIGHUP.
        @param plan: the configuration at the start.
        @param reactor: provides C{IReactorFromThreads}.
        """
        self._core = core
        self._requests = requests
        self._exporters = exporters
        self._factories = dict(zip(Purpose, (requests, *exporters), strict=True))
        self._reader = reader
        self._plan = plan
        self._reloading = ReloadOnHangup(reactor, self._reload)
        self._ports: list[_Port] = []
        self._advertiser = Advertiser()
        self._isListening = False
        reader.certificates.replace(plan.credentials)

    @property
    def warnings(self) -> list[str]:
        """What is valid in the configuration, and most likely not what is meant."""
        return self._plan.warnings

    def privilegedStartService(self) -> None:
        """
        Listen, while the process may still use low ports.

        @raise CannotListen: a port cannot be opened.
        """
        if not self._isListening:
            self._isListening = True
            self._listenAll(self._plan.listeners)

    async def _reload(self) -> None:
        """
        Read the configuration again, and put it in force. If it is wrong, that is logged and
        the old configuration stays in force.
        """
        certificates = self._reader.certificates
        try:
            plan = self._reader.read()
            before = certificates.replace(plan.credentials)
            try:
                await self._listenOn(plan.listeners)
            except CannotListen:
                certificates.replace(before)
                raise
        except (ConfigError, CannotListen) as error:
            self._reader.reloads.add("failed")
            self._log.error(
                "reload failed, keeping the old configuration: {error}", error=str(error)
            )
            return
        for key in NEED_RESTART:
            if attrgetter(key)(plan.config) != attrgetter(key)(self._plan.config):
                self._log.warn("changing `{key}` needs a restart", key=key)
        self._warn(plan)
        self._reader.reloads.add("ok")
        self._core.reload(plan.settings())
        self._advertiser.update(plan.config.advertise, self._ports)
        self._log.info("configuration reloaded")

    def _warn(self, plan: Plan) -> None:
        for warning in plan.warnings:
            self._log.warn("configuration: {warning}", warning=warning)

    async def _listenOn(self, listeners: Sequence[Listener]) -> None:
        """
        Listen there, and nowhere else. Connections are not affected.

        @raise CannotListen: a port cannot be opened; nothing has changed.
        """
        before = tuple(self._ports)
        old, fresh = list(before), []
        for listener in listeners:
            known = next((port for port in old if port.listener.name == listener.name), None)
            if known is None:
                fresh.append(listener)
            else:
                old.remove(known)
        try:
            self._listenAll(fresh)
        except CannotListen:
            if not old:
                raise
            # A new listener may conflict with an old one: an address with all addresses.
            await self._close(old)
            try:
                self._listenAll(fresh)
            except CannotListen:
                self._listenAll([port.listener for port in old])
                raise
        else:
            await self._close(old)

    def _listenAll(self, listeners: Sequence[Listener]) -> None:
        """
        @raise CannotListen: a port cannot be opened; then none of them is open.
        """
        before = tuple(self._ports)
        try:
            for listener in listeners:
                self._listen(listener)
        except CannotListen:
            opened = [port for port in self._ports if port not in before]
            self._ports = [*before]
            for port in opened:
                port.port.stopListening()
            raise

    async def _close(self, ports: Sequence[_Port]) -> None:
        for port in ports:
            self._ports.remove(port)
            self._log.info(
                "not listening on {description} any more", description=port.listener.description
            )
            await _maybe(port.port.stopListening())

    def startService(self) -> None:
        """
        Start the backend. Requests that come before it has started wait for it.
        """
        super().startService()
        self._warn(self._plan)
        self._reloading.start()
        self.privilegedStartService()  # "python -m twisted" does not
        Deferred.fromCoroutine(self._start()).addErrback(
            lambda failure: self._log.failure("the backend does not start", failure)
        )

    def stopService(self) -> Deferred[None]:
        """
        Answer the requests that have arrived, and stop.
        """
        super().stopService()
        self._reloading.stop()
        return Deferred.fromCoroutine(self._stop())

    async def _start(self) -> None:
        await self._core.start()
        self._advertiser.update(self._plan.config.advertise, self._ports)
        self._log.info("ready")
        notify("READY=1")

    async def _stop(self) -> None:
        notify("STOPPING=1")
        announcer = self._advertiser.stop()
        await self._close(tuple(self._ports))
        await self._core.stop()
        for exporter in self._exporters:
            exporter.close()
        await self._requests.close(CLOSING_SECONDS)
        if announcer is not None:
            await deferToThread(announcer.join, CLOSING_SECONDS)
        self._log.info("stopped")

    def _listen(self, listener: Listener) -> None:
        failures: list[Failure] = []
        factory = self._factories[listener.purpose]
        listening: Deferred[IListeningPort] = listener.endpoint.listen(factory)
        listening.addCallbacks(self._listens, failures.append, callbackArgs=(listener,))
        for failure in failures:
            assert failure.value is not None
            isPlain = listener.purpose is Purpose.EXPORT
            raise CannotListen(explain(listener.description, failure.value, isPlain))

    def _listens(self, port: IListeningPort, listener: Listener) -> None:
        self._ports.append(_Port(listener, port))
        address = port.getHost()
        self._log.info(
            "listening on {description}: {address}"
            if listener.purpose is Purpose.REQUESTS
            else "exporting on {description}: {address}",
            description=listener.description,
            address=str(address),
            port=getattr(address, "port", None),
        )


async def _maybe(result: Deferred[None] | None) -> None:
    if result is not None:
        await result
