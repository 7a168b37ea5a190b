"""What a valid user gets while other clients do harm: C{python -m benchmarks.attack}.

One client asks for C{list}, with a connection for each request, while a process of its own attacks
the daemon from another address. The attacker has one core, the daemon and the client the others."""

from __future__ import annotations

import argparse
import contextlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from benchmarks.attacker import Attack, Orders
from benchmarks.children import ROOT, RunningDaemon, runDaemon
from benchmarks.procfs import cpuSeconds
from benchmarks.throughput import ONE_REQUEST, virtualBackend
from benchmarks.watchers import openFiles
from tests.support.certificates import signed

ATTACKS = (
    Attack(name="nothing"),
    Attack(name="1,000 idle connections", connections=1000),
    Attack(name="connection flood", connections=64, payload="list", leaves=True),
    Attack(name="TLS handshakes", connections=64, payload="hello", leaves=True, overTls=True),
    Attack(name="garbage", connections=100, payload="garbage", repeats=True),
    Attack(name="invalid lines", connections=100, payload="invalid", repeats=True),
    Attack(
        name="pipelined list, refused",
        connections=100,
        payload="lists",
        repeats=True,
        isAllowed=False,
    ),
    Attack(name="pipelined list, allowed", connections=800, payload="lists", repeats=True),
    Attack(
        name="400 that do not read", connections=400, payload="lists", repeats=True, reads=False
    ),
    Attack(name="1,100 idle connections", connections=1100),
    Attack(name="1,100 idle, not allowed", connections=1100, isAllowed=False),
    Attack(
        name="500 unread watchers",
        connections=500,
        payload="watch",
        reads=False,
        toggles=True,
    ),
)

USER, GUEST, STRANGER = "127.0.0.1", "127.0.0.2", "127.0.0.3"

ACCESS = {
    "principals": {"user": {"address": USER}, "guest": {"address": GUEST}},
    "allow": [{"who": "user"}, {"who": "guest"}],
}

LEAST_RATE = 100
MOST_SECONDS = 1.0
"""What a valid user is to get beside every attack."""

PATIENCE = 10.0
"""Seconds for one answer."""

RETRY = 0.01
"""Seconds between attempts."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a valid user got.

    @ivar seconds: the duration.
    @ivar delays: the seconds from the first attempt of each request to its answer, or to the end of
        the user's patience.
    @ivar failures: attempts that were not answered with a list.
    @ivar unanswered: requests that were not answered at all.
    @ivar serverShare: the share of a core that the daemon used."""

    seconds: float
    delays: list[float]
    failures: int
    unanswered: int
    serverShare: float

    @property
    def rate(self) -> float:
        """Answers per second."""
        return (len(self.delays) - self.unanswered) / self.seconds


@contextlib.contextmanager
def attacking(orders: Orders) -> Iterator[None]:
    """Run L{benchmarks.attacker}."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.attacker"], cwd=ROOT, stdin=subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(orders))
    process.stdin.close()
    try:
        yield
    finally:
        process.kill()
        process.wait()


def ask(port: int, until: float) -> bool:
    """Ask once, on a new connection.

    @return: whether the answer was a list."""
    try:
        with socket.create_connection((USER, port), max(0.01, until - time.monotonic())) as client:
            client.sendall(ONE_REQUEST.encode() + b"\n")
            answer = b"".join(iter(lambda: client.recv(65536), b""))
    except OSError:
        return False
    return answer.startswith(b'{"status":"success"')


def measure(daemon: RunningDaemon, seconds: float) -> Outcome:
    """Ask again and again for some seconds."""
    delays, failures, unanswered = [], 0, 0
    began, cpu = time.monotonic(), cpuSeconds(daemon.pid)
    while (asked := time.monotonic()) < began + seconds:
        while not (answered := ask(daemon.port, asked + PATIENCE)):
            failures += 1
            if time.monotonic() > asked + PATIENCE:
                break
            time.sleep(RETRY)
        unanswered += not answered
        delays.append(time.monotonic() - asked)
    lasted = time.monotonic() - began
    return Outcome(
        seconds=lasted,
        delays=delays,
        failures=failures,
        unanswered=unanswered,
        serverShare=(cpuSeconds(daemon.pid) - cpu) / lasted,
    )


def put(directory: Path, attack: Attack, seconds: float) -> Outcome:
    """Measure beside one attack, with a daemon of its own."""
    certificate, key = signed("localhost").write(directory, "server")
    with runDaemon(
        directory,
        virtualBackend(),
        listen=["tcp:0:interface=127.0.0.1", "tls:0:interface=127.0.0.1"],
        tls={"certificate": certificate, "key": key},
        access=ACCESS,
    ) as daemon:
        orders = Orders(
            attack=attack,
            port=daemon.port,
            tlsPort=daemon.ports[1],
            address=GUEST if attack.isAllowed else STRANGER,
            core=1,
        )
        with attacking(orders):
            time.sleep(min(1.0, seconds))
            return measure(daemon, seconds)


def report(attack: Attack, outcome: Outcome) -> str:
    """One line of the table."""
    worst = max(outcome.delays)
    met = outcome.rate >= LEAST_RATE and worst <= MOST_SECONDS
    return (
        f"{attack.name:26}{outcome.rate:8.0f}/s{1000 * statistics.median(outcome.delays):10.1f} ms"
        f"{1000 * worst:10.1f} ms{outcome.failures:8}{outcome.serverShare:8.0%}"
        f"  {'met' if met else 'MISSED'}"
    )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attack", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each attack")
    parser.add_argument("--quick", action="store_true", help="see whether it works, in seconds")
    parser.add_argument("attack", nargs="*", help="beginnings of names; default: all")
    options = parser.parse_args()
    openFiles(4096)
    print(f"{'beside':26}{'requests':>10}{'median':>13}{'worst':>13}{'failed':>8}{'CPU':>8}")
    for attack in ATTACKS:
        if options.attack and not attack.name.startswith(tuple(options.attack)):
            continue
        with tempfile.TemporaryDirectory() as name:
            outcome = put(Path(name), attack, 1.0 if options.quick else options.seconds)
        print(report(attack, outcome), flush=True)


if __name__ == "__main__":
    main()
