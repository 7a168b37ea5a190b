"""
Tests of L{usbip_server.backends.remote.watch}, with a server that sends scripted lines.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from typing import Any

import msgspec
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs
from twisted.trial.unittest import TestCase

from tests.support.fixtures import MOUSE, UNO, changed
from tests.support.scriptedserver import Play, ScriptedServer
from usbip_server.backends.remote.watch import RemoteWatch
from usbip_server.client.devicereader import MOST_DEVICES
from usbip_server.client.watch import MOST_EVENTS
from usbip_server.model.device import DeviceState, Holder, Traffic, UsbDevice
from usbip_server.model.errors import Unreachable
from usbip_server.model.replies import Notice, Reply, Status, encodeDevices, holderFields
from usbip_server.model.usbip import encodeList

WHEN = "2026-11-25T17:56:00.123Z"
HOLDER = Holder(address="192.0.2.8", since=1.5)
MOVED = Traffic(bytesIn=40, bytesOut=320)

BOUND = changed(UNO, state=DeviceState.BOUND)
HELD = changed(UNO, state=DeviceState.IN_USE, holder=HOLDER)


def snapshot(seq: int, *devices: UsbDevice) -> bytes:
    """The answer to C{watch}."""
    data = encodeDevices(tuple(devices), True)
    return Reply(status=Status.SUCCESS, seq=seq, data=data).encode()


def event(kind: str, seq: int, device: UsbDevice, moved: Traffic | None = None) -> bytes:
    """An event."""
    return Notice(
        event=kind,
        seq=seq,
        time=WHEN,
        data=encodeDevices(device, True),
        holder=None if moved is None else holderFields(HOLDER, moved),
    ).encode()


def tells(*lines: bytes, stays: bool = True) -> Play:
    """A server that answers C{watch} with these lines, and then waits, or closes."""

    def play(connection: socket.socket) -> None:
        request = connection.makefile("rb").readline()
        assert json.loads(request)["command"] == "watch"
        for line in lines:
            connection.sendall(line)
        while stays and connection.recv(4096):
            pass

    return play


class FollowingTestCase(TestCase):
    """
    Watches a scripted server.
    """

    timeout = 300

    async def follow(self, play: Play, turns: int = 1) -> RemoteWatch:
        """
        Watch a server.

        @param turns: return after so many reports.
        """
        server = ScriptedServer(play)
        server.__enter__()
        self.addCleanup(deferToThread, server.__exit__, None, None, None)
        told: list[str | None] = []
        self.told = told
        enough: Deferred[None] = Deferred()

        def changed_(busId: str | None) -> None:
            told.append(busId)
            if len(told) == turns:
                enough.callback(None)

        watch = RemoteWatch(server.server, reactor, changed_, lambda: 0.0)
        self.addCleanup(watch.stop)
        watch.start()
        await enough
        return watch

    def devices(self, watch: RemoteWatch) -> Sequence[UsbDevice]:
        """The known devices."""
        return [known.device for known in watch.devices.values()]


class FollowingTests(FollowingTestCase):
    """
    The devices of a server.
    """

    async def test_snapshot(self) -> None:
        """All devices are known at once, with all details."""
        watch = await self.follow(tells(snapshot(10, UNO, MOUSE)))
        self.assertEqual(self.told, [None])
        self.assertIsNone(watch.trouble)
        self.assertEqual(self.devices(watch), [UNO, MOUSE])

    async def test_events(self) -> None:
        """Events change them."""
        watch = await self.follow(
            tells(
                snapshot(10, UNO),
                event("bound", 11, BOUND),
                event("added", 12, MOUSE),
                event("removed", 13, BOUND),
            ),
            turns=4,
        )
        self.assertEqual(self.told, [None, "1-1.4", "2-10", "1-1.4"])
        self.assertEqual(self.devices(watch), [MOUSE])

    async def test_order(self) -> None:
        """A state with a lower number than the known one is ignored, be it from an event or from a
        reply."""
        watch = await self.follow(
            tells(snapshot(10, UNO, MOUSE), event("removed", 9, UNO), event("removed", 11, MOUSE)),
            turns=2,
        )
        self.assertEqual(self.devices(watch), [UNO])
        bound = msgspec.json.decode(encodeDevices(BOUND, True))
        watch.learn("1-1.4", 15, bound)
        watch.learn("1-1.4", 14, None)
        self.assertEqual(self.devices(watch), [BOUND])
        watch.learn("1-1.4", 16, None)
        watch.learn("1-1.4", 15, bound)
        self.assertEqual(self.devices(watch), [])

    async def test_traffic(self) -> None:
        """Traffic that was reported is kept until there is another session."""
        watch = await self.follow(
            tells(
                snapshot(10, BOUND),
                event("imported", 11, HELD, Traffic(bytesIn=0, bytesOut=0)),
                event("released", 12, BOUND, MOVED),
                event("changed", 13, BOUND),
            ),
            turns=4,
        )
        self.assertEqual(watch.devices["1-1.4"].traffic, MOVED)
        other = changed(HELD, holder=Holder(address="192.0.2.9", since=2.5))
        watch.learn("1-1.4", 14, msgspec.json.decode(encodeDevices(other, True)))
        self.assertIsNone(watch.devices["1-1.4"].traffic)

    async def test_unknownEventsAndKeys(self) -> None:
        """Unknown events and keys are ignored."""
        more = {"event": "polished", "seq": 11, "time": WHEN, "data": {"bus_id": "1-1"}}
        beat = {"event": "heartbeat", "seq": 11, "time": WHEN, "shine": 7}
        watch = await self.follow(
            tells(
                snapshot(10, UNO),
                *(json.dumps(line).encode() + b"\n" for line in (more, beat)),
                event("bound", 12, BOUND),
            ),
            turns=2,
        )
        self.assertEqual(self.devices(watch), [BOUND])


class InvalidDevicesTests(FollowingTestCase):
    """
    Devices that a server describes wrongly, besides one that it describes well.
    """

    async def leftOut(self, *wrong: Any) -> list[str]:
        """Only the valid device of a snapshot is known; return the warnings."""
        valid = msgspec.json.decode(encodeDevices(UNO, True))
        line = msgspec.json.encode({"status": "success", "seq": 1, "data": [*wrong, valid]})
        with capturedLogs() as events:
            watch = await self.follow(tells(line + b"\n"))
        self.assertEqual((self.devices(watch), watch.trouble), ([UNO], None))
        encodeList(self.devices(watch))
        return [each["reason"] for each in events if each["log_level"].name == "warn"]

    async def test_invalid(self) -> None:
        """An invalid device is left out, and logged with escapes; the others are known."""
        good = msgspec.json.decode(encodeDevices(changed(MOUSE, deviceNumber=3), True))
        for changes in (
            {"bus_id": "usb1"},
            {"bus_id": "1-1\x1b[2J"},
            {"bus_id": "1-1.111111.22222.33333.4444"},
            {"bus_id": f"{10**30}-1"},
            {"vendor_id": "zz"},
            {"product_id": "123"},
            {"device_class": "storage"},
            {"interfaces": ["08/06"]},
            {"interfaces": 300},
            {"description": None},
            {"description": "x" * 100_000},
            {"state": "\x1b[2J"},
            {"device_name": "/dev/bus/usb/001/" + 4000 * "9"},
            {"holder": {"since": "9999-12-31T23:59:59-12:00"}},
            {"holder": {"since": "0001-01-01T00:00:00Z"}},
            {"lease": {"owner": "x", "address": "y", "ttl": 1e300}},
        ):
            (reason,) = await self.leftOut({**good, **changes})
            self.assertTrue(reason.isprintable(), reason)
            self.assertLess(len(reason), 2000)
        self.assertEqual(len(await self.leftOut(7)), 1)
        self.assertEqual(len(await self.leftOut(*({"bus_id": str(n)} for n in range(99)))), 10)

    async def test_valid(self) -> None:
        """A device may have more interfaces than USB/IP has room for, and control characters in
        its texts, which are escaped; traffic that is not a number of bytes is ignored."""
        good = msgspec.json.decode(encodeDevices(HELD, True))
        good["interfaces"] = 300 * ["ff/00/00"]
        texts = ("description", "serial", "manufacturer", "product", "driver", "trouble")
        good.update(dict.fromkeys(texts, "a\x1b[2J\x9b"))
        good["holder"]["address"] = "\x07"
        good["classes"] = ["08/06/50"]
        good["unknown"] = ["serial", "shine"]
        good["holder"]["bytes_in"] = 10**30
        line = msgspec.json.encode({"status": "success", "seq": 1, "data": [good]})
        watch = await self.follow(tells(line + b"\n"))
        (known,) = watch.devices.values()
        self.assertEqual(known.device.serial, r"a\x1b[2J\x9b")
        self.assertEqual(known.device.holder and known.device.holder.address, r"\x07")
        self.assertIsNone(known.traffic)
        shown = known.device.classes, known.device.unknown
        self.assertEqual(shown, (("08/06/50",), ("serial",)))
        self.assertTrue(str(known.device).isprintable())
        self.assertEqual(len(encodeList([known.device])), 12 + 312 + 4 * 255)

    async def test_events(self) -> None:
        """A device about which an event is invalid is not known until there is a valid one."""
        wrong = msgspec.json.decode(event("changed", 11, UNO))
        wrong["data"]["vendor_id"] = "zz"
        watch = await self.follow(
            tells(
                snapshot(10, UNO),
                msgspec.json.encode(wrong) + b"\n",
                event("bound", 12, BOUND),
            ),
            turns=3,
        )
        self.assertEqual((self.told, self.devices(watch)), ([None, "1-1.4", "1-1.4"], [BOUND]))

    async def test_tooMany(self) -> None:
        """Of more devices than C{MOST_DEVICES} the first are known, be they in the snapshot or
        added later; what is remembered of devices that are gone is bounded."""
        several = tuple(changed(UNO, busId=f"1-{n}") for n in range(1, MOST_DEVICES + 9))
        watch = await self.follow(tells(snapshot(10, *several)))
        self.assertEqual(self.devices(watch), [*several[:MOST_DEVICES]])
        more = msgspec.json.decode(encodeDevices(changed(UNO, busId="2-1"), True))
        watch.learn("2-1", 11, more)
        self.assertEqual(len(watch.devices), MOST_DEVICES)
        for number in range(1, 5 * MOST_DEVICES):
            watch.learn(f"3-{number}", 10 + number, None)
        self.assertLessEqual(len(watch._seqs), 4 * MOST_DEVICES)
        watch.learn("1-1", 9999, None)
        watch.learn("2-1", 9999, more)
        self.assertIn("2-1", watch.devices)

    async def test_otherDevice(self) -> None:
        """A reply about another device than was asked for is an error."""
        watch = await self.follow(tells(snapshot(10, UNO)))
        other = msgspec.json.decode(encodeDevices(MOUSE, True))
        self.assertRaises(Unreachable, watch.learn, "1-1.4", 11, other)
        self.assertEqual(self.devices(watch), [UNO])


class TroubleTests(FollowingTestCase):
    """
    Servers that refuse, or send invalid lines.
    """

    async def trouble(self, *lines: bytes, turns: int = 1) -> str:
        """The trouble, without the server's name and address."""
        with capturedLogs() as events:
            watch = await self.follow(tells(*lines), turns)
        watch.stop()
        self.assertEqual(watch.devices, {})
        assert watch.trouble is not None
        warnings = [each["reason"] for each in events if each["log_level"].name == "warn"]
        self.assertEqual(warnings, [watch.trouble])
        name, _, why = watch.trouble.partition("): ")
        self.assertRegex(name, r"^raspi \(127\.0\.0\.1:\d+$")
        return why

    async def test_refused(self) -> None:
        """The text of a refusal is the trouble."""
        refusal = Reply(status=Status.ERROR, message="you may not").encode()
        self.assertEqual(await self.trouble(refusal), "you may not")

    async def test_invalidSnapshot(self) -> None:
        """An invalid snapshot is a trouble."""
        for line in (
            b"SSH-2.0-OpenSSH_9.2\n",
            b'{"status":"success","data":[]}\n',
            b'{"status":"success","seq":1,"data":{}}\n',
            b'{"status":"success","seq":1e30,"data":[]}\n',
        ):
            self.assertTrue(await self.trouble(line), line)

    async def test_invalidEvent(self) -> None:
        """So is an invalid event after a valid snapshot."""
        for notice in (
            {},
            {"data": {"bus_id": "usb1"}},
            {"data": {"bus_id": 7}},
            {"data": None},
            {"seq": "x"},
        ):
            line = json.dumps({"event": "bound", "seq": 11, **notice}).encode() + b"\n"
            why = await self.trouble(snapshot(10, UNO), line, turns=2)
            self.assertRegex(why, "^(its answer is not understood|the reply is not that of)")

    async def test_escapes(self) -> None:
        """The text of a refusal is logged with escapes, and truncated."""
        refusal = Reply(status=Status.ERROR, message="\x1b]0;\x9b2J" + "x" * 5000).encode()
        why = await self.trouble(refusal)
        self.assertTrue(why.startswith(r"\x1b]0;\x9b2Jxxx"), why)
        self.assertLess(len(why), 1100)

    async def test_tooManyEvents(self) -> None:
        """A server that sends events without end is disconnected."""
        events = b"".join(
            event("changed", number, changed(UNO, speed=str(number % 2)))
            for number in range(11, MOST_EVENTS + 12)
        )
        why = await self.trouble(snapshot(10, UNO), events, turns=MOST_EVENTS + 2)
        self.assertEqual(why, f"it has sent more than {MOST_EVENTS} events in 10 s")

    async def test_reconnects(self) -> None:
        """A lost server is connected to again."""
        came: list[int] = []

        def play(connection: socket.socket) -> None:
            came.append(len(came))
            if len(came) != 2:
                tells(snapshot(len(came), UNO), stays=len(came) > 1)(connection)

        watch = await self.follow(play, turns=4)
        # connected, lost, refused, connected
        self.assertEqual(self.told, [None] * 4)
        self.assertIsNone(watch.trouble)
        self.assertEqual(self.devices(watch), [UNO])
