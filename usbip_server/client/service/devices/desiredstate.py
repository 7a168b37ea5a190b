"""
The desired state: the devices to keep attached, by rules of the configuration and by requests of
programs. Requests are saved in the state file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec
from msgspec import UNSET, UnsetType
from twisted.logger import Logger

from usbip_server.client.devices import RemoteDevice
from usbip_server.client.selection import Selector, among
from usbip_server.client.servers import Server
from usbip_server.client.service.config import ClientHook, DeviceRule, LiveSettings
from usbip_server.model.device import DeviceState, UsbDevice
from usbip_server.model.identity import Identity, Text
from usbip_server.runtime.statefile import StateFile

REMEMBERED = 256
"""Requests that are kept for devices that are not attached now."""


class Requested(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    rename={
        "vendorId": "vendor_id",
        "productId": "product_id",
        "busId": "bus_id",
        "atPort": "at_port",
    },
):
    """
    A device that a program has requested, as the state file has it. It is recognized at its server
    as L{usbip_server.model.identity} describes. The fields that may be C{UNSET} were added to the
    file later.

    @ivar server: the name of its server.
    @ivar busId: its bus id when it was last seen.
    @ivar description: its description when it was requested.
    @ivar owner: the owner of its lease: the device is kept as long as that owner has it leased.
    @ivar path: the path of that port.
    @ivar manufacturer: its own manufacturer string.
    @ivar product: its own product string.
    @ivar atPort: it is recognized at its port only, as two devices have its serial number.
    """

    server: str
    vendorId: str
    productId: str
    serial: str | None
    busId: str
    description: str
    owner: str | None = None
    path: str | UnsetType = UNSET
    manufacturer: Text = UNSET
    product: Text = UNSET
    atPort: bool | UnsetType = UNSET

    @classmethod
    def of(cls, found: RemoteDevice, owner: str | None) -> Requested:
        """Make one for a device."""
        return cls(
            server=found.server.name,
            vendorId=found.device.vendorId,
            productId=found.device.productId,
            serial=found.device.serial,
            busId=found.device.busId,
            description=found.device.description,
            owner=owner,
            path=found.device.path or UNSET,
            manufacturer=found.device.manufacturer,
            product=found.device.product,
        )

    @property
    def identity(self) -> Identity:
        """Recognizes the device."""
        return Identity(
            vendorId=self.vendorId,
            productId=self.productId,
            serial=self.serial,
            manufacturer=self.manufacturer,
            product=self.product,
        )

    def isLike(self, found: RemoteDevice) -> bool:
        """Can it be this device, if it is at its port?"""
        return found.server.name == self.server and self.identity.matches(Identity.of(found.device))

    def isAt(self, device: UsbDevice) -> bool:
        """Is a device at the port where this one was requested?"""
        if self.path is UNSET or device.path is None:
            return self.busId == device.busId
        return self.path == device.path

    def matches(self, found: RemoteDevice) -> bool:
        """Is it this device, leased or not?"""
        isAnywhere = self.identity.isUnique and not self.atPort
        return self.isLike(found) and (isAnywhere or self.isAt(found.device))

    def asSeen(self, like: Sequence[RemoteDevice]) -> Requested:
        """
        The same, with the port where the device is, and whether others have its serial number.

        @param like: the devices that it can be.
        """
        atPort = UNSET if len(like) < 2 and not self.atPort else True
        here = [each.device for each in like if self.matches(each)]
        if len(like) > 1 or len(here) != 1:
            return msgspec.structs.replace(self, atPort=atPort)
        (device,) = here
        return msgspec.structs.replace(
            self, atPort=atPort, busId=device.busId, path=device.path or UNSET
        )

    def isStillLeased(self, device: UsbDevice) -> bool:
        """Has the owner still leased the device, if there is an owner?"""
        return self.owner is None or isLeasedBy(self.owner, device)

    def device(self) -> UsbDevice:
        """The device, with what is saved of it."""
        return UsbDevice(
            busId=self.busId,
            vendorId=self.vendorId,
            productId=self.productId,
            serial=self.serial,
            description=self.description,
            path=self.path or None,
            manufacturer=self.manufacturer or None,
            product=self.product or None,
        )

    @property
    def name(self) -> str:
        """A name that no rule can have."""
        isAnywhere = self.identity.isUnique and not self.atPort
        which = [] if self.serial is None else [self.serial]
        if not isAnywhere:
            which.append(f"at {self.busId}")
        return f"{self.server}/{self.vendorId}:{self.productId} {' '.join(which)}"


class Requests(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    The content of the state file.
    """

    version: int = 1
    requests: tuple[Requested, ...] = ()


