"""The smallest server made with Twisted: C{python -m benchmarks.bare ANSWER}.

A C{LineReceiver} that answers each line with the content of the file C{ANSWER}. On one port it
closes the connection after an answer, on the next it does not, and on a third it sends the answer
to all connections that have sent C{listen}."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from twisted.internet import reactor as installedReactor
from twisted.internet.protocol import Factory, connectionDone
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure


class Answer(LineReceiver):
    """Sends the same answer to each line."""

    delimiter = b"\n"
    transport: Any
    answer: bytes
    closes: bool

    def lineReceived(self, line: bytes) -> None:
        self.transport.write(self.answer)
        if self.closes:
            self.transport.loseConnection()


class Events(LineReceiver):
    """Sends the answer to all that listen, too."""

    delimiter = b"\n"
    transport: Any
    answer: bytes
    listeners: set[Events]

    def lineReceived(self, line: bytes) -> None:
        self.transport.write(self.answer)
        if line == b"listen":
            self.listeners.add(self)
            return
        for listener in self.listeners:
            listener.transport.write(self.answer)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.listeners.discard(self)


def listen(reactor: Any, kind: type[LineReceiver], **fields: Any) -> int:
    """Listen with a protocol.

    @return: the port."""
    factory = Factory.forProtocol(type(kind.__name__, (kind,), fields))
    factory.noisy = False
    return int(reactor.listenTCP(0, factory, backlog=1024, interface="127.0.0.1").getHost().port)


def main() -> None:
    """Entry point."""
    reactor: Any = installedReactor
    answer = Path(sys.argv[1]).read_bytes()
    ports = {
        "closing": listen(reactor, Answer, answer=answer, closes=True),
        "staying": listen(reactor, Answer, answer=answer, closes=False),
        "events": listen(reactor, Events, answer=answer, listeners=set()),
    }
    print(json.dumps({"log_format": "listening", **ports}), flush=True)
    reactor.run()


if __name__ == "__main__":
    main()
