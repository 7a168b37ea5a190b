"""
Attaching a device: bind it at its server, then attach it to this machine; and detaching it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from usbip_server.client.attach import Attached
from usbip_server.client.cli.context import CommandContext
from usbip_server.client.cli.discovery import isRefused, waitFor
from usbip_server.client.cli.relayprocess import RelayProcess
from usbip_server.client.cli.stockusbipd import remedy
from usbip_server.client.devices import RemoteDevice, remoteIn
from usbip_server.client.selection import Selector
from usbip_server.client.servers import Server
from usbip_server.model.device import DeviceState
from usbip_server.model.errors import DeviceNotFound, LocalTrouble, ShareError, Unreachable
from usbip_server.model.replies import ReceivedNotice, Refused, Status
from usbip_server.model.usbip import NotGiven, OpStatus

SECONDS = 15.0
"""For a server to export a device and for the kernel to enumerate it."""


class AttachOptions(msgspec.Struct, frozen=True, kw_only=True):
    """
    The options of C{attach}.

    @ivar wait: seconds to wait for a device that is absent or in use.
    @ivar owner: reserve it under this name; C{None}: without a lease.
    @ivar ttl: seconds that the lease lasts.
    @ivar force: end the session of another client.
    """

    wait: float = 0.0
    owner: str | None = None
    ttl: float | None = None
    force: bool = False


class Attacher:
    """
    Attaches and detaches devices for one command, in this thread, which has to be the only one
    when a L{RelayProcess} is started.

    @ivar relay: the process for a TLS connection that the kernel cannot encrypt itself.
    """

    def __init__(self, context: CommandContext) -> None:
        self._context = context
        self.relay = RelayProcess()
        self._attaching = context.machine.attaching(self.relay.start)

    def attached(self) -> tuple[Attached, ...]:
        """
        The devices that are attached to this machine.

        @raise LocalTrouble: the kernel's list cannot be read.
        """
        return self._attaching.attached()

    def serverOf(self, attached: Attached) -> Server | None:
        """The server that an attached device came from; C{None} if that is not known."""
        record = attached.record
        if record is None:
            return None
        return self._context.settings.exporting(record.host, record.service)

    def attach(self, selector: Selector, options: AttachOptions) -> tuple[RemoteDevice, Attached]:
        """
        Attach a device, unless it is attached to this machine already.

        @return: the device at its server, and on this machine.
        @raise ShareError: the server or this machine's kernel refuses, or there is no such device.
        """
        self._context.machine.vhci().require()  # before a server is asked for anything
        here = self.attached()
        until = time.monotonic() + options.wait
        found, isStock = self._find(selector, options)
        self._context.requireNamed(found.server)
        already = self._among(here, found)
        if already is not None and (isStock or found.device.state is DeviceState.IN_USE):
            return found, already
        if isStock:
            _requireNoLease(found, options)
            return found, self._import(found, isStock=True)
        try:
            bound = self._bind(found, options, until)
        except KeyboardInterrupt:
            with contextlib.suppress(ShareError, KeyboardInterrupt):
                # The server may still be binding it, and refuses to unbind it meanwhile: wait.
                self._bind(found, AttachOptions(owner=options.owner, ttl=options.ttl), until)
                self._undo(found, options)
            raise
        try:
            return bound, self._import(bound)
        except BaseException:
            self._undo(found, options)
            raise

    def local(self, selector: Selector | None, port: int | None) -> Attached | None:
        """
        The attached device that is selected by its port, or by a word that is one of its device
        nodes, its bus id on this machine or its bus id at its server.

        @return: C{None}: none is; the word may be one that only the server can resolve.
        @raise DeviceNotFound: no device is attached at the port.
        @raise Refused: several devices match.
        """
        if port is not None:
            matches = [each for each in self.attached() if each.port == port]
            if not matches:
                raise DeviceNotFound(
                    f"no device is attached at port {port}: see `usbipshare ports`"
                )
        elif selector is not None and selector == Selector(word=selector.word or "-"):
            word = str(selector.word)
            matches = [each for each in self._attachedIfAny() if _isCalled(each, word)]
        else:
            return None
        if len(matches) > 1:
            ports = ", ".join(f"port {each.port} ({each.localBusId})" for each in matches)
            raise Refused(
                Status.MULTIPLE_MATCHES,
                f"{len(matches)} attached devices match: choose one with --port: {ports}",
            )
        return matches[0] if matches else None

    def attachedAs(self, found: RemoteDevice) -> Attached | None:
        """A server's device on this machine; C{None}: it is not attached."""
        return self._among(self._attachedIfAny(), found)

    def detach(self, attached: Attached) -> None:
        """
        Detach a device from this machine. It stays bound at its server.

        @raise LocalTrouble: the kernel refuses.
        """
        self._attaching.detach(attached.port)

    def unbind(self, server: Server, busId: str, owner: str | None, force: bool) -> str | None:
        """
        Unbind a device at its server.

        @param owner: of the lease.
        @param force: also if another client uses it or has leased it.
        @return: why it stays bound; C{None}: it is unbound.
        @raise ShareError: the server refuses or does not answer.
        """
        if server in self._context.settings.stock:
            return f"{server} is a stock usbipd: {busId} stays bound there"
        try:
            self._unbind(server, busId, owner, force)
        except Unreachable as error:
            if not isRefused(error):
                raise
            return f"{error}: {busId} stays bound there, if that is a stock usbipd"
        return None

    def _find(self, selector: Selector, options: AttachOptions) -> tuple[RemoteDevice, bool]:
        """
        The device, and whether its server is a stock C{usbipd}.
        """
        context = self._context
        try:
            result = context.discover()
            found = context.choose(selector, result)
            return found, result.isStock(found.server)
        except (DeviceNotFound, Unreachable):
            if not options.wait:
                raise
        message = f"waiting for {selector}, at most {options.wait:g} s"
        context.printer.progress(message, isNews=True)
        found, result = waitFor(selector, context.discoverQuietly, options.wait)
        return found, result.isStock(found.server)

    def _bind(self, found: RemoteDevice, options: AttachOptions, until: float) -> RemoteDevice:
        server, device = found.server, found.device
        request: dict[str, Any] = {"command": "attach", "id": device.busId, "detail": True}
        left = round(until - time.monotonic(), 3)
        if options.wait and left > 0:
            request["wait"] = left
        if options.owner is not None:
            request["lease"] = {"owner": options.owner, "ttl": options.ttl}
        if options.force:
            request["force"] = True

        def show(notice: ReceivedNotice) -> None:
            if "message" in notice:
                place = f" (place {notice['place']})" if "place" in notice else ""
                text = f"{server}: {notice['message']}{place}"
                self._context.printer.progress(text, isNews=True)

        self._context.printer.progress(f"{found}: binding it at the server")
        return remoteIn(server, self._context.ask(server, request, show))

    def _import(self, found: RemoteDevice, isStock: bool = False) -> Attached:
        self._context.printer.progress(f"{found}: attaching it to this machine")
        try:
            attached, kept = self._attaching.attach(found.server, found.device.busId, SECONDS)
        except NotGiven as error:
            advice = "; its log has the reason: journalctl -u usbipshare"
            if isStock:
                advice = remedy(error, found.device)
            elif error.status in (OpStatus.DEV_BUSY, OpStatus.NODEV):
                advice = ""
            raise Refused(Status.FAILURE, f"{found}: {error}{advice}") from error
        except Unreachable as error:
            if not isRefused(error):
                raise
            raise Unreachable(
                f"{error}: if the server's port for USB/IP is not {found.server.exportPort}, set "
                "`export_port` in client.yaml"
            ) from error
        kept.close()
        return attached

    def _undo(self, found: RemoteDevice, options: AttachOptions) -> None:
        """
        Unbind the device if this command bound it, and end the lease.
        """
        if found.device.state is DeviceState.FREE or options.owner is not None:
            with contextlib.suppress(ShareError, KeyboardInterrupt):
                self._unbind(found.server, found.device.busId, options.owner, False)

    def _unbind(self, server: Server, busId: str, owner: str | None, force: bool) -> None:
        request: dict[str, Any] = {"command": "detach", "id": busId}
        if owner is not None:
            request["owner"] = owner
        if force:
            request["force"] = True
        self._context.ask(server, request)

    def _among(self, here: Sequence[Attached], found: RemoteDevice) -> Attached | None:
        server = found.server
        for each in here:
            record = each.record
            if record is None or record.busId != found.device.busId:
                continue
            isSame = (record.host, record.service) == (server.host, str(server.exportPort))
            if isSame or self.serverOf(each) == server:
                return each
        return None

    def _attachedIfAny(self) -> tuple[Attached, ...]:
        try:
            return self.attached()
        except LocalTrouble:
            return ()


def _isCalled(attached: Attached, word: str) -> bool:
    if word.startswith("/"):
        return word in attached.nodes or os.path.realpath(word) in attached.nodes
    remote = None if attached.record is None else attached.record.busId
    return word in (attached.localBusId, remote)


def _requireNoLease(found: RemoteDevice, options: AttachOptions) -> None:
    """
    @raise Refused: an option is one that a stock C{usbipd} does not support.
    """
    if options.owner is not None or options.force:
        raise Refused(
            Status.FAILURE, f"{found}: a stock usbipd supports neither --lease nor --force"
        )
