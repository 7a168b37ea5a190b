"""
Tests of L{usbip_server.model.policy}: principals, grants, and the configuration's C{access} block.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.support.fixtures import MOUSE, STICK, UNO
from usbip_server.model.devicerules import Match
from usbip_server.model.policy import (
    BUILT_IN,
    LOCAL,
    AccessPreset,
    Grant,
    Policy,
    Principal,
    Right,
    Who,
    sameHost,
    within,
)
from usbip_server.model.tokens import hashOf
from usbip_server.runtime.yamlfile import ConfigError
from usbip_server.server.config import Settings, Source

HASH = hashOf("usbip_x", "0" * 32)
OTHER = hashOf("usbip_y", "0" * 32)
THIRD = hashOf("usbip_z", "0" * 32)


def policyOf(access: str) -> Policy:
    """The policy of a configuration with this C{access} block."""
    settings: Settings = Source("c.yaml", f"access:\n{access}").config().settings
    return settings.access


class AddressTests(SynchronousTestCase):
    """
    Addresses, ranges and hosts.
    """

    def test_str(self) -> None:
        """A principal is shown with all its authentications, user id 0 included."""
        for principal, expected in (
            (Principal("192.0.2.7"), "192.0.2.7"),
            (Principal(LOCAL), "local"),
            (Principal(LOCAL, uid=0), "local (uid 0)"),
            (
                Principal("::1", certificate="alice", token="ci"),
                "::1 (certificate alice, token ci)",
            ),
        ):
            self.assertEqual(str(principal), expected)

    def test_within(self) -> None:
        """A range contains the addresses of its version, in any spelling. A link-local address is
        in a range whatever its interface, unless the range has a zone. Text that is no address is
        in no range."""
        zoned = ("fe80::1%eth0", "fe80::1%eth0/128", "fe80::%eth0/64")
        elsewhere = ("fe80::1%eth1", "fe80::1", "fe80::1%", "fe80::1%eth00")
        noAddress = ("", "%", "%eth0", "10.0.0.1.example.com", "10.0.0.1 ", "1", "010.0.0.1")
        for text, inside, outside in (
            (
                "192.168.7.0/24",
                ("192.168.7.0", "192.168.7.255"),
                ("192.168.6.255", "192.168.8.0", "192.168.70.1"),
            ),
            ("192.0.2.7", ("192.0.2.7",), ("192.0.2.6", "192.0.2.70")),
            (
                "0.0.0.0/0",
                ("0.0.0.0", "255.255.255.255"),
                ("::1", "2001:db8::1", LOCAL, *noAddress),
            ),
            (
                "2001:db8::/32",
                ("2001:db8::1", "2001:0DB8:ffff::1"),
                ("2001:db9::", "2001:db7:ffff::", "fe80::1%eth0"),
            ),
            ("::1", ("::1", "0:0:0:0:0:0:0:1"), ()),
            ("::/0", (), ("192.0.2.7", "127.0.0.1", LOCAL, *noAddress)),
            ("fe80::/10", ("fe80::1%eth0", "fe80::1%7", "fe80::1"), ()),
            *((text, ("fe80::1%eth0",), elsewhere) for text in zoned),
        ):
            for address in (*inside, *outside):
                self.assertIs(within(address, (text,)), address in inside, (address, text))
        for address, expected in (("10.1.2.3", True), ("2001:db8::1", True), ("192.0.2.7", False)):
            self.assertIs(within(address, ("10.0.0.0/8", "2001:db8::/32")), expected)
            self.assertFalse(within(address, ()))

    def test_sameHost(self) -> None:
        """All loopback addresses and unix sockets are this machine; another machine is known by
        its address only."""
        for one, other, expected in (
            *(("192.0.2.7", "192.0.2.7", True), ("192.0.2.7", "192.0.2.8", False)),
            *(("127.0.0.1", "::1", True), (LOCAL, "127.9.9.9", True), (LOCAL, LOCAL, True)),
            *((LOCAL, "192.0.2.7", False), ("::1", "2001:db8::1", False), ("", LOCAL, False)),
            *(("fe80::1%eth0", "fe80::1%eth1", False), ("x", "x", True)),
        ):
            self.assertIs(sameHost(one, other), expected, (one, other))
            self.assertIs(sameHost(other, one), expected, (other, one))


def shown(address: str, certificate: str | None = None) -> Principal:
    """A principal that has shown the token of C{it}."""
    return Principal(address, certificate=certificate, token="it", hashes=(HASH,))


class WhoTests(SynchronousTestCase):
    """
    Definitions of principals.
    """

    def test_matches(self) -> None:
        """A client matches if it matches all that is given, and one item of each list: an address
        is in a range, a user id is that of a unix socket, a token is one of this principal, a
        certificate's name is equal. An empty list matches nobody."""
        near, far, six = (Principal(it) for it in ("192.168.7.1", "192.168.8.1", "2001:db8::1"))
        unix, root, user = Principal(LOCAL), Principal(LOCAL, uid=0), Principal(LOCAL, uid=1000)
        nearShown, farShown = shown(near.address), shown(far.address)
        rootShown = Principal(LOCAL, uid=0, token="it", hashes=(HASH,))
        third = Principal(near.address, token="other", hashes=(THIRD,))
        alice, unnamed = (Principal(near.address, certificate=it) for it in ("alice", ""))
        bob, both = Principal(far.address, certificate="bob"), shown(far.address, "alice")
        atFar = (far, farShown, bob, both)
        everybody = (
            *(near, far, six, unix, root, user, nearShown, farShown, rootShown),
            *(third, alice, unnamed, bob, both),
        )
        anywhere = "0.0.0.0/0"
        cases: tuple[tuple[Who, tuple[Principal, ...]], ...] = (
            (Who(address=("192.168.8.0/24", "2001:db8::/32")), (*atFar, six)),
            (Who(address="192.168.8.1"), atFar),
            (Who(uid=0), (root, rootShown)),
            (Who(uid=1000), (user,)),
            (Who(uid=(1000, 1001)), (user,)),
            (Who(uid=7), ()),
            (Who(token=(HASH, OTHER)), (nearShown, farShown, rootShown, both)),
            (Who(certificate="alice"), (alice, both)),
            (Who(certificate=("bob", "alice")), (alice, bob, both)),
            *(
                (Who(certificate=name), ())
                for name in ("Alice", "alic", "alice ", "*", "a*", "ali")
            ),
            (Who(address="192.168.7.0/24", token=HASH), (nearShown,)),
            (Who(certificate="alice", token=HASH), (both,)),
            (Who(certificate="alice", token=HASH, address=near.address), ()),
            (Who(uid=0, token=HASH), (rootShown,)),
            (Who(uid=0, address=near.address), ()),
            *((who, ()) for who in (Who(address=()), Who(token=()), Who(certificate=()))),
            *((who, ()) for who in (Who(uid=()), Who(address=(), token=HASH))),
            *((who, ()) for who in (Who(token=(), address=anywhere), Who(uid=(), token=HASH))),
            (Who(certificate=(), address=anywhere), ()),
        )
        for who, expected in cases:
            found = {principal for principal in everybody if who.matches(principal)}
            self.assertEqual(found, {*expected}, who)


