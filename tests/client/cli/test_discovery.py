"""
Tests of L{usbip_server.client.cli.discovery}, and of the lists that are asked for there.
"""

from __future__ import annotations

import json
import threading

from twisted.trial.unittest import SynchronousTestCase

from tests.client.blockingcase import CONFIG, SECONDS, TIMES, ReachingTestCase
from tests.support.fixtures import STICK, UNO
from usbip_server.client.blocking import devicesOf
from usbip_server.client.cli import discovery
from usbip_server.client.cli.discovery import DiscoveryResult, askAll, waitFor
from usbip_server.client.devices import RemoteDevice, foundIn
from usbip_server.client.selection import Selector, SeveralFound
from usbip_server.client.servers import Server
from usbip_server.model.device import UsbDevice
from usbip_server.model.errors import DeviceNotFound, Unreachable
from usbip_server.model.replies import Refused, encodeDevices


class DevicesTests(ReachingTestCase):
    """
    The devices of one server.
    """

    def test_daemon(self) -> None:
        """A daemon's devices have all details. One that refuses the request has answered: that is
        not C{Unreachable}."""
        for access in ("", "access: {principals: {}, allow: []}\n"):
            daemon = self.daemon(access + CONFIG)
            server = Server(name="here", host="127.0.0.1", port=daemon.port)
            if access:
                error = self.assertRaises(Refused, devicesOf, server, SECONDS)
                self.assertRegex(str(error), rf"here \(127.0.0.1:{daemon.port}\): .* may not list")
                continue
            found = devicesOf(server, SECONDS)
            self.assertEqual([each.device.busId for each in found], ["1-1", "1-2"])
            self.assertEqual(found[0].device.interfaces, ("02/02/01", "0a/00/00"))
            self.assertEqual(found[0].raw["serial"], "ECHO1")


class EverywhereTests(ReachingTestCase):
    """
    Many servers at the same time.
    """

    def test_together(self) -> None:
        """All servers are asked at once. Answers are in the order of the servers, and a server that
        cannot be connected to is given up before one that does not reply."""
        daemon = self.daemon()
        here = Server(name="here", host="127.0.0.1", port=daemon.port)
        others = [self.silent() for _ in range(10)]
        servers = [self.full(), here, self.dead(), *others, here]
        met = threading.Barrier(len(servers))

        def work(server: Server) -> tuple[RemoteDevice, ...]:
            met.wait(SECONDS)
            if server.name != "silent":
                return devicesOf(server, 1.2 if server.name == "full" else SECONDS)
            for seconds in TIMES:
                try:
                    return devicesOf(server, seconds)
                except Unreachable as error:
                    trouble = error
                    if "no connection" not in str(error):
                        break
            raise trouble

        replies = askAll(servers, work)
        self.assertEqual([server for server, _ in replies.answers], [here, here])
        self.assertEqual([len(found) for _, found in replies.answers], [2, 2])
        names = ["full", "dead", *(10 * ["silent"])]
        self.assertEqual([server.name for server, _ in replies.troubles], names)
        for (_, trouble), why in zip(
            replies.troubles,
            ("no connection within 1 s", "Connection refused", *(10 * [r"no answer within \S+ s"])),
            strict=True,
        ):
            self.assertRegex(str(trouble), why)

    def test_noThread(self) -> None:
        """A server for which no thread can be started is reported like others."""
        start = threading.Thread.start
        begun: list[threading.Thread] = []

        def limited(thread: threading.Thread) -> None:
            if len(begun) == 2:
                raise RuntimeError("can't start new thread")
            begun.append(thread)
            start(thread)

        self.patch(threading.Thread, "start", limited)
        servers = [Server(name=str(number), host="192.0.2.1") for number in range(4)]
        replies = askAll(servers, lambda server: server.name)
        self.assertEqual([name for _, name in replies.answers], ["0", "1"])
        self.assertEqual([server.name for server, _ in replies.troubles], ["2", "3"])
        self.assertIn("2: not asked, as this machine is at its limits", str(replies.troubles[0][1]))

    def test_noServersAndBugs(self) -> None:
        """Without servers the result is empty. Errors that are no C{ShareError} are raised."""

        def fails(server: Server) -> None:
            raise KeyError(server)

        replies = askAll([], fails)
        self.assertEqual((replies.answers, replies.troubles), ([], []))
        self.assertRaises(KeyError, askAll, [self.dead()], fails)


RASPI = Server(name="raspi", host="192.0.2.1")


def devicesAt(*devices: UsbDevice) -> DiscoveryResult:
    """The devices of a server."""
    data = json.loads(bytes(encodeDevices(devices, detail=True)))
    return DiscoveryResult(found=foundIn(RASPI, data), answered=(RASPI,))


class WaitForTests(SynchronousTestCase):
    """
    Waiting for a device.

    @ivar asked: how often the servers were asked.
    """

    def setUp(self) -> None:
        self.asked = 0
        self.patch(discovery, "AGAIN", 0.001)

    def waitFor(self, word: str, *results: DiscoveryResult, seconds: float = 60.0) -> str:
        """The bus id of the device, where servers have these one after the other."""

        def discover() -> DiscoveryResult:
            self.asked += 1
            return results[min(self.asked, len(results)) - 1]

        found, last = waitFor(Selector(word=word), discover, seconds)
        self.assertIs(last, results[-1])
        return found.device.busId

    def test_appears(self) -> None:
        """The device may be there at once, or appear later, also if no server answers at first."""
        both = devicesAt(STICK, UNO)
        for results in ((both,), (DiscoveryResult(), devicesAt(STICK), both)):
            self.asked = 0
            self.assertEqual(self.waitFor("uno", *results), UNO.busId)
            self.assertEqual(self.asked, len(results))

    def test_errors(self) -> None:
        """Several matches end the wait with an error, and so does the deadline, after several
        attempts."""
        self.assertRaises(SeveralFound, self.waitFor, "1-*", devicesAt(STICK, UNO))
        self.asked = 0
        error = self.assertRaises(
            DeviceNotFound, self.waitFor, "uno", DiscoveryResult(), seconds=0.4
        )
        self.assertIn("none has appeared within 0 s", str(error))
        self.assertGreater(self.asked, 1)
