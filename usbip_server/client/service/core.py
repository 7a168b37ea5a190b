"""
What the client service is made of, and how that is put together.
"""

from __future__ import annotations

import random
import socket
import ssl
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.logger import Logger

from usbip_server.client.attach import Attaching
from usbip_server.client.blockingrelay import relay
from usbip_server.client.config import ClientSettings
from usbip_server.client.servers import Server
from usbip_server.client.service.acquisition import Acquisition
from usbip_server.client.service.authorization import SocketAuthorizer, peerOf
from usbip_server.client.service.config import DeviceRule, ServiceConfig
from usbip_server.client.service.devices.adoption import Adoption
from usbip_server.client.service.devices.attachments import Attachment, Attachments
from usbip_server.client.service.devices.desired import (
    DesiredAttachment,
    DesiredAttachments,
    Requests,
)
from usbip_server.client.service.devices.events import ServiceEvents, Word
from usbip_server.client.service.devices.notifier import Notifier
from usbip_server.client.service.devices.operations import Operations
from usbip_server.client.service.devices.reconciler import Reconciler
from usbip_server.client.service.devices.retries import RetrySchedule
from usbip_server.client.service.devices.servers import ServerConnection, ServerPool
from usbip_server.client.service.devices.symlinks import Symlinks
from usbip_server.client.service.messages import LocalWatch
from usbip_server.client.service.responder import HINT, LocalResponder
from usbip_server.kernel.system import ISystem
from usbip_server.kernel.vhci.devnodes import Nodes
from usbip_server.kernel.vhci.ports import Vhci
from usbip_server.kernel.vhci.records import FOLDER, Records
from usbip_server.model.inventory import Change
from usbip_server.model.options import Timeouts
from usbip_server.protocols.lines import CommandProtocol
from usbip_server.protocols.multiplexer import FirstByteFactory
from usbip_server.protocols.web import WebFactory
from usbip_server.runtime.backoff import Chance
from usbip_server.runtime.hookrunner import HookRunner
from usbip_server.runtime.statefile import StateFile
from usbip_server.runtime.threads import BlockingCalls, Spawn, startThread


class Kernel:
    """
    This machine: what a test replaces.

    @ivar folder: of nodes.
    @ivar spawn: runs what may block.
    """

    def __init__(
        self,
        system: ISystem,
        folder: str = "/dev",
        records: str = FOLDER,
        spawn: Spawn = startThread,
    ) -> None:
        """
        @param records: the folder of notes about ports.
        """
        self.vhci = Vhci(system)
        self.nodes = Nodes(system, folder)
        self.records = Records(records)
        self.folder = folder
        self.spawn = spawn

    def attaching(self) -> Attaching:
        """What plugs devices in and out."""
        return Attaching(self.vhci, self.nodes, self.records, _relayInThread)


