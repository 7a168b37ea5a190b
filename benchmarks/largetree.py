"""The daemon on a machine with 10,000 devices: C{python -m benchmarks.largetree}.

How long start, C{list} and C{find} take; that no request makes the daemon read the devices again;
the processor time without requests."""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.children import RunningDaemon, runDaemon
from benchmarks.load import Load, put
from benchmarks.procfs import cpuSeconds, memory, readCalls
from benchmarks.sysfstree import Plugged, makeTree, plugged

IDLE_TARGET = 0.05
"""Of a core."""

WINDOW = 10.0
"""Seconds of a measurement of the idle daemon."""

PROBE_SECONDS = 0.02
"""Seconds between two requests that look for slow answers."""

BATCHES = 10


class Client:
    """A connection that sends one request after the other."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._answers = self._socket.makefile("rb")

    def ask(self, request: str) -> tuple[float, bytes]:
        """@return: how many seconds the answer took, and the answer."""
        line = request.encode() + b"\n"
        began = time.perf_counter()
        self._socket.sendall(line)
        answer = self._answers.readline()
        return time.perf_counter() - began, answer

    def succeed(self, request: str) -> float:
        """@return: how many seconds the answer took, which has to be a success."""
        seconds, answer = self.ask(request)
        if not answer.startswith(b'{"status":"success"'):
            raise RuntimeError(f"{request} was answered {answer[:200]!r}")
        return seconds

    def close(self) -> None:
        """Close the connection."""
        self._answers.close()
        self._socket.close()


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How much to measure.

    @ivar devices: their number.
    @ivar finds: number of single requests C{find} of each kind.
    @ivar loadSeconds: duration of the load of requests C{find} of each kind.
    @ivar windows: number of measurements of the idle daemon.
    @ivar windowSeconds: the duration of one.
    @ivar probeSeconds: how long slow answers are looked for."""

    devices: int = 10_000
    finds: int = 1000
    loadSeconds: float = 2.0
    windows: int = 6
    windowSeconds: float = WINDOW
    probeSeconds: float = 60.0


QUICK = Plan(devices=500, finds=50, loadSeconds=0.3, windows=2, windowSeconds=2.0, probeSeconds=3.0)


