"""
Tests of L{usbip_server.backends.remote.requests}.
"""

from __future__ import annotations

import json
import socket

import msgspec
from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.support.fixtures import UNO, changed
from tests.support.scriptedserver import ScriptedServer
from usbip_server.backends.remote import requests
from usbip_server.backends.remote.requests import DeviceGone, RefusedThere, RemoteRequests
from usbip_server.backends.remote.watch import RemoteWatch
from usbip_server.model.errors import ShareError, Unreachable
from usbip_server.model.replies import encodeDevices


class RequestsTests(TestCase):
    """
    Requests to a server that sends scripted replies.
    """

    timeout = 300

    async def performed(self, **replies: object) -> Exception:
        """The error of an attach, with these replies to each command."""

        def play(connection: socket.socket) -> None:
            for line in connection.makefile("rb"):
                reply = replies[json.loads(line)["command"]]
                connection.sendall(msgspec.json.encode(reply) + b"\n")

        server = ScriptedServer(play)
        server.__enter__()
        self.addCleanup(deferToThread, server.__exit__, None, None, None)
        watch = RemoteWatch(server.server, reactor, lambda busId: None)
        try:
            await RemoteRequests(server.server, reactor, watch).perform("attach", UNO, 5)
        except ShareError as error:
            return error
        self.fail("no error")

    async def test_errors(self) -> None:
        """A refusal is passed on with escapes; another device, and replies that are not those of
        the request, are errors; an operation that does not end is given up."""
        found = {"status": "success", "data": msgspec.json.decode(encodeDevices(UNO, True))}
        other = changed(UNO, deviceNumber=99)
        pending = {"status": "failure", "message": "it goes on", "code": "pending"}
        watched = {"status": "success", "seq": 1, "data": []}
        self.patch(requests, "LONGEST_SECONDS", 0.0)
        for kind, text, replies in (
            (RefusedThere, r"^no\\x1b$", {"find": {"status": "error", "message": "no\x1b"}}),
            (DeviceGone, "was unplugged", {"find": {"status": "not_found", "message": "no"}}),
            (
                DeviceGone,
                "was unplugged",
                {"find": {**found, "data": msgspec.json.decode(encodeDevices(other, True))}},
            ),
            (Unreachable, "not understood", {"find": {"status": "success", "data": [7]}}),
            (
                Unreachable,
                "has not ended the attach within 0 s",
                {"find": found, "attach": pending},
            ),
            (
                RefusedThere,
                r"^no\\x9b$",
                {
                    "find": found,
                    "attach": {"status": "failure", "message": "no\x9b"},
                    "watch": watched,
                },
            ),
            (DeviceGone, "unplugged", {"find": found, "attach": found, "watch": watched}),
            (
                Unreachable,
                "its answer is not understood",
                {"find": found, "attach": found, "watch": {**watched, "data": [1, 2]}},
            ),
            (
                Unreachable,
                "sorry",
                {"find": found, "attach": found, "watch": {"status": "error", "message": "sorry"}},
            ),
        ):
            error = await self.performed(**replies)
            self.assertIsInstance(error, kind)
            self.assertRegex(str(error), text)
