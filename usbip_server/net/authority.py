"""
A certificate authority (CA) for servers and clients, in a folder of files in PEM format.
"""

from __future__ import annotations

import contextlib
import grp
import ipaddress
import os
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS = 3650
"""Validity of a CA."""

CERTIFICATE_DAYS = 825
"""Validity of a certificate: the longest that Apple's clients accept from a private CA
(U{https://support.apple.com/en-us/103769})."""

BACKDATED = timedelta(days=1)
"""How long before now a certificate becomes valid: a computer without a battery for its clock
starts with the time at which it was last switched off."""

SERVICE_GROUP = "usbipshare"
"""The group that the daemon runs as: it may read the keys of servers that root creates."""

LONGEST_NAME = 64
"""Characters of a common name (RFC 5280, appendix A.1, C{ub-common-name})."""


class AuthorityError(Exception):
    """
    A file of the CA is missing, in the way, or wrong. The text says what to do.
    """


class Authority:
    """
    A CA. Its certificate is C{ca.pem} and its key C{ca.key}.

    @ivar folder: where its files are.
    @ivar certificate: the certificate of the CA.
    """

    def __init__(
        self, folder: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
    ):
        self.folder = folder
        self.certificate = certificate
        self._key = key

    @classmethod
    def create(cls, folder: Path, name: str, days: int = AUTHORITY_DAYS) -> Authority:
        """
        Create a CA.

        @param name: the common name in its certificate.
        @param days: its validity.
        @raise AuthorityError: there is one already, or a file cannot be written.
        """
        for path in (folder / "ca.pem", folder / "ca.key"):
            if path.exists():
                raise AuthorityError(
                    f"{path} exists: certificates of another CA would be refused wherever it is "
                    "trusted. To replace the CA, delete ca.pem and ca.key first"
                )
        key = _newKey()
        subject = _commonName(name)
        builder = _builder(subject, subject, key, days).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        builder = builder.add_extension(_usage(isCa=True), critical=True)
        authority = cls(folder, builder.sign(key, hashes.SHA256()), key)
        _makeFolder(folder)
        _write(folder / "ca.key", _pem(key), 0o600)
        _write(folder / "ca.pem", authority.certificate.public_bytes(Encoding.PEM), 0o644)
        return authority

    @classmethod
    def read(cls, folder: Path) -> Authority:
        """
        Read a CA.

        @raise AuthorityError: there is none, or its files cannot be used.
        """
        try:
            certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
            key = load_pem_private_key((folder / "ca.key").read_bytes(), None)
        except FileNotFoundError as error:
            raise AuthorityError(
                f"{error.filename} does not exist: create a CA with `usbipshare ca init`, or name "
                "its folder with --dir"
            ) from None
        except OSError as error:
            raise AuthorityError(f"{error.filename} cannot be read: {error.strerror}") from None
        except (ValueError, TypeError) as error:
            raise AuthorityError(f"the CA in {folder} cannot be used: {error}") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise AuthorityError(f"{folder}/ca.key is no key of an elliptic curve")
        if key.public_key() != certificate.public_key():
            raise AuthorityError(f"{folder}/ca.key does not belong to {folder}/ca.pem")
        return cls(folder, certificate, key)

    def issueServer(self, names: list[str], days: int = CERTIFICATE_DAYS) -> tuple[Path, Path]:
        """
        Create a certificate for a server.

        @param names: all names and addresses by which clients reach it; the first one is the
            common name, and the name of the files.
        @return: the files of the certificate and of its key.
        @raise AuthorityError: a file exists or cannot be written, or a name is wrong.
        """
        alternatives = x509.SubjectAlternativeName([_alternative(name) for name in names])
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        return self._issue(names[0], days, usage, alternatives, SERVICE_GROUP)

    def issueClient(self, name: str, days: int = CERTIFICATE_DAYS) -> tuple[Path, Path]:
        """
        Create a certificate for a client; as L{issueServer}.

        @param name: the common name, which servers identify the client by.
        """
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
        return self._issue(name, days, usage, None, None)

    def _issue(
        self,
        name: str,
        days: int,
        usage: x509.ExtendedKeyUsage,
        alternatives: x509.SubjectAlternativeName | None,
        group: str | None,
    ) -> tuple[Path, Path]:
        key = _newKey()
        builder = _builder(_commonName(name), self.certificate.subject, key, days)
        builder = (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(isCa=False), critical=True)
            .add_extension(usage, critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )
        if alternatives is not None:
            builder = builder.add_extension(alternatives, critical=False)
        signed = builder.sign(self._key, hashes.SHA256())
        pem, own = self.folder / f"{_fileName(name)}.pem", self.folder / f"{_fileName(name)}.key"
        for path in (pem, own):
            if path.exists():
                raise AuthorityError(f"{path} exists: delete it first to replace the certificate")
        _write(own, _pem(key), 0o600, group)
        _write(pem, signed.public_bytes(Encoding.PEM), 0o644)
        return pem, own


def namesIn(certificate: x509.Certificate) -> list[str]:
    """
    The names and addresses that a server's certificate is for.
    """
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    names = found.get_values_for_type(x509.DNSName)
    return [*names, *map(str, found.get_values_for_type(x509.IPAddress))]


def fingerprint(certificate: x509.Certificate) -> str:
    """
    The SHA-256 fingerprint of a certificate, as OpenSSL prints it: C{AB:CD:...}.
    """
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def _newKey() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(isCa: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not isCa,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=isCa,
        crl_sign=isCa,
        encipher_only=False,
        decipher_only=False,
    )


def _commonName(name: str) -> x509.Name:
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise AuthorityError(
            f"{name!r} cannot be the name in a certificate: it has 1 to {LONGEST_NAME} printable "
            "characters"
        )
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _alternative(name: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(name))
    try:
        return x509.DNSName(name.encode("idna").decode())
    except (UnicodeError, ValueError):
        raise AuthorityError(f"{name!r} is neither a host name nor an address") from None


def _fileName(name: str) -> str:
    """A file name: with C{_} for what is special in a path or a shell, and not that of the CA."""
    safe = "".join(it if it.isalnum() or it in "-_.@" else "_" for it in name).lstrip(".")
    return f"{safe}_" if safe in ("", "ca") else safe


def _makeFolder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o755)
    except OSError as error:
        raise AuthorityError(f"{folder} cannot be created: {error.strerror}") from None


def _write(path: Path, content: bytes, mode: int, group: str | None = None) -> None:
    """
    Write a file that does not exist yet.

    @param group: may read it, if root writes it and there is such a group.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            if group is not None and os.geteuid() == 0:
                with contextlib.suppress(KeyError):
                    os.fchown(descriptor, 0, grp.getgrnam(group).gr_gid)
                    os.fchmod(descriptor, mode | 0o040)
            file.write(content)
    except OSError as error:
        raise AuthorityError(f"{path} cannot be written: {error.strerror}") from None