class DesiredAttachment(msgspec.Struct, frozen=True, kw_only=True):
    """
    A device to keep attached.

    @ivar name: unique.
    @ivar servers: where to look for it; C{None}: at all servers.
    @ivar selector: selects the device; or else C{requested} does.
    @ivar symlink: create symlinks to its device nodes.
    @ivar hooks: what to run on its events.
    """

    name: str
    servers: tuple[Server, ...] | None = None
    selector: Selector | None = None
    requested: Requested | None = None
    symlink: bool = False
    hooks: tuple[ClientHook, ...] = ()

    @property
    def rule(self) -> str | None:
        """The name of its rule, if it comes from one."""
        return None if self.requested is not None else self.name

    @property
    def owner(self) -> str | None:
        """The owner of the lease, if a program has requested one."""
        return None if self.requested is None else self.requested.owner

    def mayAttach(self, device: UsbDevice) -> bool:
        """
        Do leases allow it? A device leased by C{owner} is bound by its server without a request.
        """
        if self.owner is None:
            return device.lease is None
        return device.state in (DeviceState.BOUND, DeviceState.IN_USE)

    def among(self, found: Iterable[RemoteDevice]) -> tuple[RemoteDevice, ...]:
        """The devices that it selects."""
        there = [each for each in found if self.servers is None or each.server in self.servers]
        if self.requested is None:
            assert self.selector is not None
            return among(self.selector, there)
        requested = self.requested
        return tuple(
            each
            for each in there
            if requested.matches(each) and requested.isStillLeased(each.device)
        )

    def matches(self, found: RemoteDevice) -> bool:
        """Does it select this device?"""
        return found in self.among((found,))


