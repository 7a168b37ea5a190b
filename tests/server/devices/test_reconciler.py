"""
Tests of L{usbip_server.server.devices.reconciler}: devices are kept as they are wanted.
"""

from __future__ import annotations

from itertools import pairwise

from tests.server.desiredcase import ALWAYS, NEVER, DesiredTestCase
from tests.support.fixtures import EVERYBODY, STICK, UNO, PatientBackend, asked, changed
from usbip_server.model.device import DeviceState
from usbip_server.model.devicerules import Match, Rule, Share
from usbip_server.model.errors import DeviceMounted, DeviceNotFound, OperationFailed
from usbip_server.server.config import OnStop, Settings
from usbip_server.server.devices.reconciler import DRIVER_SECONDS, RETRY

FREE, BOUND, IN_USE = DeviceState.FREE, DeviceState.BOUND, DeviceState.IN_USE
UNOS = Rule(match=Match(id="2341:0043"), name="uno", share=Share.ALWAYS)


class AlwaysTests(DesiredTestCase):
    """
    C{share: always}.
    """

    devices = (UNO, STICK)

    def test_start(self) -> None:
        """Devices with C{share: always} are bound at the start."""
        self.start(UNOS)
        self.assertEqual((self.state(), self.state("1-2")), (BOUND, FREE))

    def test_plug(self) -> None:
        """They are bound when they are plugged in, each time."""
        self.start(ALWAYS)
        for _ in range(3):
            self.unplug()
            self.plug()
            self.assertIs(self.state(), BOUND)

    def test_otherIds(self) -> None:
        """
        With a rule for a port, a device with other ids there is bound too, such as a board
        that is flashed.
        """
        self.start(Rule(match=Match(bus="1-1.4"), share=Share.ALWAYS))
        self.unplug()
        self.plug(productId="0036", serial=None, description="Arduino SA Uno (bootloader)")
        self.assertIs(self.state(), BOUND)
        self.plug()
        self.assertIs(self.state(), BOUND)

    def test_driverFirst(self) -> None:
        """A new device is bound when its own driver has taken it."""
        self.start(ALWAYS)
        fresh = self.plug(STICK, busId="1-3", driver=None)
        self.assertIs(self.state("1-3"), FREE)
        self.sleep(DRIVER_SECONDS / 2)
        self.backend.inventory.replace([changed(fresh, driver="usb")], {"1-3"})
        self.assertIs(self.state("1-3"), BOUND)

    def test_noDriver(self) -> None:
        """A device that no driver takes is bound after a second."""
        self.start(ALWAYS)
        self.plug(STICK, busId="1-3", driver=None)
        self.sleep(DRIVER_SECONDS)
        self.assertIs(self.state("1-3"), BOUND)

    def test_adopt(self) -> None:
        """A device that is bound or in use already is left as it is."""
        self.backend.inventory.replace([changed(UNO, state=IN_USE), changed(STICK, state=BOUND)])
        self.start(ALWAYS)
        self.assertEqual(self.backend.calls, [])
        self.assertEqual((self.state(), self.state("1-2")), (IN_USE, BOUND))

    def test_detached(self) -> None:
        """A device that a client has detached stays unbound until it is plugged in again."""
        self.start(UNOS)
        self.done("detach")
        self.sleep(100)
        self.assertIs(self.state(), FREE)
        self.plug()
        self.assertIs(self.state(), BOUND)

    def test_detachedThenAttached(self) -> None:
        """It is bound again when a client attaches it."""
        self.start(UNOS)
        self.done("detach")
        self.done("attach")
        self.assertIs(self.state(), BOUND)

    def test_detachedThenRestarted(self) -> None:
        """It is bound again when the daemon is restarted."""
        self.start(UNOS)
        self.done("detach")
        self.restart(UNOS)
        self.assertIs(self.state(), BOUND)

    def test_broken(self) -> None:
        """A device that usbip-host could not reset is bound again."""
        self.start(UNOS)
        device = self.backend.inventory.get(UNO.busId)
        assert device is not None
        self.backend.inventory.replace(
            [changed(device, state=DeviceState.ERROR, trouble="t")], {UNO.busId}
        )
        self.assertIs(self.state(), BOUND)

    def test_mounted(self) -> None:
        """A mounted disk is bound only with C{allow_mounted}."""
        self.start(Rule(match=Match(bus="*"), name="d", share=Share.ALWAYS, allow_mounted=True))
        self.assertTrue(self.backend.allowMounted)
        self.restart(ALWAYS)
        self.plug()
        self.assertFalse(self.backend.allowMounted)


