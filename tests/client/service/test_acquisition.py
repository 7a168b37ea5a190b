"""
Tests of L{usbip_server.client.service.acquisition}: devices that programs wait for, lease, or take
from somebody; and those that others have plugged in.
"""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred

from tests.client.service.servicecase import BENCH, RASPI, UNO_RULE, MemoryKernel, ServiceCase
from tests.support.fixtures import STICK, UNO, asked, changed
from tests.support.network import US, Answer, Room
from usbip_server.client.attach import Attached
from usbip_server.client.servers import Server
from usbip_server.client.service.authorization import Peer
from usbip_server.model.device import DeviceState, UsbDevice
from usbip_server.model.policy import LOCAL, Principal
from usbip_server.model.replies import Status
from usbip_server.model.usbip import OpStatus
from usbip_server.net.caller import Caller

OTHER = "192.0.2.99"

CI = {"owner": "ci-81", "ttl": 600}


class Program(Caller):
    """
    A program that waits, and what it is told meanwhile.
    """

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        super().__init__(
            Peer(LOCAL, uid=0, gids=(0,)), lambda line: self.told.append(json.loads(line))
        )


class ClaimCase(ServiceCase):
    """
    A service that has nothing to keep, unless a test says so.
    """

    def setUp(self) -> None:
        super().setUp()
        self.begin("")
        self.program = Program()

    def claim(self, **keys: Any) -> list[dict[str, Any]]:
        """A program asks to attach; what it is answered is in here as soon as it is."""
        answers: list[dict[str, Any]] = []
        raw = json.dumps({"command": "attach", **keys}).encode()
        asking = asked(self.parts.responder.to(raw, self.program))
        asking.addCallback(lambda answer: answers.append(json.loads(answer.encoded)))
        self.network.settle()
        return answers

    def taken(self, address: str = OTHER) -> None:
        """Somebody else has the board."""
        self.raspi.become("1-1.4", DeviceState.BOUND)
        self.raspi.become("1-1.4", DeviceState.IN_USE, address)
        self.network.settle()

    def server(self, room: Room, **keys: Any) -> str:
        """What a server answers somebody else, and how."""
        answer = self.successResultOf(asked(room.answers.to(json.dumps(keys).encode(), Caller(US))))
        self.network.settle()
        return str(answer.status.value)

    def shown(self, busId: str = "1-1.4") -> tuple[str, str | None]:
        """The board's state, and whose lease it has, as its server says."""
        raw = json.dumps({"command": "find", "bus": busId, "detail": True}).encode()
        answer = self.successResultOf(asked(self.raspi.answers.to(raw, Caller(US))))
        device = json.loads(answer.encoded)["data"]
        return device["state"], device["lease"] and device["lease"]["owner"]

    def slowly(self) -> Deferred[None]:
        """The server binds nothing until this fires."""
        done: Deferred[None] = Deferred()
        bind = self.raspi.backend.bind

        async def late(*args: Any) -> UsbDevice:
            await done
            return await bind(*args)

        self.patch(self.raspi.backend, "bind", late)
        return done

    def there(self, busId: str = "1-1.4") -> UsbDevice:
        """The board, as it is shown by its server."""
        link = next(iter(self.parts.servers))
        device = link.inventory.get(busId)
        assert device is not None
        return device

    def typed(self, busId: str = "1-1.4", host: str = RASPI) -> Attached:
        """C{usbipshare attach}, or stock C{usbip}, plugs a device in."""
        self.raspi.become(busId, DeviceState.BOUND)
        kernel = MemoryKernel(self.vhci, str(self.folder / "dev"), str(self.folder / "records"))
        attached, kept = kernel.attaching().attach(Server(name=host, host=host), busId, 5.0)
        kept.close()
        self.network.settle()
        return attached


