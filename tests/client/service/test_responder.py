"""
Tests of L{usbip_server.client.service.responder}: what programs ask, and are answered.
"""

from __future__ import annotations

import errno
import json

from tests.client.service.servicecase import BENCH, RASPI, ServiceCase
from tests.docs.documentcase import DETAILS, FIELDS
from tests.support.fixtures import STICK, UNO, Wire, asked, changed
from tests.support.network import Answer
from usbip_server.client.devices import RemoteDevice
from usbip_server.client.service.authorization import Peer
from usbip_server.client.service.devices.attachments import placeOf
from usbip_server.client.service.messages import LocalWatch
from usbip_server.model.device import DeviceState
from usbip_server.model.policy import LOCAL
from usbip_server.model.replies import Status
from usbip_server.model.usbip import OpStatus
from usbip_server.net.caller import Caller

STRANGER = Caller(Peer(LOCAL, uid=1234, gids=(1234, 1235)))

KEPT = f"devices: [{{name: uno, serial: {UNO.serial}}}]\n"


class ApiCase(ServiceCase):
    """
    A service that has nothing to keep, unless a test says so.
    """

    def setUp(self) -> None:
        super().setUp()
        self.begin("")


class LookTests(ApiCase):
    """
    C{list} and C{find}.
    """

    def test_list(self) -> None:
        """All devices of all servers, each with its server and what can be opened of it."""
        self.bench.plug(changed(UNO, busId="2-7", serial="OTHER"))
        self.network.settle()
        answer = self.ask("list")
        self.assertEqual(answer.keys(), {"status", "data"})
        devices = answer["data"]
        self.assertEqual(
            [(each["server"], each["bus_id"]) for each in devices],
            [("raspi", "1-1.4"), ("raspi", "1-2"), ("bench", "2-7")],
        )
        for each in devices:
            self.assertEqual(each.keys(), FIELDS | {"server", "local_devices"})
        detailed = self.ask("list", detail=True)["data"]
        self.assertEqual(detailed[0].keys(), FIELDS | DETAILS | {"server", "local_devices"})

    def test_host(self) -> None:
        """Or of one, by its name or its address."""
        for host in ("raspi", RASPI):
            self.assertEqual(len(self.ask("list", host=host)["data"]), 2)
        self.assertEqual(self.ask("list", host="bench")["data"], [])
        answer = self.ask("list", host="attic")
        self.assertEqual(answer["status"], "error")
        self.assertIn("it has raspi, bench", answer["message"])

    def test_find(self) -> None:
        """One device, and where it is."""
        answer = self.ask("find", serial=UNO.serial)
        self.assertEqual(answer.keys(), {"status", "data", "server", "local_devices"})
        self.assertEqual((answer["server"], answer["data"]["bus_id"]), ("raspi", "1-1.4"))

    def test_several(self) -> None:
        """Where several are meant they are named, with their servers."""
        self.bench.plug(changed(UNO, busId="2-7"))
        self.network.settle()
        answer = self.ask("find", serial=UNO.serial)
        self.assertEqual(answer["status"], "multiple_matches")
        self.assertIn("at raspi; 2-7", answer["message"])
        self.assertEqual(self.ask("find", serial=UNO.serial, first=True)["server"], "raspi")
        self.assertEqual(self.ask("find", serial=UNO.serial, host="bench")["server"], "bench")

    def test_away(self) -> None:
        """A server that is not there costs nothing; if it may have what is meant, it is named."""
        self.bench.cut(Answer.REFUSES)
        self.network.settle()
        self.assertEqual(len(self.ask("list")["data"]), 2)
        self.assertEqual(self.ask("find", serial="X")["status"], "not_found")
        self.assertIn("bench", self.ask("find", serial="X")["message"])
        answer = self.ask("list", host="bench")
        self.assertEqual(answer["status"], "error")

    def test_nonsense(self) -> None:
        """What is no request is refused, with what is wrong."""
        for keys, said in (
            ({"command": "kick", "id": "1-1"}, "`command` is one of list, find, attach"),
            ({"command": "find"}, "no criterion"),
            ({"command": "list", "token": "x"}, "`token`"),
            ({"command": "list", "port": 5}, "unknown field `port`"),
        ):
            answer = self.ask(**keys)
            self.assertEqual(answer["status"], "error")
            self.assertIn(said, answer["message"])


