"""
Tests of L{usbip_server.model.tokens}.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from usbip_server.model.tokens import PREFIX, hashOf, isHashOf, newToken, requireHash

SALT = "00112233445566778899aabbccddeeff"


class TokenTests(SynchronousTestCase):
    """
    Tokens that are made.
    """

    def test_secret(self) -> None:
        """Each is another one, with 256 bits that cannot be guessed."""
        tokens = {newToken() for _ in range(1000)}
        self.assertEqual(len(tokens), 1000)
        for token in tokens:
            self.assertTrue(token.startswith(PREFIX))
            self.assertEqual(len(token) - len(PREFIX), 43)  # 256 bits, six in a character

    def test_plain(self) -> None:
        """It can stand in a header (RFC 6750, 2.1), in JSON and in a shell as it is."""
        for _ in range(100):
            self.assertRegex(newToken(), r"\A[A-Za-z0-9_-]+\Z")


class HashTests(SynchronousTestCase):
    """
    What is kept of them.
    """

    def test_roundTrip(self) -> None:
        """A hash is that of its token, and of no other."""
        token = newToken()
        kept = hashOf(token)
        requireHash(kept)
        self.assertTrue(isHashOf(kept, token))
        for other in (newToken(), "", token[:-1], token + " ", token.upper(), kept, SALT):
            self.assertFalse(isHashOf(kept, other), other)

    def test_known(self) -> None:
        """It is SHA-256 of the salt's digits and the token, as other programs make it."""
        # printf %s 00112233445566778899aabbccddeeffusbip_x | sha256sum
        digest = "632c50b1ec98ea9b2d69e6135a2a565210fe0dcec84d6398e23e42091aaaa1ce"
        self.assertEqual(hashOf("usbip_x", SALT), f"sha256${SALT}${digest}")

    def test_salt(self) -> None:
        """Whoever sees two hashes cannot tell whether they are of one token."""
        kept = {hashOf("usbip_x") for _ in range(100)}
        self.assertEqual(len(kept), 100)
        for one in kept:
            self.assertTrue(isHashOf(one, "usbip_x"))

    def test_secretsStayInside(self) -> None:
        """Nothing of the token stands in its hash."""
        token = newToken()
        self.assertNotIn(token.removeprefix(PREFIX), hashOf(token))

    def test_whatever(self) -> None:
        """What is shown as a token may be any text at all, halves of surrogate pairs too."""
        kept = hashOf("usbip_x")
        for shown in ("", "ü", "機械", "😀", "\ud800", "\udcff\udc00", "\0", "a\nb", "x" * 10**6):
            self.assertFalse(isHashOf(kept, shown))
            self.assertTrue(isHashOf(hashOf(shown), shown))

    def test_malformed(self) -> None:
        """What is no hash is refused, and not repeated: it may be the token itself."""
        kept = hashOf("usbip_x", SALT)
        digest = kept.rpartition("$")[2]
        for wrong in (
            *("", "usbip_secret", "sha256", "sha256$", f"sha256${SALT}", f"sha256${SALT}$"),
            *(f"sha1${SALT}${digest}", f"SHA256${SALT}${digest}", f"{SALT}${digest}"),
            *(f"sha256${SALT}${digest[:-1]}", f"sha256${SALT}${digest}0", f"{kept}${digest}"),
            *(f"sha256${SALT[:-1]}${digest}", f"sha256${SALT}0${digest}", f"sha256$${digest}"),
            *(kept.upper(), f"{kept}\n", f" {kept}", kept.replace("0", "g")),
            kept.replace("0", "\u0660"),  # a digit, but not one of ours
        ):
            error = self.assertRaises(ValueError, requireHash, wrong)
            self.assertIn("`token`: this has to be the hash of a token", str(error))
            self.assertNotIn("secret", str(error))
