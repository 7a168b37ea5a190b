"""Requests per second, compared with the smallest server made with Twisted: C{python -m
benchmarks.throughput}.

Both servers run all the time; the load goes to one and then to the other, in several
rounds, and medians are compared. So other work on the machine slows both."""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.children import runBare, runDaemon
from benchmarks.load import Load, Outcome, put
from benchmarks.procfs import takeCore

ONE_REQUEST = '{"command":"list"}'
ONE_OF_MANY = '{"command":"list","keep_alive":true}'

_BOARDS = (
    ("2341", "0043", "Arduino (www.arduino.cc)", "Arduino Uno R3", "75330303035351F0A1C"),
    ("0403", "6001", "FTDI", "FT232R USB UART", "A50285B"),
    ("10c4", "ea60", "Silicon Labs", "CP2102N USB to UART Bridge", "e4a1c7f0b2d9ea11"),
    ("0483", "374b", "STMicroelectronics", "ST-Link/V2.1", "0669FF48525785306717442"),
    ("1366", "1015", "SEGGER", "J-Link OB", "00068302947"),
    ("2e8a", "000a", "Raspberry Pi", "Pico", "E6614C775B4A8F2"),
    ("1a86", "7523", "QinHeng Electronics", "CH340 serial converter", None),
    ("0bda", "8153", "Realtek", "USB 10/100/1000 LAN", "00100000"),
)


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """A way to send requests.

    @ivar name: shown in the report.
    @ivar connections: how many at a time.
    @ivar inFlight: requests on each connection; 0 for a connection per request.
    @ivar target: the share of the bare server's rate that the daemon is to reach."""

    name: str
    request: str
    connections: int
    inFlight: int
    target: float


CASES = (
    Case(
        name="a connection per request, 32 clients",
        request=ONE_REQUEST,
        connections=32,
        inFlight=0,
        target=0.6,
    ),
    Case(
        name="keep_alive, 16 connections, 64 in flight on each",
        request=ONE_OF_MANY,
        connections=16,
        inFlight=64,
        target=0.4,
    ),
)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How much to measure.

    @ivar rounds: number of measurements of each case and server.
    @ivar seconds: of each measurement.
    @ivar pin: run the load on a core of its own, and the servers on another."""

    rounds: int
    seconds: float
    pin: bool


class Server(msgspec.Struct, frozen=True):
    """A running server.

    @ivar closing: the port where a connection ends with its answer.
    @ivar staying: the port where it does not."""

    pid: int
    closing: int
    staying: int


class Round(msgspec.Struct, frozen=True):
    """The measurements of both servers in a round."""

    case: Case
    daemon: Outcome
    bare: Outcome

    @property
    def ratio(self) -> float:
        """The daemon's rate as a share of the bare server's."""
        return self.daemon.rate / self.bare.rate


def virtualBackend() -> dict[str, Any]:
    """The configuration of sixteen devices, with strings like those of real devices."""
    devices = []
    for index in range(16):
        vendor, product, maker, name, serial = _BOARDS[index % len(_BOARDS)]
        devices.append(
            {
                "bus_id": f"1-1.{index // 4 + 1}.{index % 4 + 1}",
                "vendor_id": vendor,
                "product_id": product,
                "manufacturer": maker,
                "product": name,
                "serial": serial and f"{serial}{index:X}",
            }
        )
    return {"type": "virtual", "devices": devices}


def ask(port: int, request: str) -> bytes:
    """Send a request on a connection of its own; returns the answer."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(request.encode() + b"\n")
        return b"".join(iter(lambda: client.recv(65536), b""))


def measureRounds(plan: Plan, answerBytes: int, daemon: Server, bare: Server) -> list[Round]:
    """Measure, in every second round in the opposite order."""
    rounds = []
    for number in range(plan.rounds):
        for case in CASES:
            servers = (daemon, bare) if number % 2 else (bare, daemon)
            rates = {server: _measure(plan, case, answerBytes, server) for server in servers}
            rounds.append(Round(case, rates[daemon], rates[bare]))
    return rounds


def _measure(plan: Plan, case: Case, answerBytes: int, server: Server) -> Outcome:
    return put(
        Load(
            port=server.staying if case.inFlight else server.closing,
            pid=server.pid,
            requests=(case.request,),
            answerBytes=answerBytes,
            connections=case.connections,
            inFlight=case.inFlight,
            seconds=plan.seconds,
            core=1 if plan.pin else None,
        )
    )


def report(case: Case, rounds: list[Round]) -> str:
    """The figures of a case, as text."""
    daemon = _median(each.daemon for each in rounds)
    bare = _median(each.bare for each in rounds)
    ratio = daemon.rate / bare.rate
    ratios = [each.ratio for each in rounds]
    return "\n".join(
        (
            f"{case.name}:",
            f"  daemon {_shown(daemon)}",
            f"  bare   {_shown(bare)}",
            f"  ratio  {ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} "
            f"rounds), per CPU second {daemon.ratePerCore / bare.ratePerCore:.2f}; "
            f"target {case.target}: {'met' if ratio >= case.target else 'MISSED'}",
            *_doubts(daemon, bare),
        )
    )


def _median(outcomes: Iterable[Outcome]) -> Outcome:
    """The medians of the three figures."""
    several = list(outcomes)
    return Outcome(
        rate=statistics.median(one.rate for one in several),
        serverShare=statistics.median(one.serverShare for one in several),
        loadShare=statistics.median(one.loadShare for one in several),
    )


def _shown(outcome: Outcome) -> str:
    return (
        f"{outcome.rate:9.0f}/s   server {outcome.serverShare:4.0%} of a core, "
        f"load {outcome.loadShare:4.0%}"
    )


def _doubts(*outcomes: Outcome) -> list[str]:
    """Reasons why these figures may be wrong."""
    if any(one.serverShare < 0.85 for one in outcomes):
        return ["  note   a server was not busy all the time: other programs use this machine"]
    return []


def measure(directory: Path, plan: Plan) -> list[Round]:
    """Run both servers and measure them."""
    with runDaemon(directory, virtualBackend()) as running:
        answer = ask(running.port, ONE_REQUEST)
        print(f"{len(json.loads(answer)['data'])} devices, an answer of {len(answer)} bytes\n")
        daemon = Server(running.pid, running.port, running.port)
        with runBare(directory, answer) as (pid, closing, staying, _):
            if plan.pin:
                takeCore(daemon.pid, 0)
                takeCore(pid, 0)
            return measureRounds(plan, len(answer), daemon, Server(pid, closing, staying))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--pin", action="store_true", help="a core for the load, one for servers")
    parser.add_argument("--quick", action="store_true", help="see whether it works, in seconds")
    options = parser.parse_args()
    plan = Plan(rounds=options.rounds, seconds=options.seconds, pin=options.pin)
    if options.quick:
        plan = Plan(rounds=2, seconds=0.5, pin=options.pin)
    with tempfile.TemporaryDirectory() as name:
        rounds = measure(Path(name), plan)
    for case in CASES:
        print(report(case, [each for each in rounds if each.case is case]), end="\n\n")


if __name__ == "__main__":
    main()
