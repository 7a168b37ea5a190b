"""
Tests of L{usbip_server.client.cli.diagnostics}.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from usbip_server import PRODUCT, __version__
from usbip_server.client.cli.diagnostics import isOlder, versionIn


class VersionTests(SynchronousTestCase):
    """
    Versions.
    """

    def test_header(self) -> None:
        """Of what a server calls itself only our own name counts, wherever it stands."""
        for header, version in (
            (PRODUCT, __version__),
            ("usbipshare/1.2", "1.2"),
            ("nginx/1.27 usbipshare/1.2 (Debian)", "1.2"),
            ("nginx/1.27.1", None),
            ("usbipshare", None),
            ("notusbipshare/1.2", None),
            (f"usbipshare/{5000 * '9'}", None),
            ("", None),
        ):
            self.assertEqual(versionIn(header), version, header)

    def test_older(self) -> None:
        """Numbers count as numbers, and a version that comes before a release is older than it."""
        for one, other in (
            ("0.1.0", "0.2.0"),
            ("0.9", "0.10"),
            ("1.0rc1", "1.0"),
            ("1.0.dev3", "1.0.0"),
            ("1.0", "1.0.1.dev1"),
            ("nonsense", "0.1"),
            ("0.1", 60 * "9"),
        ):
            self.assertTrue(isOlder(one, other), (one, other))
            self.assertFalse(isOlder(other, one), (one, other))

    def test_same(self) -> None:
        """Of those that differ in nothing that matters, neither is."""
        for one, other in (("1.0", "1.0.0"), ("1.0+lab", "1.0"), ("x", "y"), ("1.0", "1.0")):
            self.assertFalse(isOlder(one, other) or isOlder(other, one), (one, other))
