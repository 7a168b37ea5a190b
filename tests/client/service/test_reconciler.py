"""
Tests of L{usbip_server.client.service.devices.reconciler} and the parts that it works with.
"""

from __future__ import annotations

import errno
import os
from itertools import pairwise

import msgspec

from tests.client.service.servicecase import BENCH, PORT, RASPI, RULE, SERVERS, ServiceCase
from tests.support.fixtures import STICK, UNO, changed
from tests.support.network import Answer
from usbip_server.client import attach
from usbip_server.client.devices import RemoteDevice
from usbip_server.client.service.devices.desiredstate import REMEMBERED, Requests
from usbip_server.model.device import DeviceState, UsbDevice
from usbip_server.model.usbip import OpStatus
from usbip_server.testing import vhci

PROMISED = 2.0
"""Seconds after which a device that is available is attached again."""

HERE = ["raspi 1-1.4"]

MOVED = changed(UNO, busId="2-7")


class AttachTests(ServiceCase):
    """
    A desired device is attached.
    """

    def test_freeDevice(self) -> None:
        """A free device is bound, imported and attached, and an event is recorded."""
        self.begin()
        self.assertEqual((self.attached, self.vhci.used()), (HERE, {0: "3-1"}))
        self.assertEqual(self.raspi.commands, [("bind", "1-1.4")])
        event = self.last("attached")
        self.assertEqual((event["server"], event["rule"]), ("raspi", "uno"))
        self.assertEqual(event["local_devices"], [f"{self.folder}/dev/ttyUSB0"])

    def test_boundDevice(self) -> None:
        """A bound device is only imported."""
        self.raspi.become("1-1.4", DeviceState.BOUND)
        self.begin()
        self.assertEqual((self.attached, self.raspi.commands), (HERE, []))

    def test_serversOfRule(self) -> None:
        """The device may be at any server, unless the rule names servers."""
        self.raspi.unplug("1-1.4")
        self.bench.plug(MOVED)
        self.begin()
        self.assertEqual(self.attached, ["bench 2-7"])
        self.reload(RULE.replace("}", ", servers: [raspi]}"))
        self.soon(lambda: not self.attached)
        self.raspi.plug(UNO)
        self.soon(lambda: self.attached == HERE)

    def test_selectors(self) -> None:
        """A word selects by bus id, ids, serial number or description; without criteria the name
        that the server gives the device does."""
        for rule, expected in (
            ("name: it, word: 1-1.4", HERE),
            ("name: it, word: '2341:0043'", HERE),
            (f"name: it, word: '{UNO.serial}'", HERE),
            ("name: it, word: arduino", HERE),
            ("name: uno", []),  # the server has no name for it
        ):
            self.begin(f"devices: [{{{rule}}}]\n")
            self.assertEqual(self.attached, expected, rule)
            self.reload("")
            self.assertEqual(self.attached, [])
            self.end()

    def test_oneDevicePerRule(self) -> None:
        """Rules with the same criteria have different devices, in the order of the rules."""
        self.bench.plug(changed(MOVED, serial="OTHER"))
        rules = ", ".join(f"{{name: {name}, id: '2341:0043'}}" for name in ("one", "two", "three"))
        self.begin(f"devices: [{rules}]\n")
        self.assertEqual(self.attached, ["bench 2-7", "raspi 1-1.4"])
        self.assertEqual(self.attachment("one").device.busId, "1-1.4")

    def test_inUse(self) -> None:
        """The device of another client is attached as soon as that client gives it back."""
        self.takeByOther()
        self.begin()
        self.network.sleep(10)
        self.assertEqual((self.attached, self.raspi.commands), ([], []))
        self.raspi.become("1-1.4", DeviceState.BOUND)
        self.assertLess(self.soon(lambda: self.attached), 0.1)

    def test_noFreePort(self) -> None:
        """Without a free port of vhci_hcd a device is attached when there is one."""
        rules = ", ".join(f"{{name: d{n}, bus: 1-{n}}}" for n in range(10, 18))
        for number in range(10, 18):
            self.bench.plug(changed(STICK, busId=f"1-{number}", speed="12"))
        self.begin(f"devices: [{rules}]\n")
        self.assertEqual(len(self.attached), 6)  # two controllers with three ports each
        self.assertIn("no port of vhci_hcd is free", self.last("failed")["message"])
        self.network.sleep(20)
        self.bench.unplug("1-10")
        self.assertLess(self.soon(lambda: "bench 1-16" in self.attached), PROMISED)


