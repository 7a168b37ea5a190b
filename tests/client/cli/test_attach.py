"""
Tests of the commands that attach and detach devices: C{attach}, C{detach}, C{ports}.
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
from tests.support.scriptedserver import ScriptedServer, received
from usbip_server.client.cli import INTERRUPTED
from usbip_server.client.cli.exitcodes import Exit
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
"""A daemon that takes longer to bind a device than a reply may take."""


class AttachingTestCase(CommandCase):
    """
    A kernel that makes a serial port of each device.
    """

    def setUp(self) -> None:
        super().setUp()
        self.node = str(self.folder / "dev/ttyUSB0")
        self.records = Records(str(self.folder / "records"))

    def shown(self, daemon: ChildDaemon, busId: str = "1-1") -> Any:
        """A device as its server shows it."""
        return daemon.ask("find", id=busId, detail=True)["data"]

    def stock(self) -> ChildDaemon:
        """A server like a stock C{usbipd}: its port for requests is closed."""
        daemon = self.daemon()
        del self.servers["raspi"]
        self.known("old", host="127.0.0.1", port=self.nobody(), export_port=daemon.exportPort)
        return daemon

    def noPorts(self) -> None:
        """The kernel has no free port, and refuses every device."""
        self.kernel = type(self.kernel)(controllers=1, ports=0)


class AttachTests(AttachingTestCase):
    """
    C{usbipshare attach}.
    """

    def test_attachAgain(self) -> None:
        """The device is bound and attached, its node printed and its server recorded. A second
        attach prints the same, and changes nothing."""
        daemon = self.daemon()
        done = self.type("attach", "echo")
        self.assertEqual(done.stdout, f"{self.node}\n")
        message = "1-1 (usbipshare Echoing Serial Port) at raspi: attached at port 0, 3-1"
        self.assertEqual(done.stderr.splitlines()[-1], message)
        self.assertEqual(self.kernel.used(), {0: "3-1"})
        self.assertEqual(self.shown(daemon)["state"], "in_use")
        record = Record(host="127.0.0.1", service=str(daemon.exportPort), busId="1-1")
        self.assertEqual(self.records.of(0), record)
        writes = [*self.kernel.writes]
        [device] = self.json("attach", "ECHO1")["devices"]
        self.assertEqual((device["server"], device["bus_id"]), ("raspi", "1-1"))
        self.assertEqual((device["port"], device["local_bus_id"]), (0, "3-1"))
        self.assertEqual(device["local_devices"], [self.node])
        self.assertEqual(self.kernel.writes, writes)

    def test_noneOrSeveralMatch(self) -> None:
        """If no device or several match, nothing is attached; also not at the end of C{--wait}, if
        no server answers, or if the lease has no time."""
        self.daemon()
        self.known("gone", host="127.0.0.1", port=self.nobody(), export_port=self.nobody())
        for arguments, status in (
            (("nothing",), Exit.NOT_FOUND),
            (("usbipshare",), Exit.SEVERAL),
            (("disk", "--lease", "ci"), Exit.USAGE),
            (("disk", "--ttl", "5"), Exit.USAGE),
            (("disk", "--lease", "ci", "--ttl", "0"), Exit.USAGE),
        ):
            self.type("attach", *arguments, status=status)
        for more in ((), ("--host", "gone")):
            done = self.type("attach", "nothing", "--wait", "0.1", *more, status=Exit.NOT_FOUND)
            self.assertIn("no device matches 'nothing', and none has appeared", done.stderr)
        self.assertEqual(self.kernel.used(), {})

    def test_kernelRefuses(self) -> None:
        """Without permission or driver the command fails before it asks a server, with advice."""
        daemon = self.daemon()
        self.kernel.refuse = errno.EACCES
        self.assertIn("sudo", self.type("attach", "echo", status=Exit.TROUBLE).stderr)
        self.kernel.loaded = self.kernel.loadable = False
        said = self.json("attach", "echo", status=Exit.TROUBLE)
        self.assertEqual(said["status"], "local_trouble")
        self.assertIn("modprobe vhci-hcd", said["message"])
        self.assertEqual(self.shown(daemon)["state"], "free")

    def test_importFails(self) -> None:
        """If the server refuses the import, or its port for USB/IP is closed, there is advice, and
        the device is unbound again."""
        lamp = "{type: virtual, devices: [{bus_id: 1-1, product: Lamp}]}"
        daemon = self.daemon(config=VIRTUAL.replace("{type: virtual}", lamp))
        done = self.type("attach", "lamp", status=Exit.REFUSED)
        self.assertIn("; its log has the reason: journalctl -u usbipshare\n", done.stderr)
        self.known("raspi", **{**self.servers["raspi"], "export_port": self.nobody()})
        done = self.type("attach", "lamp", status=Exit.UNREACHABLE)
        self.assertIn("set `export_port` in client.yaml\n", done.stderr)
        self.assertEqual(self.shown(daemon)["state"], "free")

    def test_failureIsUndone(self) -> None:
        """If the kernel refuses the device, it is unbound again and its lease ended; a device that
        was bound before stays bound."""
        daemon = self.daemon()
        self.noPorts()
        done = self.type("attach", "echo", status=Exit.TROUBLE)
        self.assertIn("no port of vhci_hcd is free", done.stderr)
        self.assertEqual(self.shown(daemon)["state"], "free")
        daemon.ask("attach", id="1-1")
        with daemon.watch(id="1-1") as watcher:
            self.type("attach", "echo", status=Exit.TROUBLE)
            watcher.told("released", "1-1")
        self.assertEqual(self.shown(daemon)["state"], "bound")
        self.type("attach", "echo", "--lease", "ci", "--ttl", "600", status=Exit.TROUBLE)
        self.assertIsNone(self.shown(daemon)["lease"])

    def test_interruptedDuringBind(self) -> None:
        """SIGTERM during the bind at the server: the device is unbound once it is bound."""
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

    def test_slowBind(self) -> None:
        """While the server replies that the bind is in progress, the request is repeated."""
        self.daemon(config=SLOW)
        done = self.type("attach", "echo")
        self.assertIn("ask again to hear how it went", done.stderr)
        self.assertEqual(self.kernel.used(), {0: "3-1"})

    def test_leaseAndForce(self) -> None:
        """A device is attached with a lease; one that is leased by another client is refused, and
        attached with C{--force}. A leased device is unbound only with the name of its owner."""
        daemon = self.daemon()
        self.type("attach", "echo", "--lease", "ci", "--ttl", "600")
        lease = self.shown(daemon)["lease"]
        self.assertEqual((lease["owner"], lease["ttl"]), ("ci", 600))
        done = self.type("detach", "echo", status=Exit.REFUSED)
        self.assertIn("leased by ci", done.stderr)
        self.type("detach", "1-1", "--lease", "ci")
        self.assertEqual(self.shown(daemon)["state"], "free")
        daemon.ask("attach", id="1-2", lease={"owner": "others", "ttl": 600})
        done = self.type("attach", "disk", status=Exit.REFUSED)
        self.assertIn("raspi: leased by others", done.stderr)
        self.assertIn("(--wait SECONDS waits for it, --force ends that lease)\n", done.stderr)
        self.type("attach", "disk", "--force")
        self.assertEqual(self.shown(daemon, "1-2")["state"], "in_use")

    def test_waitForOwner(self) -> None:
        """C{--wait} waits until the owner returns a device, and prints the place in the queue."""
        daemon = self.daemon()
        daemon.ask("attach", id="1-1", lease={"owner": "others", "ttl": 600})
        giving = threading.Thread(target=giveBackWhenAwaited, args=(daemon, "1-1", "others"))
        giving.start()
        self.addCleanup(giving.join)
        done = self.type("attach", "echo", "--wait", "600")
        self.assertRegex(done.stderr, r"raspi: .* \(place \d\)\n")
        self.assertEqual(done.stdout, f"{self.node}\n")

    def test_waitForPlug(self) -> None:
        """C{--wait} waits for a device that no server has yet."""
        daemon = self.daemon()
        daemon.ask("attach", id="1-1")
        with ScriptedServer(Plugged(self.shown(daemon))) as server:
            self.known("raspi", host="127.0.0.1", port=server.port, export_port=daemon.exportPort)
            done = self.type("attach", "echo", "--wait", "600")
        self.assertIn("waiting for 'echo', at most 600 s\n", done.stderr)
        self.assertEqual(done.stdout, f"{self.node}\n")

    def test_stockUsbipd(self) -> None:
        """A device of a stock usbipd is imported without a request, and stays bound after
        detaching; leases are not supported, and its refusal is reported."""
        daemon = self.stock()
        daemon.ask("attach", id="1-1")
        done = self.type("attach", "1-1")
        self.assertEqual(done.stdout, f"{self.node}\n")
        self.assertIn("1-1 (USB device 1209:2303) at old: attached at port", done.stderr)
        self.assertEqual(self.type("attach", "1-1").stdout, done.stdout)
        done = self.type("detach", "1-1")
        self.assertEqual(self.kernel.used(), {})
        self.assertIn("1-1 stays bound there, if that is a stock usbipd", done.stderr)
        daemon.ask("attach", id="1-2")
        done = self.type("attach", "1-2", "--lease", "ci", "--ttl", "9", status=Exit.REFUSED)
        self.assertIn("a stock usbipd supports neither --lease", done.stderr)
        with ScriptedServer(refuse) as usbipd:
            self.known("old", host="127.0.0.1", port=self.nobody(), export_port=usbipd.port)
            done = self.type("attach", "3-2", status=Exit.REFUSED)
        message = "3-2 (USB device 0781:5581) at old: another client has imported it"
        self.assertIn(message, done.stderr)


class TlsTests(AttachingTestCase):
    """
    A server that requires TLS on both ports.
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
        """The kernel encrypts the traffic, or a process that ends with the session relays it."""
        done = self.type("attach", "echo")
        self.assertEqual(done.stdout, f"{self.node}\n")
        [device] = self.json("find", "echo")["devices"]
        self.assertEqual(device["state"], "in_use")
        relay = re.search(r"process (\d+) relays its traffic", done.stderr)
        self.type("detach", "echo")
        self.assertEqual(self.json("find", "echo")["devices"][0]["state"], "free")
        if relay is not None:
            os.waitpid(int(relay[1]), 0)

    def test_untrusted(self) -> None:
        """A server whose certificate is not trusted is asked for nothing."""
        self.known("vault", **{**self.servers["vault"], "host": "127.0.0.1", "tls": {}})
        done = self.type("attach", "echo", status=Exit.UNREACHABLE)
        self.assertIn("certificate", done.stderr)


