"""
Tests of L{usbip_server.client.cli.discovery}, and of the lists that are asked for there.
"""

from __future__ import annotations

import threading

from tests.client.blockingcase import CONFIG, SECONDS, TIMES, ReachingTestCase
from usbip_server.client.blocking import devicesOf
from usbip_server.client.cli.discovery import everywhere
from usbip_server.client.devices import RemoteDevice
from usbip_server.client.servers import Server
from usbip_server.model.errors import Unreachable
from usbip_server.model.replies import Refused


class DevicesTests(ReachingTestCase):
    """
    The devices of one server.
    """

    def test_daemon(self) -> None:
        """A daemon says all that it knows of them."""
        daemon = self.daemon()
        found = devicesOf(Server(name="here", host="127.0.0.1", port=daemon.port), SECONDS)
        self.assertEqual([each.device.busId for each in found], ["1-1", "1-2"])
        self.assertEqual(found[0].device.interfaces, ("02/02/01", "0a/00/00"))
        self.assertEqual(found[0].raw["serial"], "ECHO1")

    def test_refused(self) -> None:
        """A daemon that lets nobody see anything has answered, and refuses."""
        daemon = self.daemon("access: {principals: {}, allow: []}\n" + CONFIG)
        server = Server(name="here", host="127.0.0.1", port=daemon.port)
        error = self.assertRaises(Refused, devicesOf, server, SECONDS)
        self.assertIn(f"here (127.0.0.1:{daemon.port}): ", str(error))
        self.assertIn("may not list", str(error))


class EverywhereTests(ReachingTestCase):
    """
    Many servers.
    """

    def test_together(self) -> None:
        """All are asked at once, answers are in the servers' order, one that does not answer is no
        more than a line, and one that is not even there is given up before."""
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

        heard = everywhere(servers, work)
        self.assertEqual([server for server, _ in heard.answers], [here, here])
        self.assertEqual([len(found) for _, found in heard.answers], [2, 2])
        names = ["full", "dead", *(10 * ["silent"])]
        self.assertEqual([server.name for server, _ in heard.troubles], names)
        for (_, trouble), why in zip(
            heard.troubles,
            ("no connection within 1 s", "Connection refused", *(10 * [r"no answer within \S+ s"])),
            strict=True,
        ):
            self.assertRegex(str(trouble), why)

    def test_atOnce(self) -> None:
        """None waits for another."""
        met = threading.Barrier(5)
        servers = [Server(name=str(number), host="192.0.2.1") for number in range(5)]
        heard = everywhere(servers, lambda server: met.wait(SECONDS))
        self.assertEqual([server for server, _ in heard.answers], servers)

    def test_limits(self) -> None:
        """A server that there is no thread for is told of, as others are."""
        start = threading.Thread.start
        begun: list[threading.Thread] = []

        def limited(thread: threading.Thread) -> None:
            if len(begun) == 2:
                raise RuntimeError("can't start new thread")
            begun.append(thread)
            start(thread)

        self.patch(threading.Thread, "start", limited)
        servers = [Server(name=str(number), host="192.0.2.1") for number in range(4)]
        heard = everywhere(servers, lambda server: server.name)
        self.assertEqual([name for _, name in heard.answers], ["0", "1"])
        self.assertEqual([server.name for server, _ in heard.troubles], ["2", "3"])
        self.assertIn("2: not asked, as this machine is at its limits", str(heard.troubles[0][1]))

    def test_nobody(self) -> None:
        """Of no servers nothing is heard."""
        heard = everywhere([], lambda server: devicesOf(server, 1.0))
        self.assertEqual((heard.answers, heard.troubles), ([], []))

    def test_bug(self) -> None:
        """What is no trouble of a server's is not taken for one."""

        def fails(server: Server) -> None:
            raise KeyError(server)

        self.assertRaises(KeyError, everywhere, [self.dead()], fails)
