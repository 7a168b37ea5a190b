"""USB/IP over TLS on real kernels: encrypted by the kernel, or by the daemon, or refused."""

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
from tests.kernel.daemoncase import DISK, HOST, DaemonCase
from tests.kernel.inside.tlsimport import NO_TLS_MODULE, OK, OP_ENABLE_KTLS, TlsImport
from tests.protocols.test_exporter_tls_sessions import KtlsTests as InProcessTests  # noqa: F401 - run
from tests.support.certificates import LAB, authority, signed, trusting
from tests.support.childdaemon import ChildDaemon

PORT = 3241

FAILED = 1
"""C{ST_NA}."""

IMPORTED = "{principal} has {device}: {encryption}"

WITHOUT_KTLS = (sys.executable, "-m", "tests.kernel.inside.withoutktls")


class SecuredCase(DaemonCase):
    """A server certificate and a CA of clients."""

    def setUp(self) -> None:
        super().setUp()
        self.folder = self.mktemp()
        self.certificate, self.key = signed("server").write(self.folder, "server")
        self.ca, _ = authority(LAB).write(self.folder, "ca")

    def secured(self, more: str = "", isMutual: bool = False) -> str:
        """A configuration that exports over TLS.

        @param more: further YAML of C{export}.
        @param isMutual: require a client certificate."""
        tls: dict[str, Any] = {"certificate": self.certificate, "key": self.key}
        if isMutual:
            tls |= {"client_ca": self.ca, "require_client_certificate": True}
        export = f"export: {{listen: [tcp:3240, tls:{PORT}]{more}}}\n"
        return self.config(more=f"tls: {json.dumps(tls)}\n{export}")

    def client(self, ktls: bool, name: str | None = None) -> ssl.SSLContext:
        """A client's context.

        @param ktls: may the kernel encrypt?
        @param name: the common name of its certificate, if it has one."""
        shown = None if name is None else signed(name).write(self.folder, name)
        context = trusting(client=shown)
        if ktls:
            context.options |= OP_ENABLE_KTLS
        return context

    def importDiskBy(self, daemon: ChildDaemon, ktls: bool, expected: str) -> tuple[str, str]:
        """Import the disk over TLS, and compare its content.

        @param ktls: may the client's kernel encrypt?
        @param expected: how the server encrypts.
        @return: the bus id and the node of the imported disk."""
        with daemon.watch(id=DISK, detail=True) as watcher:
            imported = TlsImport(PORT, DISK, self.client(ktls))
            self.assertEqual((imported.status, imported.isKeyed), (OK, ktls))
            self.addCleanup(imported.close)
            imported.attach()
            event = watcher.told("imported", DISK)
        self.assertEqual(event["holder"]["encryption"], expected)
        self.assertEqual(self.holder(daemon)["encryption"], expected)
        self.assertIn(expected, daemon.logged(IMPORTED)["encryption"])
        _, busId = guest.waitImport()
        node = guest.waitBlockDevice(busId)
        guest.checkDiskBytes(node)
        self.assertGreater(self.holder(daemon)["bytes_out"], len(guest.diskBytes()))
        return busId, node

    def detach(self, daemon: ChildDaemon, busId: str) -> None:
        """Detach at the client; the device is free on both sides."""
        with daemon.watch(id=DISK) as watcher:
            port, _ = guest.waitImport()
            guest.check("usbip", "detach", "-p", str(port))
            watcher.told("released", DISK)
        guest.waitGone(busId)
        self.awaitState(daemon, "bound")

    def kick(self, daemon: ChildDaemon, busId: str) -> None:
        """Kick the client; the device is free on both sides."""
        with daemon.watch(id=DISK) as watcher:
            self.succeeds(daemon.ask("kick", id=DISK))
            watcher.told("released", DISK)
        guest.waitGone(busId)
        self.assertEqual(self.state(daemon), "bound")

    def assertSessions(
        self, daemon: ChildDaemon, encryption: str, keyed: tuple[bool, bool]
    ) -> None:
        """Import the disk by clients with and without kTLS, and end each session by a detach and by
        a kick. None leaves a descriptor open.

        @param encryption: how the server encrypts.
        @param keyed: whether the client's kernel encrypts, in this order."""
        descriptors = []
        for ktls in keyed:
            for end in (self.detach, self.kick):
                busId, _ = self.importDiskBy(daemon, ktls, encryption)
                if encryption == "ktls":
                    lines = Path("/proc/net/tls_stat").read_text().splitlines()
                    counts = {name: int(count) for name, count in map(str.split, lines)}
                    self.assertEqual({counts["TlsCurrTxSw"], counts["TlsCurrRxSw"]}, {1 + ktls})
                end(daemon, busId)
                descriptors.append(self.descriptors(daemon))
        self.assertEqual(descriptors, 4 * descriptors[:1])

    def descriptors(self, daemon: ChildDaemon) -> list[str]:
        """What the daemon has open, when that has been the same three times in a row."""
        folder = Path(f"/proc/{daemon.child.pid}/fd")
        seen: list[list[str]] = [["once"], ["twice"], ["three times"]]

        def isStill() -> bool:
            with contextlib.suppress(FileNotFoundError):  # closed in the meantime
                files = sorted(os.readlink(file) for file in folder.iterdir())
                seen.append([file.partition(":")[0] for file in files])
            return seen[-1] == seen[-2] == seen[-3]

        guest.waitUntil(isStill, "no descriptor is closed any more")
        return seen[-1]


