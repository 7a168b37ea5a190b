"""
The client service as a process, with a daemon that has virtual devices, and a kernel in memory.
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
from pathlib import Path

from twisted.trial.unittest import SkipTest

from tests.integration.case import DaemonCase
from tests.support.certificates import LAB, authority, signed
from tests.support.childdaemon import EXPORT, SECONDS
from tests.support.childservice import ChildService, serversOf

VIRTUAL = "backend: {type: virtual}\n"

DISK = "devices: [{name: disk, serial: DISK1}]\n"

ATTACHED = "{device} at {server} attached to port"

HOOK = 'line=$(cat); printf "%s\\n" "$line" >> {file}'
"""A shell command that appends each event to a file."""


class ServiceTestCase(DaemonCase):
    """
    A daemon, and a service that knows it as C{here}.
    """

    def setUp(self) -> None:
        self.server = self.daemon(VIRTUAL + EXPORT)

    def service(self, config: str = DISK, servers: str | None = None) -> ChildService:
        """Start a service, until the end of the test."""
        service = ChildService((servers or serversOf(here=self.server)) + config)
        service.__enter__()
        self.addCleanup(service.__exit__, None, None, None)
        return service

    def ports(self, service: ChildService) -> list[str]:
        """The bus ids of the attached devices."""
        reply = service.ask("ports")
        self.assertEqual(reply["status"], "success", reply)
        return [str(port["bus_id"]) for port in reply["data"]]

    def untilPorts(self, service: ChildService, *busIds: str) -> None:
        """Wait until these devices are attached, and no others."""
        self.until(lambda: self.ports(service) == [*busIds])


class RuleTests(ServiceTestCase):
    """
    The device of a rule.
    """

    def test_attachedAgain(self) -> None:
        """It is attached at start, and after its session was kicked, with its symlink and hooks."""
        file = Path(self.mktemp()).absolute()
        command = json.dumps(["/bin/sh", "-c", HOOK.format(file=file)])
        service = self.service(DISK.replace("}", f", hooks: [{{command: {command}}}]}}"))
        service.logged(ATTACHED)
        symlinks = {"disk": f"{service.folder}/dev/ttyACM0"}
        self.assertEqual((self.ports(service), service.links), (["1-2"], symlinks))
        self.server.ask("kick", serial="DISK1")
        service.logged("{device} at {server} detached")
        service.logged(ATTACHED)
        self.assertEqual((self.ports(service), service.links), (["1-2"], symlinks))
        self.until(lambda: file.exists() and len(file.read_text().splitlines()) >= 3)
        events = [json.loads(line) for line in file.read_text().splitlines()]
        self.assertEqual([e["event"] for e in events], ["attached", "lost", "attached"])
        self.assertEqual((events[0]["server"], events[0]["rule"]), ("here", "disk"))
        self.assertEqual(events[0]["data"]["serial"], "DISK1")
        self.assertEqual(events[0]["local_devices"], [f"{service.folder}/dev/ttyACM0"])

    def test_daemonKilled(self) -> None:
        """It is attached again when the daemon is back after an attempt to connect has failed."""
        listen, export = (f"tcp:{freePort()}:interface=127.0.0.1" for _ in range(2))
        self.server = self.daemon(f"{VIRTUAL}export: {{listen: ['{export}']}}\n", listen=[listen])
        service = self.service()
        self.untilPorts(service, "1-2")
        self.server.kill()
        self.untilPorts(service)
        self.until(lambda: "refused" in service.ask("list", host="here")["message"])
        self.server.start()
        self.untilPorts(service, "1-2")

    def test_reload(self) -> None:
        """A reload changes the devices, the symlinks, and the mode and group of the socket, which
        lets every user connect if users are configured; an invalid file changes nothing."""
        servers = serversOf(here=self.server)
        service = self.service()
        self.untilPorts(service, "1-2")
        self.assertEqual(stat.S_IMODE(os.stat(service.path).st_mode), 0o660)
        for wrong in ("devices: [{name: 5}]\n", "socket: {path: /proc/none/client.sock}\n"):
            event = service.reload(servers + wrong)
            self.assertIn("reload failed", event["log_format"])
            self.assertEqual(self.ports(service), ["1-2"])
        isRoot = os.geteuid() == 0
        group = "group: 12345, " if isRoot else ""
        more = f"socket: {{path: {service.path}, {group}allow_uids: [54321]}}\n"
        service.reload(f"{servers}devices: [{{name: echo, serial: ECHO1}}]\n{more}")
        self.untilPorts(service, "1-1")
        self.until(lambda: [*service.links] == ["echo"])
        found = os.stat(service.path)
        self.assertEqual(stat.S_IMODE(found.st_mode), 0o666)
        self.assertEqual(found.st_gid, 12345 if isRoot else found.st_gid)

    def test_tls(self) -> None:
        """With TLS that the kernel in memory cannot encrypt, the service relays the traffic."""
        folder = Path(self.mktemp()).absolute()
        signed("server").write(folder, "server")
        authority(LAB).write(folder, "ca")
        tls = f"tls: {{certificate: {folder}/server.pem, key: {folder}/server.key}}\n"
        listen = "tls:0:interface=127.0.0.1"
        config = f"{tls}{VIRTUAL}export: {{listen: ['{listen}']}}\n"
        server = self.daemon(config, listen=[listen])
        servers = json.loads(serversOf(here=server).partition(":")[2])
        servers["here"]["tls"] = {"ca": f"{folder}/ca.pem", "server_name": "localhost"}
        service = self.service(servers=f"servers: {json.dumps(servers)}\n")
        self.untilPorts(service, "1-2")

        def encryption() -> object:
            holder = service.ask("find", serial="DISK1", detail=True)["data"]["holder"]
            return holder and holder["encryption"]

        self.until(lambda: encryption() in ("relay", "ktls"))


class ProcessTests(ServiceTestCase):
    """
    Start and stop.
    """

    def test_requestsAreRemembered(self) -> None:
        """A requested device is attached again after a stop, and after a kill, which leaves the
        socket behind."""
        service = self.service("")
        self.assertEqual(service.ask("attach", serial="ECHO1")["status"], "success")
        for end, isLeft in ((service.stop, False), (service.kill, True)):
            end()
            self.assertEqual(os.path.exists(service.path), isLeft)
            service.start()
            self.untilPorts(service, "1-1")

    def test_onStopDetach(self) -> None:
        """With C{on_stop: detach} no device stays attached or bound."""
        service = self.service(f"{DISK}on_stop: detach\n")
        self.untilPorts(service, "1-2")
        service.stop()
        found = self.server.ask("find", serial="DISK1", detail=True)["data"]
        self.assertEqual(found["state"], "free")

    def test_socketInUse(self) -> None:
        """A second service on the same socket does not start, and reports why."""
        service = self.service()
        command = ["-m", "tests.client.service.servicechild", "--config", service._file]
        self.assertIn("cannot listen on unix:", run(sys.executable, *command))
        self.assertEqual(service.ask("list")["status"], "success")

    def test_notify(self) -> None:
        """systemd is notified when the service is ready, and when it stops."""
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
        """C{twistd usbipclient --check} reports whether a file is valid."""
        file = Path(self.mktemp()).absolute()
        for text, message in (("on_stop: keep\n", "configuration OK"), ("a: b\n", "unknown key")):
            file.write_text(text)
            command = ("-m", "twisted", "usbipclient", "--check", "--config", str(file))
            self.assertIn(message, run(sys.executable, *command))


class SocketTests(ServiceTestCase):
    """
    The unix socket.
    """

    def test_credentials(self) -> None:
        """The user and all groups of a process decide."""
        if os.geteuid() != 0 or shutil.which("setpriv") is None or shutil.which("curl") is None:
            raise SkipTest("this takes root, setpriv and curl")
        service = self.service("")
        os.chmod(service.folder, 0o755)
        more = f"socket: {{path: {service.path}, allow_uids: [2001], allow_gids: [3003]}}\n"
        service.reload(serversOf(here=self.server) + more)
        curl = ("curl", "-sS", "-w", "%{http_code}", "--unix-socket", service.path)
        request = ("http://localhost/", "-d", '{"command":"list"}')
        for options, code in (
            (("--reuid=2001", "--regid=3000", "--clear-groups"), "200"),
            (("--reuid=2002", "--regid=3003", "--clear-groups"), "200"),
            (("--reuid=2002", "--regid=3000", "--groups=3002,3003"), "200"),
            (("--reuid=2002", "--regid=3000", "--groups=3002,3004"), "403"),
        ):
            output = run("setpriv", *options, *curl, *request)
            self.assertTrue(output.endswith(code), f"{options}: {output}")

    def test_http(self) -> None:
        """C{GET /} explains, and C{GET /events} sends events."""
        if shutil.which("curl") is None:
            raise SkipTest("apt-get install curl")
        service = self.service()
        self.untilPorts(service, "1-2")
        curl = ("curl", "-sS", "--unix-socket", service.path)
        self.assertIn("usbipshare's client service", run(*curl, "http://localhost"))
        events = [*curl, "-N", "http://localhost/events"]
        with subprocess.Popen(events, stdout=subprocess.PIPE, text=True) as watching:
            self.addCleanup(watching.kill)
            assert watching.stdout is not None
            kinds = iter(line for line in watching.stdout if line.startswith("event:"))
            self.assertEqual(next(kinds), "event: snapshot\n")
            self.server.ask("kick", serial="DISK1")
            self.assertIn("event: lost\n", {next(kinds) for _ in range(4)})
            watching.kill()


def run(*command: str) -> str:
    """
    The output of a program, with its errors.
    """
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    return done.stdout


def freePort() -> int:
    """
    A port that is free.
    """
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port