class Core:
    """
    All of them.

    @ivar config: that is true now.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        kernel: Kernel,
        config: ServiceConfig,
        settings: ClientSettings,
        stateFile: StateFile[Requests] | None,
        chance: Chance = random.random,
        now: Callable[[], float] = time.time,
    ) -> None:
        """
        @param settings: its servers.
        @param stateFile: where it is kept what was asked for; C{None}: nowhere.
        @param now: the time, in seconds since the epoch.
        """
        self.config = config
        self.settings = settings
        self.stateFile = stateFile
        self.calls = BlockingCalls(reactor, kernel.spawn)
        self.wants = DesiredAttachments()
        self.links = ServerPool(reactor, self._changed, self._turned, chance)
        self.plugs = Attachments(reactor, kernel.vhci, self.calls, self._over)
        self.plugging = Operations(reactor, kernel.attaching(), self.calls)
        self.news = ServiceEvents(now, config.limits.history)
        self.hooks = HookRunner(reactor, config.limits.hooks)
        self.telling = Notifier(
            reactor,
            self.news,
            self.hooks,
            Symlinks(config.links, kernel.folder),
            self.plugging.attached,
        )
        self.orphans = Adoption(
            reactor, self.plugging, self.links, self.wants, self.plugs, self.telling
        )
        self.troubles = RetrySchedule(reactor, chance)
        self.keeping = Reconciler(
            reactor,
            self.links,
            self.wants,
            self.plugs,
            self.plugging,
            self.orphans,
            self.telling,
            self.troubles,
        )
        self.claiming = Acquisition(
            reactor,
            self.links,
            self.wants,
            self.plugs,
            self.keeping,
            self.plugging,
            self.orphans,
            self.news,
            self._save,
        )
        self.doorkeeper = SocketAuthorizer()
        self.api = LocalResponder(
            self.links,
            self.wants,
            self.plugs,
            self.keeping,
            self.plugging,
            self.orphans,
            self.claiming,
            self.news,
            self.doorkeeper,
            self._save,
        )
        timeouts = self._timeouts(config)
        self.web = WebFactory(self.api, (), config.limits, timeouts, reactor, HINT, LocalWatch)
        self.factory = FirstByteFactory(
            lambda principal: CommandProtocol(
                self.api, principal, self.web.limits, self.web.timeouts, reactor
            ),
            self.web.makeChannel,
            config.limits.connections,
            reactor,
            identify=peerOf,
        )
        self._apply()

    def become(self, config: ServiceConfig, settings: ClientSettings) -> None:
        """
        Let another configuration be true from now on.
        """
        before = {*self._linked()}
        isElsewhere = config.links != self.config.links
        self.config, self.settings = config, settings
        for name in before if isElsewhere else before - {*self._linked()}:
            self.telling.symlinks.hide(name)
        self._apply()
        for plug in self.plugs if isElsewhere else ():
            self.telling.relink(plug)
        self.news.keep(config.limits.history)
        self.hooks.most = config.limits.hooks
        self.web.apply((), config.limits, self._timeouts(config))
        self.factory.most = config.limits.connections
        self.watch()
        self.keeping.look()

    def watch(self) -> None:
        """Watch the servers that are configured, and no others."""
        self.links.become(
            self.settings.servers([*self.settings.known], {}) if self.settings.known else (),
            self.config.reconnect,
            self.config.timeouts.server,
            lambda server: self.settings.rangeOf(server) is not None,
        )

    def _apply(self) -> None:
        config = self.config
        rules = [self._want(rule) for rule in config.devices]
        self.wants.become(rules, [s for servers in self.settings.known.values() for s in servers])
        self.plugging.answerSeconds = config.timeouts.server
        self.plugging.attachSeconds = config.timeouts.attach
        self.plugging.keepAlive = config.keepalive
        self.claiming.heartbeat = config.timeouts.heartbeat
        self.troubles.retry = config.retry
        self.telling.symlinks.become(config.links)
        for warning in self.settings.warnings:
            self._log.warn("{warning}", warning=warning)

    def _want(self, rule: DeviceRule) -> DesiredAttachment:
        return DesiredAttachment(
            name=rule.name,
            servers=self._serversOf(rule),
            wanted=rule.wanted,
            symlink=rule.symlink,
            hooks=rule.hooks,
        )

    def _serversOf(self, rule: DeviceRule) -> tuple[Server, ...] | None:
        if not rule.servers:
            return None
        return tuple(server for name in rule.servers for server in self.settings.known[name])

    def _linked(self) -> list[str]:
        return [rule.name for rule in self.config.devices if rule.symlink]

    def _timeouts(self, config: ServiceConfig) -> Timeouts:
        return Timeouts(request=config.timeouts.request, heartbeat=config.timeouts.heartbeat)

    def _changed(self, link: ServerConnection, changes: tuple[Change, ...]) -> None:
        """A server has told of its devices."""
        for change in changes:
            plug = self.plugs.at((link.server.name, change.device.busId))
            self.news.changed(link.server, change, () if plug is None else plug.nodes)
            self.keeping.changed(link, change)

    def _turned(self, link: ServerConnection, isNews: bool) -> None:
        """A server is there, or not any more."""
        word = Word.CONNECTED if link.isUp else Word.DISCONNECTED
        if isNews:
            self.news.happened(word, link.server, message=link.trouble)
        self.keeping.look()
        self.claiming.look()

    def _over(self, plug: Attachment) -> None:
        self.keeping.over(plug)

    def _save(self) -> None:
        if self.stateFile is not None:
            self.stateFile.save(self.wants.save())


def _relayInThread(secured: ssl.SSLSocket, ours: socket.socket) -> None:
    startThread(partial(relay, secured, ours))
