"""
L{usbip_server.server.metrics}, on a whole core.
"""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

from twisted.trial.unittest import SkipTest
from zope.interface import directlyProvides

from tests.server.corecase import CoreTestCase, lease
from tests.support.fixtures import ALICE, BOB, DEVICES, STICK, PatientBackend, asked
from usbip_server.interfaces import IHasSlots
from usbip_server.model.errors import BackendUnavailable, NotAllowed
from usbip_server.model.policy import Grant, Policy, Right, Who
from usbip_server.net.caller import Caller
from usbip_server.server.responder import Responder

ALICE_ONLY = Policy(
    principals={"alice": Who(address=ALICE.address)},
    allow=(
        Grant(who="anyone", commands=(Right.LIST, Right.WATCH)),
        Grant(who="alice", commands=Right.METRICS),
    ),
)


class MetricsTests(CoreTestCase):
    """
    The page of metrics.
    """

    devices = DEVICES

    def page(self) -> dict[str, float]:
        """The samples, without histograms."""
        text = self.successResultOf(asked(self.core.monitor.metrics(Caller(ALICE), None))).decode()
        self.check(text)
        rows = (line.rpartition(" ") for line in text.splitlines() if line[0] != "#")
        return {name.removeprefix("usbipshare_"): float(value) for name, _, value in rows}

    def check(self, page: str) -> None:
        """Prometheus' own linter accepts a page."""
        promtool = shutil.which("promtool")
        if promtool is None:
            raise SkipTest("apt-get install prometheus")
        subprocess.run(
            [promtool, "check", "metrics"], input=page, text=True, timeout=60, check=True
        )

    def answer(self, *requests: str) -> None:
        """Have requests answered."""
        responder = Responder(self.core.dispatcher, self.core.requests)
        for request in requests:
            raw, caller = request.encode(), Caller(BOB)
            if responder.atOnce(raw, caller) is None:
                self.successResultOf(asked(responder.to(raw, caller)))

    def test_devices(self) -> None:
        """Devices are counted by state, and so are leases, sessions and waiting clients."""
        self.start()
        self.done("attach", lease=lease("ci"))
        self.done("attach", id=STICK.busId)
        self.take(STICK.busId)
        self.ask("attach", Caller(BOB, lasts=True), id=STICK.busId, wait=60)
        page = self.page()
        states = {state: page[f'devices{{state="{state}"}}'] for state in ("free", "bound")}
        self.assertEqual(states, {"free": 1, "bound": 1})
        self.assertEqual(page['devices{state="in_use"}'], 1)
        for name, value in (("leases", 1), ("desired_devices", 2), ("sessions", 1)):
            self.assertEqual(page[name], value, name)
        self.assertEqual(page["queue_clients"], 1)
        self.assertEqual(page["watchers"], 1)

    def test_requests(self) -> None:
        """Requests are counted by command and status."""
        self.start(access=ALICE_ONLY)
        self.answer(
            '{"command":"list"}',
            '{"command":"list","keep_alive":true}',
            '{"command":"attach","id":"1-1"}',
            "{}",
        )
        page = self.page()
        for command, status, count in (
            ("list", "success", 2),
            ("attach", "refused", 1),
            ("invalid", "error", 1),
        ):
            name = f'requests_total{{command="{command}",status="{status}"}}'
            self.assertEqual(page[name], count, name)
        self.assertEqual(page['request_duration_seconds_count{command="attach"}'], 1)
        self.assertNotIn('request_duration_seconds_count{command="list"}', page)

    def test_slots(self) -> None:
        """A backend that can bind only so many devices says how many it has bound."""
        self.start()
        self.assertNotIn('usbip_host_slots{which="used"}', self.page())
        directlyProvides(self.backend, IHasSlots)
        backend: Any = self.backend

        async def usedSlots() -> int | None:
            return 3

        backend.slots, backend.usedSlots = 16, usedSlots
        page = self.page()
        self.assertEqual(page['usbip_host_slots{which="used"}'], 3)
        self.assertEqual(page['usbip_host_slots{which="all"}'], 16)

    def test_allowed(self) -> None:
        """The metrics and the health are for those who have the right C{metrics}."""
        self.start(access=ALICE_ONLY)
        self.page()
        self.core.monitor.health(Caller(ALICE), None)
        bob = Caller(BOB)
        self.failureResultOf(asked(self.core.monitor.metrics(bob, None)), NotAllowed)
        self.assertRaises(NotAllowed, self.core.monitor.health, bob, None)


class HealthTests(CoreTestCase):
    """
    The health.
    """

    backendClass = PatientBackend

    def test_trouble(self) -> None:
        """Without a working backend the daemon is not healthy, and says why."""
        self.start()
        self.core.monitor.health(Caller(ALICE), None)
        self.backend.inventory.trouble = "the module usbip-host is not loaded"
        error = self.assertRaises(BackendUnavailable, self.core.monitor.health, Caller(ALICE), None)
        self.assertIn("usbip-host is not loaded", str(error))