class AttachTests(ApiCase):
    """
    C{attach} and C{detach}.
    """

    def test_attach(self) -> None:
        """It is plugged in when the answer comes, which says what can be opened."""
        answer = self.ask("attach", serial=UNO.serial)
        self.assertEqual(answer["status"], "success")
        self.assertEqual(answer["local_devices"], [f"{self.folder}/dev/ttyUSB0"])
        self.assertEqual(answer["data"].keys(), FIELDS)
        self.assertEqual((answer["server"], self.plugged), ("raspi", ["raspi 1-1.4"]))

    def test_again(self) -> None:
        """What is plugged in already is as good as plugged in."""
        first = self.ask("attach", id="1-1.4")
        self.assertEqual(self.ask("attach", id="1-1.4"), first)
        self.assertEqual(len(self.vhci.used()), 1)

    def test_kept(self) -> None:
        """It is kept, also by the next service, until it is detached."""
        self.ask("attach", id="1-1.4")
        self.raspi.unplug("1-1.4")
        self.network.settle()
        self.raspi.plug(UNO)
        self.soon(lambda: self.plugged == ["raspi 1-1.4"])
        self.end()
        self.begin("")
        self.assertEqual(self.plugged, ["raspi 1-1.4"])
        self.assertEqual(self.ask("detach", id="1-1.4")["status"], "success")
        self.assertEqual((self.plugged, self.vhci.used()), ([], {}))
        self.end()
        self.begin("")
        self.assertEqual(self.plugged, [])

    def test_moved(self) -> None:
        """It is known by its serial number, wherever it is plugged in; without one, by its
        place."""
        self.ask("attach", id="1-1.4")
        self.raspi.unplug("1-1.4")
        self.raspi.plug(changed(UNO, busId="1-9"))
        self.soon(lambda: self.plugged == ["raspi 1-9"])
        nameless = changed(STICK, busId="1-3", serial=None, speed="480")
        self.raspi.plug(nameless)
        self.network.settle()
        self.ask("attach", id="1-3")
        self.raspi.unplug("1-3")
        self.raspi.plug(changed(nameless, busId="1-4"))
        self.network.sleep(3)
        self.assertEqual(self.plugged, ["raspi 1-9"])

    def test_detach(self) -> None:
        """Both halves are undone, if the other one was done for us."""
        self.ask("attach", id="1-1.4")
        answer = self.ask("detach", id="1-1.4")
        self.assertEqual((answer["status"], answer["local_devices"]), ("success", []))
        self.assertEqual(self.raspi.commands[-1], ("unbind", "1-1.4"))
        self.raspi.become("1-1.4", DeviceState.BOUND)
        self.network.settle()
        self.ask("attach", id="1-1.4")
        self.ask("detach", id="1-1.4")
        self.assertEqual(len(self.raspi.commands), 2)

    def test_detachAfterFailure(self) -> None:
        """That counts also if it could be plugged in only at a second try, when it was bound."""
        self.raspi.refuse = OpStatus.ERROR
        self.assertEqual(self.ask("attach", id="1-1.4")["status"], "failure")
        self.raspi.refuse = None
        self.assertEqual(self.ask("attach", id="1-1.4")["status"], "success")
        self.ask("detach", id="1-1.4")
        self.assertEqual(self.raspi.commands[-1], ("unbind", "1-1.4"))

    def test_notAttached(self) -> None:
        """What is not plugged in cannot be detached."""
        answer = self.ask("detach", id="1-1.4")
        self.assertEqual(answer["status"], "failure")
        self.assertEqual(answer.keys(), {"status", "data", "message", "server", "local_devices"})

    def test_stuck(self) -> None:
        """What cannot be pulled out is still there, and goes when it can."""
        self.ask("attach", id="1-1.4")
        self.vhci.refuse = errno.EACCES
        answer = self.ask("detach", id="1-1.4")
        self.assertEqual(answer["status"], "failure")
        self.assertEqual(answer["local_devices"], [f"{self.folder}/dev/ttyUSB0"])
        self.assertEqual(len(self.ask("ports")["data"]), 1)
        self.assertNotIn("lost", self.words)
        self.vhci.refuse = 0
        self.soon(lambda: not self.plugged)
        self.assertEqual(self.vhci.used(), {})

    def test_stuckAnew(self) -> None:
        """Unless it was attached again by then: it is there, after all."""
        self.ask("attach", id="1-1.4")
        self.vhci.refuse = errno.EACCES
        self.ask("detach", id="1-1.4")
        self.assertEqual(self.ask("attach", id="1-1.4")["status"], "success")
        self.vhci.refuse = 0
        self.network.sleep(5)
        self.assertEqual(self.plugged, ["raspi 1-1.4"])

    def test_rule(self) -> None:
        """What a rule keeps can be detached: it is left alone until it is attached again, or the
        configuration is read anew."""
        self.reload(KEPT)
        self.assertEqual(self.ask("attach", id="1-1.4")["status"], "success")
        self.ask("detach", id="1-1.4")
        self.raspi.unplug("1-1.4")
        self.raspi.plug(UNO)
        self.network.sleep(5)
        self.assertEqual(self.plugged, [])
        self.assertEqual(self.ask("attach", id="1-1.4")["status"], "success")
        self.assertEqual(self.plug().desired.rule, "uno")
        self.ask("detach", id="1-1.4")
        self.reload(KEPT)
        self.soon(lambda: self.plugged)

    def test_inUse(self) -> None:
        """What somebody else has is not to be had, and nobody waits for it."""
        self.raspi.become("1-1.4", DeviceState.BOUND)
        self.raspi.become("1-1.4", DeviceState.IN_USE, "192.0.2.99")
        self.network.settle()
        answer = self.ask("attach", id="1-1.4")
        self.assertEqual(answer["status"], "failure")
        self.assertIn("in use by 192.0.2.99", answer["message"])
        self.raspi.become("1-1.4", DeviceState.BOUND)
        self.network.sleep(5)
        self.assertEqual(self.plugged, [])

    def test_lost(self) -> None:
        """One whose server is away can be detached as well."""
        self.ask("attach", id="1-1.4")
        self.raspi.forget("1-1.4")
        self.raspi.cut(Answer.REFUSES)
        self.network.sleep(2)
        self.assertEqual(self.ask("detach", serial=UNO.serial)["status"], "success")
        self.assertEqual(self.file.state.requests, ())

    def test_busy(self) -> None:
        """One that is just being plugged in is gone when its detach is answered."""
        self.network.hold = True
        attaching = self.asking("attach", id="1-1.4")
        self.network.settle()
        detaching = self.asking("detach", id="1-1.4")
        self.network.settle()
        self.assertEqual((attaching, detaching), ([], []))
        self.network.runThreads()
        self.network.settle()
        self.assertEqual([each.status for each in attaching + detaching], [Status.SUCCESS] * 2)
        self.assertEqual((self.plugged, self.vhci.used()), ([], {}))

    def test_ruleIsAtIt(self) -> None:
        """Whoever asks for a device that a rule fits, which is just getting another one, has what
        was asked for."""
        self.bench.plug(UNO)
        self.network.hold = True
        self.reload("devices: [{name: any, desc: arduino}]\n")
        self.network.settle()
        other = "bench" if self.parts.reconciler.isTaken("any", self.found("bench")) else "raspi"
        attaching = self.asking("attach", id="1-1.4", host=other)
        for _ in range(4):
            self.network.settle()
            self.network.runThreads()
        self.network.settle()
        [answer] = attaching
        self.assertEqual(answer.status, Status.SUCCESS)
        self.assertIn(f"{other} 1-1.4", self.plugged)
        self.assertEqual(len(self.plugged), 2)

    def found(self, name: str) -> RemoteDevice:
        """A server's board."""
        [found] = [each for each in self.parts.servers.found() if placeOf(each) == (name, "1-1.4")]
        return found

    def test_atOnce(self) -> None:
        """Several who want the same at once have the same."""
        self.network.hold = True
        answers = [self.asking("attach", id="1-1.4") for _ in range(3)]
        self.network.settle()
        self.assertEqual(answers, [[], [], []])
        self.network.runThreads()
        self.network.settle()
        self.assertEqual([each[0].status for each in answers], [Status.SUCCESS] * 3)
        self.assertEqual(len(self.vhci.used()), 1)


