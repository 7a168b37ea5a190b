"""
TLS with a server as Twisted speaks it, by pyOpenSSL.
"""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL, crypto
from service_identity import VerificationError
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import (
    Certificate,
    TLSVersion,
    optionsForClientTLS,
    trustRootFromCertificates,
)

from usbip_server.client.core.servers import ClientTls
from usbip_server.client.core.trust import OTHER_NAME, certificatesIn, keyOf, meaningOf, nameOf

TLS_ERRORS = (SSL.Error, VerificationError)
"""What a connection ends with that has not come to TLS."""


def creatorFor(host: str, tls: ClientTls) -> IOpenSSLClientConnectionCreator:
    """
    For requests.

    @raise WrongTls: a file cannot be read, or makes no sense.
    """
    root = None
    if tls.ca is not None:
        authorities = [Certificate(_inOpenSsl(each)) for each in certificatesIn("ca", tls.ca)]
        root = trustRootFromCertificates(authorities)
    more: dict[str, Any] = {"raiseMinimumTo": TLSVersion.TLSv1_2}
    if tls.certificate is not None:
        chain = certificatesIn("certificate", tls.certificate)
        more["certificate"], *more["extraCertChain"] = map(_inOpenSsl, chain)
        more["privateKey"] = crypto.PKey.from_cryptography_key(keyOf(tls, chain[0]))
    return optionsForClientTLS(nameOf(host, tls), trustRoot=root, extraCertificateOptions=more)


def reasonOf(error: BaseException) -> str:
    """
    Why there is no TLS, for a person.
    """
    if isinstance(error, VerificationError):
        return OTHER_NAME
    if isinstance(error, SSL.Error) and error.args and isinstance(error.args[0], list):
        reasons = [str(entry[-1]) for entry in error.args[0] if entry[-1]]
        return "; ".join(map(meaningOf, reasons)) or str(error)
    return str(error)


_inOpenSsl = crypto.X509.from_cryptography