class ReattachTests(ServiceCase):
    """
    A lost device is attached again.
    """

    def setUp(self) -> None:
        super().setUp()
        self.begin()
        self.network.sleep(10)

    def assertBack(self) -> None:
        """The device was lost, and is attached again in time."""
        self.soon(lambda: self.kinds[-2:] == ["lost", "attached"], PROMISED)

    def test_replugged(self) -> None:
        """A device that is unplugged is lost until it is plugged in, there or elsewhere."""
        self.raspi.unplug("1-1.4")
        self.network.sleep(30)
        self.assertEqual((self.attached, self.kinds[-1]), ([], "lost"))
        self.raspi.plug(UNO)
        self.assertBack()
        self.raspi.unplug("1-1.4")
        self.bench.plug(MOVED)
        self.assertBack()
        self.assertEqual(self.attached, ["bench 2-7"])

    def test_sessionEnded(self) -> None:
        """A session that ends at the server, or is ended here by hand, begins again."""
        self.raspi.release("1-1.4")
        self.assertBack()
        self.network.sleep(10)
        self.vhci.write(PORT, b"0")
        self.assertBack()

    def test_otherPort(self) -> None:
        """A port that the kernel still has to free is not used."""
        self.vhci.lingering = 10**6
        self.raspi.release("1-1.4")
        self.assertBack()
        self.assertEqual(self.vhci.used(), {1: "3-2"})

    def test_serverDaemonKilled(self) -> None:
        """A restart of the server's daemon ends no session."""
        self.raspi.cut(Answer.REFUSES)
        self.network.sleep(60)
        self.assertEqual((self.attached, self.kinds[-1]), (HERE, "disconnected"))
        self.raspi.restart()
        self.soon(lambda: self.kinds[-1] == "connected")
        self.network.sleep(5)
        self.assertEqual(self.kinds.count("lost"), 0)

    def test_serverRebooted(self) -> None:
        """After a reboot of the server, however long, the device is attached again."""
        for away in (1, 5, 60):
            self.raspi.forget("1-1.4")
            self.raspi.cut()
            self.network.sleep(away)
            self.assertEqual(self.attached, [])
            self.raspi.become("1-1.4", DeviceState.FREE)
            self.raspi.restart()
            self.assertLess(self.soon(lambda: self.attached), PROMISED)

    def test_networkDown(self) -> None:
        """The device is attached again if the network is back after both ends have ended."""
        self.raspi.cut()
        self.network.sleep(11)
        self.raspi.forget("1-1.4")
        self.network.sleep(2)
        self.raspi.become("1-1.4", DeviceState.BOUND)
        self.network.sleep(47)
        self.raspi.answer = Answer.ACCEPTS
        self.assertLess(self.soon(lambda: self.attached), PROMISED)

    def test_deadSessionAtServer(self) -> None:
        """When a session has ended here only, the server is asked to end it there, too."""
        before = len(self.raspi.tries)
        self.raspi.forget("1-1.4")
        self.network.sleep(0.5)
        self.assertGreater(len(self.raspi.tries), before)
        self.assertBack()
        self.assertIn(("release", "1-1.4"), self.raspi.commands)

    def test_deadSessionHere(self) -> None:
        """When a session has ended at the server only, it is ended here."""
        self.raspi.become("1-1.4", DeviceState.BOUND)
        self.assertBack()
        self.assertEqual(len(self.vhci.used()), 1)

    def test_sessionOfOther(self) -> None:
        """The session of another client is not kicked."""
        self.network.sleep(1)
        self.takeByOther()
        self.raspi.turn()
        self.raspi.forget("1-1.4")
        self.network.sleep(30)
        self.assertEqual((self.attached, self.kinds[-1]), ([], "lost"))
        self.assertNotIn(("release", "1-1.4"), self.raspi.commands)


