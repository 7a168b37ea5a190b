"""
Watching and waiting, with real sockets and with clients that are killed.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import ssl
from typing import Any

from twisted.internet.threads import deferToThread

from tests.integration.daemon import INERT, PATIENCE, Child, DaemonTestCase, ask, connect, readAll
from tests.net.test_endpoints import certificate
from tests.support.watchclient import WatchClient

TOGGLE = (
    b'{"command":"attach","id":"1-1","keep_alive":true}\n'
    b'{"command":"detach","id":"1-1","keep_alive":true}\n'
)
"""Two events."""

FIRST = {"owner": "first", "ttl": 600}
"""A lease."""

CLIENT = """
import socket, sys
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
connection.sendall(sys.argv[2].encode())
for line in connection.makefile("r"):
    print(line, end="", flush=True)
"""
"""A client that asks for something, tells what it hears, and goes when it is killed."""


class WatchingTestCase(DaemonTestCase):
    """
    A daemon, and clients of all kinds.
    """

    def client(self, port: int, **request: Any) -> Child:
        """A client in a process of its own."""
        return self.run_("-c", CLIENT, str(port), json.dumps(request))

    def warnings(self, child: Child) -> list[str]:
        """What a daemon has logged that is worth a look."""
        return [
            event["log_format"] for event in child.events if event["log_level"]["name"] != "info"
        ]

    async def state(self, port: int, busId: str = "1-1") -> tuple[str, Any]:
        """A device's state, and who has leased it."""
        answer = await ask(port, command="find", id=busId, detail=True)
        lease = answer["data"]["lease"]
        return answer["data"]["state"], lease and lease["owner"]

    async def untilAwaited(self, port: int) -> None:
        """Wait until somebody waits for the device: its first owner is told so when it asks for
        it again, without waiting."""
        message = ""
        while "other clients wait" not in message:
            answer = await ask(port, command="attach", id="1-1", lease=FIRST)
            message = answer.get("message", "")


class SlowTests(WatchingTestCase):
    """
    A client that watches and does not read.
    """

    async def test_doesNotRead(self) -> None:
        """It is cut off, with one warning, and another one hears everything."""
        child, [port] = await self.daemon(INERT + "limits: {watch_bytes: 16384}\n")
        with WatchClient(port, detail=True) as reader, lazy(port) as slow:
            begin = reader.answer["seq"]
            told = 0
            while not isCutOff(slow):
                told += 200
                self.assertLess(told, 50_000)
                await deferToThread(toggle, port, 200)
                await deferToThread(reader.upTo, begin + told)
            await deferToThread(toggle, port, 200)
            events = await deferToThread(reader.upTo, begin + told + 200)
            self.assertEqual([e["seq"] - begin for e in events], list(range(1, told + 201)))
        self.assertEqual((await ask(port, command="list"))["status"], "success")
        self.assertEqual(
            self.warnings(child),
            ["{principal}: slow watcher disconnected ({unread} bytes unsent)"],
        )

    async def test_catchesUp(self) -> None:
        """However much more than may wait it has missed, a client that comes back and reads has
        all of it."""
        child, [port] = await self.daemon(INERT + "limits: {watch_bytes: 1024}\n")
        many = 3000

        def comeBack() -> list[int]:
            with WatchClient(port) as first:
                toggle(port, many)
                seq = first.answer["seq"]
            with WatchClient(port, since=seq, detail=True) as again:
                return [event["seq"] - seq for event in again.upTo(seq + many)]

        self.assertEqual(await deferToThread(comeBack), list(range(1, many + 1)))
        self.assertEqual(self.warnings(child), [])


class KilledTests(WatchingTestCase):
    """
    Clients that are killed: nobody is left to say that they are gone but their kernel.
    """

    async def test_waiting(self) -> None:
        """One that waits for its turn leaves the queue, and the next has its turn when there is
        one."""
        _, [port] = await self.daemon()
        await ask(port, command="attach", id="1-1", lease=FIRST)
        second = self.client(
            port, command="attach", id="1-1", wait=600, lease={"owner": "second", "ttl": 600}
        )
        await second.says('"place":1')
        third = self.client(
            port, command="attach", id="1-1", wait=600, lease={"owner": "third", "ttl": 600}
        )
        await third.says('"place":2')
        second.signal(signal.SIGKILL)
        await third.says('"place":1')  # with no heartbeat to find out by: they are 15 s apart
        await ask(port, command="detach", id="1-1", owner="first")
        await third.says('"status":"success"')
        self.assertEqual(await self.state(port), ("bound", "third"))

    async def test_waitingOverHttp(self) -> None:
        """So it is with one that asks over HTTP."""
        _, [port] = await self.daemon()
        await ask(port, command="attach", id="1-1", lease=FIRST)
        lease = {"owner": "second", "ttl": 600}
        body = json.dumps({"command": "attach", "id": "1-1", "wait": 600, "lease": lease})
        head = f"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        second = self.run_("-c", CLIENT, str(port), head + body)
        await self.untilAwaited(port)
        third = self.client(
            port, command="attach", id="1-1", wait=600, lease={"owner": "third", "ttl": 600}
        )
        await third.says('"place":2')
        second.signal(signal.SIGKILL)
        await third.says('"place":1')
        await ask(port, command="detach", id="1-1", owner="first")
        await third.says('"status":"success"')
        self.assertEqual(await self.state(port), ("bound", "third"))

    async def test_holding(self) -> None:
        """A lease for as long as a connection lasts ends with the client's process, and the
        device is this machine's own again."""
        child, [port] = await self.daemon()
        lease = {"owner": "job", "ttl": "connection"}
        client = self.client(port, command="attach", id="1-1", lease=lease)
        await client.says('"status":"success"')
        self.assertEqual(await self.state(port), ("bound", "job"))

        def listen() -> list[str]:
            with WatchClient(port) as watching:
                client.signal(signal.SIGKILL)
                watching.told("lease", "1-1")
                return watching.kinds("1-1")

        self.assertEqual(await deferToThread(listen), ["unbound", "lease"])
        self.assertEqual(await self.state(port), ("free", None))
        self.assertEqual(self.warnings(child), [])

    async def test_watching(self) -> None:
        """One that watches is forgotten: the daemon has no more files open than before."""
        child, [port] = await self.daemon()
        client = self.client(port, command="watch")
        await client.says('"status":"success"')
        client.signal(signal.SIGKILL)
        await client.ended
        with connect(port) as other:
            pid = child.transport.pid
            while await deferToThread(connections, pid) > 1:
                await ask(port, command="list")
            self.assertEqual(await deferToThread(connections, pid), 1)
            other.sendall(b'{"command":"list"}')
            self.assertIn(b"success", await deferToThread(readAll, other))


