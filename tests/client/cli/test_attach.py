"""
Commands that plug devices in and out: C{attach}, C{detach}, C{ports}.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import socket
import threading
import time
from typing import Any

from tests.client.cli.commandcase import VIRTUAL, CommandCase
from tests.client.cli.test_asking import listen
from tests.support.certificates import LAB, authority, signed
from tests.support.childdaemon import ChildDaemon, PatientDaemon
from tests.support.scriptedserver import ScriptedServer
from usbip_server.client.cli.exitcodes import INTERRUPTED, Exit
from usbip_server.kernel.vhci.records import Record, Records
from usbip_server.model.device import UsbDevice
from usbip_server.model.usbip import OpStatus, encodeList, encodeRefusal

STICK = UsbDevice(
    busId="3-2", vendorId="0781", productId="5581", description="any", deviceNumber=7, speed="480"
)

SLEEPS = "[/bin/sleep, '0.3']"

SLOW = f"""{VIRTUAL}
timeouts: {{answer: 0.05, request: 600, bind: 600}}
hooks: [{{events: [before_bind], command: {SLEEPS}, timeout: 300}}]
"""
"""One that takes its time to bind a device."""


class AttachingTestCase(CommandCase):
    """
    A kernel that makes a serial port of what is plugged in.
    """

    def setUp(self) -> None:
        super().setUp()
        self.node = str(self.folder / "dev/ttyUSB0")

    def state(self, daemon: ChildDaemon, busId: str) -> str:
        """A device's state at its server."""
        state: str = daemon.ask("find", id=busId, detail=True)["data"]["state"]
        return state

    def stock(self) -> ChildDaemon:
        """What is like a stock C{usbipd}: nobody listens at its control port."""
        daemon = self.daemon()
        del self.servers["raspi"]
        self.known("old", host="127.0.0.1", port=self.nobody(), export_port=daemon.exportPort)
        return daemon

    def record(self, port: int = 0) -> Record | None:
        """What is written down of what is plugged in."""
        return Records(str(self.folder / "records")).of(port)