class IdentityTests(ServiceCase):
    """
    A requested device is attached again, and no other device.
    """

    def replugged(self, first: UsbDevice, second: UsbDevice, isBoth: bool = False) -> list[str]:
        """
        The devices that are attached after one was requested and unplugged.

        @param second: is plugged in then, or (C{isBoth}) before that.
        """
        self.raspi.unplug("1-1.4")
        self.file.state = Requests()
        self.begin("")
        self.raspi.plug(first)
        self.network.settle()
        self.ask("attach", id=first.busId)
        if isBoth:
            self.raspi.plug(second)
            self.network.settle()
        self.raspi.unplug(first.busId)
        self.network.settle()
        if not isBoth:
            self.raspi.plug(second)
        self.network.sleep(PROMISED)
        attached = self.attached
        self.end()
        for device in (first, second):
            self.raspi.unplug(device.busId)
        return attached

    def test_whichDevice(self) -> None:
        """A device with a serial number is recognized at any port, unless the serial number is a
        filler, or another device with the same one was seen; one without at its port only."""
        elsewhere, path = "1-3", "pci-0000:00:14.0-usb-0:1.4"
        board = changed(UNO, manufacturer="Arduino", product="Uno")
        for first, changes, isBoth, expected in (
            (board, {"busId": elsewhere}, False, True),
            (board, {"busId": elsewhere, "product": "Mega"}, False, False),
            (board, {"busId": elsewhere}, True, False),
            (changed(board, serial="0001"), {"busId": elsewhere}, False, False),
            (changed(board, serial="0001"), {}, False, True),
            (changed(board, serial=None), {"busId": elsewhere}, False, False),
            (changed(board, serial=None), {}, False, True),
            (changed(board, serial=None, path=path), {"busId": elsewhere}, False, True),
            (changed(board, serial=None, path=path), {"path": f"{path}.1"}, False, False),
        ):
            second = changed(first, **changes)
            attached = self.replugged(first, second, isBoth)
            self.assertEqual(attached, [f"raspi {second.busId}"] if expected else [], changes)

    def test_bounded(self) -> None:
        """Of the requests for devices that are not attached the oldest are forgotten, with a
        warning, and never one whose device is attached."""
        self.begin("")
        self.ask("attach", id="1-1.4")
        desired = self.core.desired
        for number in range(REMEMBERED + 1):
            device = changed(STICK, busId="1-9", serial=f"AB{number}")
            found = RemoteDevice(server=self.attachment(self.uno).server, device=device, raw={})
            desired.request(found, None, self.isAttached)
        saved = [each.serial for each in self.file.state.requests]
        self.assertEqual((len(saved), saved[:2]), (REMEMBERED, [UNO.serial, "AB2"]))

    @property
    def uno(self) -> str:
        """The name of the request for the board."""
        return next(each.desired.name for each in self.core.attachments)

    def isAttached(self, name: str) -> bool:
        """Is a device attached for a request?"""
        return self.core.attachments.of(name) is not None

    def test_earlierStateFile(self) -> None:
        """Requests that were saved without strings and ports are for the device, which is
        attached; where it is then is saved."""
        text: dict[str, object] = {
            "server": "raspi",
            "vendor_id": UNO.vendorId,
            "product_id": UNO.productId,
        }
        text |= {"serial": UNO.serial, "bus_id": "9-9", "description": "a board"}
        self.file.state = msgspec.convert({"version": 1, "requests": [text]}, Requests)
        self.begin("")
        self.assertEqual(self.attached, HERE)
        (saved,) = self.file.state.requests
        self.assertEqual(saved.busId, "1-1.4")


