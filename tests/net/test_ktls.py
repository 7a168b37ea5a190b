"""
Tests of L{usbip_server.net.ktls}.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import cast

from twisted.trial.unittest import SynchronousTestCase

from usbip_server.net.ktls import INFO, missing

SENDING, RECEIVING = 1, 2
TLS_1_2, TLS_1_3 = 0x0303, 0x0304
AES_GCM_128, AES_GCM_256, CHACHA20_POLY1305 = 51, 52, 54
BOTH = "the kernel has no keys for sending and receiving"


class Kernel:
    """
    What a kernel tells of a connection.

    @ivar keys: version and cipher, by direction; or the number of the error.
    """

    def __init__(self, keys: dict[int, tuple[int, int] | int]) -> None:
        self.keys = keys

    def getsockopt(self, level: int, option: int, length: int) -> bytes:
        """See getsockopt(2)."""
        assert (level, length) == (282, 4)
        told = self.keys[option]
        if isinstance(told, int):
            raise OSError(told, os.strerror(told))
        return INFO.pack(*told)


class MissingTests(SynchronousTestCase):
    """
    A connection is the kernel's to encrypt only if it has the keys of both directions.
    """

    def missing(
        self,
        sending: tuple[int, int] | int,
        receiving: tuple[int, int] | int,
        version: str | None = "TLSv1.2",
    ) -> str | None:
        """What is, where the kernel tells that of the directions."""
        kernel = Kernel({SENDING: sending, RECEIVING: receiving})
        return missing(cast(socket.socket, kernel), version)

    def test_keyed(self) -> None:
        """Nothing is missing, whichever cipher it is."""
        for cipher in (AES_GCM_128, AES_GCM_256, CHACHA20_POLY1305):
            for number, version in ((TLS_1_2, "TLSv1.2"), (TLS_1_3, "TLSv1.3")):
                key = (number, cipher)
                self.assertIsNone(self.missing(key, key, version))

    def test_oneDirection(self) -> None:
        """One direction is not enough: OpenSSL 3.0 hands over no more of TLS 1.3."""
        key = (TLS_1_3, AES_GCM_256)
        for error in (errno.EBUSY, errno.ENOPROTOOPT, errno.EINVAL):
            told = self.missing(key, error, "TLSv1.3")
            self.assertEqual(told, "the kernel has no keys for receiving")
            told = self.missing(error, key, "TLSv1.3")
            self.assertEqual(told, "the kernel has no keys for sending")
        self.assertEqual(self.missing(errno.EBUSY, errno.EBUSY), BOTH)

    def test_noCipher(self) -> None:
        """A key of no cipher is none, nor is one of another version than was agreed on."""
        for version, number, cipher in (
            ("TLSv1.2", TLS_1_2, 0),
            ("TLSv1.2", 0, AES_GCM_128),
            ("TLSv1.2", TLS_1_3, AES_GCM_128),
            ("TLSv1.3", TLS_1_2, AES_GCM_128),
            ("TLSv1.1", 0x0302, AES_GCM_128),
            (None, TLS_1_2, AES_GCM_128),
        ):
            self.assertEqual(self.missing((number, cipher), (number, cipher), version), BOTH)

    def test_plain(self) -> None:
        """A connection that nobody has begun TLS on has none, whatever the kernel can do; one
        that is closed neither."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname(), 10)
            self.assertEqual(missing(client, "TLSv1.2"), BOTH)
            client.close()
            self.assertEqual(missing(client, "TLSv1.2"), BOTH)
        for end in socket.socketpair():
            self.assertEqual(missing(end, "TLSv1.2"), BOTH)
            end.close()
