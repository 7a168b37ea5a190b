"""
Tests of L{usbip_server.net.tlserrors}.
"""

from __future__ import annotations

import ssl
import subprocess
import sys

from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from usbip_server.net.tlserrors import MEANINGS, reasonOf


def sslError(reason: str) -> ssl.SSLError:
    """An error as C{ssl} raises it."""
    error = ssl.SSLError(1, "text")
    error.reason = reason.replace(" ", "_").upper()
    return error


class ReasonTests(SynchronousTestCase):
    """
    The same reason has the same words, whichever library reports it.
    """

    def test_bothLibraries(self) -> None:
        """Each reason in the table is found from C{ssl} and from pyOpenSSL, for both ends."""
        for reason, meanings in MEANINGS.items():
            for error in (sslError(reason), SSL.Error([("SSL routines", "", reason)])):
                self.assertEqual(
                    (reasonOf(error), reasonOf(error, isClient=True)), meanings, reason
                )

    def test_notInTable(self) -> None:
        """Any other reason is OpenSSL's own; several are joined; an error without one is shown as
        its text."""
        several = SSL.Error([("", "", "ee key too small"), ("", "", ""), ("", "", "no start line")])
        self.assertEqual(reasonOf(several), "ee key too small; no start line")
        self.assertEqual(reasonOf(sslError("bad extension"), True), "TLS failed: bad extension")
        for error in (SSL.Error(), SSL.Error([]), ValueError("no file")):
            self.assertEqual(reasonOf(error), str(error))

    def test_closed(self) -> None:
        """A connection that ends in the handshake is the other end's doing."""
        for error in (ssl.SSLEOFError(8, "EOF"), ConnectionResetError()):
            self.assertIn("the client disconnected", reasonOf(error))
            self.assertIn("it may not support TLS", reasonOf(error, isClient=True))

    def test_certificate(self) -> None:
        """A certificate that is not trusted is reported with OpenSSL's reason; one for another
        name with what to configure."""
        error = ssl.SSLCertVerificationError(1, "text")
        error.verify_code, error.verify_message = 20, "unable to get local issuer certificate"
        self.assertEqual(
            reasonOf(error), f"the client's certificate is rejected: {error.verify_message}"
        )
        self.assertIn(f"is not trusted: {error.verify_message}", reasonOf(error, isClient=True))
        error.verify_code = 62
        self.assertIn("for another name", reasonOf(error, isClient=True))

    def test_light(self) -> None:
        """The module loads neither Twisted nor a TLS library."""
        code = "import sys, usbip_server.net.tlserrors as m; print(sys.modules.keys() & {%s})"
        code %= "'ssl', 'OpenSSL', 'twisted'"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        self.assertEqual(done.stdout, b"set()\n")
