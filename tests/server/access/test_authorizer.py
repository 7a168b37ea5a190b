"""
Tests of L{usbip_server.server.access.authorizer}: who may do what, from the request to the reply.
"""

from __future__ import annotations

import json
import socket
from ipaddress import ip_network
from typing import Any

import msgspec
from msgspec.structs import replace
from twisted.logger import formatEvent
from twisted.trial.unittest import SynchronousTestCase

from tests.server.corecase import BOUND, Client, CoreTestCase, lease
from tests.support.fixtures import DEVICES, MOUSE, STICK, UNO, asked, changed, watching
from usbip_server.model.devicerules import Match, Rule
from usbip_server.model.errors import (
    BackendUnavailable,
    DeviceLeased,
    DeviceNotFound,
    NotAllowed,
    SeveralMatch,
    UnknownToken,
)
from usbip_server.model.policy import LOCAL, AccessPreset, Grant, Policy, Principal, Right, Who
from usbip_server.model.requests import (
    COMMANDS,
    AttachDevice,
    Command,
    DetachDevice,
    FindDevice,
    KickClient,
    LeaseRequest,
    ListDevices,
    RenewLease,
    WatchDevices,
)
from usbip_server.model.tokens import hashOf
from usbip_server.net.handover import SessionSocket
from usbip_server.server.access.authorizer import SEEING, Authorizer, Rights, rightOf, rightsOf
from usbip_server.server.access.ratelimit import FREE
from usbip_server.server.config import LiveSettings, Settings, Source
from usbip_server.server.devices.desireddevice import State

OURS = Principal("192.168.1.5")
STRANGER = Principal("203.0.113.9")
TOKEN = "usbip_0123456789abcdef"

OLD = ("192.168.1.5", "alice")

LAB = Who(address="192.168.1.0/24")
CI = Who(token=hashOf(TOKEN))


def rights(principal: Principal, *allow: Grant, deny: tuple[Grant, ...] = ()) -> Rights:
    """The rights of a client under a policy."""
    return Rights(Policy(principals={"lab": LAB}, allow=allow, deny=deny), principal)