class AttachTests(AttachingTestCase):
    """
    C{usbipshare attach}.
    """

    def test_attach(self) -> None:
        """It binds the device, plugs it in, and prints what can be opened of it."""
        daemon = self.daemon()
        done = self.type("attach", "echo")
        self.assertEqual(done.stdout, f"{self.node}\n")
        last = done.stderr.splitlines()[-1]
        self.assertEqual(
            last,
            "1-1 (usbipshare Echoing Serial Port) at raspi: attached at port 0, 3-1",
        )
        self.assertEqual(self.kernel.used(), {0: "3-1"})
        self.assertEqual(self.state(daemon, "1-1"), "in_use")
        record = Record(host="127.0.0.1", service=str(daemon.exportPort), busId="1-1")
        self.assertEqual(self.record(), record)

    def test_json(self) -> None:
        """A program is told where it is here."""
        self.daemon()
        [device] = self.json("attach", "ECHO1")["devices"]
        self.assertEqual((device["server"], device["bus_id"]), ("raspi", "1-1"))
        self.assertEqual((device["port"], device["local_bus_id"]), (0, "3-1"))
        self.assertEqual(device["local_devices"], [self.node])

    def test_again(self) -> None:
        """What is plugged in already is no failure, and nobody is disturbed."""
        self.daemon()
        self.type("attach", "echo")
        writes = [*self.kernel.writes]
        self.assertEqual(self.type("attach", "echo").stdout, f"{self.node}\n")
        self.assertEqual(self.kernel.writes, writes)

    def test_none(self) -> None:
        """If there is none, or there are several, nothing is done."""
        self.daemon()
        self.type("attach", "nothing", status=Exit.NOT_FOUND)
        self.type("attach", "usbipshare", status=Exit.SEVERAL)
        self.assertEqual(self.kernel.used(), {})

    def test_notRoot(self) -> None:
        """Who may not plug anything in is told to use sudo, before any server is asked."""
        daemon = self.daemon()
        self.kernel.refuse = errno.EACCES
        done = self.type("attach", "echo", status=Exit.TROUBLE)
        self.assertIn("sudo", done.stderr)
        self.assertEqual(self.state(daemon, "1-1"), "free")

    def test_noModule(self) -> None:
        """A kernel without the driver is one of the troubles of this machine."""
        self.kernel.loaded = self.kernel.loadable = False
        said = self.json("attach", "echo", status=Exit.TROUBLE)
        self.assertEqual(said["status"], "local_trouble")
        self.assertIn("modprobe vhci-hcd", said["message"])

    def test_undone(self) -> None:
        """If the kernel does not take the device its server has it back as it was."""
        daemon = self.daemon()
        self.kernel = type(self.kernel)(controllers=1, ports=0)
        done = self.type("attach", "echo", status=Exit.TROUBLE)
        self.assertIn("no port of vhci_hcd is free", done.stderr)
        self.assertEqual(self.state(daemon, "1-1"), "free")

    def test_leaseUndone(self) -> None:
        """So it does if it was leased: whether it was bound before or not, the lease ends."""
        daemon = self.daemon()
        daemon.ask("attach", id="1-1")
        self.kernel = type(self.kernel)(controllers=1, ports=0)
        self.type("attach", "echo", "--lease", "ci", "--ttl", "600", status=Exit.TROUBLE)
        self.assertIsNone(daemon.ask("find", id="1-1", detail=True)["data"]["lease"])

    def test_interrupted(self) -> None:
        """So it does if somebody does not want to wait any more while it is bound."""
        begun, goesOn = self.folder / "begun", self.folder / "goesOn"
        hook = f"touch {begun}; while [ ! -e {goesOn} ]; do sleep 0.02; done"
        daemon = self.daemon(config=SLOW.replace(SLEEPS, json.dumps(["/bin/sh", "-c", hook])))

        def interrupt() -> None:
            while not begun.exists():
                time.sleep(0.01)
            signal.raise_signal(signal.SIGTERM)
            goesOn.touch()

        interrupting = threading.Thread(target=interrupt, daemon=True)
        self.addCleanup(goesOn.touch)
        with daemon.watch(id="1-1") as watcher:
            interrupting.start()
            self.type("attach", "echo", status=INTERRUPTED)
            interrupting.join()
            watcher.told("bound", "1-1")
            watcher.told("unbound", "1-1")

    def test_bound(self) -> None:
        """One that was bound before stays so."""
        daemon = self.daemon()
        daemon.ask("attach", id="1-1")
        self.kernel = type(self.kernel)(controllers=1, ports=0)
        with daemon.watch(id="1-1") as watcher:
            self.type("attach", "echo", status=Exit.TROUBLE)
            watcher.told("released", "1-1")
        self.assertEqual(self.state(daemon, "1-1"), "bound")

    def test_slow(self) -> None:
        """A bind that takes longer than an answer may is asked for again."""
        self.daemon(config=SLOW)
        done = self.type("attach", "echo")
        self.assertIn("ask again to hear how it went", done.stderr)
        self.assertEqual(self.kernel.used(), {0: "3-1"})

    def test_lease(self) -> None:
        """With a lease it is theirs; without the time for it there is none."""
        daemon = self.daemon()
        self.type("attach", "echo", "--lease", "ci", "--ttl", "600")
        lease = daemon.ask("find", id="1-1", detail=True)["data"]["lease"]
        self.assertEqual((lease["owner"], lease["ttl"]), ("ci", 600))
        for arguments in (("--lease", "ci"), ("--ttl", "5"), ("--lease", "ci", "--ttl", "0")):
            self.type("attach", "disk", *arguments, status=Exit.USAGE)

    def test_held(self) -> None:
        """What somebody else has is refused, and taken with force."""
        daemon = self.daemon()
        daemon.ask("attach", id="1-1", lease={"owner": "others", "ttl": 600})
        done = self.type("attach", "echo", status=Exit.REFUSED)
        self.assertIn("raspi: leased by others", done.stderr)
        self.type("attach", "echo", "--force")
        self.assertEqual(self.state(daemon, "1-1"), "in_use")

    def test_waitForOwner(self) -> None:
        """It can be waited for until its owner gives it back; it is told what is in the way."""
        daemon = self.daemon()
        daemon.ask("attach", id="1-1", lease={"owner": "others", "ttl": 600})
        giving = threading.Thread(target=giveBackWhenAwaited, args=(daemon, "1-1", "others"))
        giving.start()
        self.addCleanup(giving.join)
        done = self.type("attach", "echo", "--wait", "600")
        self.assertRegex(done.stderr, r"raspi: .* \(place \d\)\n")
        self.assertEqual(done.stdout, f"{self.node}\n")

    def test_waitForPlug(self) -> None:
        """And one that no server has yet."""
        daemon = self.daemon()
        daemon.ask("attach", id="1-1")
        device = daemon.ask("find", id="1-1", detail=True)["data"]
        with ScriptedServer(Plugged(device)) as server:
            self.known("raspi", host="127.0.0.1", port=server.port, export_port=daemon.exportPort)
            done = self.type("attach", "echo", "--wait", "600")
        self.assertIn("waiting for 'echo', at most 600 s\n", done.stderr)
        self.assertEqual(done.stdout, f"{self.node}\n")

    def test_waitInVain(self) -> None:
        """When the time is over there is none, be it that nobody answers."""
        self.daemon()
        self.known("gone", host="127.0.0.1", port=self.nobody(), export_port=self.nobody())
        for more in ((), ("--host", "gone")):
            done = self.type("attach", "nothing", "--wait", "0.1", *more, status=Exit.NOT_FOUND)
            self.assertIn("no device matches 'nothing', and none has appeared", done.stderr)

    def test_stock(self) -> None:
        """Of a stock usbipd it is imported without asking."""
        daemon = self.stock()
        daemon.ask("attach", id="1-1")
        done = self.type("attach", "1-1")
        self.assertEqual(done.stdout, f"{self.node}\n")
        self.assertIn("1-1 (USB device 1209:2303) at old: attached at port", done.stderr)
        self.assertEqual(self.type("attach", "1-1").stdout, done.stdout)
        daemon.ask("attach", id="1-2")
        done = self.type("attach", "1-2", "--lease", "ci", "--ttl", "9", status=Exit.REFUSED)
        self.assertIn("a stock usbipd supports neither --lease", done.stderr)

    def test_notGiven(self) -> None:
        """That it does not give the device away is told."""
        with ScriptedServer(refuse) as usbipd:
            self.known("old", host="127.0.0.1", port=self.nobody(), export_port=usbipd.port)
            done = self.type("attach", "3-2", status=Exit.REFUSED)
            self.assertIn(
                "3-2 (USB device 0781:5581) at old: another client has imported it", done.stderr
            )


