"""
The gate that every command and every import comes through: who asks is found out, and what is
decided is written down.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

from usbip_server.access import Access, rightOf
from usbip_server.audit import Audit
from usbip_server.caller import Caller
from usbip_server.commands import Command
from usbip_server.device import UsbDevice
from usbip_server.policy import Right


class Gate:
    """
    Knows who may do what, and keeps the audit trail.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._audit = Audit()

    @contextlib.contextmanager
    def passing(
        self, caller: Caller, command: Command, right: Right | None = None
    ) -> Iterator[Callable[[UsbDevice], None]]:
        """
        Carry a request out in here: C{caller.principal} is who asks, and an error is written
        down as what became of it.

        @param right: what it is for, if that is not what the command is called.
        @return: to be called with the device, if it went well.
        @raise NotAllowed: its token is none of ours, or there is no device that they may do
            this to.
        """
        right = right or rightOf(command)
        caller.principal = caller.peer
        try:
            caller.principal = self._access.identify(caller.peer, command.token)
            self._access.of(caller.principal).require(right)
            yield partial(self._audit.done, caller.principal, right, command)
        except Exception as error:
            self._audit.failed(caller.principal, right, command, error)
            raise