class RightsTests(SynchronousTestCase):
    """
    L{Rights}.
    """

    def test_grants(self) -> None:
        """
        A rule for the client has to allow a right, and none may deny it, in whatever order they
        stand; a rule for some devices applies to no others, and one of several matches is enough.
        A device's name is a criterion too.
        """
        named = changed(UNO, name="scratch")
        look = Grant(who="lab", commands=(Right.LIST, Right.FIND))
        noUno = (Grant(who="anyone", commands=Right.ATTACH, devices=Match(id=UNO.busId)),)
        some = Grant(who="lab", devices=(Match(id=UNO.busId), Match(serial=str(STICK.serial))))
        for principal, allow, deny, device, expected in (
            (OURS, (), (), UNO, ()),
            (OURS, (look, Grant(who="local")), (), UNO, (Right.LIST, Right.FIND)),
            (STRANGER, (look, Grant(who="local")), (), UNO, ()),
            (OURS, (Grant(who="lab"),), noUno, STICK, tuple(Right)),
            (OURS, (Grant(who="lab"),), noUno, UNO, {*Right} - {Right.ATTACH}),
            *((OURS, (some,), (), device, tuple(Right)) for device in (UNO, STICK)),
            (OURS, (some,), (), MOUSE, ()),
            (OURS, (Grant(who="lab", devices=Match(id="scratch")),), (), named, tuple(Right)),
            (OURS, (Grant(who="lab", devices=Match(id="scratch")),), (), UNO, ()),
        ):
            mine = rights(principal, *allow, deny=deny)
            for right in Right:
                self.assertEqual(mine.may(right, device), right in expected, (allow, right))
                shown = (device,) if right in expected else ()
                self.assertEqual(mine.among(right, (device,)), shown)
        self.assertRaises(NotAllowed, rights(OURS).require, Right.LIST)

    def test_unknown(self) -> None:
        """What is not known of a device counts as a match for C{deny}, and as none for C{allow}."""
        storage = Grant(who="lab", devices=Match(device_class="storage"))
        away = changed(STICK, unknown=("classes",))
        everything = Grant(who="lab")
        for allow, deny, device, expected in (
            ((everything,), (storage,), STICK, True),
            ((everything,), (storage,), away, False),
            ((storage,), (), away, False),
            ((storage,), (), changed(STICK, classes=("08/06/50",)), True),
        ):
            self.assertEqual(rights(OURS, *allow, deny=deny).may(Right.DETACH, device), expected)

    def test_sameTuple(self) -> None:
        """
        For a client that may see all devices the same tuple is returned, whose encoding is
        cached.
        """
        mine = rights(OURS, Grant(who="lab"), Grant(who="lab", devices=Match(bus=1)))
        self.assertEqual(mine.among(Right.LIST, DEVICES), DEVICES)
        mine = rights(OURS, Grant(who="lab"))
        self.assertIs(mine.among(Right.LIST, DEVICES), DEVICES)

    def test_unseen(self) -> None:
        """
        A device that a client may not see is not found; for one that it may see the error
        is C{NotAllowed}.
        """
        mine = rights(
            OURS,
            Grant(who="lab", commands=Right.LIST, devices=Match(id=UNO.busId)),
            Grant(who="lab", commands=Right.ATTACH, devices=Match(id=MOUSE.busId)),
        )
        with self.assertRaises(NotAllowed) as caught:
            mine.select(AttachDevice(id=UNO.busId), DEVICES)
        self.assertEqual(caught.exception.device, UNO)
        self.assertIn(f"192.168.1.5 may not attach {UNO}: `access`", str(caught.exception))
        self.assertRaises(DeviceNotFound, mine.select, AttachDevice(id=STICK.busId), DEVICES)
        self.assertEqual(mine.select(AttachDevice(id=MOUSE.busId), DEVICES), MOUSE)

    def test_oneOfSeveral(self) -> None:
        """Of several matching devices only those for which it is allowed count."""
        mine = rights(
            OURS,
            Grant(who="lab", commands=Right.FIND),
            Grant(who="lab", commands=Right.ATTACH, devices=Match(id=STICK.busId)),
        )
        self.assertEqual(mine.select(AttachDevice(id="*"), DEVICES), STICK)
        self.assertRaises(SeveralMatch, mine.select, FindDevice(id="*"), DEVICES)

    def test_force(self) -> None:
        """C{force} needs both rights, on the same device."""
        mine = rights(
            OURS,
            Grant(who="lab", commands=Right.DETACH),
            Grant(who="lab", commands=Right.FORCE, devices=Match(id=UNO.busId)),
            Grant(who="lab", commands=SEEING),
        )
        self.assertEqual(mine.select(DetachDevice(id=UNO.busId, force=True), DEVICES), UNO)
        with self.assertRaises(NotAllowed) as caught:
            mine.select(DetachDevice(id=STICK.busId, force=True), DEVICES)
        self.assertIn("may not force", str(caught.exception))
        with self.assertRaises(NotAllowed):
            mine.select(AttachDevice(id=UNO.busId, force=True), DEVICES)

    def test_everyCommand(self) -> None:
        """Each command has a right with its name."""
        requests: list[Command] = [
            *(ListDevices(), FindDevice(id="x"), AttachDevice(id="x"), DetachDevice(id="x")),
            *(KickClient(id="x"), WatchDevices()),
            RenewLease(id="x", lease=LeaseRequest(owner="x")),
        ]
        self.assertEqual({rightOf(type(request)).value for request in requests}, {*COMMANDS})
        others = {right.value for right in Right} - {*COMMANDS}
        self.assertEqual(others, {"force", "import", "metrics"})
        self.assertEqual(rightsOf(KickClient(id="x", force=True)), (Right.KICK, Right.FORCE))


