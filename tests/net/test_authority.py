"""
L{usbip_server.net.authority}.
"""

import ssl
import stat
from pathlib import Path

from cryptography import x509
from twisted.trial.unittest import SynchronousTestCase

from usbip_server.net.authority import Authority, AuthorityError, fingerprint, namesIn
from usbip_server.net.certificates import certificateName


class AuthorityTests(SynchronousTestCase):
    """
    A CA in a folder.
    """

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute() / "tls"
        self.authority = Authority.create(self.folder, "Lab CA")

    def mode(self, name: str) -> int:
        """The permissions of a file in the folder."""
        return stat.S_IMODE((self.folder / name).stat().st_mode)

    def refused(self, names: list[str]) -> str:
        """Why no certificate can be issued to a server."""
        return str(self.assertRaises(AuthorityError, self.authority.issueServer, names))

    def test_files(self) -> None:
        """Only the owner can read keys, everybody the certificates."""
        self.authority.issueServer(["raspi"])
        self.assertEqual([self.mode(f"{n}.pem") for n in ("ca", "raspi")], [0o644, 0o644])
        self.assertEqual(self.mode("ca.key"), 0o600)
        self.assertEqual(self.mode("raspi.key") & 0o007, 0)

    def test_verified(self) -> None:
        """OpenSSL accepts both kinds of certificates for their purpose, and for no other."""
        server = self.authority.issueServer(["raspi.local", "192.0.2.7", "fe80::1"])
        client = self.authority.issueClient("alice")
        self.assertEqual(handshake(self.folder, server, client, "raspi.local"), "alice")
        self.assertEqual(handshake(self.folder, server, client, "192.0.2.7"), "alice")
        self.assertEqual(handshake(self.folder, server, client, "fe80::1"), "alice")
        for wrong in ((server, client, "other"), (client, client, "alice"), (server, server, "x")):
            self.assertRaises(ssl.SSLError, handshake, self.folder, *wrong)

    def test_read(self) -> None:
        """A CA that was created before issues certificates too."""
        pem, key = Authority.read(self.folder).issueServer(["raspi", "bücher.example"])
        self.assertEqual((pem.name, key.name), ("raspi.pem", "raspi.key"))
        issued = x509.load_pem_x509_certificate(pem.read_bytes())
        self.assertEqual(namesIn(issued), ["raspi", "xn--bcher-kva.example"])
        self.assertEqual(issued.issuer, self.authority.certificate.subject)

    def test_fingerprint(self) -> None:
        """The fingerprint is that of C{openssl x509 -fingerprint -sha256}."""
        shown = fingerprint(self.authority.certificate)
        self.assertRegex(shown, "^([0-9A-F]{2}:){31}[0-9A-F]{2}$")

    def test_nothingOverwritten(self) -> None:
        """Neither a CA nor a certificate is replaced without its files being deleted."""
        before = {path: path.read_bytes() for path in self.folder.iterdir()}
        error = self.assertRaises(AuthorityError, Authority.create, self.folder, "Other")
        self.assertIn("delete ca.pem and ca.key first", str(error))
        self.authority.issueServer(["raspi"])
        self.assertIn("delete it first", self.refused(["raspi"]))
        self.assertEqual({path: path.read_bytes() for path in before}, before)

    def test_unusable(self) -> None:
        """What is wrong with the files of a CA is said, with what to do."""
        elsewhere = Path(self.mktemp())
        error = self.assertRaises(AuthorityError, Authority.read, elsewhere)
        self.assertIn("create a CA with `usbipshare ca init`", str(error))
        Authority.create(elsewhere, "Other")
        (elsewhere / "ca.key").write_bytes((self.folder / "ca.key").read_bytes())
        error = self.assertRaises(AuthorityError, Authority.read, elsewhere)
        self.assertIn("does not belong to", str(error))
        (elsewhere / "ca.key").write_bytes(b"none")
        error = self.assertRaises(AuthorityError, Authority.read, elsewhere)
        self.assertIn("cannot be used", str(error))

    def test_wrongNames(self) -> None:
        """A name that cannot be in a certificate is refused."""
        for name in ("", "x" * 65, "a\nb"):
            error = self.assertRaises(AuthorityError, self.authority.issueClient, name)
            self.assertIn("cannot be the name in a certificate", str(error))
        self.assertIn("neither a host name nor an address", self.refused(["raspi", "a..b"]))

    def test_fileNames(self) -> None:
        """Names stay inside the folder, and do not replace the CA."""
        for name, file in (("../x", "_x.pem"), ("ca", "ca_.pem"), ("a/b c", "a_b_c.pem")):
            self.assertEqual(self.authority.issueClient(name)[0], self.folder / file)


def handshake(folder: Path, server: tuple[Path, Path], client: tuple[Path, Path], name: str) -> str:
    """
    Have a server and a client with these files verify each other, in memory.

    @param name: that the client uses for the server.
    @return: the name of the client, as the server sees it.
    @raise ssl.SSLError: one of them rejects the other.
    """
    above = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=folder / "ca.pem")
    above.load_cert_chain(*server)
    above.verify_mode = ssl.CERT_REQUIRED
    below = ssl.create_default_context(cafile=folder / "ca.pem")
    below.load_cert_chain(*client)
    toServer, toClient = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = above.wrap_bio(toServer, toClient, server_side=True)
    other = below.wrap_bio(toClient, toServer, server_hostname=name)
    for _ in range(5):
        for end in (other, one):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    shown = one.getpeercert(binary_form=True)
    assert shown is not None
    return str(certificateName(x509.load_der_x509_certificate(shown)))
