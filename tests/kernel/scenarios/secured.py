"""
USB/IP over TLS on real kernels: encrypted by the kernel, through the daemon, or not at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import ssl
import sys
from pathlib import Path
from typing import Any

from tests.kernel import guest
from tests.kernel.daemoncase import DISK, DaemonCase
from tests.kernel.inside.tlsimport import OK, OP_ENABLE_KTLS, TlsImport
from tests.protocols.test_exporter_tls_sessions import KtlsTests as InProcessTests  # noqa: F401 - run
from tests.support.certificates import LAB, authority, signed, trusting
from tests.support.childdaemon import ChildDaemon

HOST = "127.0.0.1"
PORT = 3241

FAILED = 1
"""C{ST_NA}."""

IMPORTED = "{principal} has {device}: {encryption}"

WITHOUT_KTLS = (sys.executable, "-m", "tests.kernel.inside.withoutktls")

NO_MODULE = Path("/etc/modprobe.d/no-ktls.conf")


class SecuredCase(DaemonCase):
    """
    With the sysfs backend.
    """

    backend = "{type: sysfs}"

    def setUp(self) -> None:
        super().setUp()
        self.folder = self.mktemp()
        self.files = {
            "certificate": signed("server").write(self.folder, "server"),
            "ca": authority(LAB).write(self.folder, "ca"),
        }

    def secured(self, more: str = "", isMutual: bool = False) -> str:
        """A configuration with the port."""
        certificate, key = self.files["certificate"]
        tls: dict[str, Any] = {"certificate": certificate, "key": key}
        if isMutual:
            tls |= {"client_ca": self.files["ca"][0], "require_client_certificate": True}
        export = f"export: {{listen: [tcp:3240, tls:{PORT}]{more}}}\n"
        return self.config(more=f"tls: {json.dumps(tls)}\n{export}")

    def client(self, ktls: bool, name: str | None = None, by: str = LAB) -> ssl.SSLContext:
        """
        What a client speaks TLS with.

        @param ktls: may the kernel encrypt?
        @param name: what its certificate says, if it has one.
        """
        shown = None if name is None else signed(name, by).write(self.folder, f"{by}-{name}")
        context = trusting(client=shown)
        if ktls:
            context.options |= OP_ENABLE_KTLS
        return context

    def take(self, daemon: ChildDaemon, ktls: bool, wanted: str) -> tuple[str, str]:
        """
        Import the disk, and see that it is that, whole.

        @param ktls: may the client's kernel encrypt?
        @param wanted: how it goes at the server.
        @return: the bus id there, and the node.
        """
        with daemon.watch(id=DISK, detail=True) as watcher:
            imported = TlsImport(PORT, DISK, self.client(ktls))
            self.assertEqual((imported.status, imported.isKeyed), (OK, ktls))
            self.addCleanup(imported.close)
            imported.attach()
            told = watcher.told("imported", DISK)
        self.assertEqual(told["holder"]["encryption"], wanted)
        self.assertEqual(self.holder(daemon)["encryption"], wanted)
        self.assertIn(wanted, daemon.logged(IMPORTED)["encryption"])
        _, busId = guest.waitImport()
        node = guest.waitBlockDevice(busId)
        guest.check("cmp", node, os.environ["USBIPSHARE_GUEST_DISK"])
        moved = self.holder(daemon)["bytes_out"]
        self.assertGreater(moved, len(guest.diskBytes()))
        return busId, node

    def holder(self, daemon: ChildDaemon) -> dict[str, Any]:
        """Who has the disk."""
        holder: dict[str, Any] = self.succeeds(daemon.ask("find", id=DISK, detail=True))["holder"]
        return holder

    def leave(self, daemon: ChildDaemon, busId: str) -> None:
        """The client detaches; the device is free on both sides."""
        with daemon.watch(id=DISK) as watcher:
            port, _ = guest.waitImport()
            guest.check("usbip", "detach", "-p", str(port))
            watcher.told("released", DISK)
        guest.waitGone(busId)
        self.stateSoon(daemon, "bound")

    def kick(self, daemon: ChildDaemon, busId: str) -> None:
        """The client is kicked; the device is free on both sides."""
        with daemon.watch(id=DISK) as watcher:
            self.succeeds(daemon.ask("kick", id=DISK))
            watcher.told("released", DISK)
        guest.waitGone(busId)
        self.assertEqual(self.state(daemon), "bound")

    def descriptors(self, daemon: ChildDaemon) -> list[str]:
        """The files it has open, once its last answer is over."""
        folder = Path(f"/proc/{daemon.child.pid}/fd")
        seen: list[list[str]] = [["once"], ["twice"], ["three times"]]

        def isStill() -> bool:
            with contextlib.suppress(FileNotFoundError):  # it closes some just then
                files = sorted(os.readlink(file) for file in folder.iterdir())
                seen.append([file.partition(":")[0] for file in files])
            return seen[-1] == seen[-2] == seen[-3]

        guest.waitUntil(isStill, "it has closed what it will")
        return seen[-1]


class KtlsTests(SecuredCase):
    """
    The kernel encrypts.
    """

    def setUp(self) -> None:
        super().setUp()
        guest.modprobe("tls")

    def test_ktls(self) -> None:
        """A client is given the disk, and so on, as without TLS; nothing of it is left in the
        daemon."""
        daemon = self.daemon(self.secured(", require_ktls: true"))
        self.succeeds(daemon.ask("attach", id=DISK))
        open = []
        for ktls in (True, False):  # whatever the client does
            for end in (self.leave, self.kick):
                busId, _ = self.take(daemon, ktls, "ktls")
                counted = tlsStatistics()
                self.assertEqual({counted["TlsCurrTxSw"], counted["TlsCurrRxSw"]}, {1 + ktls})
                end(daemon, busId)
                open.append(self.descriptors(daemon))
        self.assertEqual(open, 4 * open[:1])

    def test_killed(self) -> None:
        """The session needs no daemon."""
        daemon = self.daemon(self.secured())
        self.succeeds(daemon.ask("attach", id=DISK))
        busId, node = self.take(daemon, True, "ktls")
        with guest.DiskReader(node, guest.diskBytes(), Path.cwd()) as reader:
            reader.readsOn()
            for end in (signal.SIGKILL, signal.SIGTERM):
                daemon.child.send_signal(end)
                self.assertEqual(daemon.child.wait(guest.DEADLINE), -end)
                reader.readsOn()
                daemon.start()
                self.assertEqual(self.state(daemon), "in_use")
                self.assertIsNone(self.holder(daemon)["encryption"])
                reader.readsOn()
        self.kick(daemon, busId)
        busId, _ = self.take(daemon, True, "ktls")
        self.leave(daemon, busId)


class RelayTests(SecuredCase):
    """
    The daemon encrypts.
    """

    def _made(self, config: str) -> ChildDaemon:
        return ChildDaemon(config, command=WITHOUT_KTLS)

    def test_relay(self) -> None:
        """A client is given the disk, and so on, as without TLS, whether its own kernel
        encrypts or not; nothing of it is left in the daemon."""
        guest.modprobe("tls")
        daemon = self.daemon(self.secured())
        self.succeeds(daemon.ask("attach", id=DISK))
        open = []
        for ktls in (False, True):
            for end in (self.leave, self.kick):
                busId, _ = self.take(daemon, ktls, "relay")
                end(daemon, busId)
                open.append(self.descriptors(daemon))
        self.assertEqual(open, 4 * open[:1])

    def test_ends(self) -> None:
        """The session ends with the daemon, whether that is killed or stops, and the device
        is free."""
        daemon = self.daemon(self.secured())
        self.succeeds(daemon.ask("attach", id=DISK))
        for end in (signal.SIGKILL, signal.SIGTERM):
            busId, _ = self.take(daemon, False, "relay")
            daemon.child.send_signal(end)
            if end is signal.SIGTERM:
                daemon.logged("{principal}: its session was relayed")
            self.assertEqual(daemon.child.wait(guest.DEADLINE), -end)
            guest.waitGone(busId)
            guest.waitUntil(lambda: guest.usbipStatus(DISK) == 1, "it can be imported")
            daemon.start()
            self.assertEqual(self.state(daemon), "bound")


class RefusalTests(SecuredCase):
    """
    Nobody is given anything.
    """

    def test_certificates(self) -> None:
        """Whoever shows no certificate, or another CA's, is not heard; nor is a client without
        TLS. Each is told of once."""
        daemon = self.daemon(self.secured(isMutual=True))
        self.succeeds(daemon.ask("attach", id=DISK))
        for context, because in (
            (self.client(True), "it shows no certificate"),
            (self.client(True, "alice", by="Others"), "its certificate does not pass"),
        ):
            with contextlib.suppress(EOFError), self.assertRaises((OSError, EOFError)):
                TlsImport(PORT, DISK, context)
            self.assertIn(because, daemon.logged("{principal}: no TLS")["reason"])
        for command in (("list", "-r", HOST), ("attach", "-r", HOST, "-b", DISK)):
            result = guest.run("usbip", "--tcp-port", str(PORT), *command)
            self.assertNotEqual(result.rc, 0, result)
            self.assertIn("does not speak TLS", daemon.logged("{principal}: no TLS")["reason"])
        self.assertEqual((guest.imports(), self.state(daemon)), ({}, "bound"))
        guest.modprobe("tls")
        alice = TlsImport(PORT, DISK, self.client(True, "alice"))
        self.addCleanup(alice.close)
        self.assertEqual(alice.status, OK)
        self.assertIn("certificate alice", daemon.logged(IMPORTED)["principal"])

    def test_requireKtls(self) -> None:
        """Where the kernel cannot encrypt and has to, nobody is given a device."""
        NO_MODULE.write_text("install tls /bin/false\n")
        self.addCleanup(NO_MODULE.unlink)
        guest.rmmod("tls")
        daemon = self.daemon(self.secured(", require_ktls: true"))
        self.succeeds(daemon.ask("attach", id=DISK))
        refused = TlsImport(PORT, DISK, self.client(False))
        self.addCleanup(refused.close)
        self.assertEqual(refused.status, FAILED)
        reason = daemon.logged("{principal} is given no device")["reason"]
        self.assertIn("no keys for sending and receiving", reason)
        self.assertIn("modprobe tls", reason)
        self.assertEqual(self.state(daemon), "bound")
        daemon.reload(self.secured())
        busId, _ = self.take(daemon, False, "relay")
        self.leave(daemon, busId)


def tlsStatistics() -> dict[str, int]:
    """What the kernel counts of its TLS."""
    lines = Path("/proc/net/tls_stat").read_text().splitlines()
    return {name: int(count) for name, count in map(str.split, lines)}


del DaemonCase, SecuredCase  # they are not to be run themselves
