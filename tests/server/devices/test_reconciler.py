"""
Tests of L{usbip_server.server.devices.reconciler}: devices are bound and unbound as the
configuration and clients want it.
"""

from __future__ import annotations

from itertools import pairwise

from tests.server.corecase import (
    ALWAYS,
    BOUND,
    ERROR,
    FREE,
    IN_USE,
    NEVER,
    Client,
    CoreTestCase,
    PatientCoreTestCase,
)
from tests.support.fixtures import STICK, UNO, PatientBackend, changed
from usbip_server.model.device import OWN_STRINGS
from usbip_server.model.devicerules import Match, Rule, Share
from usbip_server.model.errors import DeviceMounted, DeviceNotFound, OperationFailed
from usbip_server.model.policy import Grant, Policy
from usbip_server.server.config import OnStop
from usbip_server.server.devices.reconciler import DRIVER_SECONDS, RETRY

UNOS = Rule(match=Match(id="2341:0043"), name="uno", share=Share.ALWAYS)
NEVER_UNO = Rule(match=Match(desc="uno"), share=Share.NEVER)


class TwoDevicesTestCase(CoreTestCase):
    """
    A core with two devices.
    """

    devices = (UNO, STICK)

    def assertStates(self, uno: object, stick: object) -> None:
        """The devices are in these states."""
        self.assertEqual((self.state(), self.state(STICK.busId)), (uno, stick))


class AlwaysTests(TwoDevicesTestCase):
    """
    C{share: always}.
    """

    def test_binds(self) -> None:
        """Such devices are bound at the start and each time they are plugged in."""
        self.start(UNOS)
        self.assertStates(BOUND, FREE)
        for _ in range(3):
            self.unplug()
            self.plug()
            self.assertStates(BOUND, FREE)

    def test_otherIds(self) -> None:
        """
        With a rule for a port, a device with other ids there is bound too, such as a board that
        is flashed.
        """
        self.start(Rule(match=Match(bus="1-1.4"), share=Share.ALWAYS))
        self.unplug()
        self.plug(productId="0036", serial=None, description="Arduino SA Uno (bootloader)")
        self.assertIs(self.state(), BOUND)
        self.plug()
        self.assertIs(self.state(), BOUND)

    def test_driverFirst(self) -> None:
        """A new device is bound when its own driver has taken it, or after a second."""
        self.start(ALWAYS)
        for isTaken in (True, False):
            fresh = self.plug(STICK, busId="1-3", driver=None)
            self.assertIs(self.state("1-3"), FREE)
            self.sleep(DRIVER_SECONDS / 2)
            if isTaken:
                self.become(fresh, driver="usb")
            else:
                self.assertIs(self.state("1-3"), FREE)
                self.sleep(DRIVER_SECONDS / 2)
            self.assertIs(self.state("1-3"), BOUND)
            self.unplug("1-3")

    def test_unboundByOthers(self) -> None:
        """A device that another program unbinds is bound when its own driver has it, or after a
        second, each time."""
        self.start(ALWAYS)
        for _ in range(3):
            self.become(state=FREE, driver=None)
            self.sleep(DRIVER_SECONDS / 2)
            self.assertIs(self.state(), FREE)
            self.become(state=FREE, driver="usb")
            self.assertIs(self.state(), BOUND)

    def test_adopts(self) -> None:
        """A device that is bound or in use already is left as it is."""
        self.become(state=IN_USE)
        self.become(STICK, state=BOUND)
        self.start(ALWAYS)
        self.assertEqual(self.verbs, [])
        self.assertStates(IN_USE, BOUND)

    def test_detached(self) -> None:
        """
        A device that a client has detached stays unbound until it is plugged in again, a client
        attaches it, or the daemon is restarted.
        """
        self.start(UNOS)
        for end in (self.plug, lambda: self.done("attach"), lambda: self.restart(UNOS)):
            self.done("detach")
            self.sleep(100)
            self.assertIs(self.state(), FREE)
            end()
            self.assertIs(self.state(), BOUND)

    def test_error(self) -> None:
        """A device that usbip-host could not reset is bound again."""
        self.start(UNOS)
        self.become(self.present(), state=ERROR, trouble="t")
        self.assertIs(self.state(), BOUND)

    def test_mounted(self) -> None:
        """A mounted disk is bound only with C{allow_mounted}."""
        self.start(Rule(match=Match(bus="*"), name="d", share=Share.ALWAYS, allow_mounted=True))
        self.assertTrue(self.backend.allowMounted)
        self.restart(ALWAYS)
        self.plug()
        self.assertFalse(self.backend.allowMounted)


