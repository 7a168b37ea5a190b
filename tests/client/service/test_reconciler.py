"""
Tests of L{usbip_server.client.service.devices.reconciler}, and of the parts that it works with:
servers, a network and a kernel in memory.
"""

from __future__ import annotations

import errno
from itertools import pairwise

from tests.client.service.servicecase import BENCH, RASPI, SERVERS, UNO_RULE, ServiceCase
from tests.support.fixtures import STICK, UNO, changed
from tests.support.network import Answer
from usbip_server.client import attach
from usbip_server.model.device import DeviceState
from usbip_server.model.usbip import OpStatus
from usbip_server.testing import vhci

PROMISED = 2.0
"""Seconds."""


class AttachTests(ServiceCase):
    """
    What is wanted is plugged in.
    """

    def test_attached(self) -> None:
        """A device that is free is bound, fetched, plugged in and told of."""
        self.begin()
        self.assertEqual(self.plugged, ["raspi 1-1.4"])
        self.assertEqual(self.raspi.commands, [("bind", "1-1.4")])
        self.assertEqual(self.vhci.used(), {0: "3-1"})
        told = self.last("attached")
        self.assertEqual(
            (told["event"], told["server"], told["rule"]), ("attached", "raspi", "uno")
        )
        self.assertEqual(told["local_devices"], [f"{self.folder}/dev/ttyUSB0"])

    def test_bound(self) -> None:
        """One that is bound already is only fetched."""
        self.raspi.become("1-1.4", DeviceState.BOUND)
        self.begin()
        self.assertEqual((self.plugged, self.raspi.commands), (["raspi 1-1.4"], []))

    def test_anyServer(self) -> None:
        """It may be at any server, unless it is said at which."""
        self.raspi.unplug("1-1.4")
        self.bench.plug(changed(UNO, busId="2-7"))
        self.begin()
        self.assertEqual(self.plugged, ["bench 2-7"])
        self.reload(UNO_RULE.replace("}", ", servers: [raspi]}"))
        self.soon(lambda: not self.plugged)
        self.raspi.plug(UNO)
        self.soon(lambda: self.plugged == ["raspi 1-1.4"])

    def test_name(self) -> None:
        """Without criteria it is the one that its server calls so."""
        self.raspi.plug(changed(UNO, name="uno"))
        self.begin("devices: [{name: uno}, {name: other}]\n")
        self.assertEqual(self.plugged, [])  # backends give no names: there is none

    def test_word(self) -> None:
        """A word can be any of what devices are known by."""
        for word in ("1-1.4", "2341:0043", UNO.serial, "arduino"):
            self.begin(f"devices: [{{name: it, word: '{word}'}}]\n")
            self.assertEqual(self.plugged, ["raspi 1-1.4"], word)
            self.reload("")
            self.assertEqual(self.plugged, [])
            self.end()

    def test_several(self) -> None:
        """Of two rules for one kind each has a device of its own."""
        self.bench.plug(changed(UNO, busId="2-7", serial="OTHER"))
        rules = ", ".join(f"{{name: {name}, id: '2341:0043'}}" for name in ("one", "two", "three"))
        self.begin(f"devices: [{rules}]\n")
        self.assertEqual(self.plugged, ["bench 2-7", "raspi 1-1.4"])
        self.assertEqual(self.plug("one").device.busId, "1-1.4")

    def test_inUse(self) -> None:
        """What somebody else has is left to them, until they give it back."""
        self.raspi.become("1-1.4", DeviceState.BOUND)
        self.raspi.become("1-1.4", DeviceState.IN_USE, "192.0.2.99")
        self.begin()
        self.network.sleep(10)
        self.assertEqual((self.plugged, self.raspi.commands), ([], []))
        self.raspi.become("1-1.4", DeviceState.BOUND)
        self.assertLess(self.soon(lambda: self.plugged), 0.1)

    def test_fullHub(self) -> None:
        """Where no port is free it waits for one."""
        rules = ", ".join(f"{{name: d{n}, bus: 1-{n}}}" for n in range(10, 18))
        for number in range(10, 18):
            self.bench.plug(changed(STICK, busId=f"1-{number}", speed="12"))
        self.begin(f"devices: [{rules}]\n")
        self.assertEqual(len(self.plugged), 6)  # two controllers, three ports each
        self.assertIn("no port of vhci_hcd is free", self.last("failed")["message"])
        self.network.sleep(20)
        self.bench.unplug("1-10")
        self.assertLess(self.soon(lambda: "bench 1-16" in self.plugged), PROMISED)


