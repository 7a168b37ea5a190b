"""
Tests of L{usbip_server.client.service.acquisition} and of C{conflicts}: programs that wait for a
device, lease it, or take it from another client, and devices attached by other programs.
"""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred

from tests.client.service.servicecase import OTHER, PORT, RASPI, ROOT, RULE, ServiceCase
from tests.docs.documentcase import FIELDS
from tests.support.fixtures import STICK, UNO, asked, changed
from tests.support.network import US, Answer
from usbip_server.client.servers import Server
from usbip_server.model.device import DeviceState, UsbDevice
from usbip_server.model.policy import Principal
from usbip_server.model.replies import Status
from usbip_server.model.usbip import OpStatus
from usbip_server.net.caller import Caller

CI = {"owner": "ci-81", "ttl": 600}
CI2 = {"owner": "ci-82", "ttl": 5}

NEW = changed(UNO, busId="2-7", serial="NEW")

HERE = ["raspi 1-1.4"]


class Program(Caller):
    """
    A program.

    @ivar notices: those that it has received.
    """

    def __init__(self) -> None:
        self.notices: list[dict[str, Any]] = []
        super().__init__(ROOT, lambda line: self.notices.append(json.loads(line)))

    @property
    def message(self) -> str:
        """The message of the last notice."""
        return str(self.notices[-1]["message"])


class AcquisitionCase(ServiceCase):
    """
    A service without rules, and a program.
    """

    def setUp(self) -> None:
        super().setUp()
        self.begin("")
        self.program = Program()

    def attach(self, serial: str | None = None, /, **keys: Any) -> list[dict[str, Any]]:
        """
        The program asks to attach the board, or the device with a serial number.

        @return: has the reply as soon as there is one.
        """
        which = {"id": "1-1.4"} if serial is None else {"serial": serial}
        replies: list[dict[str, Any]] = []
        raw = json.dumps({"command": "attach", **which, **keys}).encode()
        replying = asked(self.core.responder.to(raw, self.program))
        replying.addCallback(lambda response: replies.append(json.loads(response.encoded)))
        self.network.settle()
        return replies

    def leave(self) -> None:
        """The program closes its connection; there is another one."""
        self.program.gone()
        self.network.settle()
        self.program = Program()

    def assertStatus(self, status: str, replies: list[dict[str, Any]]) -> None:
        """There is a reply, with this status."""
        self.assertEqual([each["status"] for each in replies], [status], replies)

    def askServer(self, **keys: Any) -> Any:
        """Another client asks the server."""
        raw = json.dumps(keys).encode()
        response = self.successResultOf(asked(self.raspi.answers.to(raw, Caller(US))))
        self.network.settle()
        return json.loads(response.encoded)

    @property
    def shown(self) -> tuple[str, str | None]:
        """The board's state and the owner of its lease, as the server shows them."""
        device = self.askServer(command="find", bus="1-1.4", detail=True)["data"]
        return device["state"], device["lease"] and device["lease"]["owner"]

    def delayBinds(self) -> Deferred[None]:
        """The server binds nothing until this fires."""
        done: Deferred[None] = Deferred()
        bind = self.raspi.backend.bind

        async def late(*args: Any) -> UsbDevice:
            await done
            return await bind(*args)

        self.patch(self.raspi.backend, "bind", late)
        return done

    def attachByCommand(self, busId: str = "1-1.4", host: str = RASPI) -> None:
        """The command attaches a device."""
        self.raspi.become(busId, DeviceState.BOUND)
        server = Server(name=host, host=host)
        _, connection = self.kernel().attaching().attach(server, busId, 5.0)
        connection.close()
        self.network.settle()


