"""
Demonstrates usbipshare: starts a daemon with virtual devices on free ports of this machine, sends
requests to it, imports a device, and stops it. Run it with C{make demo}.
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
    Run the demonstration.
    """
    socket.setdefaulttimeout(SECONDS)
    with daemon() as (controlPort, usbPort):
        say("A daemon is running, with two virtual devices. List them:")
        ask(controlPort, {"command": "list"})

        say("Find the serial port:")
        device = ask(controlPort, {"command": "find", "desc": "serial"})

        say("Attach it at the server: from now on a client can import it.")
        ask(controlPort, {"command": "attach", "bus": device["bus_id"]})

        say("Import it over USB/IP, as `usbip attach` does, and send some bytes:")
        transport = usbip.USBIP(HOST, usbPort)
        with CDCDriver.open(busid=device["bus_id"], transport=transport) as port:
            port.write(b"Hello, USB!")
            echo = port.read()
        print(f"    sent b'Hello, USB!', the device echoed {echo!r}")
        if echo != b"Hello, USB!":
            sys.exit("the echo is not what was sent")

        say("Detach it: the drivers of the server have it again.")
        ask(controlPort, {"command": "detach", "bus": device["bus_id"]})

    print(
        """
Now try it by hand: start the daemon in this terminal,

    make run BACKEND=virtual

and use the command or send requests from another one:

    .venv/bin/usbipshare list
    .venv/bin/usbipshare watch
    echo '{"command":"list"}' | nc localhost 5055
    curl -X POST http://localhost:5055 -d '{"command":"attach","desc":"serial"}'

`make run` without BACKEND= shares the USB devices of this machine; attaching them needs root.
docs/tutorial.md continues from here."""
    )


@contextlib.contextmanager
def daemon() -> Iterator[tuple[int, int]]:
    """
    Run a daemon.

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
    Wait until the daemon is ready, and read its ports from its log.
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
    Send one request, and print it and the answer.

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
        sys.exit(f"the request failed: {answer['message']}")
    return answer["data"]


def say(text: str) -> None:
    """
    Print a heading.
    """
    print(f"\n{text}")


if __name__ == "__main__":
    main()