class StopTests(WatchingTestCase):
    """
    What clients see of the daemon's end.
    """

    async def test_stops(self) -> None:
        """Watchers, those who wait and those who hold a device are told what there is to tell
        and see the end; there is nothing to complain of."""
        child, [port] = await self.daemon()
        holder = connect(port)
        holder.sendall(b'{"command":"attach","id":"1-1","lease":{"owner":"a","ttl":"connection"}}')
        await deferToThread(readLines, holder, 1)
        clients = [connect(port) for _ in range(3)]
        for client, request in zip(
            clients,
            (
                b'{"command":"watch"}',
                b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n",
                b'{"command":"attach","id":"1-1","wait":60}',
            ),
            strict=True,
        ):
            client.sendall(request)
            await deferToThread(client.recv, 1, socket.MSG_PEEK)
        received = [deferToThread(readAndClose, client) for client in (*clients, holder)]
        await self.terminate(child)
        lines, events, waiting, held = [await each for each in received]
        self.assertTrue(lines.endswith(b"}\n"))
        self.assertTrue(events.endswith(b"\r\n0\r\n\r\n"))
        self.assertIn("stopping", json.loads(waiting.splitlines()[-1])["message"])
        self.assertEqual(held, b"")
        self.assertEqual(self.warnings(child), [])


class TlsTests(WatchingTestCase):
    """
    The same over TLS.
    """

    async def test_tls(self) -> None:
        """A client that watches over TLS is told, and sees a proper end; one that holds a device
        has it until it goes."""
        pem = self.write(certificate(), "key.pem")
        config = INERT.replace(
            "tcp:0:interface=127.0.0.1", f"ssl:0:interface=127.0.0.1:privateKey={pem}:certKey={pem}"
        )
        child, [port] = await self.daemon(config)
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE

        def secure() -> ssl.SSLSocket:
            return context.wrap_socket(connect(port), suppress_ragged_eofs=False)

        def listen() -> list[str]:
            with secure() as watching, secure() as holding:
                watching.sendall(b'{"command":"watch"}')
                lines = watching.makefile("r")
                told = [json.loads(lines.readline())]
                holding.sendall(
                    b'{"command":"attach","id":"1-1","lease":{"owner":"a","ttl":"connection"}}'
                )
                told += [json.loads(lines.readline()) for _ in range(2)]
                holding.recv(65536)
                holding.unwrap()
                told += [json.loads(lines.readline()) for _ in range(2)]
                child.signal(signal.SIGTERM)
                self.assertEqual(lines.readline(), "")
                return sorted(each["event"] for each in told[1:])

        self.assertEqual(await deferToThread(listen), ["bound", "lease", "lease", "unbound"])
        await child.ended
        self.assertEqual(self.warnings(child), [])


def lazy(port: int) -> socket.socket:
    """A client that watches, with as little room as its kernel allows, and does not read."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    client.settimeout(PATIENCE)
    client.connect(("127.0.0.1", port))
    client.sendall(b'{"command":"watch","detail":true}')
    client.recv(1, socket.MSG_PEEK)
    return client


def toggle(port: int, events: int) -> None:
    """Have so many events happen."""
    with connect(port) as busy:
        for _ in range(events // 200):
            busy.sendall(TOGGLE * 100)
            readLines(busy, 200)


def readLines(connection: socket.socket, count: int) -> bytes:
    """Read so many lines."""
    received = b""
    while received.count(b"\n") < count:
        part = connection.recv(65536)
        assert part, received
        received += part
    return received


def readAndClose(connection: socket.socket) -> bytes:
    """Read until the server closes, and close then."""
    with connection:
        return readAll(connection)


def isCutOff(connection: socket.socket) -> bool:
    """Has the other end reset it? Says so without reading."""
    poll = select.poll()
    poll.register(connection, 0)
    return bool(poll.poll(0))


def connections(pid: int) -> int:
    """How many TCP connections a process has."""
    with open(f"/proc/{pid}/net/tcp") as table:
        established = {line.split()[9] for line in table if line.split()[3] in ("01", "08")}
    return sum(inode in established for inode in inodes(pid))


def inodes(pid: int) -> list[str]:
    """The sockets of a process."""
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            found.append(target[8:-1])
    return found