class TwinTests(ServiceCase):
    """
    Requested devices with the same serial number.
    """

    def request(self, *others: UsbDevice, **fields: object) -> None:
        """Start the service, and request a device for a program."""
        for device in (changed(UNO, **fields), *others):
            self.raspi.plug(device)
        self.begin("")
        self.network.sleep(10)
        self.ask("attach", id="1-1.4")
        self.soon(lambda: self.attached == HERE)

    def pass_(self) -> list[str]:
        """What is attached after some time."""
        self.network.sleep(30)
        return self.attached

    def test_twins(self) -> None:
        """Two devices with the same serial number are recognized at their ports, also when only
        one of them is plugged in, and after a restart. The session is not disturbed when the
        second one is plugged in."""
        self.request()
        self.raspi.plug(MOVED)
        self.assertEqual(self.pass_(), HERE)
        self.assertNotIn("lost", self.kinds)
        self.raspi.unplug("1-1.4")
        self.assertEqual(self.pass_(), [])
        self.end()
        self.begin("")
        self.assertEqual(self.pass_(), [])
        self.raspi.plug(UNO)
        self.assertEqual(self.pass_(), HERE)

    def test_bothTwins(self) -> None:
        """Both of two devices with the same serial number can be requested."""
        self.request(MOVED)
        self.ask("attach", id="2-7")
        self.assertEqual(self.pass_(), [*HERE, "raspi 2-7"])
        self.assertEqual(len(self.file.state.requests), 2)


class RetryTests(ServiceCase):
    """
    A device that cannot be attached is tried again.
    """

    def test_backoff(self) -> None:
        """Each pause is twice as long as the one before, up to the longest; a reason is reported
        once."""
        self.raspi.refuse = OpStatus.DEV_ERR
        times: list[float] = []
        refused = self.network.importDevice

        def tried(*args: object) -> object:
            times.append(self.network.seconds())
            return refused(*args)  # type: ignore[arg-type]

        self.patch(attach, "importDevice", tried)
        self.begin()
        self.network.sleep(130)
        pauses = [round(b - a, 1) for a, b in pairwise(times)]
        self.assertEqual(pauses[:9], [0.2, 0.5, 1, 2, 4, 8, 16, 30, 30])
        self.assertEqual(self.kinds.count("failed"), 1)

    def test_changeEndsPause(self) -> None:
        """A change of the device ends the pause."""
        self.raspi.refuse = OpStatus.DEV_ERR
        self.begin()
        self.network.sleep(60)
        self.raspi.refuse = None
        self.raspi.become("1-1.4", DeviceState.FREE)
        self.assertLess(self.soon(lambda: self.attached), PROMISED)

    def test_refusedByKernel(self) -> None:
        """What this machine's kernel refuses is tried again as well."""
        self.vhci.refuse = errno.EACCES
        self.begin()
        self.assertIn("only root", self.last("failed")["message"])
        self.network.sleep(60)
        self.vhci.refuse = 0
        self.assertLess(self.soon(lambda: self.attached, 31), 31)

    def test_hangingDevice(self) -> None:
        """A device that hangs in the kernel delays no other, and is attached when it does not hang
        any more."""
        self.network.hold = True
        rules = f"devices: [{{name: uno, serial: {UNO.serial}}}, {{name: stick, bus: 1-2}}]\n"
        self.begin(rules, isSettled=False)
        self.network.threads.pop(0)()  # lists the ports
        self.network.settle()
        self.assertEqual(len(self.network.threads), 2)
        hanging = self.network.threads.pop(0)
        self.network.threads.pop(0)()
        self.network.settle()
        self.assertEqual(self.attached, ["raspi 1-2"])
        self.network.sleep(26)
        reasons = {event["message"] for event in self.events if event["event"] == "failed"}
        self.assertIn("the kernel takes too long: see dmesg", reasons)
        self.network.hold = False
        hanging()
        self.network.settle()
        self.assertLess(self.soon(lambda: len(self.attached) == 2, 31), 31)
        self.assertEqual(len(self.vhci.used()), 2)

    def test_lostAtOnce(self) -> None:
        """A session that ends at once counts as a failure."""
        self.begin()
        for _ in range(20):
            self.soon(lambda: self.attached, 31)
            self.raspi.release("1-1.4")
            self.network.settle()
        self.assertGreater(self.soon(lambda: self.attached, 31), 4)