class NeverTests(DesiredTestCase):
    """
    C{share: never}.
    """

    devices = (UNO, STICK)

    def test_notShown(self) -> None:
        """A device with C{share: never} is not listed, cannot be selected, and has no events."""
        self.start(Rule(match=Match(desc="uno"), share=Share.NEVER))
        self.assertEqual([device.busId for device in self.listed()], ["1-2"])
        for command in ("find", "attach", "detach", "kick"):
            self.refused(DeviceNotFound, command)
        self.unplug()
        self.plug()
        self.assertEqual(self.heard, [])
        self.assertEqual(self.backend.calls, [])

    def test_notNamed(self) -> None:
        """It does not make criteria ambiguous."""
        self.start(Rule(match=Match(desc="uno"), share=Share.NEVER))
        self.assertEqual(self.done("find", bus=1).busId, "1-2")

    def test_foreign(self) -> None:
        """If another program has bound it, it is left as it is."""
        self.backend.inventory.replace([changed(UNO, state=BOUND)])
        self.start(NEVER)
        self.assertEqual(self.backend.calls, [])


class ReloadTests(DesiredTestCase):
    """
    Rules that change while the daemon runs.
    """

    devices = (UNO, STICK)

    def become(self, *rules: Rule) -> None:
        """Other rules."""
        self.core.reload(Settings(access=EVERYBODY, devices=rules))

    def test_always(self) -> None:
        """A device that becomes C{share: always} is bound."""
        self.start()
        self.assertIs(self.state(), FREE)
        self.become(UNOS)
        self.assertIs(self.state(), BOUND)

    def test_onRequest(self) -> None:
        """A device that becomes C{share: on_request} stays bound."""
        self.start(UNOS)
        self.become()
        self.assertIs(self.state(), BOUND)
        self.plug()
        self.assertIs(self.state(), FREE)

    def test_name(self) -> None:
        """A new name is shown at once, with an event."""
        self.start()
        self.become(Rule(match=Match(desc="uno"), name="blinky"))
        self.assertEqual(self.done("find", id="blinky").busId, UNO.busId)
        self.assertEqual(self.heard, [("changed", UNO.busId)])

    def test_never(self) -> None:
        """A device that becomes C{share: never} disappears for clients, and is unbound."""
        self.start(UNOS)
        self.become(NEVER)
        self.assertEqual(self.listed(), ())
        self.assertIn(("removed", UNO.busId), self.heard)
        self.assertIs(self.state(), FREE)

    def test_neverInUse(self) -> None:
        """If it is in use it is unbound after the session."""
        self.start(UNOS)
        self.take()
        self.become(NEVER)
        self.assertIs(self.state(), IN_USE)
        self.giveBack()
        self.assertIs(self.state(), FREE)

    def test_shownAgain(self) -> None:
        """A device that is shared again is shown again."""
        self.start(NEVER)
        self.become()
        self.assertEqual([d.busId for d in self.listed()], [UNO.busId, STICK.busId])
        self.assertEqual(self.heard, [("added", UNO.busId), ("added", STICK.busId)])


class RememberedTests(DesiredTestCase):
    """
    What clients have attached.
    """

    devices = (UNO, STICK)

    def test_replug(self) -> None:
        """An attached device is bound again when it is plugged in again, until it is detached."""
        self.start()
        self.done("attach")
        self.unplug()
        self.plug()
        self.assertIs(self.state(), BOUND)
        self.done("detach")
        self.plug()
        self.assertIs(self.state(), FREE)

    def test_otherPort(self) -> None:
        """So it is at another port, if it has a serial number."""
        self.start()
        self.done("attach")
        self.unplug()
        self.plug(busId="2-3")
        self.assertIs(self.state("2-3"), BOUND)

    def test_otherDevice(self) -> None:
        """Another device at its port is not bound."""
        self.start()
        self.done("attach")
        self.unplug()
        self.plug(STICK, busId=UNO.busId)
        self.assertIs(self.state(), FREE)

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
        self.plug(busId="2-3")
        self.assertIs(self.state("2-3"), FREE)
        self.plug(busId="2-3")
        self.assertEqual((self.state(), self.state("2-3")), (BOUND, FREE))

    def test_restart(self) -> None:
        """Attached devices are remembered over a restart, whatever happens meanwhile."""
        self.start()
        self.done("attach")
        self.unplug()
        self.plug()
        for device in self.backend.inventory.snapshot.devices:
            self.backend.inventory.replace([changed(device, state=FREE)], {device.busId})
        self.restart()
        self.assertEqual((self.state(), self.state("1-2")), (BOUND, FREE))

    def test_notRemembered(self) -> None:
        """With C{remember: false} they are remembered only while they are plugged in."""
        self.start(remember=False)
        self.done("attach")
        self.assertEqual(self.file.state.devices, ())
        self.unplug()
        self.plug()
        self.assertIs(self.state(), FREE)

    def test_failedAttach(self) -> None:
        """A failed attach is not remembered."""
        self.backend = PatientBackend(self.devices)
        self.start()
        result = self.ask("attach")
        self.backend.calls[0].fail(OperationFailed(UNO, "no"))
        self.failureResultOf(result, OperationFailed)
        self.assertEqual(self.file.state.devices, ())
        self.plug()
        self.assertEqual(len(self.backend.calls), 1)

    def test_failedLate(self) -> None:
        """Nor is one that failed after its reply."""
        self.backend = PatientBackend(self.devices)
        self.start()
        result = self.ask("attach")
        self.sleep(2)
        self.failureResultOf(result, OperationFailed)
        self.assertEqual(len(self.file.state.devices), 1)
        self.backend.calls[0].fail(OperationFailed(UNO, "no"))
        self.assertEqual(self.file.state.devices, ())