class GrantTests(SynchronousTestCase):
    """
    Entries of C{allow} and C{deny}.
    """

    def test_covers(self) -> None:
        """An entry is for one or several commands and devices; without them for all; an empty list
        is for none."""
        every, everyDevice = {*Right}, {"1-1.4", "1-2", "2-10"}
        uno, stick = Match(desc="uno"), Match(serial="4C530001[23]")
        for grant, rights, busIds in (
            (Grant(who="a"), every, everyDevice),
            (Grant(who="a", commands=Right.KICK), {Right.KICK}, everyDevice),
            (
                Grant(who="a", commands=(Right.KICK, Right.LIST)),
                {Right.KICK, Right.LIST},
                everyDevice,
            ),
            (Grant(who="a", devices=uno), every, {"1-1.4"}),
            (Grant(who="a", devices=(uno, stick)), every, {"1-1.4", "1-2"}),
            (Grant(who="a", commands=()), set(), everyDevice),
            (Grant(who="a", devices=()), every, set()),
        ):
            self.assertEqual({right for right in Right if grant.isAbout(right)}, rights)
            covered = {
                (r, d.busId) for r in Right for d in (UNO, STICK, MOUSE) if grant.covers(r, d)
            }
            self.assertEqual(covered, {(r, busId) for r in rights for busId in busIds}, grant)


