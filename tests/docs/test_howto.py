"""The examples of the how-to guides work."""

from __future__ import annotations

import contextlib
import errno
import json
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from importlib import resources
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.docs.documentcase import DocumentCase
from tests.docs.documents import ROOT
from tests.docs.examples import CONFIGURED, SECONDS, child
from tests.docs.exchanges import DaemonServer
from tests.support.childdaemon import EXPORT, PatientDaemon
from usbip_server.net.endpoints import explain
from usbip_server.server.config import Source


class Breaking:
    """A relay to a daemon, each of whose connections breaks after an answer and one line more.

    @ivar port: where it listens.
    @ivar connections: how many there have been."""

    def __init__(self, daemon: int) -> None:
        """@param daemon: its port."""
        self._daemon = daemon
        self.connections = 0

    def __enter__(self) -> Breaking:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with client, socket.create_connection(("127.0.0.1", self._daemon)) as server:
                server.sendall(client.makefile("rb").readline())
                lines = server.makefile("rb")
                for _ in range(2):
                    client.sendall(lines.readline())


class ServerSetupTests(DocumentCase, SynchronousTestCase):
    """Setting up a server."""

    name = "docs/howto/server_setup.md"

    def test_attributes(self) -> None:
        """The document lists the files below C{/sys} to which the unit gives write access."""
        told = " ".join(self.document.rows("The service", 3))
        unit = resources.files("usbip_server.data").joinpath("usbipshare.service").read_text()
        pattern = r"(?<![\w/])usb(?:ip-host)?/\w+"
        self.assertEqual({*re.findall(pattern, told)}, {*re.findall(pattern, unit)})
        for text in (told, unit):
            self.assertIn("usbip_sockfd", text)

    def test_taken(self) -> None:
        """The message in the document is the one for a taken port of USB/IP."""
        (block,) = (b for b in self.document.blocks if b.text.startswith("cannot listen"))
        taken = OSError(errno.EADDRINUSE, "Address already in use")
        self.assertEqual(block.text, explain("tcp:3240", taken, isExport=True))


class UnitTests(DocumentCase, SynchronousTestCase):
    """Keeping devices attached."""

    name = "docs/howto/client_service.md"

    def test_unit(self) -> None:
        """The unit has the properties that are described."""
        unit = (ROOT / "usbip_server" / "data" / "usbipclient.service").read_text()
        for line in ("Type=notify", "RuntimeDirectoryPreserve=yes"):
            self.assertIn(line, unit.splitlines())
        self.assertIn("--config /etc/usbipshare/service.yaml", unit)


class ScriptsTests(DocumentCase, SynchronousTestCase):
    """Asking the daemon from scripts."""

    name = "docs/howto/scripts.md"

    def test_watcher(self) -> None:
        """The example of a watching client receives all events although its connection breaks."""
        (block,) = (b for b in self.document.blocks if "def watch(" in b.text)
        names: dict[str, Any] = {}
        config = "backend: {type: virtual}"
        with PatientDaemon(config) as daemon, Breaking(daemon.port) as relay:
            program = block.text.partition("\n\n\nnews = ")[0].replace("5055", str(relay.port))
            exec(compile(program, block.where, "exec"), names)
            news = names["watch"]("127.0.0.1", serial="DISK1")
            self.assertEqual(next(news)["data"][0]["serial"], "DISK1")
            for command in ("attach", "detach", "attach"):
                daemon.ask(command, serial="DISK1")
            told = (message.get("event") for message in news)
            kinds = [*islice((event for event in told if event), 3)]
        self.assertEqual(kinds, ["bound", "unbound", "bound"])
        self.assertGreater(relay.connections, 1)