class IdentifyTests(SynchronousTestCase):
    """
    L{Authorizer.identify}, and the cache of rights.
    """

    def setUp(self) -> None:
        self.seconds = 1000.0
        policy = Policy(principals={"lab": LAB, "ci": CI})
        self.settings = LiveSettings(Settings(access=policy))
        self.access = Authorizer(self.settings, lambda: self.seconds)

    def test_none(self) -> None:
        """Without a token the principal is the peer."""
        self.assertIs(self.access.identify(OURS, None), OURS)

    def test_right(self) -> None:
        """A token adds its name to what is known of the peer."""
        peer = Principal("192.168.1.5", certificate="alice")
        found = self.access.identify(peer, TOKEN)
        self.assertEqual((found.address, found.certificate, found.token), (*OLD, "ci"))
        self.assertEqual(str(found), "192.168.1.5 (certificate alice, token ci)")

    def test_wrong(self) -> None:
        """An unknown token is refused even where none is needed, and is in no message."""
        for token in ("usbip_guessed", "", "\ud800", TOKEN + " "):
            settings = Settings(access=Policy(principals={"ci": CI}))
            access = Authorizer(LiveSettings(settings), lambda: 0.0)
            with self.assertRaises(UnknownToken) as caught:
                access.identify(OURS, token)
            self.assertIn("the token that 192.168.1.5 shows is not known", str(caught.exception))
            self.assertNotIn("guessed", str(caught.exception))

    def test_reload(self) -> None:
        """A token that is removed from the configuration is refused from then on."""
        self.settings.replace(Settings(access=Policy(principals={"lab": LAB})))
        self.assertRaises(NotAllowed, self.access.identify, OURS, TOKEN)

    def test_twice(self) -> None:
        """A client whose token two principals have is both: what is denied to either is denied."""
        deny = (Grant(who="too", commands=Right.DETACH),)
        policy = Policy(
            principals={"ci": CI, "too": Who(token=hashOf(TOKEN))},
            allow=(Grant(who="ci"),),
            deny=deny,
        )
        access = Authorizer(LiveSettings(Settings(access=policy)), lambda: 0.0)
        rights = access.of(access.identify(OURS, TOKEN))
        self.assertTrue(rights.may(Right.ATTACH, UNO))
        self.assertFalse(rights.may(Right.DETACH, UNO))

    def test_rotated(self) -> None:
        """Rights given by a token end when the configuration replaces it."""
        allow = (Grant(who="ci"),)
        settings = LiveSettings(Settings(access=Policy(principals={"ci": CI}, allow=allow)))
        access = Authorizer(settings, lambda: 0.0)
        principal = access.identify(OURS, TOKEN)
        self.assertTrue(access.of(principal).may(Right.WATCH, UNO))
        policy = Policy(principals={"ci": Who(token=hashOf("another"))}, allow=allow)
        settings.replace(Settings(access=policy))
        self.assertFalse(access.of(principal).may(Right.WATCH, UNO))

    def test_rightsAreRemembered(self) -> None:
        """Rights are computed once for each principal and policy, and the cache is bounded."""
        self.assertIs(self.access.of(OURS), self.access.of(Principal("192.168.1.5")))
        before = self.access.of(OURS)
        self.settings.replace(Settings(access=AccessPreset.OPEN.policy))
        self.assertIsNot(self.access.of(OURS), before)
        for number in range(10_000):
            self.access.of(Principal(f"10.0.{number // 256}.{number % 256}"))
        self.assertLess(len(self.access._rights), 5000)


