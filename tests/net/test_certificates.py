"""
Tests of L{usbip_server.net.certificates}: with real handshakes, and no network.
"""

from __future__ import annotations

import ssl
import warnings
from datetime import timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from tests.support.certificates import LAB, Identity, authority, signed, trusting
from tests.support.tlswire import TlsWire
from usbip_server.model.options import InvalidOption
from usbip_server.net import certificates
from usbip_server.net.caller import principalOf
from usbip_server.net.certificates import CIPHERS, Certificates, Credentials, Tls, read

SERVER = signed("localhost")


class CertificatesCase(SynchronousTestCase):
    """
    Files.
    """

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.pem, self.key = SERVER.write(self.folder, "server")
        self.authority, _ = authority(LAB).write(self.folder, "ca")

    def file(self, *parts: bytes) -> str:
        """A file of these."""
        path = self.folder / f"file{len(list(self.folder.iterdir()))}.pem"
        path.write_bytes(b"".join(parts))
        return str(path)

    def credentials(
        self, clientCa: str | None = None, isRequired: bool = False, shown: Identity = SERVER
    ) -> Credentials:
        """Those of a server."""
        certificate, key = shown.write(self.folder, "server")
        return read(
            Tls(
                certificate=certificate,
                key=key,
                clientCa=clientCa,
                requireClientCertificate=isRequired,
            )
        )

    def client(self, name: str, by: str = LAB) -> ssl.SSLContext:
        """A client that shows a certificate."""
        return trusting(client=signed(name, by).write(self.folder, name))


class ReadingTests(CertificatesCase):
    """
    Which files can be used.
    """

    def assertWrong(self, tls: Tls, key: str, *reasons: str) -> None:
        """The key is blamed, for these reasons, in one line."""
        with self.assertRaises(InvalidOption) as caught:
            read(tls)
        self.assertEqual(caught.exception.path, ("tls", key))
        for reason in reasons:
            self.assertIn(reason, caught.exception.reason)
        self.assertNotIn("\n", caught.exception.reason)

    def test_good(self) -> None:
        """The key is in a file of its own, or with the certificate in whichever order; a chain
        may follow."""
        pem, key, ca = SERVER.pem, SERVER.keyPem, authority(LAB).pem
        for tls in (
            Tls(certificate=self.pem, key=self.key),
            Tls(certificate=self.file(pem, key)),
            Tls(certificate=self.file(key, pem)),
            Tls(certificate=self.file(b"What OpenSSL prints: \xc3\xbc\n", pem, ca), key=self.key),
            Tls(certificate=self.pem, key=self.key, clientCa=self.file(ca, authority("Other").pem)),
        ):
            self.assertEqual(wire(read(tls)).certificate, der(SERVER))

    def test_unreadable(self) -> None:
        """A file that is not there, or is none, is named."""
        gone = str(self.folder / "gone")
        for key, tls in (
            ("certificate", Tls(certificate=gone, key=self.key)),
            ("key", Tls(certificate=self.pem, key=gone)),
            ("client_ca", Tls(certificate=self.pem, key=self.key, clientCa=gone)),
        ):
            self.assertWrong(tls, key, f"{gone} cannot be read: No such file or directory")
        folder = str(self.folder)
        self.assertWrong(Tls(certificate=folder), "certificate", f"{folder} cannot be read: Is a")

    def test_noPem(self) -> None:
        """So is one that holds something else."""
        other = self.file(SERVER.certificate.public_bytes(Encoding.DER))
        half = self.file(SERVER.pem[:100])
        for path in (other, half, self.key, self.file()):
            for key, tls in (
                ("certificate", Tls(certificate=path, key=self.key)),
                ("client_ca", Tls(certificate=self.pem, key=self.key, clientCa=path)),
            ):
                self.assertWrong(tls, key, f"{path} holds no certificate in PEM")
        for path in (other, self.file(SERVER.keyPem[:100]), self.pem):
            tls = Tls(certificate=self.pem, key=path)
            self.assertWrong(tls, "key", f"{path} holds no private key in PEM")
        tls = Tls(certificate=self.pem)
        self.assertWrong(tls, "certificate", "holds no private key in PEM: say with `key` which")

    def test_otherKey(self) -> None:
        """A key that belongs to another certificate is not taken, of whichever kind it is."""
        other = signed("other")
        kind = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        rsaKey = kind.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        for key in (other.keyPem, rsaKey):
            path = self.file(key)
            reason = f"the key in {path} does not belong to the first certificate in {self.pem}"
            self.assertWrong(Tls(certificate=self.pem, key=path), "key", reason)
        both = self.file(SERVER.pem, other.keyPem)
        self.assertWrong(Tls(certificate=both), "certificate", f"the key in {both} does not")
        wrongOrder = self.file(authority(LAB).pem, SERVER.pem)
        reason = "the first certificate"
        self.assertWrong(Tls(certificate=wrongOrder, key=self.key), "key", reason, "server's own")

    def test_encrypted(self) -> None:
        """One that takes a password is not taken, and nobody is asked for one."""
        path = self.file(SERVER.encryptedKeyPem)
        tls = Tls(certificate=self.pem, key=path)
        self.assertWrong(tls, "key", f"{path} is encrypted", "openssl pkey")

    def test_weak(self) -> None:
        """What OpenSSL thinks too weak is not taken, and the reason is its own."""
        weak = signed("weak", isWeak=True).write(self.folder, "weak")
        tls = Tls(certificate=weak[0], key=weak[1])
        self.assertWrong(tls, "certificate", "OpenSSL does not take it: ee key too small")

    def test_expired(self) -> None:
        """One that is not valid now is used, as the clock may be wrong; when it was is known."""
        old = signed("old", until=timedelta(days=-1))
        credentials = self.credentials(shown=old)
        (validity, *_) = credentials.validities
        self.assertEqual(
            (validity.name, validity.end), ("old", old.certificate.not_valid_after_utc)
        )
        lenient = trusting()
        lenient.check_hostname = False
        lenient.verify_mode = ssl.CERT_NONE
        self.assertEqual(wire(credentials, lenient).certificate, der(old))


