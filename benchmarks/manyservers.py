"""C{usbipshare list} of ten servers of which one is dead and one is slow, compared with the slow
one alone, and with requests to one server after the other: C{python -m benchmarks.manyservers}.

All servers run all the time, and each of these runs once in each of several rounds, so that other
work on the machine slows all of them."""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec

from benchmarks.children import runDaemon

HOST = "127.0.0.1"

LIST = b'{"command":"list"}\n'

SCRIPT = Path(sys.executable).parent / "usbipshare"

DEADLINE = 3.0
"""Seconds for a server to answer: the default of C{usbipshare}."""

FAST, SLOW, DEAD = "fast", "slow", "dead"

QUEUE = 4
"""The number of connections that fill the queue of a socket that does not accept."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How much to measure.

    @ivar rounds: number of measurements of each way.
    @ivar fast: number of servers that answer at once: one daemon, under as many names.
    @ivar pause: seconds after which the slow server answers."""

    rounds: int = 5
    fast: int = 8
    pause: float = 2.0


QUICK = Plan(rounds=1)


@contextlib.contextmanager
def runSlow(daemon: int, pause: float) -> Iterator[int]:
    """Run a server that answers as the daemon at a port, after a pause.

    @return: its port."""

    def serve(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            request = client.makefile("rb").readline()
            time.sleep(pause)
            client.sendall(answerOf(daemon, request))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listening.accept()
                threading.Thread(target=serve, args=(client,), daemon=True).start()

    with socket.create_server((HOST, 0)) as listening:
        threading.Thread(target=accept, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def runDead() -> Iterator[int]:
    """Run a server that does not answer, like a machine that is switched off: its queue of
    connections is full, so that the kernel drops further ones.

    @return: its port."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.create_server((HOST, 0), backlog=0))
        for _ in range(QUEUE):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]


def answerOf(port: int, request: bytes = LIST, seconds: float | None = None) -> bytes:
    """Send a request to a server; returns the answer.

    @param seconds: the time limit of the connection and of the answer.
    @raise TimeoutError: it was exceeded."""
    with socket.create_connection((HOST, port), seconds) as connection:
        connection.sendall(request)
        return connection.makefile("rb").readline()


class Servers:
    """All servers, in a configuration file of C{usbipshare}."""

    def __init__(self, directory: Path, ports: Mapping[str, int]) -> None:
        """@param ports: by their names."""
        self._ports = ports
        self._file = directory / "client.yaml"
        entries = {name: {"host": HOST, "port": port} for name, port in ports.items()}
        self._file.write_text(json.dumps({"servers": entries}))

    def list(self, *kinds: str) -> None:
        """Run C{usbipshare list} with the servers of some kinds.

        @raise RuntimeError: the output is wrong."""
        names = [name for name in self._ports if name.startswith(kinds)]
        hosts = (word for name in names for word in ("--host", name))
        command = [str(SCRIPT), "list", "--config", str(self._file), "--json", *hosts]
        done = subprocess.run(command, capture_output=True, check=True)
        printed = json.loads(done.stdout)
        listed = {device["server"] for device in printed["devices"]}
        failed = [error["server"] for error in printed["errors"]]
        if listed != {*names} - {DEAD} or failed != [name for name in names if name == DEAD]:
            raise RuntimeError(f"devices of {listed} are listed, and errors of {failed}")

    def oneByOne(self) -> None:
        """Send a request to one server after the other, without the start of a program."""
        for port in self._ports.values():
            with contextlib.suppress(TimeoutError):
                answerOf(port, seconds=DEADLINE)


def seconds(work: Callable[[], None]) -> float:
    """The seconds that a call takes."""
    began = time.monotonic()
    work()
    return time.monotonic() - began


def measure(directory: Path, plan: Plan) -> str:
    """Measure all ways."""
    with (
        runDaemon(
            directory, {"type": "virtual"}, export={"listen": [f"tcp:0:interface={HOST}"]}
        ) as daemon,
        runSlow(daemon.port, plan.pause) as slow,
        runDead() as dead,
    ):
        ports = {f"{FAST}{number}": daemon.port for number in range(plan.fast)}
        servers = Servers(directory, {**ports, DEAD: dead, SLOW: slow})
        ways = {
            "all of them": lambda: servers.list(FAST, DEAD, SLOW),
            "the slow one alone": lambda: servers.list(SLOW),
            "all but the dead one": lambda: servers.list(FAST, SLOW),
            "all but the slow one": lambda: servers.list(FAST, DEAD),
            "one after the other": servers.oneByOne,
        }
        took: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(plan.rounds):
            for way in sorted(ways, reverse=bool(number % 2)):
                took[way].append(seconds(ways[way]))
    return report(plan, took)


def report(plan: Plan, took: Mapping[str, list[float]]) -> str:
    """The figures, as text."""
    together, alone, *_, inTurn = took.values()
    ratios = [one / other for one, other in zip(together, alone, strict=True)]
    rivals = [one / other for one, other in zip(inTurn, together, strict=True)]
    return "\n".join(
        (
            f"{plan.fast + 2} servers, one of them dead, one answers after {plan.pause:g} s; "
            f"medians of {plan.rounds}:",
            *(f"  {way:22} {statistics.median(times):5.2f} s" for way, times in took.items()),
            f"  ratio  all of them take {_spread(ratios)} times as long as the slow one alone",
            f"  ratio  one after the other takes {_spread(rivals)} times as long as all at once",
        )
    )


def _spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.manyservers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="see whether it works, in seconds")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        print(measure(Path(name), QUICK if options.quick else Plan()))


if __name__ == "__main__":
    main()
