"""
Tests of L{usbip_server.client.service.responder}: requests of programs, and the replies.
"""

from __future__ import annotations

import errno
import json
import socket
from typing import Any

from twisted.internet.task import Clock

from tests.client.service.servicecase import BENCH, RASPI, ROOT, RULE, ServiceCase
from tests.docs.documentcase import DETAILS, FIELDS
from tests.support.fixtures import STICK, UNO, Wire, asked, changed
from tests.support.network import Answer
from usbip_server.client.service.authorization import Peer
from usbip_server.client.service.devices.attachments import placeOf
from usbip_server.client.service.messages import LocalWatch
from usbip_server.model.policy import LOCAL
from usbip_server.model.replies import Status
from usbip_server.model.usbip import OpStatus
from usbip_server.net.caller import Caller
from usbip_server.protocols.interfaces import Response
from usbip_server.runtime.latch import Latch

STRANGER = Caller(Peer(LOCAL, uid=1234, gids=(1234, 1235)))

HERE = ["raspi 1-1.4"]


class ResponderCase(ServiceCase):
    """
    A service without rules.
    """

    def setUp(self) -> None:
        super().setUp()
        self.begin("")


class LookTests(ResponderCase):
    """
    C{list} and C{find}.
    """

    def test_list(self) -> None:
        """The devices of all servers, or of one by its name or address, each with its server and
        its nodes."""
        self.bench.plug(changed(UNO, busId="2-7", serial="OTHER"))
        self.network.settle()
        reply = self.ask("list")
        self.assertEqual(reply.keys(), {"status", "data"})
        self.assertEqual(
            [(each["server"], each["bus_id"]) for each in reply["data"]],
            [("raspi", "1-1.4"), ("raspi", "1-2"), ("bench", "2-7")],
        )
        more = {"server", "local_devices"}
        self.assertEqual({*map(frozenset, reply["data"])}, {frozenset(FIELDS | more)})
        detailed = self.ask("list", detail=True)["data"]
        self.assertEqual(detailed[0].keys(), FIELDS | DETAILS | more)
        for host, count in (("raspi", 2), (RASPI, 2), (BENCH, 1)):
            self.assertEqual(len(self.ask("list", host=host)["data"]), count)
        self.assertReply("error", "it has raspi, bench", "list", host="attic")

    def test_find(self) -> None:
        """One device and its server; several matches are named, with their servers."""
        reply = self.ask("find", serial=UNO.serial)
        self.assertEqual(reply.keys(), {"status", "data", "server", "local_devices"})
        self.assertEqual((reply["server"], reply["data"]["bus_id"]), ("raspi", "1-1.4"))
        self.bench.plug(changed(UNO, busId="2-7"))
        self.network.settle()
        self.assertReply("multiple_matches", "at raspi; 2-7", "find", serial=UNO.serial)
        self.assertEqual(self.ask("find", serial=UNO.serial, first=True)["server"], "raspi")
        self.assertEqual(self.ask("find", serial=UNO.serial, host="bench")["server"], "bench")

    def test_serverNotConnected(self) -> None:
        """The devices of other servers are listed; C{not_found} names the server."""
        self.bench.cut(Answer.REFUSES)
        self.network.settle()
        self.assertEqual(len(self.ask("list")["data"]), 2)
        self.assertReply("not_found", "bench", "find", serial="X")
        self.assertReply("error", "bench", "list", host="bench")

    def test_invalid(self) -> None:
        """Invalid requests are refused with the key."""
        for keys, text in (
            ({"command": "kick", "id": "1-1"}, "`command` is one of list, find, attach"),
            ({"command": "find"}, "no criterion"),
            ({"command": "list", "token": "x"}, "`token`"),
            ({"command": "list", "port": 5}, "unknown field `port`"),
        ):
            self.assertReply("error", text, **keys)