class WaitTests(AcquisitionCase):
    """
    C{wait}.
    """

    def test_deviceAppears(self) -> None:
        """A device that no server has is attached when one has it; meanwhile the program receives
        the reason and heartbeats."""
        replies = self.attach("NEW", wait=60)
        self.network.sleep(20)
        self.assertEqual(replies, [])
        queued, heartbeat = self.program.notices
        self.assertEqual(queued.keys(), {"event", "time", "message"})
        self.assertEqual(queued["message"], "no device matches serial='NEW'")
        self.assertEqual(heartbeat, {"event": "heartbeat", "time": heartbeat["time"]})
        self.bench.plug(NEW)
        self.network.settle()
        self.assertStatus("success", replies)
        self.assertEqual(self.attached, ["bench 2-7"])

    def test_serverAppears(self) -> None:
        """A server that is not connected is waited for."""
        self.raspi.cut(Answer.REFUSES)
        self.network.sleep(1)
        replies = self.attach(UNO.serial, host="raspi", wait=60)
        self.assertEqual([each["event"] for each in self.program.notices], ["queued"])
        self.raspi.restart()
        self.network.sleep(2)
        self.assertStatus("success", replies)

    def test_inUse(self) -> None:
        """A device in use is waited for in its server's queue; several programs that wait for it
        share it."""
        self.takeByOther()
        first, second = self.attach(wait=60), self.attach(wait=60)
        queued = self.program.notices[0]
        self.assertEqual(queued.keys(), {"event", "time", "data", "place", "server", "message"})
        self.assertEqual((queued["place"], queued["server"]), (1, "raspi"))
        self.assertIn(f"in use by {OTHER}", queued["message"])
        self.assertEqual(queued["data"].keys(), FIELDS)
        self.network.sleep(5)
        self.assertEqual((first, second), ([], []))
        self.giveBack()
        self.assertStatus("success", first)
        self.assertStatus("success", second)
        self.assertEqual((self.attached, self.vhci.used()), (HERE, {0: "3-1"}))
        self.ask("detach", id="1-1.4")
        self.assertEqual(self.raspi.commands[-1], ("unbind", "1-1.4"))

    def test_timeOver(self) -> None:
        """After the time the reply is the reason, and nothing is attached later."""
        self.takeByOther()
        inUse, missing = self.attach(wait=3), self.attach("NEW", wait=3)
        self.network.sleep(4)
        self.assertStatus("failure", inUse)
        self.assertIn(f"in use by {OTHER}", inUse[0]["message"])
        self.assertStatus("not_found", missing)
        self.giveBack()
        self.network.sleep(5)
        self.assertEqual(self.attached, [])

    def test_criteriaAreEvaluatedAgain(self) -> None:
        """A device that is plugged in elsewhere meanwhile is attached there."""
        self.takeByOther()
        replies = self.attach(UNO.serial, wait=60)
        self.raspi.unplug("1-1.4")
        self.network.sleep(1)
        self.assertEqual(self.program.message, f"no device matches serial='{UNO.serial}'")
        self.bench.plug(changed(UNO, busId="2-7"))
        self.network.settle()
        self.assertEqual(replies[0]["server"], "bench")

    def test_severalMatchLater(self) -> None:
        """When the criteria select several devices later, that is the reply."""
        self.takeByOther()
        replies = self.attach(UNO.serial, wait=60)
        self.bench.plug(changed(UNO, busId="2-7"))
        self.network.settle()
        self.assertStatus("multiple_matches", replies)

    def test_programLeaves(self) -> None:
        """A program that closes its connection gives up its place."""
        self.takeByOther()
        for serial in (None, "NEW"):
            self.attach(serial, wait=60)
            self.assertTrue(self.program.isHeld)
            self.leave()
        self.giveBack()
        self.bench.plug(NEW)
        self.network.sleep(5)
        self.assertEqual((self.attached, self.flushLoggedErrors()), ([], []))

    def test_ruleToo(self) -> None:
        """A device that a rule selects as well is then attached for the rule."""
        self.takeByOther()
        self.reload(RULE)
        replies = self.attach(wait=60)
        self.giveBack()
        self.assertStatus("success", replies)
        self.assertEqual(self.attachment().desired.rule, "uno")

    def test_noWait(self) -> None:
        """A device that is free, or attached, is not waited for; nor is one that is refused."""
        for _ in range(2):
            self.assertStatus("success", self.attach(wait=60))
        self.assertEqual((self.program.notices, self.program.isHeld), ([], False))
        self.ask("detach", id="1-1.4")
        self.network.sleep(6)  # the place in the queue is held
        self.raspi.refuse = OpStatus.ERROR
        self.assertStatus("failure", self.attach(wait=60))

    def test_invalid(self) -> None:
        """Invalid values are refused as at a server."""
        for keys, text in (
            ({"wait": -1}, "`wait`"),
            ({"wait": 1e9}, "`wait`"),
            ({"lease": {"owner": "x"}}, "`lease` requires"),
            ({"lease": {"owner": "x", "ttl": "connection"}}, "for how many seconds"),
            ({"lease": {"owner": "\t", "ttl": 5}}, "not printable"),
        ):
            self.assertReply("error", text, "attach", id="1-1.4", **keys)