class ControlPortTests(CertificatesCase):
    """
    What Twisted speaks.
    """

    def test_versions(self) -> None:
        """TLS 1.2 and 1.3, and nothing older."""
        credentials = self.credentials()
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = trusting()
            context.minimum_version = context.maximum_version = version
            made = wire(credentials, context)
            self.assertEqual(made.version, version.name.replace("_", "."))
            self.assertIsNone(made.error)
        self.assertIsNotNone(wire(credentials, old()).error)

    def test_ciphers(self) -> None:
        """Of TLS 1.2 only what has forward secrecy and is authenticated, the cheapest first."""
        credentials = self.credentials()
        self.assertEqual(
            wire(credentials, with12("ALL:@SECLEVEL=0")).cipher, CIPHERS.partition(":")[0]
        )
        good = [name for name in CIPHERS.split(":") if "ECDSA" in name]
        for name in good:
            self.assertEqual(wire(credentials, with12(name)).cipher, name)
        for name in (
            "ECDHE-ECDSA-AES128-SHA256",
            "ECDHE-ECDSA-AES256-SHA",
            "ECDHE-ECDSA-AES128-CCM",
        ):
            self.assertIsNotNone(wire(credentials, with12(name)).error, name)

    def test_noClientCertificate(self) -> None:
        """Without a CA for clients nobody is asked for a certificate."""
        shown = Shown()
        made = wire(self.credentials(), self.client("alice"), shown)
        self.assertIsNone(made.error)
        self.assertEqual(shown.names, [None])

    def test_askedFor(self) -> None:
        """With one they are, and need not have one; what another CA has signed is refused."""
        credentials = self.credentials(self.authority)
        shown = Shown()
        for context in (trusting(), self.client("alice")):
            self.assertIsNone(wire(credentials, context, shown).error)
        self.assertIsNotNone(wire(credentials, self.client("mallory", "Other"), shown).error)
        self.assertEqual(shown.names, [None, "alice"])

    def test_required(self) -> None:
        """If it is required, nobody comes in without."""
        credentials = self.credentials(self.authority, isRequired=True)
        shown = Shown()
        self.assertIsNone(wire(credentials, self.client("alice"), shown).error)
        self.assertIsNotNone(wire(credentials, trusting(), shown).error)
        self.assertIsNotNone(wire(credentials, self.client("mallory", "Other"), shown).error)
        self.assertEqual(shown.names, ["alice"])


