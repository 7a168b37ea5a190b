"""
See usbipshare work: starts a daemon with virtual devices on free ports of this machine, is
its client for a minute, and stops it again. Run it with C{make demo}.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import usbip  # type: ignore[import-untyped]
from usbip.classes.host.cdc_acm import CDCDriver  # type: ignore[import-untyped]

HOST = "127.0.0.1"
SECONDS = 10

CONFIG = f"""\
listen: ["tcp:0:interface={HOST}"]
backend: {{type: virtual}}
export: {{listen: ["tcp:0:interface={HOST}"]}}
state: {{file: null}}
"""


def main() -> None:
    """
    The session.
    """
    socket.setdefaulttimeout(SECONDS)
    with daemon() as (controlPort, usbPort):
        say("A daemon runs, with two virtual devices. What does it have?")
        ask(controlPort, {"command": "list"})

        say("Which one is the serial port?")
        device = ask(controlPort, {"command": "find", "desc": "serial"})

        say("Attach it: from now on others can import it.")
        ask(controlPort, {"command": "attach", "bus": device["bus_id"]})

        say("Import it over USB/IP (a kernel would do this with `usbip attach`) and say hello.")
        transport = usbip.USBIP(HOST, usbPort)
        with CDCDriver.open(busid=device["bus_id"], transport=transport) as port:
            port.write(b"Hello, USB!")
            echo = port.read()
        print(f"    sent b'Hello, USB!', the device echoed {echo!r}")
        if echo != b"Hello, USB!":
            sys.exit("the echo is not what was sent")

        say("Detach it: this machine has it back.")
        ask(controlPort, {"command": "detach", "bus": device["bus_id"]})

    print(
        """
It works. Now try it by hand: start the daemon in this terminal,

    make run BACKEND=virtual

and ask it in another one:

    echo '{"command":"list"}' | nc localhost 5055
    curl -X POST http://localhost:5055 -d '{"command":"attach","desc":"serial"}'

`make run` without BACKEND= has this machine's own USB devices; attaching them needs root."""
    )


@contextlib.contextmanager
def daemon() -> Iterator[tuple[int, int]]:
    """
    A daemon, for as long as it is needed.

    @return: the ports it listens on: for commands, and for USB/IP.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(CONFIG)
        file.flush()
        options = ["--log-format=json", "usbipshare", "--config", file.name]
        child = subprocess.Popen(
            [sys.executable, "-m", "twisted", *options], stdout=subprocess.PIPE, text=True
        )
        try:
            yield ports(child)
        finally:
            child.terminate()
            child.wait(SECONDS)


def ports(child: subprocess.Popen[str]) -> tuple[int, int]:
    """
    Wait until the daemon is ready, and learn its ports from its log.
    """
    found: dict[str, int] = {}
    assert child.stdout is not None
    for line in child.stdout:
        event: dict[str, Any] = json.loads(line.strip("\x1e\n") or "{}")
        if "port" in event:
            found[event["log_format"].partition(" ")[0]] = event["port"]
        if event.get("log_format") == "ready":
            return found["listening"], found["exporting"]
    sys.exit("the daemon did not start")


def ask(port: int, request: dict[str, Any]) -> Any:
    """
    Send one request, and show what is said.

    @return: the C{data} of the answer.
    """
    text = json.dumps(request, separators=(",", ":"))
    print(f"    --> {text}")
    with socket.create_connection((HOST, port), SECONDS) as connection:
        connection.sendall(text.encode() + b"\n")
        with connection.makefile() as answers:
            line = answers.read()
    print(f"    <-- {line.strip()}")
    answer = json.loads(line)
    if answer["status"] != "success":
        sys.exit(f"this should have gone well: {answer['message']}")
    return answer["data"]


def say(text: str) -> None:
    """
    Tell what comes next.
    """
    print(f"\n{text}")


if __name__ == "__main__":
    main()
