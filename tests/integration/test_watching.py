"""
Clients that watch, wait or hold a device on real sockets, and are killed or do not read.
"""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
from typing import Any

from tests.integration.case import (
    LAMP,
    DaemonCase,
    connect,
    descriptors,
    isReset,
    readAll,
    readLines,
)
from tests.support.certificates import signed, trusting
from tests.support.childdaemon import SECONDS, ChildDaemon

TOGGLE = (
    b'{"command":"attach","id":"1-1","keep_alive":true}\n'
    b'{"command":"detach","id":"1-1","keep_alive":true}\n'
)
"""Two events."""

HOLD = b'{"command":"attach","id":"1-1","lease":{"owner":"a","ttl":"connection"}}\n'


class SlowTests(DaemonCase):
    """
    A client that watches and does not read.
    """

    def toggle(self, daemon: ChildDaemon, events: int) -> None:
        """Cause events."""
        with connect(daemon.port) as busy:
            for _ in range(events // 200):
                busy.sendall(TOGGLE * 100)
                readLines(busy, 200)

    def test_doesNotRead(self) -> None:
        """It is disconnected, with one warning, and another watcher receives each event."""
        daemon = self.daemon(LAMP + "limits: {watch_bytes: 16384}\n")
        with daemon.watch(detail=True) as reader, socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            slow.settimeout(SECONDS)
            slow.connect(("127.0.0.1", daemon.port))
            slow.sendall(b'{"command":"watch","detail":true}')
            slow.recv(1, socket.MSG_PEEK)
            begin, count = reader.answer["seq"], 0
            while not isReset(slow):
                count += 200
                self.assertLess(count, 50_000)
                self.toggle(daemon, 200)
                reader.upTo(begin + count)
            self.toggle(daemon, 200)
            events = reader.upTo(begin + count + 200)
            self.assertEqual([e["seq"] - begin for e in events], list(range(1, count + 201)))
        self.assertStops(daemon)
        daemon.logged("stopped")
        message = "{principal}: slow watcher disconnected ({unread} bytes unsent)"
        self.assertEqual(self.unusual(daemon), [message])

    def test_resumes(self) -> None:
        """A client that resumes receives all events that it has missed, however many more than
        the limit of unsent bytes."""
        daemon = self.daemon(LAMP + "limits: {watch_bytes: 1024}\n")
        with daemon.watch() as first:
            self.toggle(daemon, 3000)
            seq = first.answer["seq"]
        with daemon.watch(since=seq, detail=True) as again:
            events = again.upTo(seq + 3000)
            self.assertEqual([event["seq"] - seq for event in events], list(range(1, 3001)))


class KilledTests(DaemonCase):
    """
    Clients that are killed: only their kernel can end the connection.
    """

    def kill(self, client: subprocess.Popen[str]) -> None:
        """Kill a client."""
        client.kill()
        client.wait()

    def leasing(self, owner: str, ttl: object = 600) -> dict[str, Any]:
        """The keys of a request for a lease."""
        return {"command": "attach", "id": "1-1", "lease": {"owner": owner, "ttl": ttl}}

    def test_waiting(self) -> None:
        """A client that waits, over the line protocol or over HTTP, leaves the queue at once, and
        the next one has its turn."""
        for isHttp in (False, True):
            daemon = self.daemon()
            daemon.ask(**self.leasing("first"))
            wait = {**self.leasing("second"), "wait": 600}
            body = json.dumps(wait)
            if isHttp:
                length = f"Content-Length: {len(body)}\r\n\r\n"
                body = f"POST / HTTP/1.1\r\nHost: localhost\r\n{length}{body}"
            second = self.spawnClient(daemon, body)
            if isHttp:  # the place in the queue is not sent over HTTP
                while "other clients wait" not in daemon.ask(**self.leasing("first")).get(
                    "message", ""
                ):
                    pass
            else:
                self.lines(second, '"place":1')
            third = self.spawnClient(daemon, **self.leasing("third"), wait=600)
            self.lines(third, '"place":2')
            self.kill(second)
            self.lines(third, '"place":1')  # long before the next heartbeat
            self.assertSucceeds(daemon, "detach", id="1-1", owner="first")
            self.lines(third, '"status":"success"')
            shown = self.shown(daemon)
            self.assertEqual((shown["state"], shown["lease"]["owner"]), ("bound", "third"))

    def test_holding(self) -> None:
        """A lease that lasts as long as a connection ends with the client's process, and the
        device is unbound."""
        daemon = self.daemon()
        client = self.spawnClient(daemon, **self.leasing("job", "connection"))
        self.lines(client, '"status":"success"')
        self.assertEqual(self.shown(daemon)["lease"]["owner"], "job")
        with daemon.watch() as watching:
            self.kill(client)
            watching.told("lease", "1-1")
            self.assertEqual(watching.kinds("1-1"), ["unbound", "lease"])
        shown = self.shown(daemon)
        self.assertEqual((shown["state"], shown["lease"]), ("free", None))
        self.assertEqual(self.unusual(daemon), [])

    def test_watching(self) -> None:
        """A client that watches is forgotten: no file of it stays open."""
        daemon = self.daemon()
        with connect(daemon.port) as first:
            first.sendall(b'{"command":"list","keep_alive":true}\n')
            readLines(first)
            before = descriptors(daemon) - 1
        self.until(lambda: descriptors(daemon) <= before)
        client = self.spawnClient(daemon, command="watch")
        self.lines(client, '"status":"success"')
        self.assertGreater(descriptors(daemon), before)
        self.kill(client)
        self.until(lambda: descriptors(daemon) <= before)


class StopTests(DaemonCase):
    """
    The stop of the daemon.
    """

    def test_stops(self) -> None:
        """Clients that watch, wait or hold a device receive all their messages and a proper end;
        nothing unusual is logged."""
        daemon = self.daemon()
        clients = []
        for request in (
            HOLD,
            b'{"command":"watch"}\n',
            b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b'{"command":"attach","id":"1-1","wait":60}\n',
        ):
            clients.append(client := connect(daemon.port))
            self.addCleanup(client.close)
            client.sendall(request)
            readLines(client)
        self.assertStops(daemon)
        held, lines, events, waiting = map(readAll, clients)
        self.assertEqual(held, b"")
        self.assertIn(lines[-2:], (b"", b"}\n"))
        self.assertTrue(events.endswith(b"0\r\n\r\n"))
        self.assertIn("stopping", json.loads(waiting.splitlines()[-1])["message"])
        daemon.logged("stopped")
        self.assertEqual(self.unusual(daemon), [])

    def test_tls(self) -> None:
        """Over Twisted's own TLS a watcher receives events and a proper end, and a client holds a
        device until it leaves."""
        certificate, key = signed("localhost").write(self.mktemp(), "server")
        listen = f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={certificate}"
        daemon = self.daemon(listen=[listen])

        def secure() -> ssl.SSLSocket:
            return trusting().wrap_socket(
                connect(daemon.port), server_hostname="localhost", suppress_ragged_eofs=False
            )

        with secure() as watching, secure() as holding:
            watching.sendall(b'{"command":"watch"}\n')
            lines = watching.makefile("r")
            json.loads(lines.readline())
            holding.sendall(HOLD)
            kinds = [json.loads(lines.readline())["event"] for _ in range(2)]
            readLines(holding)
            holding.unwrap()
            kinds += [json.loads(lines.readline())["event"] for _ in range(2)]
            self.assertEqual(sorted(kinds), ["bound", "lease", "lease", "unbound"])
            daemon.child.terminate()
            self.assertEqual(lines.readline(), "")
        daemon.child.wait(SECONDS)
        daemon.logged("stopped")
        self.assertEqual(self.unusual(daemon), [])