class PresetTests(SynchronousTestCase):
    """
    The presets C{private}, C{local} and C{open}.
    """

    def test_addresses(self) -> None:
        """
        C{open} allows everything to everybody, C{private} to private, link-local and loopback
        addresses and this machine, C{local} to this machine only; others may do nothing.
        """
        loopback = ("127.0.0.1", "127.1.2.3", "::1", LOCAL)
        near = (
            *("10.1.2.3", "172.16.0.1", "172.31.255.254", "192.168.0.1", "169.254.1.1"),
            *("fe80::1", "fe80::1%eth0", "fd00::1"),
        )
        far = (
            *("8.8.8.8", "172.32.0.1", "192.0.2.1", "100.64.0.1", "11.0.0.0", "0.0.0.0"),
            *("2001:db8::1", "2a00::1", "::", "ff02::1", "not an address", ""),
        )
        allowed = {
            AccessPreset.OPEN: {*loopback, *near, *far},
            AccessPreset.PRIVATE: {*loopback, *near},
            AccessPreset.LOCAL: {*loopback},
        }
        for preset, expected in allowed.items():
            authorizer = Authorizer(LiveSettings(Settings(access=preset.policy)), lambda: 0.0)
            for address in (*loopback, *near, *far):
                mine = authorizer.of(Principal(address))
                may = {mine.may(right, UNO) for right in Right}
                self.assertEqual(may, {address in expected}, (preset, address))

    def test_onLink(self) -> None:
        """
        An address on a network of this machine counts as private, while the machine has that
        network.
        """
        networks: tuple[Any, ...] = (ip_network("2001:db8:7::/64"), ip_network("203.0.113.0/24"))
        found = [networks]
        for preset, expected in (
            (AccessPreset.PRIVATE, [True, True, False, False]),
            (AccessPreset.LOCAL, 4 * [False]),
        ):
            settings = LiveSettings(Settings(access=preset.policy))
            authorizer = Authorizer(settings, lambda: 0.0, lambda: found[0])
            for _ in range(2):
                addresses = ("2001:db8:7::9", "203.0.113.9", "2001:db8:8::9", "203.0.114.1")
                may = [authorizer.of(Principal(it)).may(Right.LIST, UNO) for it in addresses]
                self.assertEqual(may, expected)
            found[0] = ()
            self.assertFalse(authorizer.of(STRANGER).may(Right.LIST, UNO))
            found[0] = networks

    def test_advice(self) -> None:
        """
        With a preset the refusal contains what to write into the configuration, and that allows
        the client; with another policy it does not tell the policy.
        """
        for preset, address in (
            (AccessPreset.PRIVATE, "203.0.113.9"),
            (AccessPreset.PRIVATE, "100.101.102.103"),
            (AccessPreset.PRIVATE, "2001:db8:7::9"),
            (AccessPreset.LOCAL, "192.168.1.5"),
            (AccessPreset.LOCAL, "fe80::1%eth0"),
        ):
            mine = Rights(preset.policy, Principal(address))
            message = str(self.assertRaises(NotAllowed, mine.require, Right.LIST))
            self.assertIn(f"{address} may not list: the daemon's `access` is", message)
            advice = message[message.index("access: {") :]
            policy = Source("c.yaml", advice).config().settings.access
            for each in (address, "127.0.0.1"):
                Rights(policy, Principal(each)).require(Right.LIST)
            other = Rights(policy, Principal("198.51.100.1"))
            refusal = str(self.assertRaises(NotAllowed, other.require, Right.LIST))
            self.assertTrue(refusal.endswith("in the daemon's configuration says who may"), refusal)
        unknown = Rights(AccessPreset.PRIVATE.policy, Principal("unknown"))
        self.assertRaises(NotAllowed, unknown.require, Right.LIST)


class AccessTestCase(CoreTestCase):
    """
    A core where clients in one network may see and import some devices, and one with a token may
    do everything with one device.
    """

    policy = Policy(
        principals={"lab": LAB, "ci": CI},
        allow=(
            Grant(who="local", commands=Right.WATCH),  # for the test itself
            Grant(who="lab", commands=(*SEEING, Right.IMPORT), devices=Match(id="1-1*")),
            Grant(who="ci", devices=Match(id=UNO.busId)),
        ),
    )

    devices = DEVICES

    def setUp(self) -> None:
        super().setUp()
        self.logged = self.captureLogs()
        self.start(access=self.policy)

    @property
    def audit(self) -> list[dict[str, Any]]:
        """The entries of the audit log since the last call."""
        lines = [str(formatEvent(event)) for event in self.logged if "audit" in event]
        self.logged.clear()
        return [json.loads(line.removeprefix("audit ")) for line in lines]

    def client(self, principal: Principal = OURS) -> Client:
        """A client's connection."""
        return Client(principal)

    def importable(self, principal: Principal) -> list[str]:
        """The bus ids of the devices that are listed over USB/IP."""
        devices = self.successResultOf(asked(self.core.dispatcher.importable(principal)))
        return [device.busId for device in devices]