class DetachTests(AttachingTestCase):
    """
    C{usbipshare detach}.
    """

    def test_selection(self) -> None:
        """A device is selected by what the server knows of it, by its local bus id, by its node or
        a link to that, or by its port; it is detached and unbound, and its record removed."""
        daemon = self.daemon()
        link = self.folder / "board"
        link.symlink_to(self.node)
        for arguments in (
            ("echo",),
            ("--serial", "ECHO1"),
            ("1-1",),
            ("3-1",),
            (self.node,),
            (str(link),),
            ("--port", "0"),
        ):
            self.type("attach", "echo")
            done = self.type("detach", *arguments)
            self.assertIn("port 0 (3-1): detached\n1-1 at raspi: unbound", done.stderr)
            self.assertEqual(self.kernel.used(), {})
            self.assertEqual(self.shown(daemon)["state"], "free")
            self.assertIsNone(self.records.of(0))

    def test_wrongSelection(self) -> None:
        """Nothing is detached if no device or several match, or if it is not clear which."""
        self.daemon()
        self.daemon("bench")
        for arguments, status in (
            (("--port", "5"), Exit.NOT_FOUND),
            (("/dev/null",), Exit.NOT_FOUND),
            ((), Exit.USAGE),
            (("echo", "--port", "0"), Exit.USAGE),
        ):
            self.type("detach", *arguments, status=status)
        for server in ("raspi", "bench"):
            self.type("attach", "1-1", "--host", server)
        done = self.type("detach", "1-1", status=Exit.SEVERAL)
        self.assertIn("choose one with --port: port 0 (3-1), port 1 (3-2)", done.stderr)
        self.type("detach", "--port", "1")
        self.assertEqual(self.kernel.used(), {0: "3-1"})

    def test_keepBound(self) -> None:
        """With C{--keep-bound} the device stays bound."""
        daemon = self.daemon()
        self.type("attach", "echo")
        with daemon.watch(id="1-1") as watcher:
            self.type("detach", "echo", "--keep-bound")
            watcher.told("released", "1-1")
        self.assertEqual(self.shown(daemon)["state"], "bound")

    def test_notAttachedHere(self) -> None:
        """A device that is only bound is unbound; one in use elsewhere, with C{--force}."""
        daemon = self.daemon()
        daemon.ask("attach", id="1-1")
        self.assertEqual(self.json("detach", "echo")["devices"][0]["bus_id"], "1-1")
        self.assertEqual(self.shown(daemon)["state"], "free")
        self.assertEqual(self.type("detach", "echo").stderr, "1-1 at raspi: was not bound\n")
        self.type("attach", "echo")
        self.records.remove(0)  # as if another machine had attached it
        done = self.type("detach", "echo", status=Exit.REFUSED)
        self.assertIn("not attached to this machine; it is in use by 127.0.0.1 since", done.stderr)
        said = self.type("kick", "echo").stdout
        self.assertIn("at raspi: the session of 127.0.0.1 has ended\n", said)
        self.type("attach", "echo")
        self.records.remove(0)
        self.type("detach", "echo", "--force")
        self.assertEqual(self.shown(daemon)["state"], "free")

    def test_serverUnreachableOrUnknown(self) -> None:
        """The device is detached also if its server does not answer or is not known."""
        self.daemon()
        self.type("attach", "echo")
        with ScriptedServer(listen) as silent:
            known = {**self.servers["raspi"], "port": silent.port}
            self.known("raspi", **known)
            done = self.type("detach", "1-1", "--timeout", "0.2", status=Exit.UNREACHABLE)
        self.assertEqual(self.kernel.used(), {})
        self.assertIn("port 0 (3-1): detached", done.stderr)
        self.daemon("bench")
        self.type("attach", "disk", "--host", "bench")
        self.records.remove(0)
        done = self.type("detach", self.node)
        self.assertIn("its server is not known", done.stderr)
        self.assertEqual(self.kernel.used(), {})


