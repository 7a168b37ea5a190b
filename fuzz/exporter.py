"""Connections of the port for USB/IP."""

from __future__ import annotations

from twisted.internet.address import IPv4Address

from fuzz import opcodec
from fuzz.cutting import cut
from fuzz.memory import BOUND, Memory, SocketTransport, daemon
from tests.support.fixtures import Wire
from usbip_server.model.usbip import OpStatus, encodeImport, encodeList, encodeRefusal
from usbip_server.protocols.exporter import Exporter, ExporterFactory

IMPORT = opcodec.IMPORT + BOUND.busId.encode().ljust(32, b"\0")
OTHER = opcodec.IMPORT + b"1-2".ljust(32, b"\0")

SEEDS = tuple(
    bytes([2, 3, 20]) + request
    for request in (opcodec.LIST, IMPORT, OTHER, IMPORT + b"\0", opcodec.LIST + IMPORT)
)

WORDS = (*opcodec.WORDS, BOUND.busId.encode())

ADDRESS = IPv4Address("TCP", "192.0.2.8", 40000)

GIVEN = encodeImport(BOUND)
ANSWERS = {b"", GIVEN, encodeList([BOUND]), *map(encodeRefusal, {*OpStatus} - {OpStatus.OK})}


def check(data: bytes) -> None:
    """An input, in any segmentation, gets one answer or none, and at most one line in the log;
    nothing remains afterwards."""
    with daemon() as memory:
        factory = ExporterFactory(memory.core.dispatcher, memory.settings, memory.reactor)
        exporter = factory.buildProtocol(ADDRESS)
        assert isinstance(exporter, Exporter)
        transport = SocketTransport()
        try:
            wire = Wire(exporter, transport)
            wire.send(*cut(data))
            assert wire.received in ANSWERS
            leave(memory, wire, transport)
        finally:
            transport.close()
        assert len(memory.warnings()) <= 1
        assert factory.connections == {}


def leave(memory: Memory, wire: Wire, transport: SocketTransport) -> None:
    """Close the connection, which ends the session of a client that has imported a device."""
    if wire.received == GIVEN:
        assert [call.verb for call in memory.backend.calls] == ["export"]
        transport.client.close()
        memory.reactor.deliver()
        wire.turn()
        assert wire.lost
    else:
        assert memory.backend.calls == []
        if not wire.lost:
            wire.drop()
