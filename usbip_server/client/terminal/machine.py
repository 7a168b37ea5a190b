"""
This machine, as commands see it.
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
from collections.abc import Callable, Mapping

from usbip_server.client.core.attaching import Attaching
from usbip_server.kernel import vhcirecords
from usbip_server.kernel.nodes import Nodes
from usbip_server.kernel.system import ISystem, System
from usbip_server.kernel.vhci import Vhci
from usbip_server.kernel.vhcirecords import Records

Relay = Callable[[ssl.SSLSocket, socket.socket], None]


class Machine:
    """
    What a test replaces, in click's C{obj}.

    @ivar environment: variables.
    @ivar system: the kernel.
    @ivar etc: the folder of settings for everybody.
    """

    def __init__(
        self,
        system: ISystem | None = None,
        environment: Mapping[str, str] = os.environ,
        etc: str = "/etc/usbipshare",
        nodes: str = "/dev",
        records: str = vhcirecords.FOLDER,
        isTerminal: bool | None = None,
    ) -> None:
        """
        @param system: the kernel; C{None}: the real one.
        @param nodes: where its nodes are.
        @param records: where notes on imported devices are.
        @param isTerminal: is there somebody who can be asked? C{None}: look.
        """
        self.environment = environment
        self.etc = etc
        self.system: ISystem = system or System()
        self._nodes = nodes
        self._records = records
        self._isTerminal = isTerminal

    @property
    def isTerminal(self) -> bool:
        """Is there somebody who can be asked something?"""
        if self._isTerminal is not None:
            return self._isTerminal
        return sys.stdin.isatty() and sys.stderr.isatty()

    def vhci(self) -> Vhci:
        """The ports that devices are plugged in at."""
        return Vhci(self.system)

    def attaching(self, relay: Relay) -> Attaching:
        """What plugs devices in and out."""
        nodes, records = Nodes(self.system, self._nodes), Records(self._records)
        return Attaching(self.vhci(), nodes, records, relay)