class HooksTests(DocumentCase, SynchronousTestCase):
    """Hooks."""

    name = "docs/howto/hooks.md"

    def test_hooks(self) -> None:
        """The examples of hooks print and refuse what is described."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        scripts = [block.text for block in self.document.blocks if "chmod" in block.text]
        for script in scripts:
            child(["sh", "-e", "-c", script.replace("/run/", f"{folder}/")], folder)
        (hooks,) = (
            b.text for b in self.document.blocks if b.text.startswith("hooks:\n  - events: [a")
        )
        (refusal,) = (b.text for b in self.document.blocks if "refuses: " in b.text)
        (folder / "backup.lock").touch()
        config = hooks.replace("/usr/local/bin", str(folder))
        config = config.replace("[added, removed,", "[bound,")
        with PatientDaemon(f"backend: {{type: virtual}}\n{config}") as daemon:
            message = daemon.ask("attach", id="1-2")["message"]
            self.assertEqual(message.replace(str(folder), "/usr/local/bin"), refusal)
            (folder / "backup.lock").unlink()
            self.assertEqual(daemon.ask("attach", id="1-2")["status"], "success")
            lines = [daemon.logged("{hook} on {device}: {line}")["line"] for _ in range(2)]
        self.assertEqual(lines, ["failed at 1-2: DISK1", "bound at 1-2: DISK1"])


class DevicesTests(DocumentCase, SynchronousTestCase):
    """Rules for devices."""

    name = "docs/howto/devices.md"

    def test_onImport(self) -> None:
        """The example binds a device on import and unbinds it after the session."""
        (rule,) = (b.text for b in self.document.blocks if "unbind_released" in b.text)
        config = f"backend: {{type: virtual}}\n{EXPORT}{rule.replace('printer', 'storage')}\n"
        with PatientDaemon(config) as daemon, daemon.watch(id="1-2") as watcher:
            with DaemonServer(daemon).imported("1-2"):
                watcher.told("imported", "1-2")
            watcher.told("unbound", "1-2")
            self.assertEqual(watcher.kinds("1-2"), ["bound", "imported", "released", "unbound"])


class TlsTests(DocumentCase, SynchronousTestCase):
    """TLS."""

    name = "docs/howto/tls.md"

    def test_authority(self) -> None:
        """The commands make certificates with which the shown commands verify the server, and the
        server verifies its clients. Clients without a certificate are refused."""
        if missing := [name for name in ("curl", "openssl") if shutil.which(name) is None]:
            raise SkipTest(f"apt-get install {' '.join(missing)}")
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        init, server, _ = self.document.block("ca init", "console").commands()
        (alice,) = self.document.block("ca client", "console").commands()

        def issued(command: str) -> str:
            command = command.removeprefix("sudo ").removesuffix(" --write")
            return child(["sh", "-c", f"{command} --dir {folder}"], folder)

        issued(init)
        shown = self.document.block("certificate: /etc", "yaml").text
        self.assertIn(shown, issued(server).replace(f"{folder}", f"{CONFIGURED}tls"))
        access = self.document.block("principals:", "yaml").text
        self.assertIn(access, issued(alice))
        issued(alice.replace("alice", "bob"))
        _, _, config = shown.partition("tls:\n")
        config = config.replace(f"{CONFIGURED}tls", f"{folder}")
        config = f"tls:\n{config}\n  require_client_certificate: true\n{access}\n"
        config += "http: {hosts: [raspi]}\nbackend: {type: virtual}\n"
        place = "tls:0:interface=127.0.0.1"
        with PatientDaemon(f"{config}export: {{listen: ['{place}']}}\n", listen=[place]) as daemon:

            def output(command: str) -> str:
                at = f"127.0.0.1:{daemon.port}"
                for shown, here in (
                    ("https://raspi:5056", f"--connect-to raspi:5056:{at} https://raspi:5056"),
                    ("-connect raspi:5056", f"-connect {at}"),
                    ("-connect raspi:3241", f"-connect 127.0.0.1:{daemon.exportPort}"),
                ):
                    command = command.replace(shown, here)
                return child(["sh", "-e", "-c", f"{command} 2>&1"], folder)

            curl, request, importing = self.document.block("s_client", "console").commands()
            for command in (curl, request):
                self.assertIn('{"status":"success","data":[{', output(command))
                self.assertIn("bob) may not list", output(command.replace("alice", "bob")))
                self.assertRaises(AssertionError, output, command.replace("ca.pem", "bob.pem"))
            self.assertIn("Verification: OK", output(importing))
            without = curl.replace("--cert alice.pem --key alice.key", "")
            self.assertRaises(AssertionError, output, without)
            strict = ssl.create_default_context(cafile=str(folder / "ca.pem"))
            strict.verify_flags |= ssl.VERIFY_X509_STRICT
            strict.load_cert_chain(folder / "alice.pem", folder / "alice.key")
            with (
                socket.create_connection(("127.0.0.1", daemon.port), SECONDS) as plain,
                strict.wrap_socket(plain, server_hostname="raspi") as connection,
            ):
                connection.sendall(b'{"command":"list"}\n')
                self.assertIn(b'"status":"success"', connection.recv(4096))


class MonitoringTests(DocumentCase, SynchronousTestCase):
    """Monitor with Prometheus."""

    name = "docs/howto/monitoring.md"

    def setUp(self) -> None:
        super().setUp()
        if shutil.which("prometheus") is None:
            raise SkipTest("apt-get install prometheus")
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        rules = self.document.block("groups:", "yaml").text
        (self.folder / "usbipshare_rules.yml").write_text(rules)
        self.scrape = self.document.block("scrape_configs:", "yaml").text

    def write(self, config: str) -> str:
        """Write prometheus.yml: its path."""
        path = self.folder / "prometheus.yml"
        path.write_text(config)
        return str(path)

    def test_accepted(self) -> None:
        """Prometheus accepts the configuration with its rules, and every expression."""
        child(["promtool", "check", "config", self.write(self.scrape)], self.folder)
        for _, cells in self.document.rows("Show", 2).items():
            for expression in re.findall("`(.+?)`", cells[1]):
                rule = {"record": "x", "expr": expression}
                file = self.folder / "expression.yml"
                file.write_text(json.dumps({"groups": [{"name": "x", "rules": [rule]}]}))
                child(["promtool", "check", "rules", str(file)], self.folder)

    def test_scraped(self) -> None:
        """Prometheus scrapes a daemon, and no alert is pending."""
        with PatientDaemon("backend: {type: virtual}\nexport: off\n") as daemon:
            target = f"127.0.0.1:{daemon.port}"
            config = f"global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n{self.scrape}"
            own = freePort()
            prometheus = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={self.write(config.replace('raspi:5055', target))}",
                    f"--storage.tsdb.path={self.folder}/data",
                    f"--web.listen-address=127.0.0.1:{own}",
                ],
                stderr=subprocess.DEVNULL,
            )
            self.addCleanup(prometheus.wait)
            self.addCleanup(prometheus.kill)
            found = self.queried(own, "query?query=usbipshare_devices", "result")
            states = {each["metric"]["state"]: each["value"][1] for each in found}
            self.assertEqual(states, {"free": "2", "bound": "0", "in_use": "0", "error": "0"})
            rules = self.queried(own, "rules", "groups")[0]["rules"]
            self.assertEqual({rule["state"] for rule in rules}, {"inactive"})
            self.assertEqual([rule.get("lastError") for rule in rules], [None] * len(rules))

    def queried(self, port: int, path: str, key: str) -> list[dict[str, Any]]:
        """The answer of Prometheus' API, once it is not empty."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                url = f"http://127.0.0.1:{port}/api/v1/{path}"
                with urllib.request.urlopen(url, timeout=SECONDS) as answer:
                    found: list[dict[str, Any]] = json.load(answer)["data"][key]
                if found:
                    return found
            time.sleep(0.1)
        raise AssertionError(f"Prometheus has nothing for {path}")


