"""
L{usbip_server.server.advice}.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.support.certificates import LAB, authority, signed
from usbip_server.model.tokens import hashOf, newToken
from usbip_server.net.certificates import Validity
from usbip_server.net.endpoints import Listeners
from usbip_server.server.advice import warningsAbout
from usbip_server.server.config import Export, Source

NOW = datetime(2026, 11, 30, tzinfo=timezone.utc)
TOKEN = f"{{principals: {{ci: {{token: {hashOf(newToken())!r}}}}}, allow: [{{who: ci}}%s]}}"


class AdviceTests(SynchronousTestCase):
    """
    Warnings about configurations that are valid.
    """

    def setUp(self) -> None:
        folder = Path(self.mktemp())
        self.certificate, self.key = signed("server").write(folder, "server")
        self.ca, _ = authority(LAB).write(folder, "ca")
        Path(self.key).chmod(0o640)
        self.tls = f"tls: {{certificate: {self.certificate}, key: {self.key}"

    def warned(self, text: str, *validities: Validity) -> list[str]:
        """The warnings about a configuration."""
        config = Source("", text).config()
        listeners = Listeners(None, None if config.tls is None else object())  # type: ignore[arg-type]
        export = config.export.listen if isinstance(config.export, Export) else ()
        opened = [
            *listeners.requests(config.listen, lambda index, reason: ValueError(reason)),
            *listeners.export(export, lambda index, reason: ValueError(reason)),
        ]
        return warningsAbout(config, opened, validities, NOW)

    def assertWarned(self, text: str, warning: str) -> None:
        """There is one warning, which contains this."""
        [only] = self.warned(text)
        self.assertIn(warning, only)

    def test_none(self) -> None:
        """The defaults, and what is meant, cause no warning."""
        for text in (
            "",
            f"listen: [tls:5056]\nexport: {{listen: [tls:3241]}}\n{self.tls}}}",
            f"listen: [tls:5056]\nexport: off\n{self.tls}}}",
            "access: " + TOKEN % ", {who: private, commands: import}",
            "access: " + TOKEN % ", {who: anyone}",
        ):
            self.assertEqual(self.warned(text), [], text)

    def test_listeners(self) -> None:
        """A `tls` block that is not used, and USB traffic without TLS beside requests with it."""
        self.assertWarned(f"{self.tls}}}", "`tls` is not used")
        mixed = f"listen: [tls:5056]\n{self.tls}}}"
        self.assertWarned(mixed, "USB traffic on tcp:3240 is not")

    def test_key(self) -> None:
        """A key that everybody can read."""
        Path(self.key).chmod(0o644)
        text = f"listen: [tls:5056]\nexport: off\n{self.tls}}}"
        self.assertWarned(text, f"can read the key in {self.key}: chmod 640 {self.key}")

    def test_principals(self) -> None:
        """Principals that no entry names, that never match, and that can attach in vain."""
        unused = "access: {principals: {bob: {address: 192.0.2.7}}, allow: [{who: anyone}]}"
        self.assertWarned(unused, "`access.principals.bob` has no effect")
        certificate = "access: {principals: {al: {certificate: al}}, allow: [{who: al}]}"
        self.assertWarned(certificate, "can never be matched")
        tls = f"listen: [tls:5056]\nexport: off\n{self.tls}, client_ca: {self.ca}}}\n"
        self.assertEqual(self.warned(tls + certificate), [])
        self.assertWarned("access: " + TOKEN % "", "may attach, and nobody may import")
        find = TOKEN.replace("{who: ci}", "{who: ci, commands: find}") % ""
        self.assertEqual(self.warned(f"access: {find}"), [])

    def test_certificates(self) -> None:
        """A certificate is warned of from 30 days before its end, and before its begin."""
        day = timedelta(days=1)
        for begin, end, warning in (
            (NOW - day, NOW + 31 * day, ""),
            (NOW - day, NOW + 29 * day, "s.pem: the certificate of s expires on 2026-12-29, in 29"),
            (NOW - 2 * day, NOW - day, "which is not now"),
            (NOW + day, NOW + 90 * day, "which is not now"),
        ):
            found = self.warned("", Validity("s.pem", "s", begin, end))
            self.assertEqual(len(found), bool(warning))
            self.assertIn(warning, "".join(found))