class WaitTests(ClaimCase):
    """
    C{wait}.
    """

    def test_away(self) -> None:
        """A device that no server has yet is attached when one has it."""
        answers = self.claim(serial="NEW", wait=60)
        self.network.sleep(20)
        self.assertEqual(answers, [])
        queued, beat = self.program.told
        self.assertEqual(queued.keys(), {"event", "time", "message"})
        self.assertEqual(queued["message"], "no device matches serial='NEW'")
        self.assertEqual((beat["event"], beat.keys()), ("heartbeat", {"event", "time"}))
        self.bench.plug(changed(UNO, busId="2-7", serial="NEW"))
        self.network.settle()
        self.assertEqual([each["status"] for each in answers], ["success"])
        self.assertEqual(self.plugged, ["bench 2-7"])

    def test_serverAway(self) -> None:
        """So is one whose server is not there yet."""
        self.raspi.cut(Answer.REFUSES)
        self.network.sleep(1)
        answers = self.claim(serial=UNO.serial, host="raspi", wait=60)
        self.assertEqual([each["event"] for each in self.program.told], ["queued"])
        self.raspi.restart()
        self.network.sleep(2)
        self.assertEqual(answers[0]["status"], "success")

    def test_held(self) -> None:
        """One that somebody else has is attached when it is given back: it is waited for in its
        server's queue."""
        self.taken()
        answers = self.claim(id="1-1.4", wait=60)
        [queued] = self.program.told
        self.assertEqual(queued.keys(), {"event", "time", "data", "place", "server", "message"})
        self.assertEqual((queued["place"], queued["server"]), (1, "raspi"))
        self.assertIn(f"in use by {OTHER}", queued["message"])
        self.network.sleep(5)
        self.assertEqual(answers, [])
        self.raspi.become("1-1.4", DeviceState.BOUND)
        self.network.settle()
        self.assertEqual(answers[0]["status"], "success")
        self.assertEqual(self.plugged, ["raspi 1-1.4"])
        self.ask("detach", id="1-1.4")
        self.assertEqual(self.raspi.commands[-1], ("unbind", "1-1.4"))

    def test_late(self) -> None:
        """When the time is over the answer is why."""
        self.taken()
        held = self.claim(id="1-1.4", wait=3)
        away = self.claim(serial="NEW", wait=3)
        self.network.sleep(4)
        self.assertEqual((held[0]["status"], away[0]["status"]), ("failure", "not_found"))
        self.assertIn(f"in use by {OTHER}", held[0]["message"])
        self.raspi.become("1-1.4", DeviceState.BOUND)
        self.network.sleep(5)
        self.assertEqual(self.plugged, [])

    def test_moved(self) -> None:
        """Criteria are looked at anew: whoever waits for a serial number has that device,
        wherever it is plugged in."""
        self.taken()
        answers = self.claim(serial=UNO.serial, wait=60)
        self.raspi.unplug("1-1.4")
        self.network.sleep(1)
        self.assertEqual(
            self.program.told[-1]["message"], f"no device matches serial='{UNO.serial}'"
        )
        self.bench.plug(changed(UNO, busId="2-7"))
        self.network.settle()
        self.assertEqual(answers[0]["server"], "bench")

    def test_several(self) -> None:
        """If it turns out that several are meant, that is the answer."""
        self.taken()
        answers = self.claim(serial=UNO.serial, wait=60)
        self.bench.plug(changed(UNO, busId="2-7"))
        self.network.settle()
        self.assertEqual(answers[0]["status"], "multiple_matches")

    def test_gone(self) -> None:
        """A program that goes gives up its place."""
        self.taken()
        for keys in ({"id": "1-1.4"}, {"serial": "NEW"}):
            self.claim(wait=60, **keys)
            self.assertTrue(self.program.isHeld)
            self.program.gone()
            self.network.settle()
            self.program = Program()
        self.raspi.become("1-1.4", DeviceState.BOUND)
        self.raspi.plug(changed(UNO, serial="NEW", busId="1-9"))
        self.network.sleep(5)
        self.assertEqual((self.plugged, self.flushLoggedErrors()), ([], []))

    def test_two(self) -> None:
        """Of two that wait for the same both have it."""
        self.taken()
        answers = [self.claim(id="1-1.4", wait=60) for _ in range(2)]
        self.raspi.become("1-1.4", DeviceState.BOUND)
        self.network.settle()
        self.assertEqual([each[0]["status"] for each in answers], ["success", "success"])
        self.assertEqual(self.vhci.used(), {0: "3-1"})

    def test_rule(self) -> None:
        """If a rule wants it too, it is the rule's then."""
        self.taken()
        self.reload(UNO_RULE)
        answers = self.claim(id="1-1.4", wait=60)
        self.raspi.become("1-1.4", DeviceState.BOUND)
        self.network.settle()
        self.assertEqual((answers[0]["status"], self.plug().desired.rule), ("success", "uno"))

    def test_free(self) -> None:
        """Who need not wait does not."""
        self.assertEqual(self.claim(id="1-1.4", wait=60)[0]["status"], "success")
        self.assertEqual(self.program.told, [])
        self.assertEqual(self.claim(id="1-1.4", wait=60)[0]["status"], "success")
        self.assertFalse(self.program.isHeld)

    def test_refused(self) -> None:
        """What goes wrong goes wrong at once."""
        self.raspi.refuse = OpStatus.ERROR
        answers = self.claim(id="1-1.4", wait=60)
        self.assertEqual(answers[0]["status"], "failure")

    def test_nonsense(self) -> None:
        """It is as long as at a server."""
        for keys, said in (
            ({"wait": -1}, "`wait`"),
            ({"wait": 1e9}, "`wait`"),
            ({"lease": {"owner": "x"}}, "`lease`: for how long?"),
            ({"lease": {"owner": "x", "ttl": "connection"}}, "for how many seconds"),
            ({"lease": {"owner": "\t", "ttl": 5}}, "cannot be shown"),
        ):
            answer = self.ask("attach", id="1-1.4", **keys)
            self.assertEqual(answer["status"], "error")
            self.assertIn(said, answer["message"])