class QueueTests(AcquisitionCase):
    """
    The place in a server's queue.
    """

    def test_keptWhileVerified(self) -> None:
        """The place is kept while the connection to the server is verified."""
        self.ask("attach", id="1-2")
        self.takeByOther()
        replies = self.attach(wait=600)
        places: list[int] = []
        behind = Caller(Principal(OTHER), lambda line: places.append(json.loads(line)["place"]))
        raw = json.dumps({"command": "attach", "id": "1-1.4", "wait": 600}).encode()
        asked(self.raspi.answers.to(raw, behind))
        self.raspi.release("1-2")
        self.network.sleep(3)
        self.assertEqual(([each["place"] for each in self.program.notices], places), ([1], [2]))
        self.giveBack()
        self.assertStatus("success", replies)

    def test_serverRestarted(self) -> None:
        """At a restarted server the program waits again."""
        self.takeByOther()
        replies = self.attach(wait=600)
        self.raspi.restart()
        self.network.sleep(3)
        self.giveBack()
        self.assertStatus("success", replies)

    def test_requestWhileVerified(self) -> None:
        """A request while the connection is verified goes on after it."""
        next(iter(self.core.servers)).verify()
        replies = self.attach(wait=60)
        self.network.sleep(1)
        self.assertStatus("success", replies)


class RollbackTests(AcquisitionCase):
    """
    A device that was bound for a request that fails, or whose program leaves, is unbound.
    """

    def assertFree(self) -> None:
        """Nobody has the board."""
        self.network.sleep(2)
        self.assertEqual((self.shown, self.attached), (("free", None), []))
        self.assertEqual(self.core.desired.saved().requests, ())

    def test_leaseNotReported(self) -> None:
        """A server that does not report the lease it has granted."""
        self.raspi.hush()
        replies = self.attach(lease=CI)
        self.assertEqual(self.shown, ("bound", "ci-81"))
        self.network.sleep(6)
        self.assertIn("does not report the lease", replies[0]["message"])
        self.assertFree()
        self.raspi.hush()
        self.attach(wait=60, lease=CI)
        self.leave()
        self.raspi.hush(False)
        self.assertFree()

    def test_replyLost(self) -> None:
        """The reply of the server is lost."""
        self.raspi.isMute = True
        replies = self.attach(lease=CI)
        self.raspi.hush()
        self.raspi.isMute = False
        self.network.sleep(6)
        self.assertStatus("failure", replies)
        self.assertFree()

    def test_programLeaves(self) -> None:
        """The program leaves during the bind; or during the import, which then fails."""
        for keys in ({}, {"lease": CI}):
            bind = self.delayBinds()
            self.attach(wait=60, **keys)
            self.leave()
            self.network.sleep(5)
            bind.callback(None)
            self.assertFree()
            self.network.hold = True
            self.attach(wait=60, **keys)
            self.leave()
            self.raspi.refuse = OpStatus.ERROR
            self.network.runThreads()
            self.assertFree()
            self.raspi.refuse = None
            self.network.hold = False
            self.network.sleep(5)

    def test_requestDuringRollback(self) -> None:
        """Another request for the device is carried out after the rollback."""
        bind = self.delayBinds()
        self.attach(wait=60)
        self.leave()
        replies = self.attach(wait=60)
        bind.callback(None)
        self.network.sleep(7)  # the place of the first program is held for 5 s
        self.assertStatus("success", replies)
        self.assertEqual(self.attached, HERE)

    def test_othersAreNotDisturbed(self) -> None:
        """The session of another client goes on; so does that of another program with the same
        owner."""
        self.takeByOther()
        for keys in ({}, {"lease": CI}):
            self.attach(wait=60, **keys)
            self.leave()
            self.network.sleep(2)
            self.assertEqual(self.shown, ("in_use", None))
        both = [self.attach(wait=60, lease=CI) for _ in range(2)]
        self.giveBack()
        self.network.sleep(3)
        for replies in both:
            self.assertStatus("success", replies)
        self.assertEqual((self.shown, self.attached), (("in_use", "ci-81"), HERE))

    def test_importRefused(self) -> None:
        """The device cannot be imported."""
        self.raspi.refuse = OpStatus.ERROR
        for keys in ({}, {"force": True}, {"wait": 5}, {"lease": CI}):
            self.assertStatus("failure", self.attach(**keys))
            self.assertFree()
            self.network.sleep(5)  # the place in the queue is held

    def test_earlierRequestStays(self) -> None:
        """An earlier request for the device is kept."""
        self.ask("attach", id="1-1.4")
        self.network.sleep(20)
        self.raspi.forget("1-1.4")
        self.takeByOther()
        self.network.sleep(3)
        self.assertReply("failure", OTHER, "attach", id="1-1.4")
        self.raspi.refuse = OpStatus.ERROR
        self.assertReply("failure", "", "attach", id="1-1.4", lease=CI, force=True)
        [requested] = self.core.desired.saved().requests
        self.assertIsNone(requested.owner)
        self.raspi.refuse = None
        self.raspi.become("1-1.4", DeviceState.BOUND)
        self.soon(lambda: self.attached == HERE)


