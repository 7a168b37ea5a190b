"""
Tests of L{usbip_server.protocols.exporter_tls}: until a device is given away.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import struct
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.protocols.securedcase import (
    ADDRESS,
    BOUND,
    IMPORT,
    LIST,
    SecuredTestCase,
    TcpTransport,
    connected,
    openFiles,
)
from tests.support.certificates import LAB, authority, signed, trusting
from tests.support.fixtures import PatientBackend, Wire, threeWays
from usbip_server.model.errors import OperationFailed
from usbip_server.model.policy import Grant, Policy, Right, Who
from usbip_server.model.usbip import OpStatus, encodeList, encodeRefusal
from usbip_server.protocols.exporter_tls import HANDSHAKE_SECONDS


def clientHello() -> bytes:
    """The first message of a client."""
    out = ssl.MemoryBIO()
    client = trusting().wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return out.read()


def misnamed(certificate: x509.Certificate, name: bytes, other: bytes) -> bytes:
    """
    A certificate of the CA's with other bytes for a name.

    @param other: as many bytes.
    @return: in PEM.
    """
    said = certificate.tbs_certificate_bytes.replace(name, other)
    signature = authority(LAB).key.sign(said, ec.ECDSA(hashes.SHA256()))
    der = certificate.public_bytes(serialization.Encoding.DER)
    begin = der.index(certificate.tbs_certificate_bytes) + len(said)
    # Behind what was signed: by which algorithm, 12 bytes, and the signature, a bit string.
    body = (
        said + der[begin : begin + 12] + b"\x03" + bytes([len(signature) + 1]) + b"\0" + signature
    )
    return ssl.DER_cert_to_PEM_cert(b"\x30\x82" + struct.pack(">H", len(body)) + body).encode()


class ListTests(SecuredTestCase):
    """
    OP_REQ_DEVLIST over TLS, and the versions of TLS.
    """

    def test_list(self) -> None:
        """
        The list is sent in a proper TLS session, however the request is split into records;
        no descriptor is left open.
        """
        before = openFiles()
        for _, records in threeWays([LIST]):
            client = self.asks(*records)
            self.ends(client)
            self.assertEqual(bytes(client.received), encodeList([BOUND]))
            self.assertIsNone(client.error)
            self.leave()
        self.assertEqual(self.told(), [])
        self.assertNothingLeft()
        self.assertEqual(openFiles(), before)

    def test_versions(self) -> None:
        """TLS 1.2 and later are accepted, and earlier versions are not."""
        self.assertEqual(self.connect(self.only(ssl.TLSVersion.TLSv1_2)).error, None)
        self.assertIsNone(self.connect().error)
        self.leave()
        old = self.only(ssl.TLSVersion.TLSv1_1)
        old.set_ciphers("ALL:@SECLEVEL=0")
        self.assertIsNotNone(self.connect(old).error)
        self.assertTold("no TLS later than 1.1")

    def only(self, version: ssl.TLSVersion) -> ssl.SSLContext:
        """A client that supports one version only."""
        context = trusting()
        context.options &= ~(ssl.OP_NO_TLSv1_1 | ssl.OP_NO_TLSv1_2)
        context.minimum_version = context.maximum_version = version
        return context

    def test_bug(self) -> None:
        """A bug is logged, and the connection is closed."""

        def importable(principal: object) -> None:
            raise ZeroDivisionError

        self.patch(self.core.dispatcher, "importable", importable)
        client = self.asks(LIST)
        self.until(lambda: client.error)
        self.quiet()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertNothingLeft()


class HandshakeTests(SecuredTestCase):
    """
    Handshakes that fail.
    """

    def test_plain(self) -> None:
        """A client that speaks another protocol is logged once."""
        for said, because in (
            (LIST, "the client does not speak TLS"),
            (IMPORT, "the client does not speak TLS"),
            (b"GET / HTTP/1.1\r\n\r\n", "the client speaks HTTP"),
            (bytes(1000), "the client does not speak TLS"),
            (b"\x16\x03\x01\x00\x05" + bytes(5), "unexpected message"),
        ):
            for _, segments in threeWays([said]):
                client = self.open()
                for segment in segments:
                    try:
                        client.send(segment)
                    except OSError:
                        break  # it is cut off already
                    self.turn()
                self.assertTold(because)
        self.assertEqual(self.backend.calls, [])

    def test_moment(self) -> None:
        """That is so too if its bytes arrive just after the socket was checked for them."""
        peek = socket.socket.recv

        def recv(connection: socket.socket, *arguments: int) -> bytes:
            try:
                return peek(connection, *arguments)
            except BlockingIOError:
                while words:
                    client.send(words.pop())
                    client.shutdown(socket.SHUT_WR)
                raise

        self.patch(socket.socket, "recv", recv)
        for said, because in (
            (LIST, "the client does not speak TLS"),
            (clientHello()[:3], "the client disconnected during the handshake"),
        ):
            words = [said]
            client, server = connected()
            self.serveOne(client, server)
            self.assertTold(because)
            self.assertEqual(words, [])

    def test_truncated(self) -> None:
        """
        A client that disconnects during the handshake is logged once, at whichever byte; no
        descriptor is left open.
        """
        hello = clientHello()
        self.connect()  # what is made once is made now
        self.leave()
        before = openFiles()
        for length in range(1, len(hello)):
            client = self.open()
            client.send(hello[:length])
            self.turn()
            self.assertEqual(self.told(), [])
            client.close()
            self.assertTold("the client disconnected during the handshake")
            self.leave()
        self.assertEqual(openFiles(), before)

    def test_reset(self) -> None:
        """So is a client that resets the connection; one that has sent nothing is not logged."""
        for hello in (clientHello(), b""):
            client, server = connected()
            if hello:
                self.serveOne(client, server)
                client.send(hello)
                self.turn()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            if hello:
                self.assertTold("the client disconnected during the handshake")
            else:
                self.serveOne(client, server)
                self.open().close()
                self.quiet()
                self.assertEqual(self.logged, [])
                self.assertNothingLeft()

    def test_slow(self) -> None:
        """
        A handshake that takes longer than ten seconds is ended, also if its bytes arrive one by
        one; so is a client that sends nothing after it.
        """
        hello = clientHello()
        for words in ([hello[byte : byte + 1] for byte in range(9)], [hello], [b""]):
            client = self.open()
            self.quiet()
            for word in words:
                client.send(word)
                self.turn()
                self.reactor.advance(HANDSHAKE_SECONDS / (len(words) + 1))
            self.assertEqual(self.told(), [])
            self.reactor.advance(HANDSHAKE_SECONDS / (len(words) + 1) + 0.1)
            self.assertTold("no handshake within 10 s")
        shaken = self.connect()
        self.reactor.advance(HANDSHAKE_SECONDS)
        self.until(lambda: shaken.hasEnded or shaken.error)
        self.quiet()
        self.assertTold("no complete request within 10 s")

    def test_distrust(self) -> None:
        """A client that rejects the server's certificate is logged."""
        self.assertIsNotNone(self.connect(trusting("Others")).error)
        self.assertTold("unknown CA")

    def test_garbageAfterIt(self) -> None:
        """Bytes that are not valid records are logged once, also in the middle of a request."""
        for said, because in ((b"", "does not speak TLS"), (LIST[:3], "in the middle")):
            client = self.connect()
            client.send(said)
            self.turn()
            with socket.socket(fileno=os.dup(client.ssl.fileno())) as below:
                below.send(bytes(100))
            self.assertTold(because)

    def test_tooMany(self) -> None:
        """
        Handshakes count for the limit of connections without a request, with and without
        TLS together.
        """
        self.connect()
        self.open()
        client, server = connected()
        transport = TcpTransport(server)
        self.addCleanup(transport.close)
        self.addCleanup(client.close)
        self.wires.append(Wire(self.exporter.buildProtocol(ADDRESS), transport))
        for _ in range(3):
            refused = self.open()
            self.quiet()
            self.assertEqual(refused.recv(1), b"")
        [line] = self.told()
        self.assertIn("192.0.2.8 refused: the limit of 3 connections of one client", line)
        self.clients[0].close()
        self.quiet()
        self.assertIsNone(self.connect().error)

    def test_daemonStops(self) -> None:
        """When the daemon stops, handshakes end without a line in the log."""
        begun, idle, shaken = self.open(), self.open(), self.connect()
        begun.send(clientHello()[:10])
        self.turn()
        self.exporter.close()
        self.factory.close()
        self.until(lambda: shaken.hasEnded)
        self.quiet()
        self.assertEqual([client.recv(1) for client in (begun, idle)], [b"", b""])
        self.assertEqual(self.told(), [])
        self.assertNothingLeft()