class ReloadTests(ServiceCase):
    """
    After a reload the devices fit the new configuration.
    """

    def setUp(self) -> None:
        super().setUp()
        self.begin()

    def test_removedRule(self) -> None:
        """The device of a removed rule is detached, and unbound if it was bound for the rule."""
        self.reload("")
        self.assertEqual((self.attached, self.vhci.used()), ([], {}))
        self.assertEqual(self.raspi.commands, [("bind", "1-1.4"), ("unbind", "1-1.4")])

    def test_detachFails(self) -> None:
        """A device that cannot be detached is not lost, and tried again."""
        self.vhci.refuse = errno.EACCES
        self.reload("")
        self.network.sleep(20)
        self.assertEqual((self.attached, self.kinds.count("lost")), (HERE, 0))
        self.assertLess([name for name, _ in self.vhci.writes].count("detach"), 9)
        self.vhci.refuse = 0
        self.soon(lambda: not self.attached, 31)
        self.assertEqual((self.kinds.count("lost"), self.vhci.used()), (1, {}))

    def test_endsWhileDetachFails(self) -> None:
        """The end of its session is noticed all the same."""
        self.vhci.refuse = errno.EACCES
        self.reload("")
        self.raspi.unplug("1-1.4")
        self.assertLess(self.soon(lambda: "lost" in self.kinds), PROMISED)
        self.assertEqual(self.attached, [])

    def test_stillDesired(self) -> None:
        """A device that is still desired stays attached, whatever else has changed."""
        self.reload("timeouts: {attach: 20}\n" + RULE.replace("}", ", symlink: false}"))
        token = f"servers: {{raspi: {{host: {RASPI}, token: abc}}, more: {{host: {BENCH}}}}}\n"
        self.reload(RULE, token)
        self.network.sleep(5)
        self.assertEqual((self.attached, self.kinds.count("lost")), (HERE, 0))

    def test_otherDeviceOrServer(self) -> None:
        """A rule that selects another device has that; the device of a removed server is
        detached."""
        self.reload("devices: [{name: uno, bus: 1-2}]\n")
        self.soon(lambda: self.attached == ["raspi 1-2"])
        self.reload(RULE, SERVERS.replace("raspi", "other").replace(RASPI, BENCH))
        self.soon(lambda: self.attached == [])


class AdoptionTests(ServiceCase):
    """
    A device that was attached before the start of the service is adopted.
    """

    def setUp(self) -> None:
        super().setUp()
        self.begin()
        self.end()

    def test_adopted(self) -> None:
        """Nothing is written to the kernel, so no program notices anything."""
        self.assertEqual(self.vhci.used(), {0: "3-1"})
        self.begin()
        self.assertEqual(self.attached, HERE)
        self.assertIsNone(self.attachment().connection)
        self.assertEqual(self.attachment().nodes, (f"{self.folder}/dev/ttyUSB0",))
        self.assertEqual([name for name, _ in self.vhci.writes], ["attach"])

    def test_endOfAdopted(self) -> None:
        """The end of its session is noticed by polling, and it is attached again."""
        self.begin()
        self.network.sleep(10)
        self.raspi.release("1-1.4")
        self.assertLess(self.soon(lambda: "lost" in self.kinds), 1.5)
        self.soon(lambda: self.attached)
        self.assertIsNotNone(self.attachment().connection)

    def test_repluggedMeanwhile(self) -> None:
        """A device that was replugged meanwhile is attached again."""
        self.raspi.unplug("1-1.4")
        self.raspi.plug(UNO)
        self.begin()
        self.soon(lambda: self.attached)
        self.assertIsNotNone(self.attachment().connection)

    def test_serverNotConnected(self) -> None:
        """Its server has 10 s to identify it; then the device of another server is attached."""
        self.bench.plug(MOVED)
        self.raspi.cut()
        self.begin()
        self.network.sleep(3)
        self.assertEqual(self.attached, [])
        self.raspi.answer = Answer.ACCEPTS
        self.soon(lambda: self.attached == HERE)
        self.assertIsNone(self.attachment().connection)
        self.end()
        self.raspi.cut()
        self.begin()
        self.soon(lambda: self.attached == ["bench 2-7"], 12)

    def test_notDesired(self) -> None:
        """A device that is not desired is left alone."""
        self.begin("")
        self.assertEqual((self.attached, self.vhci.used()), ([], {0: "3-1"}))

    def test_noModule(self) -> None:
        """Without the kernel module the service runs, and reports what is missing."""
        self.raspi.release("1-1.4")
        self.vhci.loaded = self.vhci.loadable = False
        self.begin()
        self.assertIn("sudo modprobe", self.last("failed")["message"])