class NeverTests(TwoDevicesTestCase):
    """
    C{share: never}.
    """

    def test_hidden(self) -> None:
        """
        Such a device is not listed, cannot be selected, does not make criteria ambiguous, and has
        no events.
        """
        self.start(NEVER_UNO)
        self.assertEqual([device.busId for device in self.listed()], ["1-2"])
        for command in ("find", "attach", "detach", "kick"):
            self.refused(DeviceNotFound, command)
        self.assertEqual(self.done("find", bus=1).busId, "1-2")
        self.unplug()
        self.plug()
        self.assertEqual((self.heard, self.verbs), ([], []))

    def test_unknownSerial(self) -> None:
        """
        A device whose serial number is not known yet is neither bound nor shown if a rule with
        C{never} has a serial number; it is when its serial number is another one.
        """
        secret = Rule(match=Match(serial="SECRET"), share=Share.NEVER)
        for serial, isShared in (("SECRET", False), (UNO.serial, True)):
            self.startAnew()
            self.backend.inventory.replace([changed(UNO, serial=None, unknown=("serial",))])
            self.restart(secret, ALWAYS)
            self.assertEqual((self.listed(), self.verbs), ((), []))
            self.become(serial=serial)
            self.assertEqual((len(self.listed()), len(self.verbs)), (isShared, isShared))

    def test_boundByOthers(self) -> None:
        """If another program has bound it, it is left as it is."""
        self.become(state=BOUND)
        self.start(NEVER)
        self.assertEqual(self.verbs, [])


class UnavailableTests(TwoDevicesTestCase):
    """
    Devices that cannot be selected, and why.
    """

    def test_reasons(self) -> None:
        """
        The error for a hub, for a device imported from another server and for an attached device
        that is not plugged in contains the reason; other errors do not.
        """
        self.start()
        hub = changed(STICK, busId="1-3", description="Hub", serial=None, trouble="is a hub")
        self.backend.inventory.excluded = {"1-3": hub}
        self.done("attach")
        self.unplug()
        for command in ("find", "attach", "kick", "detach"):
            message = self.refused(DeviceNotFound, command, id="1-3")
            self.assertEqual(message, "no device matches id='1-3': 1-3 (Hub) is a hub")
        message = self.refused(DeviceNotFound, "find", serial=UNO.serial)
        self.assertTrue(message.endswith(f": {UNO} was attached and is not plugged in now"))
        message = self.refused(DeviceNotFound, "find", id="7-*")
        self.assertEqual(message, "no device matches id='7-*'")
        waiting = Client()
        self.ask("attach", waiting, id="1-3", wait=60).addErrback(lambda _: None)
        self.assertIn("is a hub", waiting.told[0]["message"])

    def test_hidden(self) -> None:
        """The reason is not told to a client that may not see such a device."""
        deny = Grant(who="anyone", devices=Match(desc="hub"))
        self.start(access=Policy(allow=(Grant(who="anyone"),), deny=(deny,)))
        self.backend.inventory.excluded = {"1-3": changed(STICK, busId="1-3", description="Hub")}
        self.assertEqual(
            self.refused(DeviceNotFound, "find", id="1-3"), "no device matches id='1-3'"
        )


class ReloadTests(TwoDevicesTestCase):
    """
    Rules that change while the daemon runs.
    """

    def test_always(self) -> None:
        """A device that becomes C{share: always} is bound, and stays bound afterwards."""
        self.start()
        self.assertIs(self.state(), FREE)
        self.reload(UNOS)
        self.assertIs(self.state(), BOUND)
        self.reload()
        self.assertIs(self.state(), BOUND)
        self.plug()
        self.assertIs(self.state(), FREE)

    def test_name(self) -> None:
        """A new name is shown at once, with an event."""
        self.start()
        self.reload(Rule(match=Match(desc="uno"), name="blinky"))
        self.assertEqual(self.done("find", id="blinky").busId, UNO.busId)
        self.assertEqual(self.heard, [("changed", UNO.busId)])

    def test_never(self) -> None:
        """
        A device that becomes C{share: never} disappears for clients and is unbound, if it is in
        use after the session. When it is shared again it is shown again.
        """
        for isUsed in (False, True):
            self.startAnew(UNOS)
            if isUsed:
                self.take()
            self.reload(NEVER)
            self.assertEqual(self.listed(), ())
            self.assertIn(("removed", UNO.busId), self.heard)
            if isUsed:
                self.assertIs(self.state(), IN_USE)
                self.giveBack()
            self.assertIs(self.state(), FREE)
        self.heard.clear()
        self.reload()
        self.assertEqual([d.busId for d in self.listed()], [UNO.busId, STICK.busId])
        self.assertEqual(self.heard, [("added", UNO.busId), ("added", STICK.busId)])