class MutualTests(SecuredTestCase):
    """
    Client certificates are required.
    """

    isMutual = True

    def test_shown(self) -> None:
        """The name in the client's certificate is used for its access rights."""
        self.serve(
            access=Policy(
                principals={"alice": Who(certificate="alice")},
                allow=(Grant(who="alice", commands=Right.IMPORT),),
            )
        )
        for name, devices in (("alice", [BOUND]), ("bob", [])):
            client = self.asks(LIST, context=trusting(client=self.certificate(name)))
            self.ends(client)
            self.assertEqual(bytes(client.received), encodeList(devices))
        self.assertEqual(self.told(), [])

    def test_refused(self) -> None:
        """
        A client without a certificate, or with one of another CA, is refused and logged once.
        """
        self.refused(trusting(), "the client has sent no certificate")
        context = trusting(client=self.certificate("alice", by="Others"))
        self.refused(context, "the client's certificate is rejected: unable to get local issuer")

    def refused(self, context: ssl.SSLContext, because: str) -> None:
        """The client is refused, and its request is not carried out."""
        client = self.asks(LIST, context=context)
        self.until(lambda: client.error)
        self.assertEqual(client.received, b"")
        self.assertTold(because)

    def test_malformed(self) -> None:
        """So is a client whose certificate OpenSSL accepts although its name cannot be decoded."""
        pem, key = self.certificate("alice")
        Path(pem).write_bytes(
            misnamed(signed("alice", LAB).certificate, b"\x0c\x05alice", b"\x13\x05\xe9lice")
        )
        self.refused(trusting(client=(pem, key)), "the client's certificate is malformed")

    def test_named(self) -> None:
        """Log lines contain the name in the client's certificate."""
        self.asks(b"garbage", context=trusting(client=self.certificate("alice")))
        self.assertTold("192.0.2.8 (certificate alice) is not a USB/IP client")


