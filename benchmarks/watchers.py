"""How soon a thousand clients that watch have received an event, compared with the smallest server
made with Twisted, and whether the daemon grows with the number of events: C{python -m
benchmarks.watchers}.

Both servers run all the time; the events happen on one and then on the other, in several
rounds. So other work on the machine slows both."""

from __future__ import annotations

import argparse
import resource
import socket
import statistics
import tempfile
from collections.abc import Iterable
from pathlib import Path

import msgspec

from benchmarks.children import runBare, runDaemon
from benchmarks.throughput import virtualBackend
from benchmarks.watchload import WatchLoad, WatchOutcome, put

TARGET = 0.1
"""Seconds from the request that causes an event until the last of all watchers has it."""

WATCH = '{"command":"watch"}'
ATTACH = '{"command":"attach","id":"1-1.1.1","keep_alive":true}'
DETACH = '{"command":"detach","id":"1-1.1.1","keep_alive":true}'

FLAT = 1.05
"""How many times as much memory as after a fifth of the events counts as flat."""

IN_FLIGHT = 50


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How much to measure.

    @ivar watchers: how many, of the first part.
    @ivar rounds: of each server.
    @ivar events: in each round.
    @ivar many: events, of the second part; the history is full after half of the first
        fifth."""

    watchers: int = 1000
    rounds: int = 5
    events: int = 40
    many: int = 100_000


QUICK = Plan(rounds=2, events=10, many=5000)


def openFiles(wanted: int) -> None:
    """Raise the limit of open files of this process and its children.

    @raise SystemExit: the hard limit is lower."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise SystemExit(f"{wanted} open files are needed, and {hard} allowed: ulimit -Hn")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def oneEvent(port: int) -> bytes:
    """The line that a watcher receives when a device is attached. The device is detached again."""
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
    """Measure how soon all watchers have received an event."""
    limits = {"connections": 2 * plan.watchers + 20}  # half of them for one client
    with runDaemon(directory, virtualBackend(), limits=limits) as daemon:
        event = oneEvent(daemon.port)
        with runBare(directory, event) as (pid, _, _, events):
            loads = [
                WatchLoad(
                    port=daemon.port,
                    pid=daemon.pid,
                    listen=WATCH,
                    causes=(ATTACH, DETACH),
                    watchers=plan.watchers,
                    events=plan.events,
                ),
                WatchLoad(
                    port=events,
                    pid=pid,
                    listen="listen",
                    causes=("tell",),
                    watchers=plan.watchers,
                    events=plan.events,
                ),
            ]
            outcomes: list[list[WatchOutcome]] = [[], []]
            for number in range(plan.rounds):
                for which in (0, 1) if number % 2 else (1, 0):
                    outcomes[which].append(put(loads[which]))
    return reportDelays(plan, len(event), *outcomes)


def reportDelays(
    plan: Plan, eventBytes: int, daemon: list[WatchOutcome], bare: list[WatchOutcome]
) -> str:
    """The figures, as text."""
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


def _delays(outcomes: Iterable[WatchOutcome]) -> list[float]:
    return [delay for outcome in outcomes for delay in outcome.delays]


def _shown(delays: list[float], outcomes: list[WatchOutcome]) -> str:
    cpu = statistics.median(outcome.serverCpu for outcome in outcomes)
    return (
        f"all have it after {1000 * statistics.median(delays):5.1f} ms in the median, "
        f"{1000 * max(delays):5.1f} ms at the most; {1000 * cpu:.1f} ms of CPU time an event"
    )


def measureGrowth(directory: Path, plan: Plan) -> str:
    """Measure whether the daemon grows with the number of events."""
    weighAt = tuple(plan.many * share // 100 for share in (20, 60, 100))
    limits = {"history": plan.many // 10}
    with runDaemon(directory, virtualBackend(), limits=limits) as daemon:
        outcome = put(
            WatchLoad(
                port=daemon.port,
                pid=daemon.pid,
                listen=WATCH,
                causes=(ATTACH, DETACH),
                watchers=10,
                events=plan.many,
                inFlight=IN_FLIGHT,
                weighAt=weighAt,
            )
        )
    weights = outcome.weights
    growth = max(weights) / weights[0]
    return "\n".join(
        (
            f"{plan.many} events, 10 watchers that read, history of {limits['history']} events:",
            *(
                f"  {weight / 1024:5.1f} MiB after {events} events"
                for events, weight in zip(weighAt, weights, strict=True)
            ),
            f"  {outcome.rate:.0f} events/s, {1e6 * outcome.serverCpu:.0f} us of CPU time each",
            f"  ratio  {growth:.2f}; target {FLAT}: {'met' if growth <= FLAT else 'MISSED'}",
        )
    )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.watchers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="see whether it works, in seconds")
    options = parser.parse_args()
    plan = QUICK if options.quick else Plan()
    openFiles(2 * plan.watchers + 200)
    with tempfile.TemporaryDirectory() as name:
        print(measureDelays(Path(name), plan), end="\n\n", flush=True)
        print(measureGrowth(Path(name), plan))


if __name__ == "__main__":
    main()
