"""
What is to be plugged in: what the configuration says, and what was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import msgspec

from usbip_server.client.devices import RemoteDevice
from usbip_server.client.selection import Selector, among
from usbip_server.client.servers import Server
from usbip_server.client.service.config import ClientHook
from usbip_server.model.device import DeviceState, UsbDevice


class Requested(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    rename={"vendorId": "vendor_id", "productId": "product_id", "busId": "bus_id"},
):
    """
    A device that somebody has asked for. It is known again by its ids and its serial number,
    wherever it is plugged in at its server; without a serial number only at the same place.

    @ivar server: the name of its server.
    @ivar busId: where it was there.
    @ivar description: what it was called then.
    @ivar owner: who has leased it: it is wanted as long as it is theirs.
    """

    server: str
    vendorId: str
    productId: str
    serial: str | None
    busId: str
    description: str
    owner: str | None = None

    @classmethod
    def of(cls, found: RemoteDevice, owner: str | None = None) -> Requested:
        """A device."""
        return cls(
            server=found.server.name,
            vendorId=found.device.vendorId,
            productId=found.device.productId,
            serial=found.device.serial,
            busId=found.device.busId,
            description=found.device.description,
            owner=owner,
        )

    def isFor(self, device: UsbDevice) -> bool:
        """Is it for such a device of its server?"""
        known = device.vendorId, device.productId, device.serial
        isSame = known == (self.vendorId, self.productId, self.serial)
        return isSame and (self.serial is not None or device.busId == self.busId)

    def isTheirs(self, device: UsbDevice) -> bool:
        """Is it still leased by who has leased it, if anybody has?"""
        return self.owner is None or isLeasedBy(self.owner, device)

    def device(self) -> UsbDevice:
        """The device, as far as it is remembered."""
        return UsbDevice(
            busId=self.busId,
            vendorId=self.vendorId,
            productId=self.productId,
            serial=self.serial,
            description=self.description,
        )


class Requests(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    What the state file holds.
    """

    version: int = 1
    requests: tuple[Requested, ...] = ()


class DesiredAttachment(msgspec.Struct, frozen=True, kw_only=True):
    """
    A device that is to be plugged in whenever it is to be had.

    @ivar name: tells it from others.
    @ivar servers: where it may be; C{None}: anywhere.
    @ivar wanted: which device is meant; or else C{requested}.
    @ivar symlink: are there to be links to its nodes?
    @ivar hooks: whom to tell.
    """

    name: str
    servers: tuple[Server, ...] | None = None
    wanted: Selector | None = None
    requested: Requested | None = None
    symlink: bool = False
    hooks: tuple[ClientHook, ...] = ()

    @property
    def rule(self) -> str | None:
        """The name of the rule that says so, if one does."""
        return None if self.requested is not None else self.name

    @property
    def owner(self) -> str | None:
        """Who has leased the device, if somebody has."""
        return None if self.requested is None else self.requested.owner

    def mayHave(self, device: UsbDevice) -> bool:
        """
        Is it to be had at its server, as far as leases go? One that is leased has not to be asked
        for: its server binds it of itself.
        """
        if self.owner is None:
            return device.lease is None
        return device.state in (DeviceState.BOUND, DeviceState.IN_USE)

    def among(self, found: Iterable[RemoteDevice]) -> tuple[RemoteDevice, ...]:
        """
        The devices that are meant.
        """
        there = [each for each in found if self.servers is None or each.server in self.servers]
        if self.requested is not None:
            requested = self.requested
            return tuple(
                each
                for each in there
                if requested.isFor(each.device) and requested.isTheirs(each.device)
            )
        assert self.wanted is not None
        return among(self.wanted, there)

    def isFor(self, found: RemoteDevice) -> bool:
        """Is this device one of those?"""
        return found in self.among((found,))


