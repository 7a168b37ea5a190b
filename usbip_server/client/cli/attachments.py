"""
What is typed of plugging in and out: both halves, the one at the server and the one here.
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
from usbip_server.client.cli.discovery import appearing, isRefused
from usbip_server.client.cli.relayprocess import RelayProcess
from usbip_server.client.cli.stockusbipd import remedy
from usbip_server.client.devices import RemoteDevice, foundIn
from usbip_server.client.selection import Selection
from usbip_server.client.servers import Server
from usbip_server.model.device import DeviceState
from usbip_server.model.errors import DeviceNotFound, LocalTrouble, ShareError, Unreachable
from usbip_server.model.replies import ReceivedNotice, Refused, Status
from usbip_server.model.usbip import NotGiven

SECONDS = 15.0
"""For a server to give a device away, and for the kernel to get to know it."""


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """
    What is asked for beside the device.

    @ivar wait: seconds to wait for it, if it is not there or somebody else has it.
    @ivar owner: who leases it.
    @ivar ttl: for how many seconds.
    @ivar force: take it from whoever has it.
    """

    wait: float = 0.0
    owner: str | None = None
    ttl: float | None = None
    force: bool = False


class Attacher:
    """
    Does it for one command. What is done here is done in this thread, of which there is no
    other then: a process can be forked (L{RelayProcess}).

    @ivar relay: the process that carries for a TLS connection, if one is needed.
    """

    def __init__(self, errand: CommandContext) -> None:
        self._errand = errand
        self.relay = RelayProcess()
        self._attaching = errand.machine.attaching(self.relay.carry)

    def attached(self) -> tuple[Attached, ...]:
        """
        What is plugged in here.

        @raise LocalTrouble: the kernel does not tell.
        """
        return self._attaching.attached()

    def serverOf(self, attached: Attached) -> Server | None:
        """Where something has come from, if that is known."""
        record = attached.record
        if record is None:
            return None
        return self._errand.settings.exporting(record.host, record.service)

    def attach(self, meant: Selection, wish: Wish) -> tuple[RemoteDevice, Attached]:
        """
        Plug a device in. If it is already, all is well.

        @return: the device, and where it is now.
        @raise ShareError: it is not to be had, or this machine does not take it.
        """
        self._errand.machine.vhci().require()  # before anything is asked of a server
        here = self.attached()
        until = time.monotonic() + wish.wait
        found, isStock = self._find(meant, wish)
        already = self._pluggedIn(found, here)
        if already is not None and (isStock or found.device.state is DeviceState.IN_USE):
            return found, already
        if isStock:
            _requireNothing(found, wish)
            return found, self._plugIn(found, isStock=True)
        try:
            bound = self._bind(found, wish, until)
        except KeyboardInterrupt:
            with contextlib.suppress(ShareError, KeyboardInterrupt):
                # Its server may be at it, and does nothing else meanwhile: how did it go?
                self._bind(found, Wish(owner=wish.owner, ttl=wish.ttl), until)
                self._undo(found, wish)
            raise
        try:
            return bound, self._plugIn(bound)
        except BaseException:
            self._undo(found, wish)
            raise

    def meantHere(self, meant: Selection | None, port: int | None) -> Attached | None:
        """
        What is plugged in here and meant: by its port, or by a word that is one of its nodes,
        or where it is plugged in, here or at its server.

        @return: C{None}: nothing; it may be meant by what its server says of it.
        @raise DeviceNotFound: there is nothing at that port.
        @raise Refused: several are.
        """
        if port is not None:
            matches = [each for each in self.attached() if each.port == port]
            if not matches:
                raise DeviceNotFound(f"nothing is plugged in at port {port}")
        elif meant is not None and meant.word is not None and meant.criteria is None:
            word = str(meant.word.word)
            matches = [each for each in self._attachedIfAny() if _isCalled(each, word)]
        else:
            return None
        if len(matches) > 1:
            places = ", ".join(f"port {each.port} ({each.localBusId})" for each in matches)
            raise Refused(
                Status.MULTIPLE_MATCHES,
                f"{len(matches)} of those here are meant: say which --port: {places}",
            )
        return matches[0] if matches else None

    def pluggedIn(self, found: RemoteDevice) -> Attached | None:
        """Where a server's device is plugged in here."""
        return self._pluggedIn(found, self._attachedIfAny())

    def unplug(self, attached: Attached) -> None:
        """
        The half that is here.

        @raise LocalTrouble: the kernel does not let us.
        """
        self._attaching.detach(attached.port)

    def release(self, server: Server, busId: str, owner: str | None, force: bool) -> str | None:
        """
        The half at the server.

        @return: why there is nothing to be done there; C{None}: it is done.
        @raise ShareError: it is not.
        """
        if server in self._errand.settings.stock:
            return f"{server} is a stock usbipd: {busId} stays bound there"
        try:
            self._release(server, busId, owner, force)
        except Unreachable as error:
            if not isRefused(error):
                raise
            return f"{error}: {busId} stays bound there, if that is a stock usbipd"
        return None

    def _find(self, meant: Selection, wish: Wish) -> tuple[RemoteDevice, bool]:
        """
        The device, when there is one, and whether its server has no control port.
        """
        errand = self._errand
        try:
            survey = errand.survey()
            found = errand.pick(meant, survey)
            return found, survey.isStock(found.server)
        except (DeviceNotFound, Unreachable):
            if not wish.wait:
                raise
        errand.show.progress(f"waiting for {meant}, {wish.wait:g} s at the most", isNews=True)
        found, survey = appearing(meant, errand.look, wish.wait)
        return found, survey.isStock(found.server)

    def _bind(self, found: RemoteDevice, wish: Wish, until: float) -> RemoteDevice:
        server, device = found.server, found.device
        request: dict[str, Any] = {"command": "attach", "id": device.busId, "detail": True}
        left = round(until - time.monotonic(), 3)
        if wish.wait and left > 0:
            request["wait"] = left
        if wish.owner is not None:
            request["lease"] = {"owner": wish.owner, "ttl": wish.ttl}
        if wish.force:
            request["force"] = True

        def told(notice: ReceivedNotice) -> None:
            if "message" in notice:
                place = f" (place {notice['place']})" if "place" in notice else ""
                self._errand.show.progress(f"{server}: {notice['message']}{place}", isNews=True)

        self._errand.show.progress(f"{found}: attaching")
        [bound] = foundIn(server, self._errand.ask(server, request, told))
        return bound

    def _plugIn(self, found: RemoteDevice, isStock: bool = False) -> Attached:
        self._errand.show.progress(f"{found}: plugging it in")
        try:
            attached, kept = self._attaching.attach(found.server, found.device.busId, SECONDS)
        except NotGiven as error:
            what = remedy(error, found.device) if isStock else ""
            raise Refused(Status.FAILURE, f"{found}: {error}{what}") from error
        kept.close()
        return attached

    def _undo(self, found: RemoteDevice, wish: Wish) -> None:
        """
        Leave nothing of it at the server: neither what was bound for us nor a lease.
        """
        if found.device.state is DeviceState.FREE or wish.owner is not None:
            with contextlib.suppress(ShareError, KeyboardInterrupt):
                self._release(found.server, found.device.busId, wish.owner, False)

    def _release(self, server: Server, busId: str, owner: str | None, force: bool) -> None:
        request: dict[str, Any] = {"command": "detach", "id": busId}
        if owner is not None:
            request["owner"] = owner
        if force:
            request["force"] = True
        self._errand.ask(server, request)

    def _pluggedIn(self, found: RemoteDevice, here: Sequence[Attached]) -> Attached | None:
        server = found.server
        for each in here:
            record = each.record
            if record is None or record.busId != found.device.busId:
                continue
            isThere = (record.host, record.service) == (server.host, str(server.exportPort))
            if isThere or self.serverOf(each) == server:
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
    there = None if attached.record is None else attached.record.busId
    return word in (attached.localBusId, there)


def _requireNothing(found: RemoteDevice, wish: Wish) -> None:
    """
    @raise Refused: what is asked for cannot be had of a stock C{usbipd}.
    """
    if wish.owner is not None or wish.force:
        raise Refused(
            Status.FAILURE,
            f"{found}: a stock usbipd knows no leases, and takes nothing from anybody",
        )
