"""
How soon a thousand clients that watch know of an event, against the least a server made with
Twisted can do, and whether the daemon grows with the number of events:
C{python -m benchmarks.watchers}.

Both servers run all the time; the events happen on one and then on the other, in several
rounds. So whatever else this machine does meets both alike.
"""

from __future__ import annotations

import argparse
import resource
import socket
import statistics
import tempfile
from collections.abc import Iterable
from pathlib import Path

import msgspec

from benchmarks.audience import Review, Show, put
from benchmarks.children import runBare, runDaemon
from benchmarks.throughput import virtualBackend

TARGET = 0.1
"""Seconds from the request that causes an event until the last of all watchers has it."""

WATCH = '{"command":"watch"}'
ATTACH = '{"command":"attach","id":"1-1.1.1","keep_alive":true}'
DETACH = '{"command":"detach","id":"1-1.1.1","keep_alive":true}'

FLAT = 1.05
"""How many times as much memory as after a fifth of the events counts as flat."""

IN_FLIGHT = 50


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """
    How much to measure.

    @ivar watchers: how many, of the first part.
    @ivar rounds: of each server.
    @ivar events: in each round.
    @ivar many: events, of the second part; the history is full after half of the first
        fifth.
    """

    watchers: int = 1000
    rounds: int = 5
    events: int = 40
    many: int = 100_000


QUICK = Plan(rounds=2, events=10, many=5000)


def openFiles(wanted: int) -> None:
    """
    Let us and our children have so many files open.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise SystemExit(f"{wanted} open files are needed, and {hard} allowed: ulimit -Hn")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def oneEvent(port: int) -> bytes:
    """
    The line that a watcher is told when a device is attached; it is detached again.
    """
    with socket.create_connection(("127.0.0.1", port)) as watcher:
        watcher.sendall(WATCH.encode() + b"\n")
        lines = watcher.makefile("rb")
        lines.readline()
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(f"{ATTACH}\n{DETACH}\n".encode())
            event = lines.readline()
            lines.readline()
        return event


def measureDelays(directory: Path, plan: Plan) -> str:
    """
    How soon all know.
    """
    limits = {"connections": plan.watchers + 10}
    with runDaemon(directory, virtualBackend(), limits=limits) as daemon:
        event = oneEvent(daemon.port)
        with runBare(directory, event) as (pid, _, _, telling):
            shows = [
                Show(
                    port=daemon.port,
                    pid=daemon.pid,
                    listen=WATCH,
                    causes=(ATTACH, DETACH),
                    listeners=plan.watchers,
                    events=plan.events,
                ),
                Show(
                    port=telling,
                    pid=pid,
                    listen="listen",
                    causes=("tell",),
                    listeners=plan.watchers,
                    events=plan.events,
                ),
            ]
            reviews: list[list[Review]] = [[], []]
            for number in range(plan.rounds):
                for which in (0, 1) if number % 2 else (1, 0):
                    reviews[which].append(put(shows[which]))
    return reportDelays(plan, len(event), *reviews)


def reportDelays(plan: Plan, eventBytes: int, daemon: list[Review], bare: list[Review]) -> str:
    """
    What came of it.
    """
    ours, theirs = _delays(daemon), _delays(bare)
    ratios = [
        statistics.median(one.delays) / statistics.median(other.delays)
        for one, other in zip(daemon, bare, strict=True)
    ]
    ratio = statistics.median(ours) / statistics.median(theirs)
    met = "met" if statistics.median(ours) <= TARGET else "MISSED"
    return "\n".join(
        (
            f"{plan.watchers} watchers, events of {eventBytes} bytes, {len(ours)} of them:",
            f"  daemon {_shown(ours, daemon)}",
            f"  bare   {_shown(theirs, bare)}",
            f"  ratio  {ratio:.2f} times as long ({min(ratios):.2f} to {max(ratios):.2f} in "
            f"{len(ratios)} rounds); target {1000 * TARGET:.0f} ms in the median: {met}",
        )
    )


def _delays(reviews: Iterable[Review]) -> list[float]:
    return [delay for review in reviews for delay in review.delays]


def _shown(delays: list[float], reviews: list[Review]) -> str:
    cpu = statistics.median(review.serverCpu for review in reviews)
    return (
        f"all know after {1000 * statistics.median(delays):5.1f} ms in the median, "
        f"{1000 * max(delays):5.1f} ms at the most; {1000 * cpu:.1f} ms of CPU time an event"
    )


def measureGrowth(directory: Path, plan: Plan) -> str:
    """
    Whether it grows.
    """
    weighAt = tuple(plan.many * share // 100 for share in (20, 60, 100))
    limits = {"history": plan.many // 10}
    with runDaemon(directory, virtualBackend(), limits=limits) as daemon:
        review = put(
            Show(
                port=daemon.port,
                pid=daemon.pid,
                listen=WATCH,
                causes=(ATTACH, DETACH),
                listeners=10,
                events=plan.many,
                inFlight=IN_FLIGHT,
                weighAt=weighAt,
            )
        )
    weights = review.weights
    growth = max(weights) / weights[0]
    return "\n".join(
        (
            f"{plan.many} events, 10 watchers that read, a history of {limits['history']} events:",
            *(
                f"  {weight / 1024:5.1f} MiB after {events} events"
                for events, weight in zip(weighAt, weights, strict=True)
            ),
            f"  {review.rate:.0f} events/s, {1e6 * review.serverCpu:.0f} us of CPU time each",
            f"  ratio  {growth:.2f}; target {FLAT}: {'met' if growth <= FLAT else 'MISSED'}",
        )
    )


def main() -> None:
    """
    See what is wanted, do it and print.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.watchers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="see whether it works: seconds")
    options = parser.parse_args()
    plan = QUICK if options.quick else Plan()
    openFiles(2 * plan.watchers + 200)
    with tempfile.TemporaryDirectory() as name:
        print(measureDelays(Path(name), plan), end="\n\n", flush=True)
        print(measureGrowth(Path(name), plan))


if __name__ == "__main__":
    main()
