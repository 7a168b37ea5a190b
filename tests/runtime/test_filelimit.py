"""
Tests of L{usbip_server.runtime.service}.
"""

from __future__ import annotations

import resource

from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from usbip_server.runtime.service import SPARE_FILES, allowConnections

INFINITE = resource.RLIM_INFINITY


class AffordableTests(SynchronousTestCase):
    """
    Room for connections.
    """

    def given(self, soft: int, hard: int, stubborn: bool = False) -> list[tuple[int, int]]:
        """
        A process with these limits.

        @param stubborn: the system does not let it change them.
        @return: what it has, and has had.
        """
        limits = [(soft, hard)]

        def get(which: int) -> tuple[int, int]:
            self.assertEqual(which, resource.RLIMIT_NOFILE)
            return limits[-1]

        def set_(which: int, wanted: tuple[int, int]) -> None:
            if stubborn:
                raise ValueError("not allowed to raise maximum limit")
            limits.append(wanted)

        self.patch(resource, "getrlimit", get)
        self.patch(resource, "setrlimit", set_)
        return limits

    def test_enough(self) -> None:
        """Where there is room nothing is changed."""
        limits = self.given(4096, 4096)
        self.assertEqual(allowConnections(1024), 1024)
        self.assertEqual(len(limits), 1)

    def test_raised(self) -> None:
        """Room is made as far as needed."""
        limits = self.given(1024, 524288)
        self.assertEqual(allowConnections(2000), 2000)
        self.assertEqual(limits[-1], (2000 + SPARE_FILES, 524288))

    def test_hardLimit(self) -> None:
        """Where the system does not let it be more, there are fewer connections."""
        limits = self.given(512, 1024)
        self.assertEqual(allowConnections(2000), 1024 - SPARE_FILES)
        self.assertEqual(limits[-1], (1024, 1024))

    def test_stubborn(self) -> None:
        """Also where the system lets nothing be changed."""
        self.given(512, INFINITE, stubborn=True)
        self.assertEqual(allowConnections(2000), 512 - SPARE_FILES)

    def test_infinite(self) -> None:
        """Without a limit there is room for all."""
        limits = self.given(INFINITE, INFINITE)
        self.assertEqual(allowConnections(100_000), 100_000)
        self.assertEqual(len(limits), 1)
        limits = self.given(1024, INFINITE)
        self.assertEqual(allowConnections(100_000), 100_000)
        self.assertEqual(limits[-1], (100_000 + SPARE_FILES, INFINITE))

    def test_hardlyAny(self) -> None:
        """There is always room for one."""
        self.given(16, 16)
        self.assertEqual(allowConnections(1024), 1)

    def test_several(self) -> None:
        """Where each takes several files there is room for fewer, and that is logged."""
        limits = self.given(1024, 4096)
        self.assertEqual(allowConnections(1000, 3), 1000)
        self.assertEqual(limits[-1], (3000 + SPARE_FILES, 4096))
        self.given(512, 512)
        with capturedLogs() as events:
            room = allowConnections(1000, 3)
        self.assertEqual(room, (512 - SPARE_FILES) // 3)
        (warning,) = events
        self.assertEqual((warning["room"], warning["wanted"]), (room, 1000))