class ForceTests(AcquisitionCase):
    """
    C{force}.
    """

    def test_takenFromOtherClient(self) -> None:
        """A device is taken from another client, and from another client's lease."""
        self.takeByOther()
        self.assertReply("failure", f"in use by {OTHER}", "attach", id="1-1.4")
        self.assertReply("success", "", "attach", id="1-1.4", force=True)
        self.assertEqual(self.attached, HERE)
        self.assertIn(("release", "1-1.4"), self.raspi.commands)
        self.ask("detach", id="1-1.4")
        self.askServer(command="attach", id="1-1.4", lease=CI)
        self.assertReply("failure", "leased by ci-81", "attach", id="1-1.4")
        self.assertReply("success", "", "attach", id="1-1.4", force=True)

    def test_attachedAlready(self) -> None:
        """A device that is attached already stays attached."""
        self.ask("attach", id="1-1.4")
        self.assertReply("success", "", "attach", id="1-1.4", force=True)
        self.assertEqual(self.kinds.count("lost"), 0)

    def test_leaseOfProgramHere(self) -> None:
        """The device of another program's lease is not taken, even while it is lost or being
        attached, but waited for."""
        self.network.hold = True
        first = self.attach(lease=CI)
        self.assertIn("leased by ci-81", self.attach(force=True)[0]["message"])
        self.network.runThreads()
        self.network.hold = False
        self.network.settle()
        self.assertStatus("success", first)
        waiting = self.attach(force=True, wait=60)
        self.raspi.refuse = OpStatus.ERROR
        self.raspi.release("1-1.4")
        self.network.sleep(1)
        self.assertEqual((waiting, self.attached), ([], []))
        self.assertReply("failure", "leased by ci-81", "attach", id="1-1.4", force=True)
        self.assertEqual(self.shown, ("bound", "ci-81"))
        self.raspi.refuse = None
        self.ask("detach", id="1-1.4", owner="ci-81")
        self.network.sleep(1)
        self.assertStatus("success", waiting)


