"""
Asking many servers at once: each has its own time, and none waits for another.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred, gatherResults

from usbip_server.client.core.asking import Refused, ask
from usbip_server.client.core.devices import Found, foundIn
from usbip_server.client.core.servers import Server
from usbip_server.errors import ShareError
from usbip_server.replies import Status

T = TypeVar("T")


class Heard(Generic[T]):
    """
    What came of it.

    @ivar answers: of those that have answered, in the servers' order.
    @ivar troubles: of the others.
    """

    def __init__(self) -> None:
        self.answers: list[tuple[Server, T]] = []
        self.troubles: list[tuple[Server, ShareError]] = []


async def everywhere(servers: Sequence[Server], work: Callable[[Server], Awaitable[T]]) -> Heard[T]:
    """
    Do something with each server, at the same time.
    """

    async def one(server: Server) -> T | ShareError:
        try:
            return await work(server)
        except ShareError as error:
            return error

    heard: Heard[T] = Heard()
    asking = [Deferred.fromCoroutine(one(server)) for server in servers]
    results = await gatherResults(asking, consumeErrors=True)
    for server, result in zip(servers, results, strict=True):
        if isinstance(result, ShareError):
            heard.troubles.append((server, result))
        else:
            heard.answers.append((server, result))
    return heard


async def devicesOf(reactor: Any, server: Server, seconds: float) -> tuple[Found, ...]:
    """
    All devices of a server that we may see.

    @raise Unreachable: it does not answer.
    @raise Refused: it does not let us.
    """
    answer = await ask(reactor, server, {"command": "list", "detail": True}, seconds)
    if answer.status is not Status.SUCCESS:
        raise Refused(answer.status, f"{server.called(server.address)}: {answer.message}")
    return foundIn(server, answer.data)