class Mutual13Tests(MutualTests):
    """
    The same with TLS 1.3, where a client takes its handshake for done before the server has
    seen its certificate.
    """

    def context(self) -> ssl.SSLContext:
        context = super().context()
        context.maximum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED
        return context


class BadTests(SecuredTestCase):
    """
    Clients that do not complete a request after the handshake.
    """

    def test_truncated(self) -> None:
        """
        A client that disconnects in the middle of its request is logged once, at whichever
        byte, in whichever records, and however it disconnects.
        """
        for length in range(1, len(IMPORT)):
            for number, (_, records) in enumerate(threeWays([IMPORT[:length]])):
                client = self.connect()
                client.send(*records)
                self.turn()
                self.assertEqual(self.told(), [])
                if number:
                    self.takesLeave(client.ssl)
                client.close()
                self.assertTold("in the middle of a request")
                self.leave()
        self.assertEqual(self.backend.calls, [])

    def takesLeave(self, client: ssl.SSLSocket) -> None:
        """A client ends TLS properly."""
        with contextlib.suppress(ssl.SSLWantReadError):
            client.unwrap()

    def test_pipelined(self) -> None:
        """
        A client that sends data before its reply gets no device, in the same record or in
        another.
        """
        for more in (b"\0", 48 * b"\1", LIST):
            for records in ((IMPORT + more,), (IMPORT, more)):
                client = self.connect()
                client.says(*records)
                self.assertTold("unexpected data after the request")
                client.turn()
                self.assertEqual(client.received, b"")
        self.assertEqual(self.backend.calls, [])

    def test_leaves(self) -> None:
        """A client that disconnects before its reply gets no device."""
        client = self.connect()
        client.says(IMPORT)
        client.close()
        poll = select.poll()
        poll.register(self.wires[-1].transport.getHandle(), select.POLLRDHUP)  # type: ignore[attr-defined]
        poll.poll()
        self.assertTold("disconnected before the reply")
        self.assertEqual(self.backend.calls, [])

    def test_refused(self) -> None:
        """
        A client that is refused, or whose device does not accept the connection, gets the status,
        and no descriptor is left open.
        """
        self.backend = PatientBackend((BOUND,))
        self.serve()
        before = openFiles()
        for busId, status in ((b"1-9", OpStatus.NODEV), (IMPORT[8:], OpStatus.DEV_ERR)):
            client = self.asks(IMPORT[:8] + busId.ljust(32, b"\0"))
            if status is OpStatus.DEV_ERR:
                self.until(lambda: self.backend.calls)
                self.backend.calls[0].fail(OperationFailed(BOUND, "no"))
            self.until(lambda client=client: client.hasEnded)  # type: ignore[misc]
            self.assertEqual(bytes(client.received), encodeRefusal(status))
            self.leave()
            self.assertNothingLeft()
            self.assertEqual(openFiles(), before)