class PlaceTests(ClaimCase):
    """
    The place in a server's queue.
    """

    def behind(self) -> list[str]:
        """Somebody else waits too."""
        told: list[str] = []
        other = Caller(Principal(OTHER), lambda line: told.append(json.loads(line)["place"]))
        raw = json.dumps({"command": "attach", "id": "1-1.4", "wait": 600}).encode()
        asked(self.raspi.answers.to(raw, other))
        self.network.settle()
        return told

    def test_doubted(self) -> None:
        """It is kept while it is not known whether the server is still there."""
        self.ask("attach", id="1-2")
        self.taken()
        answers = self.claim(id="1-1.4", wait=600)
        told = self.behind()
        self.raspi.release("1-2")
        self.network.sleep(3)
        self.assertEqual(([each["place"] for each in self.program.told], told), ([1], [2]))
        self.raspi.become("1-1.4", DeviceState.BOUND)
        self.network.settle()
        self.assertEqual(answers[0]["status"], "success")

    def test_restarted(self) -> None:
        """When the server is another one it is asked for anew."""
        self.taken()
        answers = self.claim(id="1-1.4", wait=600)
        self.raspi.restart()
        self.network.sleep(3)
        self.raspi.become("1-1.4", DeviceState.BOUND)
        self.network.settle()
        self.assertEqual(answers[0]["status"], "success")

    def test_noNews(self) -> None:
        """Who asks while a server is doubted does not sleep on when it is there."""
        next(iter(self.parts.servers)).verify()
        answers = self.claim(id="1-1.4", wait=60)
        self.network.sleep(1)
        self.assertEqual(answers[0]["status"], "success")


