"""
Tests of L{usbip_server.client.cli.exitcodes}.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.support.fixtures import UNO
from usbip_server.client.cli.exitcodes import EXIT_AFTER, WORD_OF, Exit, exitFor
from usbip_server.client.selection import Selector, SeveralFound
from usbip_server.model.errors import (
    DeviceInUse,
    DeviceNotFound,
    LocalTrouble,
    NotAllowed,
    ShareError,
    Unreachable,
)
from usbip_server.model.replies import Refused, Status


class ExitTests(SynchronousTestCase):
    """
    Exit codes.
    """

    def test_words(self) -> None:
        """Each code has a different word, and each status of a reply has a code."""
        self.assertEqual(len({each.word for each in Exit}), len(Exit))
        self.assertEqual({each.word for each in Exit}, {*WORD_OF.values()})
        self.assertEqual({*EXIT_AFTER}, {*Status})

    def test_errors(self) -> None:
        """Each error has a code."""
        for error, status in (
            (DeviceNotFound(""), Exit.NOT_FOUND),
            (SeveralFound(Selector(word="x"), ()), Exit.SEVERAL),
            (Refused(Status.NOT_FOUND, ""), Exit.NOT_FOUND),
            (Refused(Status.ERROR, ""), Exit.REFUSED),
            (DeviceInUse(UNO), Exit.REFUSED),
            (NotAllowed(""), Exit.REFUSED),
            (Unreachable(""), Exit.UNREACHABLE),
            (LocalTrouble(""), Exit.TROUBLE),
            (ShareError(""), Exit.REFUSED),
        ):
            self.assertIs(exitFor(error), status)