class PortsTests(ApiCase):
    """
    C{ports}.
    """

    def test_ports(self) -> None:
        """All that is plugged in, where it came from, and whether it is kept."""
        self.reload(KEPT)
        self.ask("attach", id="1-2")
        self.vhci.write("devices/platform/vhci_hcd.0/attach", b"2 %d 65537 2" % self.other())
        (uno, stick, other) = self.ask("ports")["data"]
        self.assertEqual(
            uno,
            {
                "port": 0,
                "local_bus_id": "3-1",
                "server": "raspi",
                "bus_id": "1-1.4",
                "local_devices": [f"{self.folder}/dev/ttyUSB0"],
                "kept": True,
                "rule": "uno",
            },
        )
        self.assertEqual((stick["bus_id"], stick["kept"], stick["rule"]), ("1-2", True, None))
        self.assertEqual((other["server"], other["kept"]), (None, False))
        self.assertEqual(len(self.ask("ports", host="raspi")["data"]), 2)
        self.assertEqual(self.ask("ports", host="bench")["data"], [])

    def other(self) -> int:
        """A connection of somebody else's."""
        import socket

        pair = socket.socketpair()
        for end in pair:
            self.addCleanup(end.close)
        return pair[0].fileno()

    def test_noKernel(self) -> None:
        """Without the module that is an error."""
        self.vhci.loaded = self.vhci.loadable = False
        answer = self.ask("ports")
        self.assertEqual(answer["status"], "error")
        self.assertIn("modprobe", answer["message"])