class GoneTests(ClaimCase):
    """
    A program goes, or does not hear what it has, and nothing stays bound for it.
    """

    def free(self) -> None:
        """The board is nobody's."""
        self.network.sleep(2)
        self.assertEqual((self.shown(), self.plugged), (("free", None), []))
        self.assertEqual(self.parts.desired.saved().requests, ())

    def test_untold(self) -> None:
        """Its server does not report the lease."""
        self.raspi.hush()
        answers = self.claim(id="1-1.4", lease=CI)
        self.assertEqual(self.shown(), ("bound", "ci-81"))
        self.network.sleep(6)
        self.assertIn("does not report the lease", answers[0]["message"])
        self.free()

    def test_untoldAndGone(self) -> None:
        """Nor does it hear that the program is gone."""
        self.raspi.hush()
        self.claim(id="1-1.4", wait=60, lease=CI)
        self.program.gone()
        self.raspi.hush(False)
        self.free()

    def test_unanswered(self) -> None:
        """The answer gets lost."""
        self.raspi.isMute = True
        answers = self.claim(id="1-1.4", lease=CI)
        self.raspi.hush()
        self.raspi.isMute = False
        self.network.sleep(6)
        self.assertEqual(answers[0]["status"], "failure")
        self.free()

    def test_plugging(self) -> None:
        """It goes while the device is being plugged in: that comes to its end as if it had not
        waited."""
        for keys in ({}, {"lease": CI}):
            self.network.hold = True
            self.claim(id="1-1.4", wait=60, **keys)
            self.program.gone()
            self.raspi.refuse = OpStatus.ERROR
            self.network.runThreads()
            self.free()
            self.program = Program()
            self.raspi.refuse = None

    def test_binding(self) -> None:
        """It goes while the server is at the bind."""
        for keys in ({}, {"lease": CI}):
            bind = self.slowly()
            self.claim(id="1-1.4", wait=60, **keys)
            self.program.gone()
            self.network.sleep(5)
            bind.callback(None)
            self.free()
            self.program = Program()

    def test_again(self) -> None:
        """Who asks again at once has it, when that is undone."""
        bind = self.slowly()
        self.claim(id="1-1.4", wait=60)
        self.program.gone()
        self.program = Program()
        answers = self.claim(id="1-1.4", wait=60)
        bind.callback(None)
        self.network.sleep(7)  # the first one's turn lasts for 5 s
        self.assertEqual((answers[0]["status"], self.plugged), ("success", ["raspi 1-1.4"]))

    def test_queue(self) -> None:
        """Whoever has the device is not disturbed by those who waited in vain."""
        self.taken()
        for keys in ({}, {"lease": CI}):
            self.claim(id="1-1.4", wait=60, **keys)
            self.program.gone()
            self.network.sleep(2)
            self.assertEqual(self.shown(), ("in_use", None))
            self.program = Program()

    def test_same(self) -> None:
        """What another one has by the same owner stays."""
        self.taken()
        answers = [self.claim(id="1-1.4", wait=60, lease=CI) for _ in range(2)]
        self.raspi.become("1-1.4", DeviceState.BOUND)
        self.network.sleep(3)
        self.assertEqual([each[0]["status"] for each in answers], ["success", "success"])
        self.assertEqual((self.shown(), self.plugged), (("in_use", "ci-81"), ["raspi 1-1.4"]))

    def test_refused(self) -> None:
        """What cannot be plugged in here does not stay bound there, however it was asked for."""
        self.raspi.refuse = OpStatus.ERROR
        for keys in ({}, {"force": True}, {"wait": 5}, {"lease": CI}):
            self.assertEqual(self.claim(id="1-1.4", **keys)[0]["status"], "failure")
            self.free()
            self.network.sleep(5)  # it was their turn

    def test_before(self) -> None:
        """What was asked for before is still wanted when it is asked for again in vain."""
        self.ask("attach", id="1-1.4")
        self.network.sleep(20)
        self.raspi.forget("1-1.4")
        self.taken()
        self.network.sleep(3)
        self.assertEqual(self.ask("attach", id="1-1.4")["status"], "failure")
        self.raspi.become("1-1.4", DeviceState.BOUND)
        self.soon(lambda: self.plugged == ["raspi 1-1.4"])


class ForceTests(ClaimCase):
    """
    C{force}.
    """

    def test_here(self) -> None:
        """What another program here has leased is not taken, also while it is not plugged in;
        who waits has it afterwards."""
        self.ask("attach", id="1-1.4", lease=CI)
        waiting = self.claim(id="1-1.4", force=True, wait=60)
        self.raspi.refuse = OpStatus.ERROR
        self.raspi.release("1-1.4")
        self.network.sleep(1)
        self.assertEqual((waiting, self.plugged), ([], []))
        answer = self.ask("attach", id="1-1.4", force=True)
        self.assertIn("leased by ci-81", answer["message"])
        self.assertEqual(self.shown(), ("bound", "ci-81"))
        self.raspi.refuse = None
        self.ask("detach", id="1-1.4", owner="ci-81")
        self.network.sleep(1)
        self.assertEqual(waiting[0]["status"], "success")

    def test_plugging(self) -> None:
        """Nor while it is just being plugged in."""
        self.network.hold = True
        answers = self.claim(id="1-1.4", lease=CI)
        self.assertIn("leased by", self.claim(id="1-1.4", force=True)[0]["message"])
        self.network.runThreads()
        self.network.settle()
        self.assertEqual((answers[0]["status"], self.shown()), ("success", ("in_use", "ci-81")))

    def test_force(self) -> None:
        """It is taken from whoever has it."""
        self.taken()
        self.assertEqual(self.ask("attach", id="1-1.4")["status"], "failure")
        answer = self.ask("attach", id="1-1.4", force=True)
        self.assertEqual((answer["status"], self.plugged), ("success", ["raspi 1-1.4"]))
        self.assertIn(("release", "1-1.4"), self.raspi.commands)

    def test_leased(self) -> None:
        """So is what they have leased."""
        self.assertEqual(self.server(self.raspi, command="attach", id="1-1.4", lease=CI), "success")
        answer = self.ask("attach", id="1-1.4")
        self.assertIn("leased by ci-81", answer["message"])
        self.assertEqual(self.ask("attach", id="1-1.4", force=True)["status"], "success")

    def test_ours(self) -> None:
        """What is here already stays as it is."""
        self.ask("attach", id="1-1.4")
        self.assertEqual(self.ask("attach", id="1-1.4", force=True)["status"], "success")
        self.assertEqual(self.words.count("lost"), 0)