class DesiredAttachments:
    """
    All desired attachments: those of rules first, in the order of the file.
    """

    _log = Logger()

    def __init__(self, settings: LiveSettings, stateFile: StateFile[Requests] | None) -> None:
        """
        @param stateFile: keeps the requests; C{None}: they end with the process.
        """
        self._settings = settings
        self._stateFile = stateFile
        self._requests: dict[str, Requested] = {}
        self._resting: set[str] = set()
        self.update()

    def load(self) -> None:
        """Read the requests from the state file."""
        if self._stateFile is not None:
            self._requests = {each.name: each for each in self._stateFile.open().requests}

    def update(self) -> None:
        """Take over a reloaded configuration: rules that were detached by request apply again."""
        self._resting.clear()
        self._servers = {server.name: server for server in self._settings.allServers}
        self._rules = tuple(map(self._desiredOf, self._settings.config.devices))

    def _desiredOf(self, rule: DeviceRule) -> DesiredAttachment:
        known = self._settings.servers.known
        servers = tuple(server for name in rule.servers for server in known[name])
        return DesiredAttachment(
            name=rule.name,
            servers=servers if rule.servers else None,
            selector=rule.selector,
            symlink=rule.symlink,
            hooks=rule.hooks,
        )

    def __iter__(self) -> Iterator[DesiredAttachment]:
        yield from (rule for rule in self._rules if rule.name not in self._resting)
        for name, requested in self._requests.items():
            server = self._servers.get(requested.server)
            if server is not None:
                yield _desiredBy(name, requested, server)

    def get(self, name: str) -> DesiredAttachment | None:
        """One of them, by its name."""
        return next((desired for desired in self if desired.name == name), None)

    def request(
        self, found: RemoteDevice, owner: str | None, isTaken: Callable[[str], bool]
    ) -> DesiredAttachment:
        """
        Add the request of a program. Without an owner a rule that matches stands for it.

        @param owner: the owner of the lease.
        @param isTaken: has the rule of this name another device?
        """
        for rule in self._rules if owner is None else ():
            if not isTaken(rule.name) and rule.matches(found):
                self._resting.discard(rule.name)
                return rule
        requested = Requested.of(found, owner)
        name = next((n for n, it in self._requests.items() if it.matches(found)), requested.name)
        if name in self._requests and not self._requests[name].matches(found):
            requested = msgspec.structs.replace(requested, atPort=True)  # of two with its number
            name = requested.name
        self._requests[name] = requested
        self._forgetOldest(lambda other: other == name or isTaken(other))
        self._save()
        return _desiredBy(name, requested, found.server)

    def _forgetOldest(self, isNeeded: Callable[[str], bool]) -> None:
        for name, each in tuple(self._requests.items()):
            if len(self._requests) <= REMEMBERED:
                return
            if each.owner is None and not isNeeded(name):
                del self._requests[name]
                self._log.warn(
                    "{device} at {server} is forgotten: more than {count} devices are attached, "
                    "and it is not there",
                    device=str(each.device()),
                    server=each.server,
                    count=REMEMBERED,
                )

    def restore(self, desired: DesiredAttachment) -> None:
        """Add one that may have been withdrawn."""
        self._resting.discard(desired.name)
        if desired.requested is not None:
            self._requests[desired.name] = desired.requested
            self._save()

    def withdraw(self, name: str) -> None:
        """Remove a request, or disable a rule until it is requested or the next reload."""
        if self._requests.pop(name, None) is None:
            self._resting.add(name)
        else:
            self._save()

    def observe(self, found: Iterable[RemoteDevice]) -> None:
        """
        Remove the requests whose lease has ended, and note where the requested devices are, and
        which have the serial number of another one: those are recognized at their ports only.

        @param found: the devices of all servers that are connected.
        """
        if not self._requests:
            return
        there = tuple(found)
        for name, requested in tuple(self._requests.items()):
            like = [each for each in there if requested.isLike(each)]
            now = requested.asSeen(like)
            if now != requested:
                requested = self._requests[name] = now
                self._save()
            for each in like:
                if requested.matches(each) and not requested.isStillLeased(each.device):
                    self._requests.pop(name, None)
                    self._save()

    def requested(self, found: RemoteDevice) -> DesiredAttachment | None:
        """The request for a device, whether its lease has ended or not."""
        for desired in self:
            if desired.requested is not None and desired.requested.matches(found):
                return desired
        return None

    def remembered(self) -> tuple[RemoteDevice, ...]:
        """The requested devices, with what is saved of them."""
        return tuple(
            RemoteDevice(server=server, device=requested.device(), raw={})
            for requested in self._requests.values()
            if (server := self._servers.get(requested.server)) is not None
        )

    def saved(self) -> Requests:
        """The content of the state file."""
        return Requests(requests=tuple(self._requests.values()))

    async def written(self, seconds: float) -> None:
        """Wait until the last change is on the disk; see L{StateFile.written}."""
        if self._stateFile is not None:
            await self._stateFile.written(seconds)

    def _save(self) -> None:
        if self._stateFile is not None:
            self._stateFile.save(self.saved())


def isLeasedBy(owner: str, device: UsbDevice) -> bool:
    """
    Has this owner leased the device?
    """
    return device.lease is not None and device.lease.owner == owner


def _desiredBy(name: str, requested: Requested, server: Server) -> DesiredAttachment:
    return DesiredAttachment(name=name, servers=(server,), requested=requested)
