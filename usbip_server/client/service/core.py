"""
Builds the parts of the client service, and starts and stops them. Data flows down::

    LocalResponder                     JSON requests of local programs
     |-- Acquisition, Release          attach and detach; Conflicts, Rollback
     |      |
    Reconciler                         desired and actual attachments
     |-- Adoption                      devices that are attached already
     |-- RetrySchedule                 when to try again
     |-- Notifier                      ServiceEvents, HookRunner, Symlinks
     |-- Operations                    requests to servers; vhci_hcd
     |
    DeviceView
     |-- ServerPool                    actual state at the servers
     |-- DesiredAttachments            rules, and requests in the state file
     `-- Attachments                   actual state on this machine
"""

from __future__ import annotations

import random
import socket
import ssl
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from usbip_server.client.attach import Attaching
from usbip_server.client.blockingrelay import relay
from usbip_server.client.config import ClientSettings
from usbip_server.client.service.acquisition import Acquisition, Release, WaitingPrograms
from usbip_server.client.service.authorization import SocketAuthorizer, peerOf
from usbip_server.client.service.config import LiveSettings, OnStop, ServiceConfig
from usbip_server.client.service.conflicts import Conflicts, Rollback
from usbip_server.client.service.devices.adoption import Adoption
from usbip_server.client.service.devices.attachments import Attachment, Attachments
from usbip_server.client.service.devices.desiredstate import DesiredAttachments, Requests
from usbip_server.client.service.devices.events import ServiceEventKind, ServiceEvents
from usbip_server.client.service.devices.notifier import Notifier
from usbip_server.client.service.devices.operations import AttachFailed, Operations
from usbip_server.client.service.devices.reconciler import Reconciler
from usbip_server.client.service.devices.retries import RetrySchedule
from usbip_server.client.service.devices.servers import ServerConnection, ServerPool
from usbip_server.client.service.devices.symlinks import Symlinks
from usbip_server.client.service.devices.view import DeviceView
from usbip_server.client.service.messages import LocalWatch
from usbip_server.client.service.responder import HINT, LocalResponder
from usbip_server.kernel.system import ISystem
from usbip_server.kernel.vhci.devnodes import Nodes
from usbip_server.kernel.vhci.ports import Vhci
from usbip_server.kernel.vhci.records import FOLDER, Records
from usbip_server.model.inventory import Change
from usbip_server.protocols.lines import CommandFactory
from usbip_server.protocols.multiplexer import FirstByteFactory
from usbip_server.protocols.web import WebFactory
from usbip_server.runtime.backoff import Random
from usbip_server.runtime.hookrunner import HookRunner
from usbip_server.runtime.latch import ChangeSignal
from usbip_server.runtime.statefile import StateFile
from usbip_server.runtime.threads import BlockingCalls, Spawn, startThread


class Kernel:
    """
    Access to this machine's kernel, which tests replace.

    @ivar folder: the directory of device nodes.
    @ivar spawn: runs a function that may block.
    """

    def __init__(
        self,
        system: ISystem,
        folder: str = "/dev",
        records: str = FOLDER,
        spawn: Spawn = startThread,
    ) -> None:
        """
        @param records: the directory of records of where attached devices come from.
        """
        self.vhci = Vhci(system)
        self.nodes = Nodes(system, folder)
        self.records = Records(records)
        self.folder = folder
        self.spawn = spawn

    def attaching(self) -> Attaching:
        """What attaches and detaches devices."""
        return Attaching(self.vhci, self.nodes, self.records, _relayInThread)


