"""
Tests of L{usbip_server.backends.softdevice}: what a client can make a device buffer.
"""

from __future__ import annotations

import contextlib
import socket
import struct

from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs

from tests.backends.virtualcase import DISK, IN, OUT, PORT, SECONDS, ExportCase, submit
from tests.support.scriptedserver import received
from usbip_server.backends import softdevice
from usbip_server.model.device import DeviceState


class LimitTests(ExportCase):
    """
    Clients that send more than they read.
    """

    async def ends(self, busId: str, *messages: bytes) -> None:
        """The session of a client that sends these messages ends."""
        _, theirs = await self.export(busId)
        theirs.settimeout(SECONDS)

        def play() -> None:
            with contextlib.suppress(ConnectionError):
                for message in messages:
                    theirs.sendall(message)
            with contextlib.suppress(ConnectionError):
                while theirs.recv(65536):
                    pass

        await deferToThread(play)
        self.assertEqual(await deferToThread(self.restOf, theirs), b"")
        await self.until(DeviceState.BOUND, busId)

    def restOf(self, client: socket.socket) -> bytes:
        """What can still be received."""
        try:
            return client.recv(1)
        except ConnectionError:
            return b""

    async def test_echo(self) -> None:
        """A serial port loses what its client does not read: it keeps C{LARGEST} bytes."""
        _, theirs = await self.export()
        block = bytes(65536)

        def echoed() -> int:
            for number in range(1, 2 * softdevice.LARGEST // len(block) + 1):
                theirs.sendall(submit(number, OUT, block))
                received(theirs, 48)
            count = 0
            for number in range(100, 200):
                theirs.sendall(submit(number, IN, length=len(block)))
                if count == softdevice.LARGEST:
                    break
                (size,) = struct.unpack_from(">I", received(theirs, 48), 24)
                count += len(received(theirs, size))
            theirs.sendall(submit(300, OUT, b"again"))
            received(theirs, 48)
            received(theirs, 48)
            self.assertEqual(received(theirs, 5), b"again")
            return count

        self.assertEqual(await deferToThread(echoed), softdevice.LARGEST)

    async def test_configured(self) -> None:
        """C{SET_CONFIGURATION} empties the port's buffer, and it has all its room again."""
        _, theirs = await self.export()
        block = bytes(65536)

        def fill(first: int) -> None:
            for number in range(first, first + 2 * softdevice.LARGEST // len(block)):
                theirs.sendall(submit(number, OUT, block))
                received(theirs, 48)

        def play() -> bytes:
            fill(1)
            setup = bytes.fromhex("0009010000000000")
            theirs.sendall(submit(98, OUT, length=0, endpoint=0)[:40] + setup)
            received(theirs, 48)
            theirs.sendall(submit(99, OUT, b"hello") + submit(100, IN))
            received(theirs, 48)
            return received(theirs, 48 + 5)[48:]

        self.assertEqual(await deferToThread(play), b"hello")

    async def test_contradiction(self) -> None:
        """The reply to a control transfer whose SETUP packet contradicts its direction is as long
        as it says."""
        _, theirs = await self.export()
        setup = bytes.fromhex("2120000000000700")  # SET_LINE_CODING
        theirs.sendall(submit(1, IN, length=7, endpoint=0)[:40] + setup)
        answer = await deferToThread(received, theirs, 48)
        self.assertEqual(struct.unpack_from(">II12xiI", answer), (3, 1, 0, 0))
        await self.echoes(theirs)

    async def test_transfers(self) -> None:
        """A transfer that is too large, or of a negative size, ends the session, as do too many
        requests that wait, two with one number, and an unknown command."""
        for messages in (
            [submit(1, OUT, length=softdevice.LARGEST + 1)],
            [submit(1, IN, length=-1)],
            [submit(1, IN), submit(1, IN)],
            [submit(number, IN) for number in range(softdevice.MOST_URBS + 1)],
            [b"\0\0\0\7" + bytes(44)],
        ):
            await self.ends(PORT, *messages)

    async def test_answeredAndUnlinked(self) -> None:
        """Requests that were answered or unlinked do not count."""
        _, theirs = await self.export()

        def play() -> None:
            for number in range(1, 2 * softdevice.MOST_URBS, 2):
                theirs.sendall(submit(number, IN))
                theirs.sendall(struct.pack(">6I24x", 2, number + 1, 0, 0, 1, number))
                received(theirs, 48)

        await deferToThread(play)
        await self.echoes(theirs)

    async def test_disk(self) -> None:
        """A read command that is too large or empty ends the session with a warning, as do further
        commands of a client that does not read."""

        def read(number: int, blocks: int, length: int = 12) -> bytes:
            """C{READ(12)} in a command block wrapper."""
            command = struct.pack(">BxIIxx", 0xA8, 0, blocks)
            size = 512 * blocks
            wrapper = b"USBC" + struct.pack("<IIBBB", number, size, 0x80, 0, length) + command
            return submit(number, OUT, wrapper.ljust(31, b"\0"))

        most = softdevice.LARGEST // 512
        with capturedLogs() as events:
            await self.ends(DISK, read(1, most + 1))
            await self.ends(DISK, read(1, 1, length=0))
        self.assertEqual([each["log_level"].name for each in events], ["warn", "warn"])
        await self.ends(DISK, *(read(number, most) for number in range(1, 4)))
