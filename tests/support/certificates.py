"""
Certificates for tests: authorities, and what they have signed. Each is made once in a run.
"""

from __future__ import annotations

import ssl
from datetime import datetime, timedelta, timezone
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)

YEAR = timedelta(days=365)
LAB = "Lab"
"""The CA that is the right one."""


class Identity(NamedTuple):
    """
    A certificate and its key.
    """

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        """The certificate."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def keyPem(self) -> bytes:
        """The key."""
        return self._key(NoEncryption())

    @property
    def encryptedKeyPem(self) -> bytes:
        """The key, for those who know the password."""
        return self._key(BestAvailableEncryption(b"secret"))

    def write(self, folder: str | Path, name: str) -> tuple[str, str]:
        """
        Write C{NAME.pem} and C{NAME.key}.

        @return: their paths.
        """
        Path(folder).mkdir(parents=True, exist_ok=True)
        pem, key = (Path(folder).absolute() / f"{name}.{kind}" for kind in ("pem", "key"))
        pem.write_bytes(self.pem)
        key.write_bytes(self.keyPem)
        return str(pem), str(key)

    def _key(self, encryption: KeySerializationEncryption) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


@cache
def authority(name: str) -> Identity:
    """A CA."""
    key = _newKey()
    return Identity(_builder(name, name, key, YEAR, isCa=True).sign(key, hashes.SHA256()), key)


@cache
def signed(
    name: str, by: str = LAB, serial: int = 1, until: timedelta = YEAR, isWeak: bool = False
) -> Identity:
    """
    What a CA has signed: for C{localhost} and C{127.0.0.1}, and for clients as well.

    @param serial: another one is another certificate, with another key.
    @param until: when it ends, from now on.
    @param isWeak: has it a key that nobody should have?
    """
    key = ec.generate_private_key(ec.SECP192R1()) if isWeak else _newKey()
    builder = _builder(name, by, key, until, isCa=False)
    return Identity(builder.sign(authority(by).key, hashes.SHA256()), key)


def trusting(by: str = LAB, client: tuple[str, str] | None = None) -> ssl.SSLContext:
    """
    A client that trusts a CA.

    @param client: the files of what it shows.
    """
    context = ssl.create_default_context(cadata=authority(by).pem.decode())
    if client is not None:
        context.load_cert_chain(*client)
    return context


def _newKey() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _builder(
    name: str, by: str, key: ec.EllipticCurvePrivateKey, until: timedelta, isCa: bool
) -> x509.CertificateBuilder:
    now = datetime.now(timezone.utc)
    hosts = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
    issuer = key if name == by else authority(by).key
    return (
        x509.CertificateBuilder()
        .subject_name(_named(name))
        .issuer_name(_named(by))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 2 * YEAR)
        .not_valid_after(now + until)
        .add_extension(x509.BasicConstraints(isCa, None), critical=True)
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), critical=False
        )
        .add_extension(_usage(isCa), critical=True)
    )


def _usage(isCa: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=isCa,
        crl_sign=isCa,
        encipher_only=False,
        decipher_only=False,
    )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