class PolicyTests(SynchronousTestCase):
    """
    Names of principals.
    """

    def test_names(self) -> None:
        """A client has the names of the definitions that match it, configured or built in. A
        certificate, address or token called like a principal gives nobody that name."""
        policy = Policy(principals={"lab": Who(address="192.168.7.0/24"), "ci": Who(token=HASH)})
        away, lab = "203.0.113.9", Principal("192.168.7.1")
        for principal, names in (
            (lab, {"lab", "anyone", "private"}),
            (Principal(away), {"anyone"}),
            (shown(away), {"ci", "anyone"}),
            (Principal(away, token="lab"), {"anyone"}),
            (Principal("127.0.0.1"), {"anyone", "private", "local"}),
            (Principal("fe80::1%eth0"), {"anyone", "private"}),
            (Principal(LOCAL, uid=1000), {"anyone", "private", "local"}),
            (Principal(away, certificate="ci"), {"anyone"}),
            (Principal("ci"), {"anyone"}),
        ):
            known = (*policy.principals, *BUILT_IN)
            found = {name for name in known if policy.isAny((name,), principal)}
            self.assertEqual(found, names, principal)
        for several_, expected in ((("ci", "lab"), True), (("ci", "local"), False), ((), False)):
            self.assertIs(policy.isAny(several_, lab), expected)

    def test_presets(self) -> None:
        """Each preset is a policy with one rule, for everything; the default is C{private}."""
        for preset, name in (
            (AccessPreset.OPEN, "anyone"),
            (AccessPreset.PRIVATE, "private"),
            (AccessPreset.LOCAL, "local"),
        ):
            self.assertEqual(preset.policy, Policy(allow=(Grant(who=name),)))
            self.assertEqual(policyOf(f"  {preset.value}"), preset.policy)
        self.assertEqual(Source("c.yaml", "").config().settings.access, AccessPreset.PRIVATE.policy)

    def test_file(self) -> None:
        """Each key of the block may have one item or a list; an empty mapping allows nothing."""
        policy = policyOf(
            f"""
  principals:
    lab: {{address: [192.168.7.0/24, "fe80::%eth0/64"]}}
    desk: {{address: 192.0.2.7, uid: [0, 1000]}}
    ci: {{token: ["{HASH}", "{OTHER}"]}}
    alice: {{certificate: [alice, alice@example.com]}}
    root: {{uid: 0}}
    nobody: {{address: []}}
  allow:
    - {{who: lab, commands: [list, find, watch]}}
    - {{who: [ci, alice, anyone], devices: {{desc: arduino}}}}
    - {{who: local, commands: force}}
  deny:
    - {{who: anyone, devices: [{{id: backup}}, {{device_class: hid}}]}}
"""
        )
        self.assertEqual(policy.principals["lab"].address, ("192.168.7.0/24", "fe80::%eth0/64"))
        self.assertEqual(policy.principals["desk"], Who(address="192.0.2.7", uid=(0, 1000)))
        self.assertEqual(policy.principals["ci"].token, (HASH, OTHER))
        self.assertEqual(policy.principals["root"], Who(uid=0))
        looking = (Right.LIST, Right.FIND, Right.WATCH)
        self.assertEqual(policy.allow[0], Grant(who="lab", commands=looking))
        self.assertEqual(policy.allow[1].who, ("ci", "alice", "anyone"))
        self.assertEqual(policy.allow[2].commands, Right.FORCE)
        matches = (Match(id="backup"), Match(device_class="hid"))
        self.assertEqual(policy.deny, (Grant(who="anyone", devices=matches),))
        self.assertEqual(policyOf("  {}"), Policy())
        for right in Right:
            [grant] = policyOf(f"  allow: [{{who: anyone, commands: {right.value}}}]").allow
            self.assertEqual(grant.commands, right)


