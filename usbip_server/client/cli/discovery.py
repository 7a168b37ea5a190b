"""
Asks all servers at once for their devices. Each server has its own deadline.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Generic, TypeVar

import msgspec

from usbip_server.client.blocking import devicesOf
from usbip_server.client.devices import RemoteDevice
from usbip_server.client.selection import Selector, choose
from usbip_server.client.servers import Server
from usbip_server.model.device import DeviceState, UsbDevice
from usbip_server.model.errors import DeviceNotFound, ShareError, Unreachable
from usbip_server.model.replies import Refused, Status, encodeDevices
from usbip_server.model.usbip import SPEED_OF, Exported, NotGiven

T = TypeVar("T")

STACK = 512 * 1024
"""Bytes of stack for each thread: there may be a thousand."""

AGAIN = 1.0
"""Seconds between two attempts to find a device that is waited for."""

_SPEEDS = {number: speed for speed, number in reversed(SPEED_OF.items())}


class Replies(Generic[T]):
    """
    The results of asking several servers.

    @ivar answers: of the servers that answered, in the order of the servers.
    @ivar troubles: the errors of the others.
    """

    def __init__(self) -> None:
        self.answers: list[tuple[Server, T]] = []
        self.troubles: list[tuple[Server, ShareError]] = []


def askAll(servers: Sequence[Server], ask: Callable[[Server], T]) -> Replies[T]:
    """
    Call a function with each server, at the same time, each in a thread of its own. The threads
    have ended when this returns, except after C{KeyboardInterrupt}.

    @param ask: has to return by itself.
    """
    done: queue.SimpleQueue[tuple[int, T | BaseException]] = queue.SimpleQueue()

    def run(index: int) -> None:
        try:
            done.put((index, ask(servers[index])))
        except BaseException as error:
            done.put((index, error))

    def start(index: int, thread: threading.Thread) -> bool:
        try:
            thread.start()
        except RuntimeError as error:
            why = f"{servers[index]}: not asked, as this machine is at its limits: {error}"
            done.put((index, Unreachable(why)))
            return False
        return True

    if len(servers) > 1:
        allowManyConnections()
    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(servers))]
    before = threading.stack_size(STACK)
    try:
        started = [thread for index, thread in enumerate(threads) if start(index, thread)]
    finally:
        threading.stack_size(before)
    results = dict(done.get() for _ in servers)
    for thread in started:
        thread.join()
    replies: Replies[T] = Replies()
    for index, server in enumerate(servers):
        result = results[index]
        if isinstance(result, ShareError):
            replies.troubles.append((server, result))
        elif isinstance(result, BaseException):
            raise result
        else:
            replies.answers.append((server, result))
    return replies


def allowManyConnections() -> None:
    """
    Raise the limit on open files: a range of servers can exceed the usual 1024.
    """
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class DiscoveryResult(msgspec.Struct, frozen=True, kw_only=True):
    """
    The devices of all servers.

    @ivar found: all devices, in the order of the servers.
    @ivar answered: the servers that answered.
    @ivar stock: those of them that have no port for requests: a stock C{usbipd} supports only
        listing and importing.
    @ivar troubles: the other servers, and their errors.
    """

    found: tuple[RemoteDevice, ...] = ()
    answered: tuple[Server, ...] = ()
    stock: tuple[Server, ...] = ()
    troubles: tuple[tuple[Server, ShareError], ...] = ()

    def isStock(self, server: Server) -> bool:
        """Has the server no port for requests?"""
        return server in self.stock

    def requireControl(self, found: RemoteDevice) -> None:
        """
        @raise Refused: the server of the device has no port for requests.
        """
        if self.isStock(found.server):
            raise Refused(
                Status.FAILURE,
                f"{found}: a stock usbipd supports only listing and importing devices",
            )


def discover(
    servers: Sequence[Server], seconds: float, stock: Collection[Server] = ()
) -> DiscoveryResult:
    """
    Ask all servers for their devices.

    @param seconds: for each.
    @param stock: the servers that are known to have no port for requests. Others are taken for a
        stock C{usbipd} if they refuse connections to that port and accept those to the other.
    """
    found: list[Server] = []

    def ask(server: Server) -> tuple[RemoteDevice, ...]:
        refused: Unreachable | None = None
        if server not in stock:
            try:
                return devicesOf(server, seconds)
            except Unreachable as error:
                if not isRefused(error):
                    raise
                refused = error
        devices = _exportedBy(server, seconds, refused)
        found.append(server)
        return devices

    replies = askAll(servers, ask)
    return DiscoveryResult(
        found=tuple(each for _, devices in replies.answers for each in devices),
        answered=tuple(server for server, _ in replies.answers),
        stock=tuple(found),
        troubles=tuple(replies.troubles),
    )


def isRefused(error: ShareError) -> bool:
    """
    Did the machine refuse the connection, as nothing listens on the port?
    """
    return isinstance(error.__cause__, ConnectionRefusedError)


def waitFor(
    selector: Selector, discover: Callable[[], DiscoveryResult], seconds: float
) -> tuple[RemoteDevice, DiscoveryResult]:
    """
    Wait until a device appears at any server.

    @param discover: asks all servers.
    @param seconds: to wait at most.
    @return: the device, and the devices of all servers.
    @raise DeviceNotFound: it has not appeared.
    @raise usbip_server.client.selection.SeveralFound: several devices match.
    """
    until = time.monotonic() + seconds
    while True:
        result = discover()
        try:
            return choose(selector, result.found), result
        except DeviceNotFound:
            left = until - time.monotonic()
            if left <= 0:
                raise DeviceNotFound(
                    f"no device matches {selector}, and none has appeared within {seconds:.0f} s"
                ) from None
        time.sleep(min(AGAIN, left))


def exported(server: Server, listed: Exported) -> RemoteDevice:
    """
    A device as far as USB/IP describes it, which does not include who uses it.
    """
    ids = f"{listed.vendorId}:{listed.productId}"
    device = UsbDevice(
        busId=listed.busId,
        vendorId=listed.vendorId,
        productId=listed.productId,
        description=f"USB device {ids}",
        deviceNumber=listed.deviceNumber,
        sysfsPath=listed.path,
        speed=_SPEEDS.get(listed.speed),
        deviceClass=listed.deviceClass,
        interfaces=listed.interfaces,
        state=DeviceState.BOUND,
    )
    raw = msgspec.json.decode(encodeDevices(device, detail=True))
    return RemoteDevice(server=server, device=device, raw=raw)


def _exportedBy(
    server: Server, seconds: float, refused: Unreachable | None
) -> tuple[RemoteDevice, ...]:
    """
    The devices in the list of a stock C{usbipd}.

    @param refused: the error to raise if the server has no C{usbipd} either.
    """
    from usbip_server.client.imports import listDevices

    try:
        listed = listDevices(server, seconds)
    except (Unreachable, NotGiven) as error:
        if refused is not None:
            raise refused from refused.__cause__
        if isinstance(error, Unreachable):
            raise
        raise Unreachable(f"{server.called(server.exportAddress)}: {error}") from error
    return tuple(exported(server, each) for each in listed)