class AttachTests(ResponderCase):
    """
    C{attach} and C{detach}.
    """

    def test_attachAndDetach(self) -> None:
        """The reply to C{attach} comes after the nodes, each time; C{detach} unbinds the device if
        it was bound for the request."""
        reply = self.ask("attach", serial=UNO.serial)
        self.assertEqual((reply["status"], reply["server"]), ("success", "raspi"))
        self.assertEqual(reply["local_devices"], [f"{self.folder}/dev/ttyUSB0"])
        self.assertEqual((reply["data"].keys(), self.attached), (FIELDS, HERE))
        self.assertEqual(self.ask("attach", id="1-1.4"), reply)
        self.assertEqual(len(self.vhci.used()), 1)
        reply = self.ask("detach", id="1-1.4")
        self.assertEqual((reply["status"], reply["local_devices"]), ("success", []))
        self.assertEqual(self.raspi.commands[-1], ("unbind", "1-1.4"))
        self.giveBack()
        self.ask("attach", id="1-1.4")
        self.ask("detach", id="1-1.4")
        self.assertEqual(len(self.raspi.commands), 2)

    def test_answeredWhenSaved(self) -> None:
        """The reply to an attach or a detach waits until the change is in the state file."""
        for command in ("attach", "detach"):
            self.file.onDisk = latch = Latch(Clock())
            responses = self.asking(command, serial=UNO.serial)
            self.network.settle()
            self.assertEqual(responses, [])
            latch.fire()
            self.assertEqual(responses[0].status.value, "success")

    def test_detachAfterSecondAttempt(self) -> None:
        """A device that was bound at a first attempt, which has failed, is unbound as well."""
        self.raspi.refuse = OpStatus.ERROR
        self.assertReply("failure", "", "attach", id="1-1.4")
        self.raspi.refuse = None
        self.assertReply("success", "", "attach", id="1-1.4")
        self.ask("detach", id="1-1.4")
        self.assertEqual(self.raspi.commands[-1], ("unbind", "1-1.4"))

    def test_keptAttached(self) -> None:
        """An attached device is attached again when it was lost, also by the next process, until it
        is detached."""
        self.ask("attach", id="1-1.4")
        self.raspi.unplug("1-1.4")
        self.network.settle()
        self.raspi.plug(UNO)
        self.soon(lambda: self.attached == HERE)
        self.end()
        self.begin("")
        self.assertEqual(self.attached, HERE)
        self.assertReply("success", "", "detach", id="1-1.4")
        self.assertEqual((self.attached, self.vhci.used()), ([], {}))
        self.end()
        self.begin("")
        self.assertEqual(self.attached, [])

    def test_identity(self) -> None:
        """A device is recognised by its serial number at another port; without one it is not."""
        self.ask("attach", id="1-1.4")
        self.raspi.unplug("1-1.4")
        self.raspi.plug(changed(UNO, busId="1-9"))
        self.soon(lambda: self.attached == ["raspi 1-9"])
        nameless = changed(STICK, busId="1-3", serial=None, speed="480")
        self.raspi.plug(nameless)
        self.network.settle()
        self.ask("attach", id="1-3")
        self.raspi.unplug("1-3")
        self.raspi.plug(changed(nameless, busId="1-4"))
        self.network.sleep(3)
        self.assertEqual(self.attached, ["raspi 1-9"])

    def test_notAttached(self) -> None:
        """A device that is not attached cannot be detached."""
        reply = self.ask("detach", id="1-1.4")
        self.assertEqual(reply["status"], "failure")
        self.assertEqual(reply.keys(), {"status", "data", "message", "server", "local_devices"})

    def test_detachFails(self) -> None:
        """A device that cannot be detached stays attached, and is detached later; unless it is
        requested again."""
        for isRequested in (False, True):
            self.ask("attach", id="1-1.4")
            self.vhci.refuse = errno.EACCES
            reply = self.ask("detach", id="1-1.4")
            self.assertEqual(reply["status"], "failure")
            self.assertEqual(reply["local_devices"], [f"{self.folder}/dev/ttyUSB0"])
            self.assertEqual(len(self.ask("ports")["data"]), 1)
            if isRequested:
                self.assertReply("success", "", "attach", id="1-1.4")
            self.vhci.refuse = 0
            self.network.sleep(5)
            self.assertEqual(self.attached, HERE if isRequested else [])

    def test_rule(self) -> None:
        """The device of a rule that is detached stays so until a request or a reload."""
        self.reload(RULE)
        self.assertReply("success", "", "attach", id="1-1.4")
        self.ask("detach", id="1-1.4")
        self.raspi.unplug("1-1.4")
        self.raspi.plug(UNO)
        self.network.sleep(5)
        self.assertEqual(self.attached, [])
        self.assertReply("success", "", "attach", id="1-1.4")
        self.assertEqual(self.attachment().desired.rule, "uno")
        self.ask("detach", id="1-1.4")
        self.reload(RULE)
        self.soon(lambda: self.attached)

    def test_failedIsNotDesired(self) -> None:
        """A device in use is not attached later."""
        self.takeByOther()
        self.assertReply("failure", "in use by 192.0.2.99", "attach", id="1-1.4")
        self.giveBack()
        self.network.sleep(5)
        self.assertEqual(self.attached, [])

    def test_detachWithoutServer(self) -> None:
        """A device can be detached while its server is not connected."""
        self.ask("attach", id="1-1.4")
        self.raspi.forget("1-1.4")
        self.raspi.cut(Answer.REFUSES)
        self.network.sleep(2)
        self.assertReply("success", "", "detach", serial=UNO.serial)
        self.assertEqual(self.file.state.requests, ())

    def runThreads(self, *replies: list[Response]) -> None:
        """Let threads run until there are these replies, all C{success}."""
        for _ in range(4):
            self.network.settle()
            self.network.runThreads()
        self.network.settle()
        statuses = [response.status for each in replies for response in each]
        self.assertEqual(statuses, [Status.SUCCESS] * len(replies))

    def test_detachDuringAttach(self) -> None:
        """A device that is being attached is detached before the reply."""
        self.network.hold = True
        attaching = self.asking("attach", id="1-1.4")
        self.network.settle()
        detaching = self.asking("detach", id="1-1.4")
        self.network.settle()
        self.assertEqual((attaching, detaching), ([], []))
        self.runThreads(attaching, detaching)
        self.assertEqual((self.attached, self.vhci.used()), ([], {}))

    def test_ruleWithOtherDevice(self) -> None:
        """A request for a device is carried out though a rule that selects it is getting another
        one."""
        self.bench.plug(UNO)
        self.network.hold = True
        self.reload("devices: [{name: any, desc: arduino}]\n")
        [found] = [each for each in self.core.servers.found() if placeOf(each)[0] == "bench"]
        other = "bench" if self.core.reconciler.isTaken("any", found) else "raspi"
        self.runThreads(self.asking("attach", id="1-1.4", host=other))
        self.assertEqual(self.attached, ["bench 1-1.4", "raspi 1-1.4"])

    def test_sameTime(self) -> None:
        """Several requests for a device at the same time share the attachment."""
        self.network.hold = True
        self.runThreads(*(self.asking("attach", id="1-1.4") for _ in range(3)))
        self.assertEqual(len(self.vhci.used()), 1)