class QueryTests(AccessTestCase):
    """
    Devices that a client may not see are hidden from it.
    """

    def test_list(self) -> None:
        """
        C{list} shows the devices that may be listed; a client that may list nothing is
        refused.
        """
        devices = self.successResultOf(self.ask("list", self.client()))
        self.assertEqual(devices, (UNO,))
        message = self.refused(NotAllowed, "list", self.client(STRANGER))
        self.assertIn("203.0.113.9 may not list: `access` in the daemon's conf", message)

    def test_find(self) -> None:
        """A device that may not be seen gives the same error as one that is not plugged in."""
        hidden = self.refused(DeviceNotFound, "find", self.client(), id=STICK.busId)
        missing = self.refused(DeviceNotFound, "find", self.client(), id="9-9")
        self.assertEqual(hidden.replace(STICK.busId, "9-9"), missing)

    def test_several(self) -> None:
        """An error that lists matches contains no hidden device."""
        self.assertEqual(self.done("find", self.client(), desc="*"), UNO)

    def test_watch(self) -> None:
        """Neither the snapshot nor an event contains a hidden device."""
        reply, stream = watching(self.core, WatchDevices(), self.client())
        assert reply.data is not None
        self.assertEqual([it["bus_id"] for it in json.loads(bytes(reply.data))], [UNO.busId])
        told: list[str] = []
        stream.begin(lambda event, line: told.append(event.device.busId))
        for device in (STICK, UNO, MOUSE):
            self.plug(device)
        self.assertEqual({*told}, {UNO.busId})
        _, missed = watching(self.core, WatchDevices(since=reply.seq), self.client())
        self.assertEqual({event.device.busId for event, _ in missed.begin(print)}, {UNO.busId})

    def test_watchNothing(self) -> None:
        """A client that may watch nothing is refused, which is in the audit log."""
        with self.assertRaises(NotAllowed):
            watching(self.core, WatchDevices(), self.client(STRANGER))
        [entry] = self.audit
        self.assertEqual((entry["command"], entry["result"]), ("watch", "refused"))

    def test_reload(self) -> None:
        """A reload changes what a watching client receives."""
        _, stream = watching(self.core, WatchDevices(), self.client())
        told: list[str] = []
        stream.begin(lambda event, line: told.append(event.device.busId))
        self.reload(access=AccessPreset.LOCAL.policy)
        self.plug(UNO)
        self.assertEqual(told, [])
        self.reload(access=AccessPreset.OPEN.policy)
        self.plug(STICK)
        self.assertEqual({*told}, {STICK.busId})

    def test_import(self) -> None:
        """The list over USB/IP contains the devices that may be imported."""
        for device in DEVICES:
            self.become(self.plug(device), state=BOUND)
        self.assertEqual(self.importable(OURS), [UNO.busId])
        self.assertEqual(self.importable(STRANGER), [])

    def test_troubleIsHidden(self) -> None:
        """A client without rights does not receive the reason why there are no devices."""
        self.backend.inventory.trouble = "no USB here"
        self.refused(NotAllowed, "list", self.client(STRANGER))
        self.refused(BackendUnavailable, "list", self.client())

    def test_queriesAreNotLogged(self) -> None:
        """The audit log contains changes and refusals, and no successful queries."""
        self.ask("list", self.client())
        self.done("find", self.client())
        self.refused(DeviceNotFound, "find", self.client(), id="9-9")
        self.assertEqual(self.audit, [])


