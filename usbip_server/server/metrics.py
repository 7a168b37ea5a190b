"""
What the daemon measures of itself, for C{GET /metrics} and C{GET /health}.
"""

from __future__ import annotations

import platform
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import twisted
from usbip_server import __version__
from usbip_server.interfaces import IHasSlots, IUsbBackend
from usbip_server.model.device import DeviceState
from usbip_server.model.errors import NotAllowed
from usbip_server.model.policy import Right
from usbip_server.model.replies import Status
from usbip_server.net.caller import Caller
from usbip_server.runtime.exposition import Histogram, Kind, Metric, Sample, page
from usbip_server.server.access.audit import Audit
from usbip_server.server.access.authorizer import Authorizer
from usbip_server.server.devices.events import DeviceEvents
from usbip_server.server.devices.view import DeviceView
from usbip_server.server.dispatcher import Readiness
from usbip_server.server.queue import WaitQueue

BOUNDS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 600.0)
"""Upper bounds, in seconds, of the buckets for the durations of requests: a bind takes some 10 ms,
a client waits 2 s for it, and hours for its turn."""

Measure = Callable[[], Iterator[Metric | Histogram]]
"""Returns the metrics of one part of the daemon, as they are now."""


class RequestMetrics:
    """
    Counts requests.
    """

    def __init__(self, seconds: Callable[[], float]) -> None:
        """
        @param seconds: the reactor's clock.
        """
        self.seconds = seconds
        self._answered: Counts[tuple[type | None, Status, bool]] = Counts()
        self._succeeded: dict[type, int] = {}
        self._durations = Histogram(
            "usbipshare_request_duration_seconds",
            "Time until the reply to a request that needs an operation or waits. list, find and "
            "watch are answered at once.",
            "command",
            BOUNDS,
        )

    def succeeded(self, kind: type) -> None:
        """Count a reply with success: a member of an enum takes long to hash."""
        self._succeeded[kind] = self._succeeded.get(kind, 0) + 1

    def answered(self, kind: type | None, status: Status, isForbidden: bool) -> None:
        """
        Count any other reply.

        @param kind: the class of the request; C{None}: it was not valid.
        """
        self._answered[kind, status, isForbidden] += 1

    def took(self, kind: type | None, seconds: float) -> None:
        """Record how long a reply took that did not come at once."""
        self._durations.observe(seconds, _nameOf(kind))

    def metrics(self) -> Iterator[Metric | Histogram]:
        """The counts so far."""
        yield Metric(
            "usbipshare_requests_total",
            Kind.COUNTER,
            "Requests by command (invalid: no valid request), and status of the reply (refused: "
            "an error because the client is not allowed it).",
            [
                *(
                    Sample(count, (_nameOf(kind), Status.SUCCESS.value))
                    for kind, count in self._succeeded.items()
                ),
                *(
                    Sample(count, (_nameOf(kind), "refused" if isForbidden else status.value))
                    for (kind, status, isForbidden), count in self._answered.items()
                ),
            ],
            ("command", "status"),
        )
        yield self._durations


def _nameOf(kind: type | None) -> str:
    return "invalid" if kind is None else str(cast("Any", kind).__struct_config__.tag)


class DaemonMetrics:
    """
    Collects the metrics of all parts.
    """

    def __init__(
        self,
        backend: IUsbBackend,
        view: DeviceView,
        events: DeviceEvents,
        queue: WaitQueue,
        others: Iterable[Measure],
    ) -> None:
        """
        @param others: return the metrics of other parts.
        """
        self._backend = backend
        self._view = view
        self._events = events
        self._queue = queue
        self._others = tuple(others)

    async def page(self) -> bytes:
        """All metrics, as they are now, in Prometheus' text format."""
        return page([*self._metrics(), *await self._slots()])

    def _metrics(self) -> Iterator[Metric | Histogram]:
        yield _gauge(
            "usbipshare_build_info",
            "The version of the daemon, and of what it runs on; the value is 1.",
            [Sample(1, (__version__, platform.python_version(), twisted.__version__))],
            ("version", "python", "twisted"),
        )
        yield from self._devices()
        yield from self._sessions()
        desired = list(self._view.desired)
        yield _value(
            "usbipshare_leases", "Leases in force.", sum(it.lease is not None for it in desired)
        )
        yield _value(
            "usbipshare_desired_devices", "Devices that clients have attached.", len(desired)
        )
        yield _value(
            "usbipshare_queue_clients", "Clients that wait for a device.", len(self._queue)
        )
        yield _value(
            "usbipshare_watchers",
            "Clients that receive events.",
            self._events.listeners - 1,  # the hooks
        )
        for measure in self._others:
            yield from measure()

    async def _slots(self) -> list[Metric]:
        if not IHasSlots.providedBy(self._backend):
            return []
        used = await cast("Any", self._backend).usedSlots()
        if used is None:
            return []
        return [
            _gauge(
                "usbipshare_usbip_host_slots",
                "Entries in the table of bus ids of the kernel's usbip-host driver.",
                [Sample(used, ("used",)), Sample(cast("Any", self._backend).slots, ("all",))],
                ("which",),
            )
        ]

    def _devices(self) -> Iterator[Metric]:
        states = Counts(device.state for device in self._view.devices)
        yield _gauge(
            "usbipshare_devices",
            "Devices that are plugged in, by state.",
            [Sample(states[state], (state.value,)) for state in DeviceState],
            ("state",),
        )

    def _sessions(self) -> Iterator[Metric]:
        held = [device for device in self._view.devices if device.holder is not None]
        yield _value("usbipshare_sessions", "Devices that a client has imported.", len(held))
        measured = [(device, self._view.traffic(device)) for device in held]
        yield Metric(
            "usbipshare_session_bytes_total",
            Kind.COUNTER,
            "Bytes of the sessions in progress: in comes from the client, out goes to it.",
            [
                Sample(count, (device.busId, device.name or "", direction))
                for device, traffic in measured
                if traffic is not None
                for direction, count in (("in", traffic.bytesIn), ("out", traffic.bytesOut))
            ],
            ("bus_id", "name", "direction"),
        )


def _gauge(name: str, help: str, samples: list[Sample], labels: tuple[str, ...] = ()) -> Metric:
    return Metric(name, Kind.GAUGE, help, samples, labels)


def _value(name: str, help: str, value: float) -> Metric:
    return _gauge(name, help, [Sample(value)])


class Monitor:
    """
    What operators read; see L{usbip_server.protocols.interfaces.IMonitor}.
    """

    def __init__(
        self,
        authorizer: Authorizer,
        readiness: Readiness,
        audit: Audit,
        metrics: DaemonMetrics,
    ) -> None:
        self._authorizer = authorizer
        self._readiness = readiness
        self._audit = audit
        self._metrics = metrics

    async def metrics(self, caller: Caller, token: str | None) -> bytes:
        """
        A page of metrics.

        @raise NotAllowed: the client may not read it.
        """
        self._authorize(caller, token)
        return await self._metrics.page()

    def health(self, caller: Caller, token: str | None) -> None:
        """
        @raise NotAllowed: the client may not ask.
        @raise BackendUnavailable: commands cannot be carried out at present; why.
        """
        self._authorize(caller, token)
        self._readiness.require()

    def _authorize(self, caller: Caller, token: str | None) -> None:
        principal = caller.peer
        try:
            principal = self._authorizer.identify(caller.peer, token)
            self._authorizer.of(principal).require(Right.METRICS)
        except NotAllowed as error:
            self._audit.failed(principal, Right.METRICS, None, error)
            raise