class KtlsTests(SecuredCase):
    """The kernel encrypts (kTLS)."""

    def setUp(self) -> None:
        super().setUp()
        guest.modprobe("tls")

    def test_ktls(self) -> None:
        """The kernel encrypts, whether or not the client's kernel does."""
        daemon = self.sharing(DISK, config=self.secured(", require_ktls: true"))
        self.assertSessions(daemon, "ktls", (True, False))

    def test_killed(self) -> None:
        """A session goes on when the daemon is killed or stopped, and can be ended after that."""
        daemon = self.sharing(DISK, config=self.secured())
        busId, node = self.importDiskBy(daemon, True, "ktls")
        self.assertSessionSurvives(daemon, node, None)
        self.assertIsNone(self.holder(daemon)["encryption"])
        self.kick(daemon, busId)
        busId, _ = self.importDiskBy(daemon, True, "ktls")
        self.detach(daemon, busId)


class RelayTests(SecuredCase):
    """The daemon encrypts: its OpenSSL has no kTLS."""

    def makeDaemon(self, config: str) -> ChildDaemon:
        return ChildDaemon(config, command=WITHOUT_KTLS)

    def test_relay(self) -> None:
        """The daemon encrypts, whether or not the client's kernel does."""
        guest.modprobe("tls")
        self.assertSessions(self.sharing(DISK, config=self.secured()), "relay", (False, True))

    def test_endsWithDaemon(self) -> None:
        """A session ends when the daemon is killed or stopped; the disk can be imported again."""
        daemon = self.sharing(DISK, config=self.secured())
        for number in (signal.SIGKILL, signal.SIGTERM):
            busId, _ = self.importDiskBy(daemon, False, "relay")
            daemon.child.send_signal(number)
            if number is signal.SIGTERM:
                daemon.logged("{principal}: the session is relayed")
            self.assertEqual(daemon.child.wait(guest.DEADLINE), -number)
            guest.waitGone(busId)
            guest.waitUntil(lambda: guest.usbipStatus(DISK) == 1, "it can be imported")
            daemon.start()
            self.assertEqual(self.state(daemon), "bound")


class RefusalTests(SecuredCase):
    """Clients that are refused."""

    def test_certificates(self) -> None:
        """Debian's C{usbip}, which has no TLS, is refused with a line in the log. A client with a
        certificate of the CA is not."""
        daemon = self.sharing(DISK, config=self.secured(isMutual=True))
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
        """With C{require_ktls}, and without the kernel's module, imports are refused."""
        NO_TLS_MODULE.write_text("install tls /bin/false\n")
        self.addCleanup(NO_TLS_MODULE.unlink)
        guest.rmmod("tls")
        daemon = self.sharing(DISK, config=self.secured(", require_ktls: true"))
        refused = TlsImport(PORT, DISK, self.client(False))
        self.addCleanup(refused.close)
        self.assertEqual(refused.status, FAILED)
        reason = daemon.logged("{principal}: import refused")["reason"]
        self.assertIn("no keys for sending and receiving", reason)
        self.assertIn("modprobe tls", reason)
        self.assertEqual(self.state(daemon), "bound")
        daemon.reload(self.secured())
        busId, _ = self.importDiskBy(daemon, False, "relay")
        self.detach(daemon, busId)


del DaemonCase, SecuredCase  # base classes are not run