class ReturnTests(ServiceCase):
    """
    What was lost is back soon.
    """

    def setUp(self) -> None:
        super().setUp()
        self.begin()
        self.network.sleep(10)

    def back(self) -> None:
        """It was lost, and is back in time."""
        self.soon(lambda: self.words[-2:] == ["lost", "attached"], PROMISED)

    def test_unplugged(self) -> None:
        """It was pulled out and put in again."""
        self.raspi.unplug("1-1.4")
        self.network.sleep(30)
        self.assertEqual((self.plugged, self.words[-1]), ([], "lost"))
        self.raspi.plug(UNO)
        self.soon(lambda: self.plugged)

    def test_elsewhere(self) -> None:
        """Also into another server."""
        self.raspi.unplug("1-1.4")
        self.bench.plug(changed(UNO, busId="2-7"))
        self.soon(lambda: self.plugged == ["bench 2-7"])

    def test_released(self) -> None:
        """Its session was ended at the server."""
        self.raspi.release("1-1.4")
        self.back()

    def test_detachedHere(self) -> None:
        """Somebody has pulled it out on this machine."""
        self.vhci.write("devices/platform/vhci_hcd.0/detach", b"0")
        self.back()

    def test_port(self) -> None:
        """The port is not used again before what was there is gone."""
        self.vhci.lingering = 10**6
        self.raspi.release("1-1.4")
        self.back()
        self.assertEqual(self.vhci.used(), {1: "3-2"})

    def test_killed(self) -> None:
        """The server's daemon was killed, and is back: sessions go on, and are ours."""
        self.raspi.cut(Answer.REFUSES)
        self.network.sleep(60)
        self.assertEqual((self.plugged, self.words[-1]), (["raspi 1-1.4"], "disconnected"))
        self.raspi.restart()
        self.soon(lambda: self.words[-1] == "connected")
        self.network.sleep(5)
        self.assertEqual(self.words.count("lost"), 0)

    def test_rebooted(self) -> None:
        """The whole server is away for as long as it likes."""
        for away in (1, 5, 60):
            self.raspi.forget("1-1.4")
            self.raspi.cut()
            self.network.sleep(away)
            self.assertEqual(self.plugged, [])
            self.raspi.become("1-1.4", DeviceState.FREE)
            self.raspi.restart()
            self.assertLess(self.soon(lambda: self.plugged), PROMISED)

    def test_cable(self) -> None:
        """The cable was out: our end has ended, and the server's after that."""
        self.raspi.cut()
        self.network.sleep(11)
        self.raspi.forget("1-1.4")
        self.network.sleep(2)
        self.raspi.become("1-1.4", DeviceState.BOUND)
        self.network.sleep(47)
        self.raspi.answer = Answer.ACCEPTS
        self.assertLess(self.soon(lambda: self.plugged), PROMISED)

    def test_doubt(self) -> None:
        """
        When a session ends, the connection for requests is not trusted any more: it may be dead
        as well, without anybody having noticed.
        """
        before = len(self.raspi.tries)
        self.raspi.forget("1-1.4")
        self.network.settle()
        self.network.sleep(0.5)
        self.assertGreater(len(self.raspi.tries), before)

    def test_kick(self) -> None:
        """A server that still believes in a session of ours is told that it is over."""
        self.raspi.forget("1-1.4")
        self.back()
        self.assertIn(("release", "1-1.4"), self.raspi.commands)

    def test_dead(self) -> None:
        """A session that is none any more at the server is ended here, as nobody else may do that:
        the server was without power for a moment."""
        self.raspi.become("1-1.4", DeviceState.BOUND)
        self.back()
        self.assertEqual(len(self.vhci.used()), 1)

    def test_nobodyElse(self) -> None:
        """But nobody else's session is ended."""
        self.network.sleep(1)
        self.raspi.become("1-1.4", DeviceState.BOUND)
        self.raspi.become("1-1.4", DeviceState.IN_USE, "192.0.2.99")
        self.raspi.turn()
        self.raspi.forget("1-1.4")
        self.network.sleep(30)
        self.assertEqual((self.plugged, self.words[-1]), ([], "lost"))
        self.assertNotIn(("release", "1-1.4"), self.raspi.commands)