def requestsFor(devices: Sequence[Plugged]) -> dict[str, tuple[str, ...]]:
    """For each kind of criterion, requests that each find one device, from all parts of the
    tree."""
    some = devices[:: max(2, len(devices) // 100 // 2 * 2)]  # even ones have ids of their own
    return {
        "id": tuple(_find(id=device.busId) for device in some),
        "id glob": tuple(_find(id=f"{device.busId[:-1]}[{device.busId[-1]}]") for device in some),
        "serial": tuple(_find(serial=device.serial) for device in some),
        "desc": tuple(_find(desc=device.product.lower()) for device in some),
        "vid:pid": tuple(_find(id=device.ids) for device in some),
    }


def _find(**criteria: Any) -> str:
    return json.dumps({"command": "find", "keep_alive": True, **criteria})


def reportStart(daemon: RunningDaemon) -> None:
    """Print how long the start took."""
    print(
        f"start: listens after {daemon.listening:.2f} s, ready after {daemon.ready:.2f} s, "
        f"{cpuSeconds(daemon.pid):.2f} s of CPU time, {readCalls(daemon.pid)} read calls, "
        f"{memory(daemon.pid) // 1024} MiB"
    )


def reportList(client: Client, wanted: int) -> None:
    """Print how long C{list} takes: the first answer is encoded, the next are kept."""
    for detail in (False, True):
        request = json.dumps({"command": "list", "keep_alive": True, "detail": detail})
        first, answer = client.ask(request)
        got = len(json.loads(answer)["data"])
        if got != wanted:
            raise RuntimeError(f"{got} devices listed, not {wanted}")
        again = statistics.median(client.succeed(request) for _ in range(20))
        print(
            f"list{' with detail' if detail else ''}: {len(answer) / 1e6:.1f} MB, the first in "
            f"{first * 1000:.1f} ms, the next in {again * 1000:.1f} ms (median)"
        )


def reportFinds(
    daemon: RunningDaemon, client: Client, kind: str, requests: tuple[str, ...], plan: Plan
) -> None:
    """Print how long C{find} takes, how many there are in a second, and how often the daemon has
    called C{read} meanwhile.

    The daemon reads all devices every 30 s, so the calls are counted in batches: if requests caused
    them, there would be many in each batch."""
    seconds: list[float] = []
    reads: list[int] = []
    for batch in range(BATCHES):
        before = readCalls(daemon.pid)
        for number in range(plan.finds // BATCHES):
            at = batch * (plan.finds // BATCHES) + number
            seconds.append(client.succeed(requests[at % len(requests)]))
        reads.append(readCalls(daemon.pid) - before)
    outcome = put(
        Load(
            port=daemon.port,
            pid=daemon.pid,
            requests=requests,
            answerBytes=None,
            connections=4,
            inFlight=16,
            seconds=plan.loadSeconds,
        )
    )
    print(
        f"find by {kind + ':':9}{statistics.median(seconds) * 1000:7.2f} ms (median), "
        f"{outcome.rate:7.0f}/s, {outcome.ratePerCore:7.0f} per CPU second; "
        f"read calls in {len(seconds)} finds: {sum(reads)}, "
        f"in {plan.finds // BATCHES} at the least: {min(reads)}"
    )


def reportIdle(daemon: RunningDaemon, plan: Plan, when: str) -> None:
    """Print the processor time of the daemon without requests."""
    shares: list[float] = []
    began, used = time.monotonic(), cpuSeconds(daemon.pid)
    reads = readCalls(daemon.pid)
    for _ in range(plan.windows):
        from_, before = time.monotonic(), cpuSeconds(daemon.pid)
        time.sleep(plan.windowSeconds)
        shares.append((cpuSeconds(daemon.pid) - before) / (time.monotonic() - from_))
    mean = (cpuSeconds(daemon.pid) - used) / (time.monotonic() - began)
    print(
        f"idle, {when}: {mean:.1%} of a core (mean of {time.monotonic() - began:.0f} s; "
        f"{max(shares):.1%} in the worst {plan.windowSeconds:g} s), "
        f"{readCalls(daemon.pid) - reads} read calls; "
        f"target {IDLE_TARGET:.0%}: {'met' if max(shares) < IDLE_TARGET else 'MISSED'}"
    )


def reportSlowAnswers(client: Client, request: str, plan: Plan) -> None:
    """Print how long answers take while the daemon reads all devices."""
    seconds: list[float] = []
    until = time.monotonic() + plan.probeSeconds
    while time.monotonic() < until:
        seconds.append(client.succeed(request))
        time.sleep(PROBE_SECONDS)
    slow = sorted(seconds)[-max(1, len(seconds) // 100)]
    print(
        f"find by id, now and then for {plan.probeSeconds:g} s: "
        f"{statistics.median(seconds) * 1000:.2f} ms (median), {slow * 1000:.0f} ms (1 %), "
        f"{max(seconds) * 1000:.0f} ms (longest)"
    )


def measure(directory: Path, plan: Plan) -> None:
    """Measure and print."""
    root = directory / "sys"
    devices = list(plugged(plan.devices))
    makeTree(root, devices)
    sequence = root / "kernel/uevent_seqnum"
    sequence.parent.mkdir()
    sequence.write_text("4711\n")
    requests = requestsFor(devices)
    with runDaemon(directory, {"type": "sysfs", "root": str(root)}) as daemon:
        reportStart(daemon)
        client = Client(daemon.port)
        reportList(client, plan.devices)
        for kind, some in requests.items():
            reportFinds(daemon, client, kind, some, plan)
        reportSlowAnswers(client, requests["id"][0], plan)
        client.close()
        reportIdle(daemon, plan, "without uevents")
        sequence.unlink()
        reportIdle(daemon, plan, "without the kernel's count of uevents")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.largetree", description=__doc__)
    parser.add_argument("--devices", type=int, help="their number (default: 10000)")
    parser.add_argument("--quick", action="store_true", help="see whether it works, in seconds")
    options = parser.parse_args()
    plan = QUICK if options.quick else Plan()
    if options.devices:
        plan = msgspec.structs.replace(plan, devices=options.devices)
    with tempfile.TemporaryDirectory() as name:
        measure(Path(name), plan)


if __name__ == "__main__":
    main()