class WatchTests(ApiCase):
    """
    C{watch}.
    """

    def test_watch(self) -> None:
        """What there is, and then what happens, here and there; each event has a number."""
        (answer,) = self.asking("watch")
        snapshot = json.loads(answer.encoded)
        self.assertEqual(len(snapshot["data"]), 2)
        lines = self.streamed(answer)
        self.ask("attach", id="1-1.4")
        self.raspi.unplug("1-1.4")
        self.network.settle()
        words = [line["event"] for line in lines]
        self.assertEqual({*words[:3]}, {"bound", "imported", "attached"})
        self.assertEqual({*words[3:]}, {"released", "removed", "lost"})
        first = snapshot["seq"] + 1
        self.assertEqual([line["seq"] for line in lines], [*range(first, first + len(lines))])
        for line in lines:
            self.assertEqual(line["server"], "raspi")
            self.assertIn("local_devices", line)

    def test_since(self) -> None:
        """Whoever comes back misses nothing, as long as it is remembered."""
        (answer,) = self.asking("watch")
        since = json.loads(answer.encoded)["seq"]
        self.ask("attach", id="1-1.4")
        (again,) = self.asking("watch", since=since)
        self.assertNotIn("data", json.loads(again.encoded))
        told = [line["event"] for line in self.streamed(again)]
        self.assertEqual(sorted(told), ["attached", "bound", "imported"])
        (lost,) = self.asking("watch", since=5)
        self.assertIn("since 5", json.loads(lost.encoded)["message"])

    def test_filtered(self) -> None:
        """It can be about some devices, or one server."""
        (answer,) = self.asking("watch", id="1-2", host="raspi")
        self.assertEqual(len(json.loads(answer.encoded)["data"]), 1)
        lines = self.streamed(answer)
        self.ask("attach", id="1-1.4")
        self.bench.plug(changed(STICK, busId="1-2"))
        self.network.settle()
        self.assertEqual(lines, [])
        self.raspi.unplug("1-2")
        self.network.settle()
        self.assertEqual([line["event"] for line in lines], ["removed"])

    def test_http(self) -> None:
        """Over HTTP likewise; what is not remembered any more begins anew there."""
        found = asked(self.parts.responder.watch(LocalWatch(since=5), Caller(Peer(LOCAL, uid=0))))
        answer = self.successResultOf(found)
        self.assertEqual(len(json.loads(answer.encoded)["data"]), 2)

    def test_events(self) -> None:
        """There too it can be about some devices, or one server."""
        for query, there in (
            (b"host=raspi", ["1-1.4", "1-2"]),
            (b"host=raspi&id=1-2&detail=true", ["1-2"]),
            (b"host=bench", []),
        ):
            channel = self.parts.web.makeChannel(Peer(LOCAL, uid=0))
            wire = Wire(channel)
            wire.send(b"GET /events?%b HTTP/1.1\r\nHost: localhost\r\n\r\n" % query)
            self.network.settle()
            wire.turn()
            [snapshot] = [line for line in wire.received.splitlines() if b'"status"' in line]
            answer = json.loads(snapshot.removeprefix(b"data: "))
            self.assertEqual([each["bus_id"] for each in answer["data"]], there)
            wire.drop()
        wire = Wire(self.parts.web.makeChannel(Peer(LOCAL, uid=0)))
        wire.send(b"GET /events?host=attic HTTP/1.1\r\nHost: localhost\r\n\r\n")
        self.network.settle()
        wire.turn()
        self.assertIn(b" 400 ", wire.received)
        self.assertIn(b"it has raspi, bench", wire.received)

    def test_heartbeat(self) -> None:
        """A sign of life tells the last number."""
        beat = json.loads(self.parts.responder.heartbeat())
        self.assertEqual((beat["event"], beat["seq"]), ("heartbeat", self.parts.events.seq))


class DoorTests(ApiCase):
    """
    Who may ask.
    """

    def test_stranger(self) -> None:
        """Nobody but those who are allowed to."""
        answers = self.asking("list", STRANGER)
        self.assertTrue(answers[0].forbidden)
        self.assertIn("user 1234 may not", json.loads(answers[0].encoded)["message"])
        watching = asked(self.parts.responder.watch(LocalWatch(), STRANGER))
        self.assertTrue(self.successResultOf(watching).forbidden)

    def test_allowed(self) -> None:
        """Users and groups can be; also by a group that is not their first."""
        for uids, gids in (((1234,), ()), ((), (1234,)), ((), (1235,))):
            self.reload(f"socket: {{allow_uids: {[*uids]}, allow_gids: {[*gids]}}}\n")
            self.assertEqual(self.ask("list", STRANGER)["status"], "success")
        self.reload("")
        self.assertEqual(self.ask("list", STRANGER)["status"], "error")

    def test_bench(self) -> None:
        """The servers of the tests are two."""
        self.assertEqual({link.server.host for link in self.parts.servers}, {RASPI, BENCH})