class FailureTests(ServiceCase):
    """
    What cannot be had is tried again, ever less often, unless something happens.
    """

    def test_pauses(self) -> None:
        """Each pause is twice as long, up to the longest."""
        self.raspi.refuse = OpStatus.DEV_ERR
        moments: list[float] = []
        refused = self.network.importDevice

        def tried(*args: object) -> object:
            moments.append(self.network.seconds())
            return refused(*args)  # type: ignore[arg-type]

        self.patch(attach, "importDevice", tried)
        self.begin()
        self.network.sleep(130)
        pauses = [round(b - a, 1) for a, b in pairwise(moments)]
        self.assertEqual(pauses[:9], [0.2, 0.5, 1, 2, 4, 8, 16, 30, 30])
        self.assertEqual(self.words.count("failed"), 1)  # always the same

    def test_change(self) -> None:
        """When something happens to it there is a new try, a second after the last at the
        soonest."""
        self.raspi.refuse = OpStatus.DEV_ERR
        self.begin()
        self.network.sleep(60)
        self.raspi.refuse = None
        self.raspi.become("1-1.4", DeviceState.FREE)
        self.assertLess(self.soon(lambda: self.plugged), PROMISED)

    def test_local(self) -> None:
        """This machine's kernel may refuse: nothing is taken from anybody."""
        self.vhci.refuse = errno.EACCES
        self.begin()
        self.assertIn("only root", self.last("failed")["message"])
        self.network.sleep(60)
        self.vhci.refuse = 0
        self.assertLess(self.soon(lambda: self.plugged, 31), 31)

    def test_hang(self) -> None:
        """One that hangs in the kernel stops no other, and comes back when it is let go."""
        self.network.hold = True
        rules = f"devices: [{{name: uno, serial: {UNO.serial}}}, {{name: stick, bus: 1-2}}]\n"
        self.begin(rules, settled=False)
        self.network.threads.pop(0)()  # what is plugged in?
        self.network.settle()
        self.assertEqual(len(self.network.threads), 2)
        stuck = self.network.threads.pop(0)
        self.network.threads.pop(0)()
        self.network.settle()
        self.assertEqual(self.plugged, ["raspi 1-2"])
        self.network.sleep(26)
        said = {item["message"] for item in self.told if item["event"] == "failed"}
        self.assertIn("the kernel takes too long: see dmesg", said)
        self.network.hold = False
        stuck()
        self.network.settle()
        self.assertLess(self.soon(lambda: len(self.plugged) == 2, 31), 31)
        self.assertEqual(len(self.vhci.used()), 2)

    def test_atOnce(self) -> None:
        """One that is lost as soon as it is there is tried ever less often."""
        self.begin()
        for _ in range(20):
            self.soon(lambda: self.plugged, 31)
            self.raspi.release("1-1.4")
            self.network.settle()
        self.assertGreater(self.soon(lambda: self.plugged, 31), 4)


class ReloadTests(ServiceCase):
    """
    Another configuration.
    """

    def test_gone(self) -> None:
        """What is not wanted any more is pulled out, and unbound if it was bound for us."""
        self.begin()
        self.reload("")
        self.assertEqual((self.plugged, self.vhci.used()), ([], {}))
        self.assertEqual(self.raspi.commands, [("bind", "1-1.4"), ("unbind", "1-1.4")])

    def test_stuck(self) -> None:
        """What cannot be pulled out is not lost, and is tried again until it is out."""
        self.begin()
        self.vhci.refuse = errno.EACCES
        self.reload("")
        self.network.sleep(20)
        self.assertEqual((self.plugged, self.words.count("lost")), (["raspi 1-1.4"], 0))
        tries = [name for name, _ in self.vhci.writes].count("detach")
        self.assertLess(tries, 9)
        self.vhci.refuse = 0
        self.soon(lambda: not self.plugged, 31)
        self.assertEqual((self.words.count("lost"), self.vhci.used()), (1, {}))

    def test_stuckIsOver(self) -> None:
        """Nor is it while it hangs; its end is noticed all the same."""
        self.begin()
        self.vhci.refuse = errno.EACCES
        self.reload("")
        self.raspi.unplug("1-1.4")
        self.assertLess(self.soon(lambda: "lost" in self.words), PROMISED)
        self.assertEqual(self.plugged, [])

    def test_stays(self) -> None:
        """What is still wanted is not touched, whatever else has changed."""
        self.begin()
        self.reload("timeouts: {attach: 20}\n" + UNO_RULE.replace("}", ", symlink: false}"))
        token = f"servers: {{raspi: {{host: {RASPI}, token: abc}}, more: {{host: {BENCH}}}}}\n"
        self.reload(UNO_RULE, token)
        self.network.sleep(5)
        self.assertEqual((self.plugged, self.words.count("lost")), (["raspi 1-1.4"], 0))

    def test_another(self) -> None:
        """A rule that means another device has that."""
        self.begin()
        self.reload("devices: [{name: uno, bus: 1-2}]\n")
        self.soon(lambda: self.plugged == ["raspi 1-2"])

    def test_serverGone(self) -> None:
        """What is at a server that is none any more is pulled out."""
        self.begin()
        self.reload(UNO_RULE, SERVERS.replace("raspi", "other").replace(RASPI, BENCH))
        self.assertEqual(self.plugged, [])