class TroubleTests(DesiredTestCase):
    """
    Binds that fail.
    """

    def setUp(self) -> None:
        super().setUp()
        self.backend = PatientBackend(self.devices)
        self.start(ALWAYS)

    def test_again(self) -> None:
        """A failed bind is retried after growing pauses."""
        times = []
        for _ in range(9):
            times.append(self.clock.seconds())
            self.backend.calls[-1].fail(DeviceMounted(UNO, ["/dev/sda1 is mounted on /"]))
            before = len(self.backend.calls)
            while len(self.backend.calls) == before:
                self.clock.advance(0.5)
        pauses = [after - before for before, after in pairwise(times)]
        self.assertEqual(pauses, [1, 2, 4, 8, 16, 32, RETRY.longest, RETRY.longest])

    def test_success(self) -> None:
        """The retries end with a success."""
        self.backend.calls[-1].fail(OperationFailed(UNO, "no"))
        self.clock.advance(1)
        self.backend.calls[-1].succeed()
        self.sleep(200)
        self.assertEqual(len(self.backend.calls), 2)

    def test_unplugged(self) -> None:
        """They end when the device is unplugged; then no timer is left."""
        self.backend.calls[-1].fail(OperationFailed(UNO, "no"))
        self.unplug()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_oneAtATime(self) -> None:
        """While a bind is in progress no other is begun."""
        device = self.backend.inventory.get(UNO.busId)
        assert device is not None
        self.backend.inventory.replace([changed(device, product="x")], {UNO.busId})
        self.sleep(10)
        self.assertEqual(len(self.backend.calls), 1)

    def test_clientJoins(self) -> None:
        """A client that attaches the device meanwhile receives the outcome."""
        result = self.ask("attach")
        self.backend.calls[0].succeed()
        self.assertIs(self.successResultOf(result).state, BOUND)  # type: ignore[union-attr]
        self.assertEqual(len(self.backend.calls), 1)

    def test_newsForNobody(self) -> None:
        """A client does not receive the error of an earlier retry."""
        self.backend.calls[0].fail(OperationFailed(UNO, "no"))
        result = self.ask("attach")
        self.backend.calls[1].succeed()
        self.successResultOf(result)


class StopTests(DesiredTestCase):
    """
    C{on_stop}.
    """

    devices = (UNO, STICK)

    def test_keep(self) -> None:
        """With C{on_stop: keep} bound devices stay bound."""
        self.start(UNOS)
        self.stop()
        self.assertIs(self.state(), BOUND)

    def test_unbind(self) -> None:
        """
        With C{on_stop: unbind} the devices that the daemon has bound are unbound, and no
        others.
        """
        self.backend.inventory.replace([UNO, changed(STICK, state=BOUND)])
        self.start(UNOS, onStop=OnStop.UNBIND)
        self.stop()
        self.assertEqual((self.state(), self.state("1-2")), (FREE, BOUND))

    def test_unbindWished(self) -> None:
        """So are devices that an earlier daemon has bound for a client."""
        self.start()
        self.done("attach")
        self.restart(onStop=OnStop.UNBIND)
        self.stop()
        self.assertIs(self.state(), FREE)
        self.assertEqual(len(self.file.state.devices), 1)

    def stop(self) -> None:
        """Stop; nothing is left to be done."""
        self.successResultOf(asked(self.core.stop()))
        self.assertEqual(self.clock.getDelayedCalls(), [])