class PortsTests(ResponderCase):
    """
    C{ports}.
    """

    def test_ports(self) -> None:
        """All attached devices, their origin, and whether they are kept."""
        self.reload(RULE)
        self.ask("attach", id="1-2")
        connection, end = socket.socketpair()
        self.addCleanup(connection.close)
        self.addCleanup(end.close)
        command = b"2 %d 65537 2" % connection.fileno()
        self.vhci.write("devices/platform/vhci_hcd.0/attach", command)
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
        for host, count in (("raspi", 2), ("bench", 0)):
            self.assertEqual(len(self.ask("ports", host=host)["data"]), count)

    def test_noModule(self) -> None:
        """Without the kernel module the reply is an error."""
        self.vhci.loaded = self.vhci.loadable = False
        self.assertReply("error", "modprobe", "ports")


class WatchTests(ResponderCase):
    """
    C{watch} and C{GET /events}.
    """

    def watch(self, **keys: object) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The reply to C{watch}, and the events after it, which are added as they happen."""
        (response,) = self.asking("watch", **keys)
        lines: list[dict[str, Any]] = []
        if response.stream is not None:
            missed = response.stream.begin(lambda event, line: lines.append(json.loads(line)))
            lines += [json.loads(line) for _, line in missed]
        return json.loads(response.encoded), lines

    def test_events(self) -> None:
        """A snapshot, then the events of servers and of this machine, numbered without gaps."""
        reply, lines = self.watch()
        self.assertEqual(len(reply["data"]), 2)
        self.ask("attach", id="1-1.4")
        self.raspi.unplug("1-1.4")
        self.network.settle()
        kinds = [line["event"] for line in lines]
        self.assertEqual({*kinds[:3]}, {"bound", "imported", "attached"})
        self.assertEqual({*kinds[3:]}, {"released", "removed", "lost"})
        first = reply["seq"] + 1
        self.assertEqual([line["seq"] for line in lines], [*range(first, first + len(lines))])
        for line in lines:
            self.assertEqual(line["server"], "raspi")
            self.assertIn("local_devices", line)
        heartbeat = json.loads(self.core.responder.heartbeat())
        self.assertEqual((heartbeat["event"], heartbeat["seq"]), ("heartbeat", lines[-1]["seq"]))

    def test_since(self) -> None:
        """C{since} resumes after an event that is kept; over HTTP there is a snapshot otherwise."""
        since = self.watch()[0]["seq"]
        self.ask("attach", id="1-1.4")
        reply, lines = self.watch(since=since)
        self.assertNotIn("data", reply)
        kinds = sorted(line["event"] for line in lines)
        self.assertEqual(kinds, ["attached", "bound", "imported"])
        self.assertIn("since 5", self.watch(since=5)[0]["message"])
        self.reload("limits: {history: 1}\n")
        self.assertIn(f"since {since}", self.watch(since=since)[0]["message"])
        watching = asked(self.core.responder.watch(LocalWatch(since=5), Caller(ROOT)))
        response = self.successResultOf(watching)
        self.assertEqual(len(json.loads(response.encoded)["data"]), 2)

    def test_criteria(self) -> None:
        """Criteria and C{host} select devices and events."""
        reply, lines = self.watch(id="1-2", host="raspi")
        self.assertEqual(len(reply["data"]), 1)
        self.ask("attach", id="1-1.4")
        self.bench.plug(changed(STICK, busId="1-2"))
        self.network.settle()
        self.assertEqual(lines, [])
        self.raspi.unplug("1-2")
        self.network.settle()
        self.assertEqual([line["event"] for line in lines], ["removed"])

    def get(self, query: bytes) -> bytes:
        """The response to C{GET /events} so far."""
        wire = Wire(self.core.factory.web.makeChannel(ROOT))
        wire.send(b"GET /events?%b HTTP/1.1\r\nHost: localhost\r\n\r\n" % query)
        self.network.settle()
        wire.turn()
        received: bytes = wire.received
        wire.drop()
        return received

    def test_query(self) -> None:
        """Over HTTP they are in the query."""
        for query, busIds in (
            (b"host=raspi", ["1-1.4", "1-2"]),
            (b"host=raspi&id=1-2&detail=true", ["1-2"]),
            (b"host=bench", []),
        ):
            [snapshot] = [line for line in self.get(query).splitlines() if b'"status"' in line]
            reply = json.loads(snapshot.removeprefix(b"data: "))
            self.assertEqual([each["bus_id"] for each in reply["data"]], busIds)
        received = self.get(b"host=attic")
        self.assertIn(b" 400 ", received)
        self.assertIn(b"it has raspi, bench", received)


class AuthorizationTests(ResponderCase):
    """
    Who may use the socket.
    """

    def test_users(self) -> None:
        """Users and groups in the configuration may, also by a supplementary group; no others."""
        for config, status in (
            ("{}", "error"),
            ("{allow_uids: [1234]}", "success"),
            ("{allow_gids: [1234]}", "success"),
            ("{allow_gids: [1235]}", "success"),
            ("{allow_gids: [1236]}", "error"),
        ):
            self.reload(f"socket: {config}\n")
            self.assertEqual(self.ask("list", STRANGER)["status"], status, config)
        (response,) = self.asking("list", STRANGER)
        self.assertTrue(response.forbidden)
        self.assertIn("user 1234 may not", json.loads(response.encoded)["message"])
        watching = asked(self.core.responder.watch(LocalWatch(), STRANGER))
        self.assertTrue(self.successResultOf(watching).forbidden)