class LeaseTests(ClaimCase):
    """
    C{lease}.
    """

    def leased(self) -> None:
        """The board is leased and attached."""
        answer = self.ask("attach", id="1-1.4", lease=CI)
        self.assertEqual((answer["status"], self.plugged), ("success", ["raspi 1-1.4"]))

    def test_lease(self) -> None:
        """The server has it leased, and it is given back with the detach of its owner."""
        self.leased()
        lease = self.there().lease
        assert lease is not None
        self.assertEqual((lease.owner, lease.ttl), ("ci-81", 600))
        answer = self.ask("detach", id="1-1.4")
        self.assertEqual(answer["status"], "failure")
        self.assertIn("leased by ci-81", answer["message"])
        self.assertEqual(self.ask("detach", id="1-1.4", owner="ci-81")["status"], "success")
        self.network.settle()
        self.assertIsNone(self.there().lease)
        self.assertEqual(self.raspi.commands[-1], ("unbind", "1-1.4"))

    def test_others(self) -> None:
        """Other programs do not have it: they are told whose it is, and can wait for it."""
        self.leased()
        for keys in ({}, {"lease": {"owner": "ci-82", "ttl": 5}}, {"force": True}):
            answer = self.ask("attach", id="1-1.4", **keys)
            self.assertEqual(answer["status"], "failure")
            self.assertIn("leased by ci-81 (192.0.2.200) for 600 s more", answer["message"])
        answers = self.claim(id="1-1.4", wait=60, lease={"owner": "ci-82", "ttl": 5})
        self.assertEqual((answers, self.program.told[0]["place"]), ([], 1))
        self.ask("detach", id="1-1.4", owner="ci-81")
        self.network.settle()
        self.assertEqual((answers[0]["status"], self.plugged), ("success", ["raspi 1-1.4"]))
        self.assertEqual(self.ask("detach", id="1-1.4", force=True)["status"], "success")

    def test_renewed(self) -> None:
        """Who asks again has it for so long from now."""
        self.leased()
        self.network.sleep(400, 1)
        self.assertEqual(self.ask("attach", id="1-1.4", lease=CI)["status"], "success")
        self.network.sleep(400, 1)
        self.assertEqual(self.plugged, ["raspi 1-1.4"])

    def test_ends(self) -> None:
        """When it ends the device is lost, and not attached anew."""
        self.leased()
        self.network.sleep(599, 1)
        self.assertEqual(self.plugged, ["raspi 1-1.4"])
        self.network.sleep(10, 1)
        self.assertEqual((self.plugged, self.vhci.used()), ([], {}))
        self.assertEqual(self.words.count("attached"), 1)
        self.assertIs(self.there().state, DeviceState.FREE)
        self.assertEqual(self.ask("attach", id="1-1.4")["status"], "success")

    def test_kept(self) -> None:
        """Until then it is kept: plugged in anew, and by the next service."""
        self.leased()
        self.raspi.unplug("1-1.4")
        self.network.settle()
        self.raspi.plug(UNO)
        self.soon(lambda: self.plugged == ["raspi 1-1.4"])
        self.assertEqual(self.ask("detach", id="1-1.4")["status"], "failure")
        self.end()
        self.begin("")
        self.assertEqual(self.plugged, ["raspi 1-1.4"])
        self.end()
        self.network.sleep(700, 1)
        self.begin("")
        self.network.sleep(20)
        self.assertEqual(self.plugged, [])

    def test_away(self) -> None:
        """One that is away can be given back as well."""
        self.leased()
        self.raspi.unplug("1-1.4")
        self.network.settle()
        self.assertEqual(self.ask("detach", serial=UNO.serial)["status"], "failure")
        self.assertEqual(self.ask("detach", serial=UNO.serial, owner="ci-81")["status"], "success")
        self.raspi.plug(UNO)
        self.network.sleep(5)
        self.assertEqual((self.there().lease, self.plugged), (None, []))

    def test_nextService(self) -> None:
        """The next service does not give it to a rule."""
        self.leased()
        self.end()
        self.begin(UNO_RULE)
        self.assertEqual(self.plugged, ["raspi 1-1.4"])
        self.assertIsNone(self.parts.attachments.of("uno"))

    def test_rule(self) -> None:
        """No rule has what is leased: neither by a program here nor by somebody else."""
        self.reload(UNO_RULE)
        answer = self.ask("attach", id="1-1.4", lease=CI)
        self.assertIn("detach it first", answer["message"])
        self.ask("detach", id="1-1.4")
        self.leased()
        self.assertIsNone(self.parts.attachments.of("uno"))
        self.reload(UNO_RULE)
        self.raspi.release("1-1.4")
        self.soon(lambda: self.plugged)
        self.assertIsNone(self.parts.attachments.of("uno"))
        self.assertNotIn("failed", self.words)
        self.ask("detach", id="1-1.4", owner="ci-81")
        self.soon(lambda: self.parts.attachments.of("uno"))

    def test_waits(self) -> None:
        """What is plugged in here without a lease is not taken from who has attached it, or from
        a rule, in a moment in which it is lost: it has to be detached."""
        for text in ("", UNO_RULE):
            self.reload(text)
            self.ask("attach", id="1-1.4")
            answers = self.claim(id="1-1.4", wait=600, lease=CI)
            self.assertIn("detach it first", self.program.told[-1]["message"])
            self.network.sleep(20)
            self.raspi.release("1-1.4")
            self.network.sleep(3)
            self.assertEqual((answers, self.plugged), ([], ["raspi 1-1.4"]))
            self.ask("detach", id="1-1.4")
            self.network.sleep(1)
            self.assertEqual((answers[0]["status"], self.shown()[1]), ("success", "ci-81"))
            self.ask("detach", id="1-1.4", owner="ci-81")

    def test_lost(self) -> None:
        """Nor as long as somebody else has it, unless by force."""
        self.ask("attach", id="1-1.4")
        self.network.sleep(20)
        self.raspi.forget("1-1.4")
        self.taken()
        self.network.sleep(3)
        self.assertIn("detach it first", self.ask("attach", id="1-1.4", lease=CI)["message"])
        answer = self.ask("attach", id="1-1.4", lease=CI, force=True)
        self.assertEqual((answer["status"], self.shown()[1]), ("success", "ci-81"))

    def test_atOnce(self) -> None:
        """Of two that ask at the same time, one with a lease, one has it."""
        self.network.hold = True
        answers = [self.claim(id="1-1.4", **keys) for keys in ({}, {"lease": CI})]
        self.network.runThreads()
        self.network.settle()
        self.assertEqual([each[0]["status"] for each in answers], ["success", "failure"])
        self.assertEqual(self.shown(), ("in_use", None))

    def test_failed(self) -> None:
        """What could not be plugged in is nobody's afterwards."""
        self.raspi.refuse = OpStatus.ERROR
        self.assertEqual(self.ask("attach", id="1-1.4", lease=CI)["status"], "failure")
        self.network.settle()
        self.assertIsNone(self.there().lease)
        self.assertEqual(self.parts.desired.saved().requests, ())

    def test_untold(self) -> None:
        """A lease that the server does not tell of is none."""
        self.raspi.isMute = True
        answers = self.claim(id="1-1.4", lease=CI)
        self.network.sleep(12)
        self.assertEqual(answers[0]["status"], "failure")