class TlsTests(AttachingTestCase):
    """
    A server that speaks TLS only.
    """

    def setUp(self) -> None:
        super().setUp()
        pem, key = signed("server").write(self.folder, "server")
        ca, _ = authority(LAB).write(self.folder, "ca")
        place = "tls:0:interface=127.0.0.1"
        config = f"tls: {{certificate: {pem}, key: {key}}}\nbackend: {{type: virtual}}\n"
        stack = contextlib.ExitStack()
        self.addCleanup(stack.close)
        self.server = stack.enter_context(
            PatientDaemon(f"{config}export: {{listen: ['{place}']}}\n", listen=[place])
        )
        self.known(
            "vault",
            host="127.0.0.1",
            port=self.server.port,
            export_port=self.server.exportPort,
            tls={"ca": ca},
        )

    def test_attach(self) -> None:
        """The traffic is encrypted by the kernel, or else by a process that stays."""
        done = self.type("attach", "echo")
        self.assertEqual(done.stdout, f"{self.node}\n")
        [device] = self.json("find", "echo")["devices"]
        self.assertEqual(device["state"], "in_use")
        carries = re.search(r"process (\d+) carries its traffic", done.stderr)
        self.type("detach", "echo")
        self.assertEqual(self.json("find", "echo")["devices"][0]["state"], "free")
        if carries is not None:
            os.waitpid(int(carries[1]), 0)

    def test_stranger(self) -> None:
        """One whose certificate is not to be trusted is asked for nothing."""
        self.known("vault", **{**self.servers["vault"], "host": "127.0.0.1", "tls": {}})
        done = self.type("attach", "echo", status=Exit.UNREACHABLE)
        self.assertIn("certificate", done.stderr)