class DesiredAttachments:
    """
    All that is wanted: rules first.
    """

    def __init__(self) -> None:
        self._rules: tuple[DesiredAttachment, ...] = ()
        self._requests: dict[str, Requested] = {}
        self._servers: dict[str, Server] = {}
        self._resting: set[str] = set()

    def become(self, rules: Iterable[DesiredAttachment], servers: Iterable[Server]) -> None:
        """
        From now on these rules. None of them rests any more.

        @param servers: all there are.
        """
        self._rules = tuple(rules)
        self._servers = {server.name: server for server in servers}
        self._resting.clear()

    def __iter__(self) -> Iterator[DesiredAttachment]:
        """All, but for those that rest."""
        yield from (want for want in self._rules if want.name not in self._resting)
        for name, requested in self._requests.items():
            server = self._servers.get(requested.server)
            if server is not None:
                yield DesiredAttachment(name=name, servers=(server,), requested=requested)

    def get(self, name: str) -> DesiredAttachment | None:
        """One of those, by its name."""
        return next((want for want in self if want.name == name), None)

    def request(
        self, found: RemoteDevice, isTaken: Callable[[str], bool], owner: str | None = None
    ) -> DesiredAttachment:
        """
        A device is asked for.

        @param isTaken: has a want, by its name, a device already?
        @param owner: who has leased it.
        @return: the rule that is for it, which rests no more, or something new. No rule is for
            what is leased.
        """
        for want in self._rules if owner is None else ():
            if not isTaken(want.name) and want.isFor(found):
                self._resting.discard(want.name)
                return want
        requested = Requested.of(found, owner)
        name = _nameOf(requested)
        self._requests[name] = requested
        return DesiredAttachment(name=name, servers=(found.server,), requested=requested)

    def confirm(self, want: DesiredAttachment) -> None:
        """What has a device is wanted, also if it was withdrawn."""
        self._resting.discard(want.name)
        if want.requested is not None:
            self._requests[want.name] = want.requested

    def withdraw(self, name: str) -> None:
        """It is not wanted any more: what was asked for is forgotten, and a rule rests."""
        if self._requests.pop(name, None) is None:
            self._resting.add(name)

    def endLeases(self, found: Iterable[RemoteDevice]) -> None:
        """
        What was leased, and is not any more as its server says, is not wanted any more.

        @param found: all devices of servers that are there.
        """
        leased = [(name, each) for name, each in self._requests.items() if each.owner is not None]
        there = tuple(found) if leased else ()
        for name, requested in leased:
            for each in there:
                isIt = each.server.name == requested.server and requested.isFor(each.device)
                if isIt and not requested.isTheirs(each.device):
                    self._requests.pop(name, None)

    def requested(self, found: RemoteDevice) -> DesiredAttachment | None:
        """What was asked for, if it is this device; whether it is still leased or not."""
        name, device = found.server.name, found.device
        for want in self:
            requested = want.requested
            if requested is not None and requested.server == name and requested.isFor(device):
                return want
        return None

    def remembered(self) -> tuple[RemoteDevice, ...]:
        """The devices that were asked for, as far as they are remembered."""
        return tuple(
            RemoteDevice(server=server, device=requested.device(), raw={})
            for requested in self._requests.values()
            if (server := self._servers.get(requested.server)) is not None
        )

    def load(self, requests: Requests) -> None:
        """What was asked for before."""
        self._requests = {_nameOf(each): each for each in requests.requests}

    def save(self) -> Requests:
        """What is to be remembered."""
        return Requests(requests=tuple(self._requests.values()))


def isLeasedBy(owner: str, device: UsbDevice) -> bool:
    """
    Is a device somebody's at present?
    """
    return device.lease is not None and device.lease.owner == owner


def _nameOf(requested: Requested) -> str:
    """
    A name that no rule can have.
    """
    which = requested.serial if requested.serial is not None else f"at {requested.busId}"
    return f"{requested.server}/{requested.vendorId}:{requested.productId} {which}"