class OthersTests(ClaimCase):
    """
    What was plugged in by the command, or by stock C{usbip}.
    """

    def test_ports(self) -> None:
        """It is shown for what it is."""
        self.typed()
        [port] = self.ask("ports")["data"]
        self.assertEqual(
            (port["server"], port["bus_id"], port["kept"], port["local_devices"]),
            ("raspi", "1-1.4", False, [f"{self.folder}/dev/ttyUSB0"]),
        )

    def test_attach(self) -> None:
        """Who attaches it has it as it is; from now on it is kept."""
        self.typed()
        answer = self.ask("attach", id="1-1.4")
        self.assertEqual(answer["status"], "success")
        self.assertEqual(answer["local_devices"], [f"{self.folder}/dev/ttyUSB0"])
        self.assertEqual(self.vhci.used(), {0: "3-1"})
        self.assertEqual(self.raspi.commands, [])
        self.assertTrue(self.ask("ports")["data"][0]["kept"])
        self.vhci.write("devices/platform/vhci_hcd.0/detach", b"0")
        self.soon(lambda: "lost" in self.words)
        self.soon(lambda: self.plugged == ["raspi 1-1.4"])

    def test_rule(self) -> None:
        """A rule leaves it alone until it is free."""
        self.typed()
        self.reload(UNO_RULE)
        self.network.sleep(10)
        self.assertEqual((self.plugged, self.vhci.used()), ([], {0: "3-1"}))
        self.assertNotIn("failed", self.words)
        self.vhci.write("devices/platform/vhci_hcd.0/detach", b"0")
        self.soon(lambda: self.plugged == ["raspi 1-1.4"])

    def test_detach(self) -> None:
        """It is not the service's to pull it out."""
        self.typed()
        answer = self.ask("detach", id="1-1.4")
        self.assertEqual(answer["status"], "failure")
        self.assertIn("to port 0, but not by this service", answer["message"])
        self.assertEqual(self.vhci.used(), {0: "3-1"})

    def test_lease(self) -> None:
        """It cannot be leased while it is in use, but it can be taken."""
        self.typed()
        answer = self.ask("attach", id="1-1.4", lease=CI)
        self.assertEqual(answer["status"], "failure")
        self.assertIn(f"in use by {US.address}", answer["message"])
        self.assertEqual(self.ask("attach", id="1-1.4", force=True)["status"], "success")
        self.assertEqual(len(self.vhci.used()), 1)

    def test_otherName(self) -> None:
        """Where it came from is known by the name of the server that was typed: if it is another
        one, that is told, and nothing is plugged in twice."""
        self.network.rooms["raspi.local"] = self.raspi
        self.typed(host="raspi.local")
        [port] = self.ask("ports")["data"]
        self.assertEqual((port["server"], port["kept"]), ("raspi.local:3240", False))
        answer = self.ask("attach", id="1-1.4")
        self.assertEqual(answer["status"], "failure")
        self.assertIn(f"in use by {US.address}", answer["message"])
        self.assertEqual(self.vhci.used(), {0: "3-1"})

    def test_another(self) -> None:
        """What another device left behind at a port is not taken for it."""
        self.typed()
        self.raspi.forget("1-1.4")
        self.vhci.used()
        self.typed("1-2")
        self.raspi.become("1-1.4", DeviceState.BOUND)
        self.raspi.become("1-1.4", DeviceState.IN_USE, OTHER)
        self.network.settle()
        self.assertIn(f"in use by {OTHER}", self.ask("attach", id="1-1.4")["message"])

    def test_bench(self) -> None:
        """Nor is one of the same numbers at another server."""
        self.bench.plug(changed(STICK, speed="480"))
        self.network.settle()
        self.typed()
        self.assertEqual({link.server.host for link in self.parts.servers}, {RASPI, BENCH})
        self.assertEqual(self.ask("attach", id="1-2", host="bench")["status"], "success")
        self.assertEqual(len(self.vhci.used()), 2)

    def test_atOnce(self) -> None:
        """Several who ask for what is plugged in, at the same time, are all answered."""
        self.typed()
        self.network.hold = True
        answers = [self.asking("ports") for _ in range(3)]
        self.network.settle()
        self.network.runThreads()
        self.network.settle()
        self.assertEqual([each[0].status for each in answers], [Status.SUCCESS] * 3)
