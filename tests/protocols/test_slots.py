"""
Tests of L{usbip_server.protocols.slots}.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from usbip_server.model.policy import Principal
from usbip_server.protocols.slots import NoPlace, Slot, Slots


class SlotsTests(SynchronousTestCase):
    """
    L{Slots}.
    """

    most = 1024

    def setUp(self) -> None:
        self.slots = Slots(lambda: self.most, lambda principal: principal not in self.strangers)
        self.strangers: set[Principal] = set()

    def fill(self, *principals: Principal, isStranger: bool = False) -> list[Slot]:
        """Take all places that there are for some clients, in rotation."""
        if isStranger:
            self.strangers.update(principals)
        taken = []
        left = list(principals)
        while left:
            for principal in tuple(left):
                try:
                    taken.append(self.slots.take(principal))
                except NoPlace:
                    left.remove(principal)
        return taken

    def test_parts(self) -> None:
        """Each client has a part of the places, and so have kinds of clients."""
        far = [Principal(f"192.0.2.{number}") for number in range(20)]
        root, user = Principal("local", uid=0), Principal("local", uid=1000)
        for principals, isStranger, count in (
            (far[:1], False, 512),
            (far[:2], False, 896),
            (far[:1], True, 128),
            (far[:2], True, 256),
            (far, True, 512),
            ([Principal("127.0.0.1")], False, 512),
            ([Principal("127.0.0.1"), Principal("::1"), far[0]], False, 960),
            ([root], False, 512),
            ([root, far[0], far[1]], False, 1024),
            ([user], True, 32),
            ([Principal("2001:db8::1"), Principal("2001:db8::2")], False, 512),
            ([Principal("2001:db8::1"), Principal("2001:db8:0:1::1")], False, 896),
            ([Principal("2001:db8::1"), Principal("2001:db8::2")], True, 128),
        ):
            self.setUp()
            taken = self.fill(*principals, isStranger=isStranger)
            self.assertEqual(len(taken), count, principals)
            for slot in taken:
                slot.free()
            self.assertEqual(len(self.fill(*principals)), count, "afterwards")

    def test_others(self) -> None:
        """
        Whatever clients without rights and any one client do, there are places for others: for
        those with rights, and on this machine, above all on its unix sockets.
        """
        strangers = [Principal(f"198.51.100.{number}") for number in range(50)]
        self.fill(*strangers, isStranger=True)
        far = Principal("192.0.2.1")
        self.assertGreater(len(self.fill(far)), 300)
        self.fill(Principal("192.0.2.2"))
        self.assertEqual(len(self.fill(Principal("127.0.0.1"))), 64)
        self.fill(Principal("local", uid=1000), isStranger=True)
        self.assertEqual(len(self.fill(Principal("local", uid=0))), 64)

    def test_allow(self) -> None:
        """
        A client that turns out to have rights does not count among those without; a place is freed
        once.
        """
        strangers = [Principal(f"198.51.100.{number}") for number in range(4)]
        taken = self.fill(*strangers, isStranger=True)
        self.assertEqual((len(taken), self.slots.strangers), (512, 512))
        for slot in taken[:100]:
            slot.allow()
            slot.allow()
        self.assertEqual(len(self.fill(Principal("198.51.100.9"), isStranger=True)), 100)
        for slot in taken:
            slot.free()
        self.assertEqual(self.slots.strangers, 100)

    def test_few(self) -> None:
        """Of few places each client gets one at least."""
        for self.most in (1, 2, 3):
            self.setUp()
            self.assertEqual(len(self.fill(Principal("192.0.2.1"), isStranger=True)), 1)
        self.setUp()
        with self.assertRaises(NoPlace) as caught:
            for _ in range(3):
                self.slots.take(Principal("192.0.2.1"))
        self.assertIn("2 connections of one client", str(caught.exception))