class SymlinkTests(ServiceCase):
    """
    The symlinks to device nodes.
    """

    def test_names(self) -> None:
        """The first node has the name of the rule, the others a number; they are removed with the
        device."""
        self.vhci.becomes = vhci.DISK
        self.begin()
        self.assertEqual(self.symlinks, {"uno": "sda", "uno-1": "sda1", "uno-2": "sg0"})
        self.raspi.unplug("1-1.4")
        self.network.settle()
        self.assertEqual(self.symlinks, {})

    def test_lateNodes(self) -> None:
        """Nodes that appear late get symlinks, and an event is recorded."""
        self.vhci.probing = 10**6
        self.begin()
        self.assertEqual(self.symlinks, {})
        for port in self.vhci._ports:
            port.probing = 0
        self.network.sleep(2)
        self.assertEqual(self.symlinks, {"uno": "ttyUSB0"})
        self.assertEqual(self.kinds[-2:], ["attached", "nodes"])

    def test_restart(self) -> None:
        """They stay while the service does not run, and are correct when it has started."""
        for isUnplugged in (False, True):
            self.begin()
            self.assertEqual(self.symlinks, {"uno": "ttyUSB0"})
            self.end()
            self.assertEqual(self.symlinks, {"uno": "ttyUSB0"})
            if isUnplugged:
                self.raspi.unplug("1-1.4")
                self.vhci.used()
        self.begin()
        self.assertEqual(self.symlinks, {})

    def test_otherFiles(self) -> None:
        """Other files in the directory stay."""
        (self.folder / "links").mkdir()
        for name in ("unosix", "uno-x", "other"):
            (self.folder / "links" / name).symlink_to("/dev/null")
        (self.folder / "links" / "uno-7").touch()
        self.begin()
        self.reload("")
        names = {path.name for path in (self.folder / "links").iterdir()}
        self.assertEqual(names, {"unosix", "uno-x", "other", "uno-7"})

    def test_reload(self) -> None:
        """They follow the name of the rule, C{symlink} and C{links}."""
        self.begin(RULE.replace("}", ", symlink: false}"))
        self.assertEqual(self.symlinks, {})
        self.reload(RULE)
        self.assertEqual(self.symlinks, {"uno": "ttyUSB0"})
        self.reload(RULE.replace("uno", "board"))
        self.soon(lambda: self.symlinks == {"board": "ttyUSB0"})
        settings = self.read(RULE.replace("uno", "board"))
        moved = f"{self.folder}/moved"
        self.core.reload(msgspec.structs.replace(settings.config, links=moved), settings.servers)
        self.assertEqual((self.symlinks, os.listdir(moved)), ({}, ["board"]))
        self.reload(RULE.replace("uno", "board").replace("}", ", symlink: false}"))
        self.assertEqual((self.symlinks, os.listdir(moved)), ({}, []))

    def test_noDirectory(self) -> None:
        """Devices are attached even if the directory cannot be made."""
        (self.folder / "links").touch()
        self.begin()
        self.assertEqual(self.attached, HERE)
