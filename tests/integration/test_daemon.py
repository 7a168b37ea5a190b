"""
What clients see of the daemon.
"""

from __future__ import annotations

import json
import random
import socket
import struct
import time

from twisted.internet.threads import deferToThread

from tests.integration.daemon import (
    INERT,
    PATIENCE,
    Child,
    DaemonTestCase,
    ask,
    connect,
    descriptors,
    readAll,
    talk,
)

LIST = b'{"command":"list"}'
KEEP = b'{"command":"list","keep_alive":true}'
EVERY_INTERFACE = INERT.replace("tcp:0:interface=127.0.0.1", "tcp:0")


class CommandTests(DaemonTestCase):
    """
    What clients see.
    """

    async def test_commands(self) -> None:
        """A device is listed, found, attached and detached."""
        _, [port] = await self.daemon()
        listed = await ask(port, command="list")
        self.assertEqual([device["bus_id"] for device in listed["data"]], ["1-1", "1-2"])
        found = await ask(port, command="find", desc="lamp")
        self.assertEqual(found, {"status": "success", "data": listed["data"][0]})
        self.assertEqual((await ask(port, command="attach", serial="L1"))["status"], "success")
        state = await ask(port, command="find", id="1-1", detail=True)
        self.assertEqual(state["data"]["state"], "bound")
        self.assertEqual((await ask(port, command="attach", serial="L1"))["status"], "success")
        self.assertEqual((await ask(port, command="detach", serial="L1"))["status"], "success")
        state = await ask(port, command="find", id="1-1", detail=True)
        self.assertEqual(state["data"]["state"], "free")
        self.assertEqual((await ask(port, command="find", id="9-9"))["status"], "not_found")
        several = await ask(port, command="find", id="*")
        self.assertEqual(several["status"], "multiple_matches")
        self.assertEqual((await ask(port, command="lsit"))["status"], "error")

    async def test_bothFamilies(self) -> None:
        """Without an interface it listens on IPv4 and IPv6 alike."""
        _, [port] = await self.daemon(EVERY_INTERFACE)
        for host in ("127.0.0.1", "::1", "localhost"):
            self.assertEqual((await ask(port, host, command="list"))["status"], "success")

    async def test_severalEndpoints(self) -> None:
        """It listens on each of several endpoints."""
        two = INERT.replace("]", ', "tcp:0:interface=127.0.0.1"]', 1)
        _, ports = await self.daemon(two)
        self.assertEqual(len(ports), 2)
        for port in ports:
            self.assertEqual((await ask(port, command="list"))["status"], "success")

    async def test_netcat(self) -> None:
        """A client that closes its side first, and one that does not, both see the end."""
        _, [port] = await self.daemon()
        for halfClose in (False, True):
            received = await deferToThread(talk, port, LIST + b"\n", halfClose=halfClose)
            self.assertEqual(received.count(b"\n"), 1)

    async def test_pipelined(self) -> None:
        """Many requests on one connection have all their answers, to the last."""
        _, [port] = await self.daemon()
        received = await deferToThread(talk, port, (KEEP + b"\n") * 5000 + LIST)
        self.assertEqual(received.count(b"\n"), 5001)


class LimitTests(DaemonTestCase):
    """
    Many clients, and bad ones.
    """

    async def test_connections(self) -> None:
        """Beyond the limit a client is told so; when another has gone there is room again."""
        _, [port] = await self.daemon(INERT + "limits: {connections: 6}\n")

        def crowd() -> tuple[bytes, bytes]:
            crowd = [connect(port) for _ in range(3)]
            for connection in crowd:
                connection.sendall(KEEP)
                connection.recv(65536)
            with connect(port) as connection:
                refused = readAll(connection)
            crowd.pop().close()
            end = time.monotonic() + PATIENCE
            while b"success" not in (answer := self.talkSafely(port)):
                self.assertLess(time.monotonic(), end, "there is still no room")
            for connection in crowd:
                connection.close()
            return refused, answer

        refused, answer = await deferToThread(crowd)
        self.assertEqual(json.loads(refused)["status"], "error")
        self.assertIn("3 connections of one client", json.loads(refused)["message"])
        self.assertEqual(json.loads(answer)["status"], "success")

    async def test_aThousand(self) -> None:
        """Far more clients than there is room for do not keep it from answering afterwards."""
        child, [port] = await self.daemon(INERT + "limits: {connections: 100}\n")
        await ask(port, command="list")  # what it opens to begin with is open now
        before = descriptors(child)

        def crowd() -> None:
            crowd = [connect(port) for _ in range(400)]
            for connection in crowd:
                connection.close()

        for _ in range(3):
            await deferToThread(crowd)
        await self.assertRecovers(child, port, before)

    async def test_garbage(self) -> None:
        """A flood of garbage leaves it alive, and no open file behind."""
        child, [port] = await self.daemon()
        await ask(port, command="list")  # what it opens to begin with is open now
        before = descriptors(child)
        await deferToThread(self.flood, port)
        await self.assertRecovers(child, port, before)
        levels = {event["log_level"]["name"] for event in child.events}
        self.assertEqual(levels & {"error", "critical"}, set())

    def flood(self, port: int) -> None:
        """Send random bytes in many ways."""
        chance = random.Random(7)
        for number in range(600):
            with connect(port) as connection:
                noise = chance.randbytes(chance.randrange(1, 4000))
                prefix = chance.choice([b"", b"{", b"GET / ", b"POST / HTTP/1.1\r\n", KEEP])
                try:
                    connection.sendall(prefix + noise)
                    if number % 3 == 0:
                        connection.shutdown(socket.SHUT_WR)
                        readAll(connection)
                    elif number % 3 == 1:  # go with a reset
                        no = struct.pack("ii", 1, 0)
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no)
                except ConnectionError:
                    continue

    def talkSafely(self, port: int) -> bytes:
        """Ask for the list; there may be no room yet, not even to be told so."""
        try:
            return talk(port, LIST)
        except ConnectionError:
            return b""

    async def assertRecovers(self, child: Child, port: int, before: int) -> None:
        """It answers, and has as many open files as it had before."""
        while b"success" not in await deferToThread(self.talkSafely, port):
            pass
        while descriptors(child) > before:
            await deferToThread(self.talkSafely, port)
