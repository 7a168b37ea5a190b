"""
Asking many servers at once: each has its own time, and none waits for another.
"""

from __future__ import annotations

import contextlib
import queue
import resource
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from usbip_server.client.core.servers import Server
from usbip_server.errors import ShareError, Unreachable

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