class ExportPortTests(CertificatesCase):
    """
    What the standard library speaks.
    """

    def handshake(
        self, credentials: Credentials, client: ssl.SSLContext
    ) -> tuple[ssl.SSLObject, ssl.SSLObject]:
        """
        Both ends of a connection.

        @raise ssl.SSLError: there is none.
        """
        up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
        ours = credentials.context.wrap_bio(up, down, server_side=True)
        theirs = client.wrap_bio(down, up, server_hostname="localhost")
        for end in (theirs, ours) * 3:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
        return ours, theirs

    def test_keys(self) -> None:
        """The cipher is one that every kernel with kTLS knows, and the kernel is to have the keys
        if it takes them."""
        credentials = self.credentials()
        context = with12("ALL")
        ours, theirs = self.handshake(credentials, context)
        cipher = ours.cipher()
        assert cipher is not None
        self.assertIn("AES128-GCM", cipher[0])
        self.assertEqual(theirs.getpeercert(True), der(SERVER))
        self.assertTrue(credentials.context.options & certificates.OP_ENABLE_KTLS)

    def test_versions(self) -> None:
        """TLS 1.3 only where OpenSSL hands over the keys of both directions."""
        for version, expected in (((3, 0, 2, 0, 0), "TLSv1.2"), ((3, 2, 0, 0, 0), "TLSv1.3")):
            self.patch(ssl, "OPENSSL_VERSION_INFO", version)
            ours, _ = self.handshake(self.credentials(), trusting())
            self.assertEqual(ours.version(), expected)
        self.assertRaises(ssl.SSLError, self.handshake, self.credentials(), old())

    def test_quiet(self) -> None:
        """After the handshake the server says nothing of itself, which the kernel would take for
        traffic, and no client begins another handshake."""
        context = self.credentials().context
        self.assertEqual(context.num_tickets, 0)
        self.assertTrue(context.options & ssl.OP_NO_TICKET)
        self.assertTrue(context.options & ssl.OP_NO_RENEGOTIATION)

    def test_clients(self) -> None:
        """Certificates of clients are asked for and required as on the control port."""
        asking = self.credentials(self.authority)
        requiring = self.credentials(self.authority, isRequired=True)
        for credentials in (asking, requiring):
            ours, _ = self.handshake(credentials, self.client("alice"))
            shown = ours.getpeercert()
            assert shown is not None
            self.assertIn("alice", str(shown["subject"]))
            mallory = self.client("mallory", "Other")
            self.assertRaises(ssl.SSLError, self.handshake, credentials, mallory)
        self.handshake(asking, trusting())
        self.assertRaises(ssl.SSLError, self.handshake, requiring, trusting())


class BecomingTests(CertificatesCase):
    """
    Certificates are renewed.
    """

    def test_replace(self) -> None:
        """New connections get what holds now; those there are go on."""
        certificates = Certificates(self.credentials())
        verifyObject(IOpenSSLServerConnectionCreator, certificates)
        old = TlsWire(Factory.forProtocol(Echo), certificates, trusting(), Clock())
        renewed = signed("localhost", serial=2)
        fresh = self.credentials(shown=renewed)
        context = certificates.context
        before = certificates.replace(fresh)
        new = TlsWire(Factory.forProtocol(Echo), certificates, trusting(), Clock())
        self.assertEqual((old.certificate, new.certificate), (der(SERVER), der(renewed)))
        for made in (old, new):
            made.send(b"ping")
            self.assertEqual(made.received, b"ping")
        self.assertIs(certificates.context, fresh.context)
        self.assertIs(certificates.replace(before), fresh)
        self.assertIs(certificates.context, context)

    def test_noMore(self) -> None:
        """When TLS is given up, who connects until the port is closed gets what there was."""
        certificates = Certificates(self.credentials())
        context = certificates.context
        certificates.replace(None)
        self.assertIs(certificates.context, context)


def wire(
    credentials: Credentials, context: ssl.SSLContext | None = None, shown: Shown | None = None
) -> TlsWire:
    """A connection on which the client has said something, if it could."""
    made = TlsWire(shown or Shown(), Certificates(credentials), context or trusting(), Clock())
    if made.error is None:
        made.send(b"ping")
    return made


def der(identity: Identity) -> bytes:
    """A certificate, encoded."""
    return identity.certificate.public_bytes(Encoding.DER)


def with12(ciphers: str) -> ssl.SSLContext:
    """A client that knows TLS 1.2 at the most, with these ciphers."""
    context = trusting()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(ciphers)
    return context


def old() -> ssl.SSLContext:
    """A client that knows TLS 1.1 at the most."""
    context = with12("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    return context


class Echo(Protocol):
    """
    Says what it hears.
    """

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)


class Shown(Factory):
    """
    Notes whom clients show themselves to be, when they say something.
    """

    def __init__(self) -> None:
        self.names: list[str | None] = []

    def buildProtocol(self, addr: object) -> Protocol:
        return Noting(self.names)


class Noting(Protocol):
    """
    One connection.
    """

    def __init__(self, names: list[str | None]) -> None:
        self._names = names

    def dataReceived(self, data: bytes) -> None:
        self._names.append(principalOf(self.transport).certificate)