class DetachTests(AttachingTestCase):
    """
    C{usbipshare detach}.
    """

    def test_ways(self) -> None:
        """It is meant by what it is at its server, where it is here, or what it can do here."""
        daemon = self.daemon()
        for arguments in (
            ("echo",),
            ("--serial", "ECHO1"),
            ("1-1",),
            ("3-1",),
            (self.node,),
            ("--port", "0"),
        ):
            self.type("attach", "echo")
            done = self.type("detach", *arguments)
            self.assertIn("port 0 (3-1): detached\n1-1 at raspi", done.stderr)
            self.assertEqual(self.kernel.used(), {})
            self.assertEqual(self.state(daemon, "1-1"), "free")
            self.assertIsNone(self.record())

    def test_link(self) -> None:
        """A link to a node is as good."""
        self.daemon()
        self.type("attach", "echo")
        (self.folder / "board").symlink_to(self.node)
        self.type("detach", str(self.folder / "board"))
        self.assertEqual(self.kernel.used(), {})

    def test_keepBound(self) -> None:
        """The half at the server can be left out."""
        daemon = self.daemon()
        self.type("attach", "echo")
        with daemon.watch(id="1-1") as watcher:
            self.type("detach", "echo", "--keep-bound")
            watcher.told("released", "1-1")
        self.assertEqual(self.state(daemon, "1-1"), "bound")

    def test_lease(self) -> None:
        """Who has leased it says so."""
        daemon = self.daemon()
        self.type("attach", "echo", "--lease", "ci", "--ttl", "600")
        done = self.type("detach", "echo", status=Exit.REFUSED)
        self.assertIn("leased by ci", done.stderr)
        self.type("detach", "1-1", "--lease", "ci")
        self.assertEqual(self.state(daemon, "1-1"), "free")

    def test_notHere(self) -> None:
        """One that is only bound is given back; what another machine has, not without force."""
        daemon = self.daemon()
        daemon.ask("attach", id="1-1")
        self.assertEqual(self.json("detach", "echo")["devices"][0]["bus_id"], "1-1")
        self.assertEqual(self.state(daemon, "1-1"), "free")
        self.type("attach", "echo")
        Records(str(self.folder / "records")).remove(0)  # as if it were another machine
        done = self.type("detach", "echo", status=Exit.REFUSED)
        self.assertIn(
            "is not attached to this machine; it is in use by 127.0.0.1 since", done.stderr
        )
        self.type("detach", "echo", "--force")
        self.assertEqual(self.state(daemon, "1-1"), "free")

    def test_stock(self) -> None:
        """A stock usbipd is asked for nothing."""
        daemon = self.stock()
        daemon.ask("attach", id="1-1")
        self.type("attach", "1-1")
        done = self.type("detach", "1-1")
        self.assertEqual(self.kernel.used(), {})
        self.assertIn("1-1 stays bound there, if that is a stock usbipd", done.stderr)
        self.known("old", host="127.0.0.1", export_port=daemon.exportPort, stock=True)
        self.type("attach", "1-1")
        done = self.type("detach", "1-1")
        self.assertIn("old is a stock usbipd: 1-1 stays bound there", done.stderr)

    def test_serverGone(self) -> None:
        """It is unplugged here though its server does not answer."""
        self.daemon()
        self.type("attach", "echo")
        with ScriptedServer(listen) as silent:
            self.known(
                "raspi", **{**self.servers["raspi"], "host": "127.0.0.1", "port": silent.port}
            )
            done = self.type("detach", "1-1", "--timeout", "0.2", status=Exit.UNREACHABLE)
        self.assertEqual(self.kernel.used(), {})
        self.assertIn("port 0 (3-1): detached", done.stderr)

    def test_unknown(self) -> None:
        """What another program has plugged in, and left no note of, is unplugged only."""
        self.daemon()
        self.type("attach", "echo")
        Records(str(self.folder / "records")).remove(0)
        done = self.type("detach", self.node)
        self.assertIn("its server is not known", done.stderr)
        self.assertEqual(self.kernel.used(), {})

    def test_several(self) -> None:
        """If a word means two of those here, none is unplugged."""
        self.daemon()
        self.daemon("bench")
        for server in ("raspi", "bench"):
            self.type("attach", "1-1", "--host", server)
        done = self.type("detach", "1-1", status=Exit.SEVERAL)
        self.assertIn("choose one with --port: port 0 (3-1), port 1 (3-2)", done.stderr)
        self.type("detach", "--port", "1")
        self.assertEqual(self.kernel.used(), {0: "3-1"})

    def test_none(self) -> None:
        """There has to be something to be unplugged, and it has to be said, once."""
        self.daemon()
        self.type("detach", "--port", "5", status=Exit.NOT_FOUND)
        self.type("detach", "/dev/null", status=Exit.NOT_FOUND)
        self.type("detach", status=Exit.USAGE)
        self.type("detach", "echo", "--port", "0", status=Exit.USAGE)