class AdoptTests(ServiceCase):
    """
    What an earlier service has left is taken over.
    """

    def test_adopted(self) -> None:
        """Nothing is pulled out or fetched again: whoever uses it notices nothing."""
        self.begin()
        self.end()
        self.assertEqual(self.vhci.used(), {0: "3-1"})
        self.begin()
        self.assertEqual(self.plugged, ["raspi 1-1.4"])
        self.assertIsNone(self.plug().connection)
        self.assertEqual(self.plug().nodes, (f"{self.folder}/dev/ttyUSB0",))
        self.assertEqual([name for name, _ in self.vhci.writes], ["attach"])

    def test_end(self) -> None:
        """Its end is seen within a second or two, and it is fetched again."""
        self.begin()
        self.end()
        self.begin()
        self.network.sleep(10)
        self.raspi.release("1-1.4")
        self.assertLess(self.soon(lambda: "lost" in self.words), 1.5)
        self.soon(lambda: self.plugged)
        self.assertIsNotNone(self.plug().connection)

    def test_replugged(self) -> None:
        """What was plugged in anew meanwhile is not what was left."""
        self.begin()
        self.end()
        self.raspi.unplug("1-1.4")
        self.raspi.plug(UNO)
        self.begin()
        self.soon(lambda: self.plugged)
        self.assertIsNotNone(self.plug().connection)

    def test_serverAway(self) -> None:
        """It is waited a while for its server, before another one's device is taken."""
        self.begin()
        self.end()
        self.bench.plug(changed(UNO, busId="2-7"))
        self.raspi.cut()
        self.begin()
        self.network.sleep(3)
        self.assertEqual(self.plugged, [])
        self.raspi.answer = Answer.ACCEPTS
        self.soon(lambda: self.plugged == ["raspi 1-1.4"])
        self.assertIsNone(self.plug().connection)

    def test_serverGone(self) -> None:
        """But not for ever."""
        self.begin()
        self.end()
        self.bench.plug(changed(UNO, busId="2-7"))
        self.raspi.cut()
        self.begin()
        self.soon(lambda: self.plugged == ["bench 2-7"], 12)

    def test_notOurs(self) -> None:
        """What nobody wants, and what is of no server of ours, is left alone."""
        self.begin()
        self.end()
        self.begin("")
        self.assertEqual((self.plugged, self.vhci.used()), ([], {0: "3-1"}))

    def test_noKernel(self) -> None:
        """Without the module the service runs, and says what is missing."""
        self.vhci.loaded = self.vhci.loadable = False
        self.begin()
        self.assertIn("sudo modprobe", self.last("failed")["message"])


class LinkTests(ServiceCase):
    """
    Links with names that stay.
    """

    def test_links(self) -> None:
        """The first node has the name, each other a number; they go when it does."""
        self.vhci.becomes = vhci.DISK
        self.begin()
        self.assertEqual(self.links, {"uno": "sda", "uno-1": "sda1", "uno-2": "sg0"})
        self.raspi.unplug("1-1.4")
        self.network.settle()
        self.assertEqual(self.links, {})

    def test_none(self) -> None:
        """Whoever wants none has none."""
        self.begin(UNO_RULE.replace("}", ", symlink: false}"))
        self.assertEqual(self.links, {})

    def test_late(self) -> None:
        """Nodes that come late are linked, and told of."""
        self.vhci.probing = 10**6
        self.begin()
        self.assertEqual(self.links, {})
        for port in self.vhci._ports:
            port.probing = 0
        self.network.sleep(2)
        self.assertEqual(self.links, {"uno": "ttyUSB0"})
        self.assertEqual(self.words[-2:], ["attached", "nodes"])

    def test_restart(self) -> None:
        """They are there while the service is not, and right when it is back."""
        self.begin()
        self.end()
        self.assertEqual(self.links, {"uno": "ttyUSB0"})
        self.begin()
        self.assertEqual(self.links, {"uno": "ttyUSB0"})
        self.end()
        self.raspi.unplug("1-1.4")
        self.vhci.used()
        self.begin()
        self.assertEqual(self.links, {})

    def test_foreign(self) -> None:
        """What is in the folder and is not ours stays."""
        (self.folder / "links").mkdir()
        for name in ("unosix", "uno-x", "other"):
            (self.folder / "links" / name).symlink_to("/dev/null")
        (self.folder / "links" / "uno-7").touch()
        self.begin()
        self.reload("")
        names = {path.name for path in (self.folder / "links").iterdir()}
        self.assertEqual(names, {"unosix", "uno-x", "other", "uno-7"})

    def test_reload(self) -> None:
        """They follow the configuration."""
        self.begin()
        self.reload(UNO_RULE.replace("uno", "board"))
        self.soon(lambda: self.links == {"board": "ttyUSB0"})

    def test_folder(self) -> None:
        """A folder that cannot be is no reason to attach nothing."""
        (self.folder / "links").touch()
        self.begin()
        self.assertEqual(self.plugged, ["raspi 1-1.4"])