class RememberedTests(TwoDevicesTestCase):
    """
    Devices that clients have attached.
    """

    def test_replug(self) -> None:
        """
        An attached device is bound again when it is plugged in again, also at another port if it
        has a serial number, until it is detached. Another device at its port is not bound.
        """
        self.start()
        self.done("attach")
        self.unplug()
        self.plug(STICK, busId=UNO.busId)
        self.assertIs(self.state(), FREE)
        for before, busId in ((UNO.busId, UNO.busId), (UNO.busId, "2-3")):
            self.unplug(before)
            self.plug(busId=busId)
            self.assertIs(self.state(busId), BOUND)
        self.done("detach", id="2-3")
        self.plug(busId="2-3")
        self.assertIs(self.state("2-3"), FREE)

    def test_withoutSerial(self) -> None:
        """A device without a serial number is recognized at its own port only."""
        self.start()
        self.plug(serial=None)
        self.done("attach")
        self.unplug()
        self.plug(serial=None, busId="2-3")
        self.assertIs(self.state("2-3"), FREE)
        self.plug(serial=None)
        self.assertIs(self.state(), BOUND)

    def test_twins(self) -> None:
        """Two devices with the same serial number are distinguished by their ports."""
        self.start()
        self.done("attach")
        for _ in range(2):
            self.plug(busId="2-3")
            self.assertEqual((self.state(), self.state("2-3")), (BOUND, FREE))

    def test_slowStrings(self) -> None:
        """
        An attached device that is plugged in again is bound when its serial number is known, and
        not before.
        """
        self.start()
        self.done("attach")
        for busId in ("1-1.4", "2-3"):
            self.unplug()
            self.plug(busId=busId, serial=None, unknown=OWN_STRINGS)
            self.assertIs(self.state(busId), FREE)
            self.become(self.present(busId), serial=UNO.serial, unknown=())
            self.assertIs(self.state(busId), BOUND)

    def test_restart(self) -> None:
        """Attached devices are remembered over a restart, whatever happens meanwhile."""
        self.start()
        self.done("attach")
        self.unplug()
        self.plug()
        for device in self.backend.inventory.snapshot.devices:
            self.become(device, state=FREE)
        self.restart()
        self.assertStates(BOUND, FREE)

    def test_notRemembered(self) -> None:
        """With C{remember: false} they are remembered only while they are plugged in."""
        self.start(remember=False)
        self.done("attach")
        self.assertEqual(self.file.state.devices, ())
        self.unplug()
        self.plug()
        self.assertIs(self.state(), FREE)

    def test_failed(self) -> None:
        """An attach that fails is not remembered, even after its reply."""
        self.backend = PatientBackend(self.devices)
        self.start()
        for seconds in (0, 2):
            result = self.ask("attach")
            self.sleep(seconds)
            if seconds:
                self.error(OperationFailed, result)
                self.assertEqual(len(self.file.state.devices), 1)
            self.fail_()
            if not seconds:
                self.error(OperationFailed, result)
            self.assertEqual(self.file.state.devices, ())
            before = len(self.verbs)
            self.plug()
            self.assertEqual(len(self.verbs), before)


class RetryTests(PatientCoreTestCase):
    """
    Binds that fail.
    """

    def setUp(self) -> None:
        super().setUp()
        self.start(ALWAYS)

    def test_pauses(self) -> None:
        """A failed bind is retried after growing pauses, until it succeeds."""
        times = []
        for _ in range(9):
            times.append(self.clock.seconds())
            self.fail_(-1, DeviceMounted(UNO, ["/dev/sda1 is mounted on /"]))
            before = len(self.verbs)
            while len(self.verbs) == before:
                self.clock.advance(0.5)
        pauses = [after - before for before, after in pairwise(times)]
        self.assertEqual(pauses, [1, 2, 4, 8, 16, 32, RETRY.longest, RETRY.longest])
        self.succeed()
        self.sleep(200)
        self.assertEqual(len(self.verbs), 10)

    def test_troubleIsOver(self) -> None:
        """A bind is retried at once when the device's trouble is over, such as when it has been
        authorized, and then after the first pause again."""
        self.become(self.present(), state=ERROR, trouble="not authorized")
        for pause in (0, 1, 2, 4):
            self.sleep(pause)
            self.fail_(-1)
        self.become(self.present(), state=FREE, trouble=None)
        self.fail_(-1)
        before = len(self.verbs)
        self.sleep(RETRY.first)
        self.assertEqual(len(self.verbs), before + 1)

    def test_unplugged(self) -> None:
        """The retries end when the device is unplugged; then no timer is left."""
        self.fail_()
        self.unplug()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_oneAtATime(self) -> None:
        """While a bind is in progress no other is begun; a client that attaches joins it."""
        self.become(self.present(), product="x")
        self.sleep(10)
        result = self.ask("attach")
        self.assertEqual(self.verbs, ["bind"])
        self.succeed(0)
        self.assertIs(self.device(result).state, BOUND)

    def test_oldError(self) -> None:
        """A client does not receive the error of an earlier retry."""
        self.fail_(0)
        result = self.ask("attach")
        self.succeed(1)
        self.device(result)


class StopTests(TwoDevicesTestCase):
    """
    C{on_stop}.
    """

    def test_keep(self) -> None:
        """With C{on_stop: keep} bound devices stay bound."""
        self.start(UNOS)
        self.stop()
        self.assertIs(self.state(), BOUND)

    def test_unbind(self) -> None:
        """
        With C{on_stop: unbind} the devices that the daemon has bound are unbound, also those that
        an earlier daemon has bound for a client, and no others.
        """
        self.become(STICK, state=BOUND)
        self.start(UNOS, onStop=OnStop.UNBIND)
        self.stop()
        self.assertStates(FREE, BOUND)
        self.startAnew()
        self.done("attach")
        self.restart(onStop=OnStop.UNBIND)
        self.stop()
        self.assertStates(FREE, FREE)
        self.assertEqual(len(self.file.state.devices), 1)