class PortsTests(AttachingTestCase):
    """
    C{usbipshare ports}.
    """

    def test_ports(self) -> None:
        """Devices that any program has attached are listed, with their servers if known."""
        self.daemon()
        self.assertEqual(self.type("ports").stdout, "")
        self.type("attach", "echo")
        self.type("attach", "disk")
        self.records.write(1, Record(host="elsewhere", service="3240", busId="9-1"))
        _, first, second = self.type("ports").stdout.splitlines()
        self.assertEqual(first.split(), ["0", "3-1", "raspi", "1-1", self.node])
        self.assertEqual(second.split(), ["1", "3-2", "elsewhere", "9-1", self.node])
        device = {"server": "raspi", "bus_id": "1-1", "port": 0, "local_bus_id": "3-1"}
        shown = self.json("ports")["devices"][0]
        self.assertEqual(shown, {**device, "local_devices": [self.node]})
        self.records.remove(1)
        self.assertIsNone(self.json("ports")["devices"][1]["server"])


class Plugged:
    """
    A server whose first list of devices is empty, and whose further ones have a device.
    """

    def __init__(self, device: dict[str, Any]) -> None:
        self._device = device
        self._there: list[dict[str, Any]] = []

    def __call__(self, peer: socket.socket) -> None:
        """Reply to a request."""
        command = json.loads(peer.makefile("rb").readline())["command"]
        data = self._there if command == "list" else self._device
        peer.sendall(json.dumps({"status": "success", "data": data}).encode() + b"\n")
        self._there = [self._device]
        listen(peer)


def giveBackWhenAwaited(daemon: ChildDaemon, busId: str, owner: str) -> None:
    """
    Detach a device as soon as another client waits for it. A reply to its owner reports that.
    """
    lease = {"owner": owner, "ttl": 600}
    while "other clients wait" not in daemon.ask("attach", id=busId, lease=lease).get(
        "message", ""
    ):
        pass
    daemon.ask("detach", id=busId, owner=owner)


def refuse(peer: socket.socket) -> None:
    """A stock C{usbipd} with a device that another client uses."""
    request = received(peer, 8)
    if request[2:4] == b"\x80\x05":
        peer.sendall(encodeList([STICK]))
    else:
        received(peer, 32)
        peer.sendall(encodeRefusal(OpStatus.DEV_BUSY))