class LeaseTests(AcquisitionCase):
    """
    C{lease}.
    """

    def lease(self) -> None:
        """A program leases and attaches the board."""
        self.assertStatus("success", self.attach(lease=CI))
        self.assertEqual((self.attached, self.shown), (HERE, ("in_use", "ci-81")))

    def release(self) -> None:
        """The owner detaches it."""
        self.assertReply("success", "", "detach", id="1-1.4", owner="ci-81")
        self.network.settle()

    def test_detach(self) -> None:
        """Only the owner can detach the device, or C{force}; then the lease has ended."""
        self.lease()
        self.assertReply("failure", "leased by ci-81", "detach", id="1-1.4")
        self.release()
        self.assertEqual(
            (self.shown, self.raspi.commands[-1]), (("free", None), ("unbind", "1-1.4"))
        )
        self.lease()
        self.assertReply("success", "", "detach", id="1-1.4", force=True)

    def test_otherPrograms(self) -> None:
        """Other programs cannot attach the device, but wait for it in the server's queue."""
        self.lease()
        for keys in ({}, {"lease": CI2}, {"force": True}):
            text = "leased by ci-81 (192.0.2.200) for 600 s more"
            self.assertReply("failure", text, "attach", id="1-1.4", **keys)
        replies = self.attach(wait=60, lease=CI2)
        self.assertEqual((replies, self.program.notices[0]["place"]), ([], 1))
        self.release()
        self.assertStatus("success", replies)
        self.assertEqual(self.attached, HERE)

    def test_renewed(self) -> None:
        """Another request of the owner extends the lease; when it ends, the device is lost."""
        self.lease()
        self.network.sleep(400, 1)
        self.assertStatus("success", self.attach(lease=CI))
        self.network.sleep(599, 1)
        self.assertEqual(self.attached, HERE)
        self.network.sleep(10, 1)
        self.assertEqual((self.attached, self.vhci.used()), ([], {}))
        self.assertEqual(self.file.state.requests, ())
        self.assertEqual((self.kinds.count("attached"), self.shown), (1, ("free", None)))
        self.assertStatus("success", self.attach())

    def test_keptWhileLeased(self) -> None:
        """During the lease the device is attached again when it was lost, also by the next process,
        and not for a rule."""
        self.lease()
        self.raspi.unplug("1-1.4")
        self.network.settle()
        self.raspi.plug(UNO)
        self.soon(lambda: self.attached == HERE)
        self.end()
        self.begin(RULE)
        self.assertEqual((self.attached, self.core.attachments.of("uno")), (HERE, None))
        self.end()
        self.network.sleep(700, 1)
        self.begin("")
        self.network.sleep(20)
        self.assertEqual(self.attached, [])

    def test_unplugged(self) -> None:
        """The owner can detach the device also while it is unplugged."""
        self.lease()
        self.raspi.unplug("1-1.4")
        self.network.settle()
        self.assertReply("failure", "leased by", "detach", serial=UNO.serial)
        self.assertReply("success", "", "detach", serial=UNO.serial, owner="ci-81")
        self.raspi.plug(UNO)
        self.network.sleep(5)
        self.assertEqual((self.shown[1], self.attached), (None, []))

    def test_rule(self) -> None:
        """A leased device is not attached for a rule; the device of a rule has to be detached
        before it can be leased."""
        self.reload(RULE)
        self.assertReply("failure", "detach it first", "attach", id="1-1.4", lease=CI)
        self.ask("detach", id="1-1.4")
        self.lease()
        self.reload(RULE)
        self.raspi.release("1-1.4")
        self.soon(lambda: self.attached)
        self.assertIsNone(self.core.attachments.of("uno"))
        self.assertNotIn("failed", self.kinds)
        self.release()
        self.soon(lambda: self.core.attachments.of("uno"))

    def test_keptHere(self) -> None:
        """A device attached without a lease, by request or by rule, has to be detached first, also
        while it is lost; C{wait} waits for that."""
        for config in ("", RULE):
            self.reload(config)
            self.ask("attach", id="1-1.4")
            replies = self.attach(wait=600, lease=CI)
            self.assertIn("detach it first", self.program.message)
            self.network.sleep(20)
            self.raspi.release("1-1.4")
            self.network.sleep(3)
            self.assertEqual((replies, self.attached), ([], HERE))
            self.ask("detach", id="1-1.4")
            self.network.sleep(1)
            self.assertStatus("success", replies)
            self.assertEqual(self.shown[1], "ci-81")
            self.release()

    def test_takenByOther(self) -> None:
        """The same while another client has it; C{force} takes it."""
        self.ask("attach", id="1-1.4")
        self.network.sleep(20)
        self.raspi.forget("1-1.4")
        self.takeByOther()
        self.network.sleep(3)
        self.assertReply("failure", "detach it first", "attach", id="1-1.4", lease=CI)
        self.assertReply("success", "", "attach", id="1-1.4", lease=CI, force=True)
        self.assertEqual(self.shown[1], "ci-81")

    def test_sameTime(self) -> None:
        """Of two requests at the same time, one with a lease, one is carried out."""
        self.network.hold = True
        plain, leasing = self.attach(), self.attach(lease=CI)
        self.network.runThreads()
        self.network.settle()
        self.assertStatus("success", plain)
        self.assertStatus("failure", leasing)
        self.assertEqual(self.shown, ("in_use", None))