class ChangeTests(AccessTestCase):
    """
    Requests that are not allowed change nothing; changes and refusals are in the audit log.
    """

    def test_refused(self) -> None:
        """
        A client that may only query cannot attach, detach, kick or renew; one line in the
        audit log names it.
        """
        for command, more in (
            *(("attach", {}), ("detach", {}), ("kick", {"force": True})),
            ("renew", {"lease": {"owner": "me"}}),
        ):
            message = self.refused(NotAllowed, command, self.client(), **more)
            self.assertIn(f"192.168.1.5 may not {command}", message)
            [entry] = self.audit
            self.assertEqual(entry["who"], {"address": "192.168.1.5"})
            self.assertEqual((entry["command"], entry["result"]), (command, "refused"))
            self.assertEqual(entry["reason"], message)
        self.assertEqual(self.backend.calls, [])

    def test_token(self) -> None:
        """A token gives its rights for one request."""
        client = self.client()
        device = self.done("attach", client, token=TOKEN)
        self.assertEqual(device.state, BOUND)
        [entry] = self.audit
        self.assertEqual(
            entry,
            {
                "who": {"address": "192.168.1.5", "token": "ci"},
                "command": "attach",
                "asked": {"id": UNO.busId},
                "device": UNO.busId,
                "serial": UNO.serial,
                "result": "done",
            },
        )
        self.refused(NotAllowed, "detach", client)
        self.done("detach", client, token=TOKEN)

    def test_wrongToken(self) -> None:
        """A client with a wrong token gets nothing, not even what it may do without one."""
        self.refused(NotAllowed, "list", self.client(), token="usbip_guessed")
        [entry] = self.audit
        self.assertEqual((entry["command"], entry["result"]), ("list", "refused"))
        for event in self.logged:
            self.assertNotIn("guessed", repr(event))

    def test_manyWrongTokens(self) -> None:
        """
        After some wrong tokens from an address the next ones are refused late, within the time of
        an answer; requests with a right token, without one, or from elsewhere are not affected.
        """
        wrong = {"token": "usbip_stale"}
        for _ in range(FREE):
            self.refused(UnknownToken, "list", self.client(), **wrong)
        for command in ("list", "attach"):
            request = self.command(command, **wrong)
            self.assertIsNone(self.core.dispatcher.atOnce(request, self.client()))
            late = self.ask(command, self.client(), **wrong)
            self.done("find", self.client(), token=TOKEN)
            self.done("find", self.client())
            self.refused(UnknownToken, "list", self.client(STRANGER), **wrong)
            self.clock.advance(1.7)
            self.assertNoResult(late)
            self.clock.advance(0.1)
            self.error(UnknownToken, late)

    def test_noTokenInTheLog(self) -> None:
        """A token is never logged."""
        self.done("attach", token=TOKEN)
        self.refused(DeviceNotFound, "attach", id="9-9", token=TOKEN)
        self.done("detach", token=TOKEN)
        self.assertNotIn(TOKEN, repr(self.logged))
        self.assertIn("audit", repr(self.logged))

    def test_force(self) -> None:
        """Only C{force} overrides another client's lease, and the queue."""
        policy = Policy(
            allow=(
                Grant(who="anyone", commands=(*SEEING, Right.ATTACH, Right.DETACH)),
                Grant(who="local", commands=Right.FORCE),
            )
        )
        self.reload(access=policy)
        self.done("attach", self.client(), lease=lease("ci"))
        for command, more in (("attach", {}), ("attach", {"wait": 60}), ("detach", {})):
            message = self.refused(NotAllowed, command, self.client(STRANGER), force=True, **more)
            self.assertIn("203.0.113.9 may not force", message)
        self.done("detach", self.client(Principal(LOCAL)), force=True)

    def test_owner(self) -> None:
        """
        A lease that was requested with a token needs that token, and the owner's name is
        not enough.
        """
        policy = Policy(principals={"ci": CI}, allow=(Grant(who="anyone"),))
        self.reload(access=policy)
        self.done("attach", self.client(), token=TOKEN, lease=lease("ci"))
        for command, more in (
            ("attach", {"lease": {"owner": "ci", "ttl": 60}}),
            *(("detach", {"owner": "ci"}), ("kick", {"owner": "ci"})),
            ("renew", {"lease": {"owner": "ci"}}),
        ):
            self.refused(DeviceLeased, command, self.client(STRANGER), **more)
            self.refused(DeviceLeased, command, self.client(), **more)
        self.done("renew", self.client(STRANGER), token=TOKEN, lease={"owner": "ci"})
        self.restart(access=policy)
        self.refused(DeviceLeased, "detach", self.client(), owner="ci")
        self.done("detach", self.client(STRANGER), token=TOKEN, owner="ci")
        self.done("attach", self.client(), lease=lease("me"))
        self.done("detach", self.client(STRANGER), owner="me")

    def test_waiting(self) -> None:
        """
        A client that waits for a device that it may not have is refused when it appears;
        for one that it may not see it waits in vain.
        """
        self.unplug(UNO.busId)
        self.unplug(STICK.busId)
        mine = self.ask("attach", self.client(), id=UNO.busId, wait=60)
        self.assertIn("may not attach", str(self.failureResultOf(mine, NotAllowed).value))
        token = self.ask("attach", self.client(), id=STICK.busId, wait=60, token=TOKEN)
        self.plug(STICK)
        self.assertNoResult(token)
        self.sleep(61)
        self.failureResultOf(token, DeviceNotFound)

    def test_away(self) -> None:
        """A device that is not plugged in can be detached only by a client that may detach it."""
        self.done("attach", token=TOKEN)
        self.unplug(UNO.busId)
        self.refused(NotAllowed, "detach", self.client())
        self.done("detach", token=TOKEN)

    def test_awayOfUnknownClass(self) -> None:
        """
        A client whom C{deny} keeps from disks can neither detach nor learn of one that is not
        plugged in, also if its class was not remembered.
        """
        disk = changed(STICK, deviceClass="08", classes=("08/06/50",))
        deny = (Grant(who="private", devices=Match(device_class="storage")),)
        policy = Policy(allow=(Grant(who="anyone"),), deny=deny)
        self.restart(access=policy)
        self.become(disk)
        self.done("attach", self.client(STRANGER), id=STICK.busId)
        for classes in (("08", "08/06/50"), msgspec.UNSET):
            self.file.state = State(
                devices=tuple(replace(it, classes=classes) for it in self.file.state.devices)
            )
            self.backend.inventory.replace([])
            self.restart(access=policy)
            for keys in ({"serial": "?*"}, {"id": STICK.busId}, {"desc": "sandisk"}):
                message = self.refused(DeviceNotFound, "detach", self.client(), **keys)
                self.assertNotIn(str(STICK.serial), message)
            self.assertEqual(len(self.file.state.devices), 1)
        self.done("detach", self.client(STRANGER), serial="?*")
        self.assertEqual(self.file.state.devices, ())

    def test_awayByName(self) -> None:
        """A rule that names a device applies while it is not plugged in."""
        policy = Policy(
            allow=(Grant(who="anyone"),), deny=(Grant(who="private", devices=Match(id="dut")),)
        )
        self.restart(Rule(match=Match(id=UNO.busId), name="dut"), access=policy)
        self.done("attach", self.client(STRANGER))
        self.refused(DeviceNotFound, "detach", self.client())
        self.unplug(UNO.busId)
        self.refused(DeviceNotFound, "detach", self.client())
        self.done("detach", self.client(STRANGER))

    def test_otherFailures(self) -> None:
        """Failures for other reasons, and operations in progress, are in the audit log too."""
        self.done("attach", token=TOKEN, lease=lease("ci"))
        self.logged.clear()
        self.refused(Exception, "attach", token=TOKEN)
        [entry] = self.audit
        self.assertEqual(entry["result"], "refused")
        self.assertIn("leased by ci", entry["reason"])


