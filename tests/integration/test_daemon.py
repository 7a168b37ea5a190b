"""
Requests to the daemon, from one client and from too many.
"""

from __future__ import annotations

import json
import random
import socket
import struct

from tests.integration.case import (
    LAMP,
    DaemonCase,
    connect,
    descriptors,
    readAll,
    readLines,
    talk,
)
from tests.support.childdaemon import ChildDaemon
from usbip_server.runtime.service import SPARE_FILES

LIST = b'{"command":"list"}'
KEEP = b'{"command":"list","keep_alive":true}\n'


class CommandTests(DaemonCase):
    """
    One client.
    """

    def test_commands(self) -> None:
        """A device is listed, found, attached and detached; it listens on IPv4 and IPv6, and on
        each of its endpoints."""
        daemon = self.daemon(listen=["tcp:0", "tcp:0:interface=127.0.0.1"])
        ports = daemon.ports
        for port, host in ((ports[0], "127.0.0.1"), (ports[0], "::1"), (ports[1], "127.0.0.1")):
            reply = json.loads(talk(port, LIST, host))
            self.assertEqual([device["bus_id"] for device in reply["data"]], ["1-1", "1-2"])
        for command, keys, status, state in (
            ("find", {"desc": "lamp"}, "success", "free"),
            ("attach", {"serial": "L1"}, "success", "bound"),
            ("attach", {"serial": "L1"}, "success", "bound"),
            ("detach", {"serial": "L1"}, "success", "free"),
            ("find", {"id": "9-9"}, "not_found", "free"),
            ("find", {"id": "*"}, "multiple_matches", "free"),
            ("lsit", {}, "error", "free"),
        ):
            self.assertEqual(daemon.ask(command, **keys)["status"], status)
            self.assertEqual(self.shown(daemon)["state"], state)

    def test_end(self) -> None:
        """All requests on one connection are answered, to the last, and then it ends, also for a
        client that closes its side first."""
        daemon = self.daemon()
        for request, halfClose, count in ((LIST, True, 1), (KEEP * 5000 + LIST, False, 5001)):
            received = talk(daemon.port, request, halfClose=halfClose)
            self.assertEqual(received.count(b"\n"), count)


class LimitTests(DaemonCase):
    """
    Many clients, and bad ones.
    """

    def answers(self, daemon: ChildDaemon) -> bool:
        """Does the daemon answer? There may be no room yet, not even for a refusal."""
        try:
            return b"success" in talk(daemon.port, LIST)
        except ConnectionError:
            return False

    def assertRecovers(self, daemon: ChildDaemon, before: int) -> None:
        """It answers, and has no more files open than before."""
        self.until(lambda: self.answers(daemon))
        self.until(lambda: descriptors(daemon) <= before)
        self.answers(daemon)

    def test_connections(self) -> None:
        """Beyond its part of the limit a client is refused with a message; when one has gone there
        is room again."""
        daemon = self.daemon(LAMP + "limits: {connections: 6}\n")
        crowd = [connect(daemon.port) for _ in range(3)]
        for connection in crowd:
            self.addCleanup(connection.close)
            connection.sendall(KEEP)
            readLines(connection)
        with connect(daemon.port) as connection:
            refused = json.loads(readAll(connection))
        self.assertEqual(refused["status"], "error")
        self.assertIn("3 connections of one client", refused["message"])
        crowd.pop().close()
        self.until(lambda: self.answers(daemon))

    def test_crowd(self) -> None:
        """Many more clients than the limit allows, or than it has descriptors for, do not keep it
        from answering afterwards; a limit that the descriptors do not allow is logged."""
        prefix = ("prlimit", "--nofile=150:150")
        for config, more, rooms in (
            ("limits: {connections: 100}\n", {}, []),
            ("", {"prefix": prefix}, [150 - SPARE_FILES]),
        ):
            daemon = self.daemon(LAMP + config, **more)
            self.assertEqual([event["room"] for event in daemon.events if "room" in event], rooms)
            daemon.ask("list")  # what it opens at first is open now
            before = descriptors(daemon)
            for _ in range(3):
                crowd = [connect(daemon.port) for _ in range(400)]
                for connection in crowd:
                    connection.close()
            self.assertRecovers(daemon, before)

    def test_garbage(self) -> None:
        """A flood of garbage leaves no error in the log, and no file open."""
        daemon = self.daemon()
        daemon.ask("list")
        before = descriptors(daemon)
        chance = random.Random(7)
        for number in range(600):
            with connect(daemon.port) as connection:
                noise = chance.randbytes(chance.randrange(1, 4000))
                prefix = chance.choice([b"", b"{", b"GET / ", b"POST / HTTP/1.1\r\n", KEEP])
                try:
                    connection.sendall(prefix + noise)
                    if number % 3 == 0:
                        connection.shutdown(socket.SHUT_WR)
                        readAll(connection)
                    elif number % 3 == 1:  # the client resets the connection
                        reset = struct.pack("ii", 1, 0)
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
                except ConnectionError:
                    continue
        self.assertRecovers(daemon, before)
        self.assertStops(daemon)
        daemon.logged("stopped")
        levels = {event["log_level"]["name"] for event in daemon.events}
        self.assertEqual(levels & {"error", "critical"}, set())