class Core:
    """
    The composition root.

    @ivar factory: for connections of local programs.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        kernel: Kernel,
        settings: LiveSettings,
        stateFile: StateFile[Requests] | None,
        chance: Random = random.random,
        now: Callable[[], float] = time.time,
    ) -> None:
        """
        @param stateFile: keeps the requests of programs; C{None}: nothing does.
        @param now: the time, in seconds since the epoch.
        """
        self.settings = settings
        self._reactor = reactor
        self._stateFile = stateFile
        self._calls = BlockingCalls(reactor, kernel.spawn)
        self._hooks = HookRunner(reactor, lambda: settings.limits.hooks)
        self.events = ServiceEvents(now, settings)
        self._changes = ChangeSignal(reactor)
        self.events.listen(lambda event: self._changes.notify())
        self.servers = ServerPool(reactor, settings, self._changed, self._turned, chance)
        self.desired = DesiredAttachments(settings, stateFile)
        self.attachments = Attachments(reactor, kernel.vhci, self._calls, self._ended)
        view = DeviceView(self.servers, self.desired, self.attachments)
        operations = Operations(reactor, settings, kernel.attaching(), self._calls)
        symlinks = Symlinks(settings, kernel.folder)
        self._notifier = Notifier(reactor, self.events, self._hooks, symlinks, operations.ports)
        self._adoption = Adoption(reactor, view, operations, self._notifier)
        retries = RetrySchedule(reactor, settings, chance)
        self.reconciler = Reconciler(
            reactor, view, operations, self._adoption, retries, self._notifier
        )
        conflicts = Conflicts(view, self.reconciler, now)
        acquisition = Acquisition(
            WaitingPrograms(reactor, settings, self._changes, now),
            view,
            self.reconciler,
            operations,
            conflicts,
            Rollback(view, self.reconciler, operations, self._changes),
        )
        release = Release(view, self.reconciler, operations, self._adoption, conflicts)
        self.authorizer = SocketAuthorizer(settings)
        self.responder = LocalResponder(
            view, acquisition, release, operations, self.events, self.authorizer
        )
        self.factory = FirstByteFactory(
            CommandFactory(self.responder, settings, reactor),
            WebFactory(self.responder, settings, reactor, HINT, LocalWatch),
            settings,
            reactor,
            identify=peerOf,
        )
        self._logWarnings()

    async def start(self) -> None:
        """
        Find what is attached already, connect to the servers, and begin to reconcile.
        """
        self.desired.load()
        await self._adoption.start()
        self.servers.update()
        self.reconciler.start()

    async def stop(self) -> None:
        """
        Detach the devices if the configuration says so, and stop everything.
        """
        config = self.settings.config
        seconds = config.timeouts.stop
        self.reconciler.stop()
        self.servers.stop()
        if config.onStop is OnStop.DETACH:
            await self.reconciler.idle(seconds)
            detaching = [Deferred.fromCoroutine(self._detach(each)) for each in self.attachments]
            work = gatherResults(detaching).addTimeout(seconds, self._reactor)
            await work.addErrback(lambda failure: None)
        self.attachments.stop()
        self._notifier.stop()
        await self._hooks.stop(seconds)
        if self._stateFile is not None:
            await self._stateFile.close(seconds)
        self._calls.stop()

    def reload(self, config: ServiceConfig, servers: ClientSettings) -> None:
        """Put another configuration in force."""
        self.settings.replace(config, servers)
        self.desired.update()
        for attachment in self.attachments:
            self._notifier.relink(attachment)
        self.events.keep(config.limits.history)
        self.servers.update()
        self.reconciler.look()
        self._logWarnings()

    def _logWarnings(self) -> None:
        for warning in self.settings.servers.warnings:
            self._log.warn("{warning}", warning=warning)

    def _changed(self, connection: ServerConnection, changes: tuple[Change, ...]) -> None:
        server = connection.server
        for change in changes:
            device = change.device
            attachment = self.attachments.at((server.name, device.busId))
            nodes = () if attachment is None else attachment.nodes
            self.events.record(change.kind, server, device, nodes, before=change.before)
            self.reconciler.changed(connection, change)

    def _turned(self, connection: ServerConnection, isNews: bool) -> None:
        isUp = connection.isUp
        kind = ServiceEventKind.CONNECTED if isUp else ServiceEventKind.DISCONNECTED
        if isNews:
            self.events.record(kind, connection.server, message=connection.trouble)
        self.reconciler.look()
        self._changes.notify()

    def _ended(self, attachment: Attachment) -> None:
        self.reconciler.ended(attachment)

    async def _detach(self, attachment: Attachment) -> None:
        try:
            await self.reconciler.detach(attachment)
        except AttachFailed as error:
            self._log.warn(
                "{device} stays attached: {error}",
                device=str(attachment.device),
                error=str(error),
            )


def _relayInThread(encrypted: ssl.SSLSocket, plain: socket.socket) -> None:
    startThread(partial(relay, encrypted, plain))
