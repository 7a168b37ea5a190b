"""
The least that a server made with Twisted can do: C{python -m benchmarks.bare ANSWER}.

A C{LineReceiver} that answers each line with the content of the file C{ANSWER}, without
looking at it. On one port it closes the connection then, on the other it does not.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from twisted.internet import reactor as installedReactor
from twisted.internet.protocol import Factory
from twisted.protocols.basic import LineReceiver


class Constant(LineReceiver):
    """
    Says always the same.
    """

    delimiter = b"\n"
    transport: Any
    answer: bytes
    closes: bool

    def lineReceived(self, line: bytes) -> None:
        self.transport.write(self.answer)
        if self.closes:
            self.transport.loseConnection()


def listen(reactor: Any, answer: bytes, closes: bool) -> int:
    """
    Serve it.

    @return: the port.
    """
    kind = type("Constant", (Constant,), {"answer": answer, "closes": closes})
    factory = Factory.forProtocol(kind)
    factory.noisy = False
    return int(reactor.listenTCP(0, factory, backlog=1024, interface="127.0.0.1").getHost().port)


def main() -> None:
    """
    Serve until terminated.
    """
    reactor: Any = installedReactor
    answer = Path(sys.argv[1]).read_bytes()
    ports = {name: listen(reactor, answer, name == "closing") for name in ("closing", "staying")}
    print(json.dumps({"log_format": "listening", **ports}), flush=True)
    reactor.run()


if __name__ == "__main__":
    main()