class OtherProgramTests(AcquisitionCase):
    """
    A device attached by the command, or by stock C{usbip}.
    """

    def test_adopted(self) -> None:
        """A request adopts it without touching it; from then on it is kept attached."""
        self.attachByCommand()
        [port] = self.ask("ports")["data"]
        self.assertEqual(
            (port["server"], port["bus_id"], port["kept"], port["local_devices"]),
            ("raspi", "1-1.4", False, [f"{self.folder}/dev/ttyUSB0"]),
        )
        reply = self.ask("attach", id="1-1.4")
        self.assertEqual(
            (reply["status"], reply["local_devices"]), ("success", port["local_devices"])
        )
        self.assertEqual((self.vhci.used(), self.raspi.commands), ({0: "3-1"}, []))
        self.assertTrue(self.ask("ports")["data"][0]["kept"])
        self.vhci.write(PORT, b"0")
        self.soon(lambda: "lost" in self.kinds)
        self.soon(lambda: self.attached == HERE)

    def test_rule(self) -> None:
        """A rule leaves it alone until it is free."""
        self.attachByCommand()
        self.reload(RULE)
        self.network.sleep(10)
        self.assertEqual((self.attached, self.vhci.used()), ([], {0: "3-1"}))
        self.assertNotIn("failed", self.kinds)
        self.vhci.write(PORT, b"0")
        self.soon(lambda: self.attached == HERE)

    def test_notAdopted(self) -> None:
        """It cannot be detached or leased by request, but taken."""
        self.attachByCommand()
        self.assertReply("failure", "to port 0, but not by this service", "detach", id="1-1.4")
        inUse = f"in use by {US.address}"
        self.assertReply("failure", inUse, "attach", id="1-1.4", lease=CI)
        self.assertEqual(self.vhci.used(), {0: "3-1"})
        self.assertReply("success", "", "attach", id="1-1.4", force=True)
        self.assertEqual(len(self.vhci.used()), 1)

    def test_unknownServer(self) -> None:
        """A device of a server by another name is not recognised, and not attached twice."""
        self.network.rooms["raspi.local"] = self.raspi
        self.attachByCommand(host="raspi.local")
        [port] = self.ask("ports")["data"]
        self.assertEqual((port["server"], port["kept"]), ("raspi.local:3240", False))
        self.assertReply("failure", f"in use by {US.address}", "attach", id="1-1.4")
        self.assertEqual(self.vhci.used(), {0: "3-1"})

    def test_otherDevice(self) -> None:
        """Another device at the same port is not taken for it, nor one with the same numbers at
        another server."""
        self.attachByCommand()
        self.raspi.forget("1-1.4")
        self.vhci.used()
        self.attachByCommand("1-2")
        self.takeByOther()
        self.assertReply("failure", f"in use by {OTHER}", "attach", id="1-1.4")
        self.bench.plug(changed(STICK, speed="480"))
        self.network.settle()
        self.assertReply("success", "", "attach", id="1-2", host="bench")
        self.assertEqual(len(self.vhci.used()), 2)

    def test_portsAtSameTime(self) -> None:
        """Several requests for the ports at the same time are all answered."""
        self.attachByCommand()
        self.network.hold = True
        replies = [self.asking("ports") for _ in range(3)]
        self.network.settle()
        self.network.runThreads()
        self.network.settle()
        self.assertEqual([each[0].status for each in replies], [Status.SUCCESS] * 3)
