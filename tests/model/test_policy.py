"""
Tests of L{usbip_server.model.policy}: what the configuration says of who may do what.
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
    several,
    within,
)
from usbip_server.model.tokens import hashOf
from usbip_server.runtime.yamlfile import ConfigError
from usbip_server.server.config import Settings, Source

HASH = hashOf("usbip_x", "0" * 32)
OTHER = hashOf("usbip_y", "0" * 32)
THIRD = hashOf("usbip_z", "0" * 32)


def policyOf(access: str) -> Policy:
    """What the daemon makes of C{access} in the configuration."""
    settings: Settings = Source("c.yaml", f"access:\n{access}").config().settings
    return settings.access


class PrincipalTests(SynchronousTestCase):
    """
    Whoever is at the other end.
    """

    def test_str(self) -> None:
        """In messages all that is known of them; user 0 is one."""
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


class WithinTests(SynchronousTestCase):
    """
    Ranges of addresses.
    """

    def assertWithin(self, text: str, *addresses: str) -> None:
        """They are in the range."""
        for address in addresses:
            self.assertTrue(within(address, (text,)), (address, text))

    def assertOutside(self, text: str, *addresses: str) -> None:
        """They are not."""
        for address in addresses:
            self.assertFalse(within(address, (text,)), (address, text))

    def test_ipv4(self) -> None:
        """A range ends where it ends; an address alone is one of one."""
        self.assertWithin("192.168.7.0/24", "192.168.7.0", "192.168.7.255")
        self.assertOutside("192.168.7.0/24", "192.168.6.255", "192.168.8.0", "192.168.70.1")
        self.assertWithin("192.0.2.7", "192.0.2.7")
        self.assertOutside("192.0.2.7", "192.0.2.6", "192.0.2.70")
        self.assertWithin("0.0.0.0/0", "0.0.0.0", "255.255.255.255")

    def test_ipv6(self) -> None:
        """So it is with IPv6, in whatever spelling."""
        self.assertWithin("2001:db8::/32", "2001:db8::1", "2001:0DB8:ffff::1")
        self.assertOutside("2001:db8::/32", "2001:db9::", "2001:db7:ffff::")
        self.assertWithin("::1", "::1", "0:0:0:0:0:0:0:1")

    def test_versions(self) -> None:
        """An address is in no range of the other kind."""
        self.assertOutside("::/0", "192.0.2.7", "127.0.0.1")
        self.assertOutside("0.0.0.0/0", "::1", "2001:db8::1")

    def test_zones(self) -> None:
        """A link-local address is in a range whatever interface it is on, unless the range is
        for one: there may be another machine with that address on another link."""
        self.assertWithin("fe80::/10", "fe80::1%eth0", "fe80::1%7", "fe80::1")
        self.assertOutside("2001:db8::/32", "fe80::1%eth0")
        for text in ("fe80::1%eth0", "fe80::1%eth0/128", "fe80::%eth0/64"):
            self.assertWithin(text, "fe80::1%eth0")
            self.assertOutside(text, "fe80::1%eth1", "fe80::1", "fe80::1%", "fe80::1%eth00")

    def test_several(self) -> None:
        """One of several ranges is enough; of none nobody is one."""
        ranges = ("10.0.0.0/8", "2001:db8::/32")
        self.assertTrue(within("10.1.2.3", ranges))
        self.assertTrue(within("2001:db8::1", ranges))
        self.assertFalse(within("192.0.2.7", ranges))
        self.assertFalse(within("10.1.2.3", ()))

    def test_noAddress(self) -> None:
        """What is no address is in none."""
        for text in (
            LOCAL,
            "",
            "%",
            "%eth0",
            "10.0.0.1.example.com",
            "10.0.0.1 ",
            "1",
            "010.0.0.1",
        ):
            self.assertOutside("0.0.0.0/0", text)
            self.assertOutside("::/0", text)

    def test_sameHost(self) -> None:
        """This machine is one, by whichever of its own addresses; of others nothing is known
        but the address."""
        for one, other, expected in (
            *(("192.0.2.7", "192.0.2.7", True), ("192.0.2.7", "192.0.2.8", False)),
            *(("127.0.0.1", "::1", True), (LOCAL, "127.9.9.9", True), (LOCAL, LOCAL, True)),
            *((LOCAL, "192.0.2.7", False), ("::1", "2001:db8::1", False), ("", LOCAL, False)),
            *(("fe80::1%eth0", "fe80::1%eth1", False), ("x", "x", True)),
        ):
            self.assertIs(sameHost(one, other), expected, (one, other))
            self.assertIs(sameHost(other, one), expected, (other, one))


class WhoTests(SynchronousTestCase):
    """
    Whom a description is of.
    """

    def assertIs_(self, who: Who, *principals: Principal) -> None:
        """It is of these, of those there are."""
        everybody = (
            *(Principal("192.168.7.1"), Principal("192.168.8.1"), Principal("2001:db8::1")),
            *(Principal(LOCAL), Principal(LOCAL, uid=0), Principal(LOCAL, uid=1000)),
            *(
                Principal("192.168.7.1", token="it", hashes=(HASH,)),
                Principal("192.168.8.1", token="it", hashes=(HASH,)),
            ),
            *(
                Principal("192.168.7.1", token="other", hashes=(THIRD,)),
                Principal(LOCAL, uid=0, token="it", hashes=(HASH,)),
            ),
            Principal("192.168.7.1", certificate="alice"),
            Principal("192.168.8.1", certificate="bob"),
            Principal("192.168.8.1", certificate="alice", token="it", hashes=(HASH,)),
            Principal("192.168.7.1", certificate=""),
        )
        found = [principal for principal in everybody if who.matches(principal)]
        self.assertEqual(found, [*principals], who)

    def test_address(self) -> None:
        """Everybody at an address; nobody on a unix socket, as there is none."""
        expected = (Principal("192.168.8.1"), Principal("2001:db8::1"))
        shown = (
            Principal("192.168.8.1", token="it", hashes=(HASH,)),
            Principal("192.168.8.1", certificate="bob"),
            Principal("192.168.8.1", certificate="alice", token="it", hashes=(HASH,)),
        )
        self.assertIs_(Who(address=("192.168.8.0/24", "2001:db8::/32")), *expected, *shown)
        self.assertIs_(Who(address="192.168.8.1"), expected[0], *shown)

    def test_uid(self) -> None:
        """A user on a unix socket: user 0 is one, and no user is none of them."""
        root = (Principal(LOCAL, uid=0), Principal(LOCAL, uid=0, token="it", hashes=(HASH,)))
        self.assertIs_(Who(uid=0), *root)
        self.assertIs_(Who(uid=1000), Principal(LOCAL, uid=1000))
        self.assertIs_(Who(uid=(1000, 1001)), Principal(LOCAL, uid=1000))
        self.assertIs_(Who(uid=7))

    def test_token(self) -> None:
        """Whoever has shown a token of this principal, not of another."""
        self.assertIs_(
            Who(token=(HASH, OTHER)),
            Principal("192.168.7.1", token="it", hashes=(HASH,)),
            Principal("192.168.8.1", token="it", hashes=(HASH,)),
            Principal(LOCAL, uid=0, token="it", hashes=(HASH,)),
            Principal("192.168.8.1", certificate="alice", token="it", hashes=(HASH,)),
        )

    def test_certificate(self) -> None:
        """Whoever has shown a certificate with one of these names, to the letter."""
        alice = Principal("192.168.7.1", certificate="alice")
        both = Principal("192.168.8.1", certificate="alice", token="it", hashes=(HASH,))
        self.assertIs_(Who(certificate="alice"), alice, both)
        bob = Principal("192.168.8.1", certificate="bob")
        self.assertIs_(Who(certificate=("bob", "alice")), alice, bob, both)
        for name in ("Alice", "alic", "alice ", "*", "a*", "ali"):
            self.assertIs_(Who(certificate=name))

    def test_all(self) -> None:
        """All that is given has to be true."""
        expected = Principal("192.168.7.1", token="it", hashes=(HASH,))
        self.assertIs_(Who(address="192.168.7.0/24", token=HASH), expected)
        both = Principal("192.168.8.1", certificate="alice", token="it", hashes=(HASH,))
        self.assertIs_(Who(certificate="alice", token=HASH), both)
        self.assertIs_(Who(certificate="alice", token=HASH, address="192.168.7.1"))
        self.assertIs_(Who(uid=0, token=HASH), Principal(LOCAL, uid=0, token="it", hashes=(HASH,)))
        self.assertIs_(Who(uid=0, address="192.168.7.1"))

    def test_empty(self) -> None:
        """An empty list is nobody, whatever stands beside it."""
        for who in (
            *(Who(address=()), Who(token=()), Who(certificate=()), Who(uid=())),
            *(Who(address=(), token=HASH), Who(token=(), address="0.0.0.0/0")),
            *(Who(certificate=(), address="0.0.0.0/0"), Who(uid=(), token=HASH)),
        ):
            self.assertIs_(who)


class GrantTests(SynchronousTestCase):
    """
    What a rule is about.
    """

    def covered(self, grant: Grant) -> set[tuple[Right, str]]:
        """What it covers of all there is."""
        devices = (UNO, STICK, MOUSE)
        return {
            (right, device.busId)
            for right in Right
            for device in devices
            if grant.covers(right, device)
        }

    def test_everything(self) -> None:
        """What is left out is everything."""
        self.assertEqual(len(self.covered(Grant(who="a"))), 3 * len(Right))
        self.assertTrue(all(Grant(who="a").isAbout(right) for right in Right))

    def test_commands(self) -> None:
        """One command, or several."""
        for commands in (Right.KICK, (Right.KICK, Right.LIST)):
            grant = Grant(who="a", commands=commands)
            about = {right for right in Right if grant.isAbout(right)}
            self.assertEqual(about, {*several(commands)})
            self.assertEqual({right for right, _ in self.covered(grant)}, about)

    def test_devices(self) -> None:
        """One kind of device, or several; it is about a command for any device then."""
        uno, stick = Match(desc="uno"), Match(serial="4C530001[23]")
        for devices, expected in ((uno, {"1-1.4"}), ((uno, stick), {"1-1.4", "1-2"})):
            grant = Grant(who="a", devices=devices)
            self.assertEqual({busId for _, busId in self.covered(grant)}, expected)
            self.assertTrue(grant.isAbout(Right.ATTACH))

    def test_empty(self) -> None:
        """An empty list is nothing."""
        self.assertEqual(self.covered(Grant(who="a", commands=())), set())
        self.assertEqual(self.covered(Grant(who="a", devices=())), set())


class PolicyTests(SynchronousTestCase):
    """
    Names, and who is meant by them.
    """

    lab = Principal("192.168.7.1")
    away = Principal("203.0.113.9")
    policy = Policy(principals={"lab": Who(address="192.168.7.0/24"), "ci": Who(token=HASH)})

    def assertAny(self, principal: Principal, *names: str) -> None:
        """Somebody is called this, and no other name there is."""
        known = (*self.policy.principals, *BUILT_IN)
        found = [name for name in known if self.policy.isAny((name,), principal)]
        self.assertEqual(found, [*names], principal)

    def test_names(self) -> None:
        """A principal of the configuration is called by its name, and so are those that are
        there without it."""
        self.assertAny(self.lab, "lab", "anyone", "private")
        self.assertAny(self.away, "anyone")
        self.assertAny(Principal("203.0.113.9", token="ci", hashes=(HASH,)), "ci", "anyone")
        self.assertAny(Principal("203.0.113.9", token="lab"), "anyone")
        self.assertAny(Principal("127.0.0.1"), "anyone", "private", "local")
        self.assertAny(Principal("fe80::1%eth0"), "anyone", "private")
        self.assertAny(Principal(LOCAL, uid=1000), "anyone", "private", "local")

    def test_oneOfSeveral(self) -> None:
        """One name of several is enough, and without a name nobody is meant."""
        self.assertTrue(self.policy.isAny(("ci", "lab"), self.lab))
        self.assertFalse(self.policy.isAny(("ci", "local"), self.lab))
        self.assertFalse(self.policy.isAny((), self.lab))

    def test_proofsAreNoNames(self) -> None:
        """Nobody becomes somebody by a certificate, or an address, that has their name."""
        for principal in (Principal("203.0.113.9", certificate="ci"), Principal("ci")):
            self.assertAny(principal, "anyone")

    def test_words(self) -> None:
        """Each word is a policy of one rule."""
        for openness, names in (
            (AccessPreset.OPEN, {"anyone"}),
            (AccessPreset.PRIVATE, {"private"}),
            (AccessPreset.LOCAL, {"local"}),
        ):
            [grant] = openness.policy.allow
            self.assertEqual({*several(grant.who)}, names)
            self.assertEqual((grant.commands, grant.devices), (None, None))
            self.assertEqual(openness.policy.deny, ())


class FileTests(SynchronousTestCase):
    """
    What stands in the file.
    """

    def test_default(self) -> None:
        """Nothing, or a word."""
        self.assertEqual(Source("c.yaml", "").config().settings.access, AccessPreset.PRIVATE.policy)
        for openness in AccessPreset:
            self.assertEqual(policyOf(f"  {openness.value}"), openness.policy)

    def test_empty(self) -> None:
        """A mapping without a rule lets nobody do anything."""
        self.assertEqual(policyOf("  {}"), Policy())

    def test_everything(self) -> None:
        """One or a list of each."""
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

    def test_everyCommand(self) -> None:
        """Each right can be said."""
        for right in Right:
            [grant] = policyOf(f"  allow: [{{who: anyone, commands: {right.value}}}]").allow
            self.assertEqual(grant.commands, right)


class WrongTests(SynchronousTestCase):
    """
    What is wrong in the file: the daemon says where, and does not start.
    """

    def assertWrong(self, access: str, *said: str) -> None:
        """It is refused, with a message that says all that."""
        error = self.assertRaises(ConfigError, policyOf, access)
        for part in said:
            self.assertIn(part, str(error))

    def who(self, description: str, *said: str) -> None:
        """That is no description of somebody."""
        self.assertWrong(f"  principals:\n    lab: {description}", "c.yaml:3: access.pr", *said)

    def grant(self, grant: str, *said: str) -> None:
        """That is no rule, neither to allow nor to deny."""
        for key in ("allow", "deny"):
            self.assertWrong(f"  {key}:\n  - {grant}", *(it.replace("KEY", key) for it in said))

    def test_words(self) -> None:
        """There are three words."""
        self.assertWrong("  closed", "c.yaml:1: access: ", "one of open, private, local")
        self.assertWrong("  Open", "one of open, private, local")
        for nothing in ("  ", "  null", "  []", "  1", "  yes"):
            self.assertWrong(nothing, "access: expected")

    def test_unknown(self) -> None:
        """There are no other keys."""
        self.assertWrong("  alow: []", "access.alow: unknown key")
        self.who("{adress: 192.0.2.7}", "access.principals.lab.adress: unknown key")
        self.grant("{who: anyone, command: list}", "access.KEY.0.command: unknown key")
        self.grant("{who: anyone, devices: {name: x}}", "access.KEY.0.devices", "unknown key")

    def test_address(self) -> None:
        """Addresses and ranges, and such that somebody can be in."""
        for text in (
            *('""', "lab.example.com", "10.0.0.0/33", "10.0.0.0/-1", "010.0.0.1"),
            *(
                '"::g"',
                "10.0.0.0-10.0.0.9",
                "10.*",
                '"10"',
                '"fe80::/64%eth0"',
                "10.0.0.0/8/8",
                "local",
            ),
        ):
            self.who(f"{{address: {text}}}", "access.principals.lab: `address`: ")
            self.who(f"{{address: [10.0.0.1, {text}]}}", "access.principals.lab: `address`: ")
        self.who("{address: 192.168.7.1/24}", "`address`: 192.168.7.1/24 has host bits set")
        for text in ("::ffff:10.0.0.0/104", "::ffff:10.0.0.1", "::ffff:0:0/96"):
            self.who(f'{{address: "{text}"}}', f"`address`: {text!r} is IPv4 in IPv6: write it")
        self.who("{address: 10}", "access.principals.lab.address: ")
        self.who("{address: [10]}", "access.principals.lab.address.0: ")

    def test_token(self) -> None:
        """The hash of a token, not a token; what stands there is not repeated."""
        for text in ('""', "usbip_secret", f"{HASH}0", HASH[:-1], HASH.upper()):
            for token in (text, f"[{text}]"):
                self.who(f"{{token: {token}}}", "lab: `token`: this has to be the hash")
        error = self.assertRaises(
            ConfigError, policyOf, "  principals: {lab: {token: usbip_secret}}"
        )
        self.assertNotIn("secret", str(error))

    def test_tokenOfTwo(self) -> None:
        """A token says who somebody is: it cannot be that of two. One principal may have it
        in its list twice."""
        for second in (f'"{HASH}"', f'["{OTHER}", "{HASH}"]'):
            self.assertWrong(
                f'\n  principals:\n    a: {{token: "{HASH}"}}\n    b: {{token: {second}}}',
                "access: `principals.b.token`: 'a' has the same token",
            )
        policyOf(f'\n  principals: {{a: {{token: ["{HASH}", "{HASH}"]}}}}')

    def test_uid(self) -> None:
        """Numbers of users."""
        for text in ("root", "-1", "1.5", '"0"', "true"):
            self.who(f"{{uid: {text}}}", "access.principals.lab.uid: expected a whole number")
            self.who(f"{{uid: [{text}]}}", "access.principals.lab.uid.0: expected a whole number")

    def test_certificate(self) -> None:
        """Names, and not empty ones."""
        self.who(
            '{certificate: ""}', "access.principals.lab: `certificate`: a name must not be empty"
        )
        self.who(
            '{certificate: [a, ""]}',
            "access.principals.lab: `certificate`: a name must not be empty",
        )
        self.who("{certificate: 1}", "access.principals.lab.certificate: expected")

    def test_nobody(self) -> None:
        """A description has to say something."""
        self.who("{}", "access.principals.lab: one of `address`, `token`, `certificate` and")
        self.who("", "access.principals.lab: expected a mapping, got nothing")

    def test_leftEmpty(self) -> None:
        """A key with nothing behind it is not taken for one that was left out: that would be
        everybody, everything, all devices."""
        for key in ("address", "token", "certificate", "uid"):
            other = "uid: 0" if key == "address" else "address: 10.0.0.0/8"
            for nothing in ("", "null", "~"):
                self.who(
                    f"{{{other}, {key}: {nothing}}}",
                    f"access.principals.lab.{key}: expected ",
                    "got nothing",
                )
        for key in ("commands", "devices"):
            self.grant(f"{{who: anyone, {key}: }}", f"access.KEY.0.{key}: expected", "got nothing")
        self.grant("{who: }", "access.KEY.0.who: expected", "got nothing")
        for key in ("principals", "allow", "deny"):
            self.assertWrong(f"  {key}:", f"access.{key}: expected", "got nothing")

    def test_names(self) -> None:
        """A rule is for somebody there is, and nobody is called as those that are there
        without the configuration."""
        self.grant("{commands: list}", "access.KEY.0.who: is missing")
        for who in ("lab", "[anyone, lab]"):
            self.grant(
                f"{{who: {who}}}",
                "`KEY.0.who`: unknown principal 'lab'; known are anyone, private, local",
            )
        for name in BUILT_IN:
            self.assertWrong(
                f"  principals: {{{name}: {{uid: 0}}}}",
                f"access: `principals`: {name!r} is a built-in principal: choose another name",
            )
        self.assertWrong(
            "  principals: {lab: {uid: 0}}\n  allow: [{who: lab}, {who: Lab}]",
            "`allow.1.who`: unknown principal 'Lab'; known are lab, anyone, private, local",
        )

    def test_commands(self) -> None:
        """There are some commands."""
        for commands in ("lst", "[list, lst]", "LIST", '""'):
            self.grant(f"{{who: anyone, commands: {commands}}}", "access.KEY.0.commands", "force")

    def test_devices(self) -> None:
        """Devices are meant as in rules."""
        self.grant("{who: anyone, devices: {}}", "access.KEY.0.devices: no criterion")
        self.grant("{who: anyone, devices: [{id: ''}]}", "access.KEY.0.devices.0: `id` is empty")
        self.grant("{who: anyone, devices: uno}", "access.KEY.0.devices: expected")