class ImportTests(AccessTestCase):
    """
    Importing a device.
    """

    def importAs(self, principal: Principal, busId: str = UNO.busId) -> Any:
        """The result of an import by a client."""
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
            self.addCleanup(end.close)
        carrier = SessionSocket(given=ours, connection=ours)
        client = self.client(principal)
        return asked(self.core.dispatcher.handOver(busId, client, carrier, lambda: None))

    def test_audit(self) -> None:
        """Imports are in the audit log, whether they are allowed or not."""
        self.done("attach", token=TOKEN)
        self.logged.clear()
        self.failureResultOf(self.importAs(STRANGER), NotAllowed)
        self.successResultOf(self.importAs(OURS))
        refused, done = self.audit
        self.assertEqual((refused["command"], refused["result"]), ("import", "refused"))
        self.assertEqual((done["command"], done["result"]), ("import", "done"))
        self.assertEqual((done["who"], done["device"]), ({"address": OURS.address}, UNO.busId))

    def test_leased(self) -> None:
        """A lease that was requested on this machine allows imports from all its addresses."""
        self.reload(access=AccessPreset.OPEN.policy)
        for asks, imports in ((LOCAL, "127.0.0.1"), ("127.0.0.1", "::1"), ("::1", "127.0.0.2")):
            client = self.client(Principal(asks))
            self.done("attach", client, lease=lease("me"))
            self.failureResultOf(self.importAs(OURS))
            self.successResultOf(self.importAs(Principal(imports)))
            self.done("detach", client, owner="me", force=True)


class LogTests(AccessTestCase):
    """
    The preset in force is logged.
    """

    def test_preset(self) -> None:
        """
        A preset and its meaning are logged at the start and when a reload changes it; nothing is
        logged for another policy.
        """
        for preset in AccessPreset:
            self.logged.clear()
            self.restart(access=preset.policy)
            [line] = [str(formatEvent(event)) for event in self.logged if "meaning" in event]
            self.assertIn(f"access is {preset.value}: everybody", line)
        self.logged.clear()
        self.restart(access=self.policy)
        self.assertEqual([event for event in self.logged if "meaning" in event], [])
        self.networks = (ip_network("10.0.0.0/8"), ip_network("203.0.113.0/24"))
        for _ in range(2):
            self.reload(access=AccessPreset.PRIVATE.policy)
        [line] = [str(formatEvent(event)) for event in self.logged if "meaning" in event]
        self.assertTrue(line.endswith("; that includes 203.0.113.0/24"), line)
