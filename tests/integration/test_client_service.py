"""
The client service, as a process, with daemons that have virtual devices, and a kernel that is in
its own memory.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.support.certificates import LAB, authority, signed
from tests.support.childdaemon import EXPORT, SECONDS, ChildDaemon, PatientDaemon
from tests.support.childservice import ChildService, serversOf

VIRTUAL = f"backend: {{type: virtual}}\n{EXPORT}"

DISK = "devices: [{name: disk, serial: DISK1}]\n"

PAUSE = 0.01

NOTE = 'line=$(cat); printf "%s\\n" "$line" >> {file}'
"""A hook: each event becomes a line."""


class ServiceTestCase(SynchronousTestCase):
    """
    A daemon, and a service.
    """

    def setUp(self) -> None:
        self.server: ChildDaemon = PatientDaemon(VIRTUAL)
        self.server.__enter__()
        self.addCleanup(self.server.__exit__, None, None, None)

    def service(self, config: str = DISK) -> ChildService:
        """A service that knows the daemon."""
        service = ChildService(serversOf(here=self.server) + config)
        service.__enter__()
        self.addCleanup(service.__exit__, None, None, None)
        return service

    def until(self, condition: Callable[[], object]) -> None:
        """Wait until something is so, that nobody tells of."""
        end = time.monotonic() + SECONDS
        while not condition():
            self.assertLess(time.monotonic(), end, "it is still not so")
            time.sleep(PAUSE)

    def ports(self, service: ChildService) -> list[str]:
        """What is plugged in, by the bus ids there."""
        answer = service.ask("ports")
        self.assertEqual(answer["status"], "success", answer)
        return [str(port["bus_id"]) for port in answer["data"]]


class KeepTests(ServiceTestCase):
    """
    It keeps a device.
    """

    def test_kept(self) -> None:
        """It is plugged in at the beginning, and again whenever it was lost, with its link."""
        service = self.service()
        service.logged("{device} at {server} attached to port")
        self.assertEqual(self.ports(service), ["1-2"])
        self.assertEqual(service.links, {"disk": f"{service.folder}/dev/ttyACM0"})
        for _ in range(3):
            self.server.ask("kick", serial="DISK1")
            service.logged("{device} at {server} detached")
            self.until(lambda: self.ports(service) == ["1-2"])
            service.logged("{device} at {server} attached to port")
        self.assertEqual(service.links, {"disk": f"{service.folder}/dev/ttyACM0"})

    def test_killed(self) -> None:
        """The daemon is killed, and comes back at the same place, before the service has tried to
        reach it again or after that."""
        listen = [f"tcp:{freePort()}:interface=127.0.0.1"]
        export = f"export: {{listen: ['tcp:{freePort()}:interface=127.0.0.1']}}\n"
        with PatientDaemon(f"backend: {{type: virtual}}\n{export}", listen=listen) as server:
            self.server = server
            service = self.service()
            self.until(lambda: self.ports(service) == ["1-2"])
            for isTried in (False, True):
                self.server.kill()
                self.until(lambda: self.ports(service) == [])
                if isTried:
                    self.until(lambda: "refused" in service.ask("list", host="here")["message"])
                self.server.start()
                self.until(lambda: self.ports(service) == ["1-2"])

    def test_others(self) -> None:
        """A server that is not there holds nobody up."""
        with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf:
            port = deaf.getsockname()[1]
            servers = json.loads(serversOf(here=self.server).partition(":")[2])
            servers["deaf"] = {"host": "127.0.0.1", "port": port}
            servers["nobody"] = {"host": "127.0.0.1", "port": freePort()}
            with ChildService(f"servers: {json.dumps(servers)}\n{DISK}") as child:
                service = cast(ChildService, child)
                self.until(lambda: self.ports(service) == ["1-2"])
                answer = service.ask("list", host="nobody")
                self.assertEqual(answer["status"], "error")
                self.assertIn("Connection refused", answer["message"])

    def test_hooks(self) -> None:
        """Hooks are told, with what can be opened."""
        told = Path(self.mktemp()).absolute()
        command = json.dumps(["/bin/sh", "-c", NOTE.format(file=told)])
        service = self.service(DISK.replace("}", f", hooks: [{{command: {command}}}]}}"))
        self.until(told.exists)
        self.server.ask("kick", serial="DISK1")
        self.until(lambda: len(told.read_text().splitlines()) >= 3)
        events = [json.loads(line) for line in told.read_text().splitlines()]
        self.assertEqual([e["event"] for e in events[:3]], ["attached", "lost", "attached"])
        first = events[0]
        self.assertEqual((first["server"], first["rule"]), ("here", "disk"))
        self.assertEqual(first["data"]["serial"], "DISK1")
        self.assertEqual(first["local_devices"], [f"{service.folder}/dev/ttyACM0"])

    def test_reload(self) -> None:
        """It reads its configuration anew; a bad one changes nothing."""
        servers = serversOf(here=self.server)
        service = self.service()
        self.until(lambda: self.ports(service) == ["1-2"])
        said = service.reload(f"{servers}devices: [{{name: 5}}]\n")
        self.assertIn("reload failed", said["log_format"])
        self.assertEqual(self.ports(service), ["1-2"])
        service.reload(f"{servers}devices: [{{name: echo, serial: ECHO1}}]\n")
        self.until(lambda: self.ports(service) == ["1-1"])
        self.until(lambda: [*service.links] == ["echo"])
        service.reload(f"{servers}socket: {{path: {service.path}, mode: '0600'}}\n")
        self.until(lambda: self.ports(service) == [])
        self.assertEqual(stat.S_IMODE(os.stat(service.path).st_mode), 0o600)

    def test_tls(self) -> None:
        """With TLS, which the kernel in memory cannot carry on, it carries the traffic itself."""
        folder = Path(self.mktemp()).absolute()
        signed("server").write(folder, "server")
        authority(LAB).write(folder, "ca")
        tls = f"tls: {{certificate: {folder}/server.pem, key: {folder}/server.key}}\n"
        listen = "tls:0:interface=127.0.0.1"
        config = f"{tls}backend: {{type: virtual}}\nexport: {{listen: ['{listen}']}}\n"
        with PatientDaemon(config, listen=[listen]) as server:
            servers = json.loads(serversOf(here=server).partition(":")[2])
            servers["here"]["tls"] = {"ca": f"{folder}/ca.pem", "server_name": "localhost"}
            with ChildService(f"servers: {json.dumps(servers)}\n{DISK}") as child:
                service = cast(ChildService, child)
                self.until(lambda: service.ask("ports")["data"])

                def holder() -> Any:
                    return service.ask("find", serial="DISK1", detail=True)["data"]["holder"]

                self.until(holder)  # the server tells of it a moment later
                self.assertIn(holder()["encryption"], ("relay", "ktls"))


class StopTests(ServiceTestCase):
    """
    It starts and stops.
    """

    def test_remembers(self) -> None:
        """What was asked for is plugged in again by the next service."""
        service = self.service("")
        self.assertEqual(service.ask("attach", serial="ECHO1")["status"], "success")
        service.stop()
        self.assertFalse(os.path.exists(service.path))
        service.start()
        self.until(lambda: self.ports(service) == ["1-1"])
        service.kill()
        service.start()  # its socket is still there, and nobody behind it
        self.until(lambda: self.ports(service) == ["1-1"])
        self.assertEqual(service.ask("detach", serial="ECHO1")["status"], "success")

    def test_detaches(self) -> None:
        """If it is told to, it leaves nothing plugged in."""
        service = self.service(f"{DISK}on_stop: detach\n")
        self.until(lambda: self.ports(service) == ["1-2"])
        service.stop()
        self.assertEqual(
            self.server.ask("find", serial="DISK1", detail=True)["data"]["state"], "free"
        )

    def test_taken(self) -> None:
        """Where another one listens it does not start, and says so."""
        service = self.service()
        again = subprocess.run(
            [sys.executable, "-m", "tests.client.service.servicechild", "--config", service._file],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        self.assertIn("cannot listen on unix:", again.stdout + again.stderr)
        self.assertEqual(service.ask("list")["status"], "success")

    def test_notify(self) -> None:
        """systemd is told when it is ready, and when it ends."""
        with (
            tempfile.TemporaryDirectory() as folder,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd,
        ):
            systemd.bind(f"{folder}/notify")
            systemd.settimeout(SECONDS)
            os.environ["NOTIFY_SOCKET"] = f"{folder}/notify"
            self.addCleanup(os.environ.pop, "NOTIFY_SOCKET", None)
            service = self.service()
            self.assertEqual(systemd.recv(100), b"READY=1")
            service.stop()
            self.assertEqual(systemd.recv(100), b"STOPPING=1")

    def test_check(self) -> None:
        """twistd finds it, and it finds what is wrong with a file."""
        file = Path(self.mktemp()).absolute()
        for text, said in (("on_stop: keep\n", "configuration OK"), ("a: b\n", "unknown key")):
            file.write_text(text)
            command = [sys.executable, "-m", "twisted", "usbipclient", "--check", "--config"]
            done = subprocess.run(
                [*command, str(file)],
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
                cwd=Path(__file__).parents[2],
            )
            self.assertIn(said, done.stdout + done.stderr)


class DoorTests(ServiceTestCase):
    """
    Its socket.
    """

    def test_mode(self) -> None:
        """It is for its owner and its group; whoever is allowed by name can reach it too."""
        service = self.service("")
        self.assertEqual(stat.S_IMODE(os.stat(service.path).st_mode), 0o660)
        more = f"socket: {{path: {service.path}, group: 12345, allow_uids: [54321]}}\n"
        if os.geteuid() != 0:
            more = more.replace("group: 12345, ", "")
        service.reload(serversOf(here=self.server) + more)
        found = os.stat(service.path)
        self.assertEqual(stat.S_IMODE(found.st_mode), 0o666)
        if os.geteuid() == 0:
            self.assertEqual(found.st_gid, 12345)

    def test_strangers(self) -> None:
        """Others are turned away, in JSON and over HTTP; groups are looked at, all of them."""
        if os.geteuid() != 0 or shutil.which("setpriv") is None or shutil.which("curl") is None:
            raise SkipTest("this takes root, setpriv and curl")
        service = self.service("")
        os.chmod(service.folder, 0o755)
        more = f"socket: {{path: {service.path}, allow_uids: [2001], allow_gids: [3003]}}\n"
        service.reload(serversOf(here=self.server) + more)
        curl = ["curl", "-sS", "-w", "%{http_code}", "--unix-socket", service.path]
        for options, code in (
            (("--reuid=2001", "--regid=3000", "--clear-groups"), "200"),
            (("--reuid=2002", "--regid=3003", "--clear-groups"), "200"),
            (("--reuid=2002", "--regid=3000", "--groups=3002,3003"), "200"),
            (("--reuid=2002", "--regid=3000", "--groups=3002,3004"), "403"),
        ):
            command = ["setpriv", *options, *curl, "http://localhost/", "-d", '{"command":"list"}']
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=SECONDS, check=False
            )
            self.assertTrue(done.stdout.endswith(code), f"{options}: {done}")

    def test_http(self) -> None:
        """The same over HTTP, with a word for whoever is lost."""
        if shutil.which("curl") is None:
            raise SkipTest("apt-get install curl")
        service = self.service()
        self.until(lambda: self.ports(service) == ["1-2"])
        curl = ["curl", "-sS", "--unix-socket", service.path]
        said = subprocess.run(
            [*curl, "http://localhost"], capture_output=True, text=True, check=True
        ).stdout
        self.assertIn("usbipshare's client service", said)
        watching = subprocess.Popen(
            [*curl, "-N", "http://localhost/events"], stdout=subprocess.PIPE, text=True
        )
        self.addCleanup(watching.wait)
        self.addCleanup(watching.kill)
        assert watching.stdout is not None
        self.addCleanup(watching.stdout.close)
        kinds = iter(line for line in watching.stdout if line.startswith("event:"))
        self.assertEqual(next(kinds), "event: snapshot\n")
        self.server.ask("kick", serial="DISK1")
        told = {next(kinds) for _ in range(4)}
        self.assertIn("event: lost\n", told)


def freePort() -> int:
    """
    One that nobody has.
    """
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port