class WrongTests(SynchronousTestCase):
    """
    Mistakes in the file: an error with the place and the key.
    """

    def assertWrong(self, access: str, *parts: str) -> str:
        """The block is refused, and the message contains all parts."""
        message = str(self.assertRaises(ConfigError, policyOf, access))
        for part in parts:
            self.assertIn(part, message)
        return message

    def who(self, definition: str, *parts: str) -> str:
        """A definition of a principal is refused."""
        return self.assertWrong(
            f"  principals:\n    lab: {definition}", "c.yaml:3: access.pr", *parts
        )

    def test_block(self) -> None:
        """A word has to be a preset. There are no other keys. A key without a value is a mistake,
        not "everything". Names of principals are known, and not built in. A token belongs to one
        principal."""
        presets = "one of open, private, local"
        empty = (f"  {key}:" for key in ("principals", "allow", "deny"))
        for access, part in (
            *(("  closed", "c.yaml:1: access: "), ("  closed", presets), ("  Open", presets)),
            *(
                (nothing, "access: expected")
                for nothing in ("  ", "  null", "  []", "  1", "  yes")
            ),
            ("  alow: []", "access.alow: unknown key"),
            *((text, f"access.{text.strip(' :')}: expected") for text in empty),
            *(
                (
                    f"  principals: {{{name}: {{uid: 0}}}}",
                    f"access: `principals`: {name!r} is a built-in principal: choose another name",
                )
                for name in BUILT_IN
            ),
            (
                "  principals: {lab: {uid: 0}}\n  allow: [{who: lab}, {who: Lab}]",
                "`allow.1.who`: unknown principal 'Lab'; known are lab, anyone, private, local",
            ),
            *(
                (
                    f'\n  principals:\n    a: {{token: "{HASH}"}}\n    b: {{token: {second}}}',
                    "access: `principals.b.token`: 'a' has the same token",
                )
                for second in (f'"{HASH}"', f'["{OTHER}", "{HASH}"]')
            ),
        ):
            self.assertWrong(access, part)
        policyOf(f'\n  principals: {{a: {{token: ["{HASH}", "{HASH}"]}}}}')

    def test_principals(self) -> None:
        """A definition has at least one key, and each value is of its kind: addresses and ranges
        that a client can be in, hashes of tokens, user ids, names in certificates. What is given
        as a token is not repeated."""
        lab = "access.principals.lab"
        ranges = ('""', "lab.example.com", "10.0.0.0/33", "10.0.0.0/-1", "010.0.0.1", '"::g"')
        others = ("10.0.0.0-10.0.0.9", "10.*", '"10"', '"fe80::/64%eth0"', "10.0.0.0/8/8", "local")
        mapped = ("::ffff:10.0.0.0/104", "::ffff:10.0.0.1", "::ffff:0:0/96")
        noHash = ('""', "usbip_secret", f"{HASH}0", HASH[:-1], HASH.upper())
        noUid = ("root", "-1", "1.5", '"0"', "true")
        noName = f"{lab}: `certificate`: a name must not be empty"
        for definition, part in (
            ("{adress: 192.0.2.7}", f"{lab}.adress: unknown key"),
            ("{}", f"{lab}: one of `address`, `token`, `certificate` and"),
            ("", f"{lab}: expected a mapping, got nothing"),
            *((f"{{address: {it}}}", f"{lab}: `address`: ") for it in (*ranges, *others)),
            *((f"{{address: [10.0.0.1, {it}]}}", f"{lab}: `address`: ") for it in ranges + others),
            ("{address: 192.168.7.1/24}", "`address`: 192.168.7.1/24 has host bits set"),
            *((f'{{address: "{it}"}}', f"{it!r} is IPv4 in IPv6: write it") for it in mapped),
            *(("{address: 10}", f"{lab}.address: "), ("{address: [10]}", f"{lab}.address.0: ")),
            *((f"{{token: {it}}}", "lab: `token`: this has to be the hash") for it in noHash),
            *((f"{{token: [{it}]}}", "lab: `token`: this has to be the hash") for it in noHash),
            *((f"{{uid: {it}}}", f"{lab}.uid: expected a whole number") for it in noUid),
            *((f"{{uid: [{it}]}}", f"{lab}.uid.0: expected a whole number") for it in noUid),
            *(('{certificate: ""}', noName), ('{certificate: [a, ""]}', noName)),
            ("{certificate: 1}", f"{lab}.certificate: expected"),
        ):
            self.assertNotIn("secret", self.who(definition, part))
        for key in ("address", "token", "certificate", "uid"):
            other = "uid: 0" if key == "address" else "address: 10.0.0.0/8"
            for nothing in ("", "null", "~"):
                wrong = f"{{{other}, {key}: {nothing}}}"
                self.who(wrong, f"{lab}.{key}: expected ", "got nothing")

    def test_grants(self) -> None:
        """An entry of either list names known principals, commands and criteria of devices."""
        nobody = "`KEY.0.who`: unknown principal 'lab'; known are anyone, private, local"
        words = ("lst", "[list, lst]", "LIST", '""')
        for grant, *parts in (
            ("{who: anyone, command: list}", "access.KEY.0.command: unknown key"),
            ("{who: anyone, devices: {name: x}}", "access.KEY.0.devices", "unknown key"),
            ("{who: anyone, commands: }", "access.KEY.0.commands: expected", "got nothing"),
            ("{who: anyone, devices: }", "access.KEY.0.devices: expected", "got nothing"),
            ("{who: }", "access.KEY.0.who: expected", "got nothing"),
            ("{commands: list}", "access.KEY.0.who: is missing"),
            *(("{who: lab}", nobody), ("{who: [anyone, lab]}", nobody)),
            *((f"{{who: anyone, commands: {it}}}", "KEY.0.commands", "force") for it in words),
            ("{who: anyone, devices: {}}", "access.KEY.0.devices: no criterion"),
            ("{who: anyone, devices: [{id: ''}]}", "access.KEY.0.devices.0: `id` is empty"),
            ("{who: anyone, devices: uno}", "access.KEY.0.devices: expected"),
        ):
            for key in ("allow", "deny"):
                self.assertWrong(
                    f"  {key}:\n  - {grant}", *(it.replace("KEY", key) for it in parts)
                )