def freePort() -> int:
    """A TCP port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


class BackendsTests(DocumentCase, SynchronousTestCase):
    """Backends of other packages."""

    name = "docs/howto/backend.md"

    def test_package(self) -> None:
        """The example can be installed, is found by the daemon, and passes its tests."""
        if not canBuild():
            raise SkipTest("pip install 'setuptools >= 70.1'")
        folder = Path(self.mktemp()).absolute()
        installed = folder / "installed"
        # A copy, as to build a package leaves files in its folder.
        shutil.copytree(ROOT / "docs" / "example_backend", folder / "source")
        offline = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet")
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install"]
        child([*command, *offline, "--target", str(installed), "./source"], folder)
        (block,) = (b for b in self.document.blocks if b.circumstance == "plugin")
        (folder / "usbipshare.yaml").write_text(block.text)
        check = ["twistd", "usbipshare", "--check", "--config", "usbipshare.yaml"]
        printed = child(check, folder, path=[installed])
        self.assertEqual(printed, "usbipshare.yaml: configuration OK\n")
        tests = [sys.executable, "-m", "twisted.trial", "jsonfile_backend"]
        self.assertIn("PASSED", child(tests, folder, path=[installed]))

    def test_configuration(self) -> None:
        """The configuration names the backend of the example."""
        (block,) = (b for b in self.document.blocks if b.circumstance == "plugin")
        self.assertEqual(Source("", block.text).config().backendType, "jsonfile")


def canBuild() -> bool:
    """Can a package be built here, without the network?"""
    try:
        return find_spec("setuptools.command.bdist_wheel") is not None
    except ModuleNotFoundError:
        return False