class PortsTests(AttachingTestCase):
    """
    C{usbipshare ports}.
    """

    def test_ports(self) -> None:
        """It tells what is plugged in, whoever has done it, and what it came from."""
        self.daemon()
        self.assertEqual(self.type("ports").stdout, "")
        self.type("attach", "echo")
        self.type("attach", "disk")
        records = Records(str(self.folder / "records"))
        records.write(1, Record(host="elsewhere", service="3240", busId="9-1"))
        _, first, second = self.type("ports").stdout.splitlines()
        self.assertEqual(first.split(), ["0", "3-1", "raspi", "1-1", self.node])
        self.assertEqual(second.split(), ["1", "3-2", "elsewhere", "9-1", self.node])
        first, second = self.json("ports")["devices"]
        self.assertEqual(
            first,
            {
                "server": "raspi",
                "bus_id": "1-1",
                "port": 0,
                "local_bus_id": "3-1",
                "local_devices": [self.node],
            },
        )
        records.remove(1)
        self.assertIsNone(self.json("ports")["devices"][1]["server"])


class Plugged:
    """
    A server that a device is plugged into when it was asked for its devices once.
    """

    def __init__(self, device: dict[str, Any]) -> None:
        self._device = device
        self._there: list[dict[str, Any]] = []

    def __call__(self, peer: socket.socket) -> None:
        """Answer a request."""
        command = json.loads(peer.makefile("rb").readline())["command"]
        data = self._there if command == "list" else self._device
        peer.sendall(json.dumps({"status": "success", "data": data}).encode() + b"\n")
        self._there = [self._device]
        listen(peer)


def giveBackWhenAwaited(daemon: ChildDaemon, busId: str, owner: str) -> None:
    """
    Detach a device as soon as somebody waits for it. Its owner is told of that when it asks for
    the device, which it has already, without waiting.
    """
    lease = {"owner": owner, "ttl": 600}
    while "other clients wait" not in daemon.ask("attach", id=busId, lease=lease).get(
        "message", ""
    ):
        pass
    daemon.ask("detach", id=busId, owner=owner)


def refuse(peer: socket.socket) -> None:
    """What it does while somebody else has the device."""
    request = peer.recv(8, socket.MSG_WAITALL)
    if request[2:4] == b"\x80\x05":
        peer.sendall(encodeList([STICK]))
    else:
        peer.recv(32, socket.MSG_WAITALL)
        peer.sendall(encodeRefusal(OpStatus.DEV_BUSY))
