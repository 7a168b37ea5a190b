"""
Asking many servers at once: each has its own time, and none waits for another.
"""

from __future__ import annotations

import contextlib
import json
import queue
import resource
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Generic, TypeVar

import msgspec

from usbip_server.client.blocking import devicesOf
from usbip_server.client.devices import RemoteDevice
from usbip_server.client.imports import listDevices
from usbip_server.client.selection import Selection
from usbip_server.client.servers import Server
from usbip_server.model.device import DeviceState, UsbDevice
from usbip_server.model.errors import DeviceNotFound, ShareError, Unreachable
from usbip_server.model.replies import Refused, Status, encodeDevices
from usbip_server.model.usbip import SPEED_OF, Exported, NotGiven

T = TypeVar("T")

STACK = 512 * 1024
"""Bytes for each thread: there may be a thousand."""


class Heard(Generic[T]):
    """
    What came of it.

    @ivar answers: of those that have answered, in the servers' order.
    @ivar troubles: of the others.
    """

    def __init__(self) -> None:
        self.answers: list[tuple[Server, T]] = []
        self.troubles: list[tuple[Server, ShareError]] = []


def everywhere(servers: Sequence[Server], work: Callable[[Server], T]) -> Heard[T]:
    """
    Do something with each server, at the same time, in as many threads; they are over when this
    returns, but for ctrl-C.

    @param work: has to come to an end by itself.
    """
    done: queue.SimpleQueue[tuple[int, T | BaseException]] = queue.SimpleQueue()

    def one(index: int) -> None:
        try:
            done.put((index, work(servers[index])))
        except BaseException as error:
            done.put((index, error))

    def begin(index: int, thread: threading.Thread) -> bool:
        try:
            thread.start()
        except RuntimeError as error:
            why = f"{servers[index]}: not asked, as this machine is at its limits: {error}"
            done.put((index, Unreachable(why)))
            return False
        return True

    allowManyConnections()
    threads = [threading.Thread(target=one, args=(i,), daemon=True) for i in range(len(servers))]
    before = threading.stack_size(STACK)
    try:
        started = [thread for index, thread in enumerate(threads) if begin(index, thread)]
    finally:
        threading.stack_size(before)
    results = dict(done.get() for _ in servers)
    for thread in started:
        thread.join()
    heard: Heard[T] = Heard()
    for index, server in enumerate(servers):
        result = results[index]
        if isinstance(result, ShareError):
            heard.troubles.append((server, result))
        elif isinstance(result, BaseException):
            raise result
        else:
            heard.answers.append((server, result))
    return heard


def allowManyConnections() -> None:
    """
    A range of servers can have more than the thousand that are usual.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


_SPEEDS = {number: speed for speed, number in reversed(SPEED_OF.items())}


class DiscoveryResult(msgspec.Struct, frozen=True, kw_only=True):
    """
    What has come of asking.

    @ivar found: all devices, in the servers' order.
    @ivar answered: the servers that have answered.
    @ivar stock: those of them that have no control port: nothing can be asked of them but a
        list and an import.
    @ivar troubles: the others, and what is wrong with them.
    """

    found: tuple[RemoteDevice, ...] = ()
    answered: tuple[Server, ...] = ()
    stock: tuple[Server, ...] = ()
    troubles: tuple[tuple[Server, ShareError], ...] = ()

    def isStock(self, server: Server) -> bool:
        """Has it no control port?"""
        return server in self.stock

    def requireControl(self, found: RemoteDevice) -> None:
        """
        @raise Refused: the server of a device cannot be asked for anything about it.
        """
        if self.isStock(found.server):
            raise Refused(
                Status.FAILURE,
                f"{found}: a stock usbipd can be asked for a list and for an import only",
            )


def survey(
    servers: Sequence[Server], seconds: float, known: Collection[Server] = ()
) -> DiscoveryResult:
    """
    Ask all servers at once what they have.

    @param seconds: for each.
    @param known: those that are known to have no control port. Others may have none either,
        which is seen if their machine refuses the connection.
    """
    stock: list[Server] = []

    def ask(server: Server) -> tuple[RemoteDevice, ...]:
        refused: Unreachable | None = None
        if server not in known:
            try:
                return devicesOf(server, seconds)
            except Unreachable as error:
                if not isRefused(error):
                    raise
                refused = error
        found = _exported(server, seconds, refused)
        stock.append(server)
        return found

    heard = everywhere(servers, ask)
    return DiscoveryResult(
        found=tuple(each for _, found in heard.answers for each in found),
        answered=tuple(server for server, _ in heard.answers),
        stock=tuple(stock),
        troubles=tuple(heard.troubles),
    )


def isRefused(error: ShareError) -> bool:
    """
    Is there a machine, but nobody at the control port?
    """
    return isinstance(error.__cause__, ConnectionRefusedError)


def _exported(
    server: Server, seconds: float, refused: Unreachable | None
) -> tuple[RemoteDevice, ...]:
    """
    What stands in the list of a stock C{usbipd}.

    @param refused: what is wrong with the server if it is none either; C{None}: that.
    """
    try:
        listed = listDevices(server, seconds)
    except (Unreachable, NotGiven) as error:
        if refused is not None:
            raise refused from refused.__cause__
        if isinstance(error, Unreachable):
            raise
        raise Unreachable(f"{server.called(server.exportAddress)}: {error}") from error
    return tuple(exported(server, each) for each in listed)


def exported(server: Server, listed: Exported) -> RemoteDevice:
    """
    A device as far as USB/IP tells of it: whether somebody has it, it does not.
    """
    ids = f"{listed.vendorId}:{listed.productId}"
    device = UsbDevice(
        busId=listed.busId,
        vendorId=listed.vendorId,
        productId=listed.productId,
        description=f"USB device {ids}",
        deviceNumber=listed.deviceNumber,
        path=listed.path,
        speed=_SPEEDS.get(listed.speed),
        deviceClass=listed.deviceClass,
        interfaces=listed.interfaces,
        state=DeviceState.BOUND,
    )
    raw = json.loads(bytes(encodeDevices(device, detail=True)))
    return RemoteDevice(server=server, device=device, raw=raw)


AGAIN = 1.0
"""Seconds until all servers are asked again."""


def appearing(
    meant: Selection, survey: Callable[[], DiscoveryResult], patience: float
) -> tuple[RemoteDevice, DiscoveryResult]:
    """
    Wait for it. Servers that do not answer are asked again, too.

    @param survey: asks all of them.
    @param patience: seconds that the device may take.
    @return: the device, and what else there is.
    @raise DeviceNotFound: it has not come.
    @raise usbip_server.client.selection.SeveralFound: several have.
    """
    until = time.monotonic() + patience
    while True:
        there = survey()
        try:
            return meant.choose(there.found), there
        except DeviceNotFound:
            left = until - time.monotonic()
            if left <= 0:
                raise DeviceNotFound(
                    f"no device matches {meant}, and none has come within {patience:.0f} s"
                ) from None
        time.sleep(min(AGAIN, left))
