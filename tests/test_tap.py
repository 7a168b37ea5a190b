"""
Tests of L{usbip_server.tap} and L{usbip_server.server.service}.
"""

from __future__ import annotations

import io
import os
import re
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twisted.application.service import IServiceMaker
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.internet.testing import MemoryReactorClock
from twisted.plugin import getPlugins
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from tests.support.certificates import LAB, authority, signed
from usbip_server import DOCUMENTS
from usbip_server.backends import plugin
from usbip_server.interfaces import IUsbBackend, IUsbBackendMaker
from usbip_server.model.options import InvalidOption
from usbip_server.net import endpoints as places
from usbip_server.net.endpoints import CannotListen, serverEndpoint
from usbip_server.protocols.exporter import ExporterFactory
from usbip_server.protocols.exporter_tls import SecuredFactory
from usbip_server.protocols.multiplexer import FirstByteFactory
from usbip_server.runtime.service import WRONG_CONFIGURATION
from usbip_server.server import service as daemonservice
from usbip_server.tap import Options, assemble, makeService

VIRTUAL = "export: off\nbackend: {type: virtual, devices: [{bus_id: 1-1}]}\n"

BACKEND = "backend: {type: virtual}\n"

WRONG = "backend:\n  type: wrong\n  colour: red\n"


def file(case: SynchronousTestCase, text: str) -> str:
    """A configuration file."""
    path: str = case.mktemp()
    Path(path).write_text(text)
    return path


def parsed(*arguments: str) -> Options:
    """A command line that is good."""
    options = Options()
    options.parseOptions(list(arguments))
    return options


def tls(case: SynchronousTestCase) -> str:
    """A good C{tls} block."""
    certificate, key = signed("localhost").write(case.mktemp(), "server")
    ca, _ = authority(LAB).write(case.mktemp(), "ca")
    return f"tls: {{certificate: {certificate}, key: {key}, client_ca: {ca}}}\n"


@implementer(IUsbBackendMaker)
class WrongMaker:
    """
    Makes no backend: one of its options is always wrong.
    """

    name = "wrong"
    description = "nothing, and says why"

    def makeBackend(self, options: Mapping[str, Any], reactor: Any) -> IUsbBackend:
        raise InvalidOption(("colour",), "red is not a colour")


class NoMaker(WrongMaker):
    """
    Makes an object that is not a backend.
    """

    name = "none"

    def makeBackend(self, options: Mapping[str, Any], reactor: Any) -> IUsbBackend:
        return object()  # type: ignore[return-value]


def withPlugins(*makers: object) -> Any:
    """The installed plugins, and others."""
    return lambda interface: [*getPlugins(interface), *makers]


class CommandLineCase(SynchronousTestCase):
    """
    Parses command lines.
    """

    def exit(self, *arguments: str) -> tuple[Any, str]:
        """
        A command line that ends the program: with which status, or which text on standard error
        if the configuration is wrong, and what it prints.
        """
        output, errors = io.StringIO(), io.StringIO()
        self.patch(sys, "stdout", output)
        self.patch(sys, "stderr", errors)
        with self.assertRaises(SystemExit) as caught:
            parsed(*arguments)
        wrong = errors.getvalue().rstrip("\n")
        self.assertEqual(caught.exception.code == WRONG_CONFIGURATION, bool(wrong))
        return wrong or caught.exception.code, output.getvalue()

    def assertStarts(self, beginning: str, *arguments: str) -> str:
        """A command line ends the program with a message that begins so; return the message."""
        message = str(self.exit(*arguments)[0])
        self.assertTrue(message.startswith(beginning), message)
        return message

    def places(self, *arguments: str) -> list[str]:
        """Where it would listen with such a command line."""
        noted: list[str] = []

        def note(reactor: Any, description: str, certificates: Any) -> IStreamServerEndpoint:
            noted.append(description)
            return serverEndpoint(reactor, description, certificates)

        self.patch(places, "serverEndpoint", note)
        parsed(*arguments)
        return noted


class OptionsTests(CommandLineCase):
    """
    The options.
    """

    def test_places(self) -> None:
        """It listens where the command line says, or else the file, or else the defaults."""
        path = file(self, VIRTUAL + "listen: [tcp:1, 'tcp:2:interface=127.0.0.1']\n")
        secured = file(self, VIRTUAL + tls(self))
        for arguments, expected in (
            (("--backend", "virtual"), ["tcp:5055", "tcp:3240"]),
            (("--config", path), ["tcp:1", "tcp:2:interface=127.0.0.1"]),
            (("-c", path, "--listen", "tcp:2", "-l", "tcp:3"), ["tcp:2", "tcp:3"]),
            (("-c", secured, "-l", "tls:6", "--export", "tls:7"), ["tls:6", "tls:7"]),
        ):
            self.assertEqual(self.places(*arguments), expected)

    def test_backend(self) -> None:
        """A backend on the command line replaces that of the file, with the file's options."""
        path = file(self, "backend: {type: sysfs, root: /nowhere}\n")
        makeService(parsed("-c", path, "--backend", "virtual"))

    def test_state(self) -> None:
        """There is a state file, except for virtual devices without a configuration."""
        noted: list[str] = []
        self.patch(daemonservice, "StateFile", lambda path, kind, reactor: noted.append(path))
        self.patch(os, "environ", {**os.environ, "STATE_DIRECTORY": "/nowhere"})
        parsed("--backend", "virtual")
        self.assertEqual(noted, [])
        for arguments in (
            ("-c", file(self, VIRTUAL)),
            ("-c", file(self, VIRTUAL), "-b", "virtual"),
        ):
            parsed(*arguments)
            self.assertEqual(noted.pop(), "/nowhere/state.json")

    def test_check(self) -> None:
        """With --check a valid configuration is confirmed, and the program exits."""
        path = file(self, VIRTUAL)
        status, output = self.exit("--config", path, "--check")
        self.assertEqual(status, 0)
        self.assertIn(path, output)
        self.assertIn(" OK", output)
        self.assertEqual(self.exit("-b", "virtual", "--check")[0], 0)

    def test_checkFormerPlace(self) -> None:
        """--check names the file that is read in place of usbipshare/server.yaml."""
        folder = Path(self.mktemp()).absolute()
        (folder / "usbipshare").mkdir(parents=True)
        (folder / "usbipshare" / "server.yaml").write_text("# nothing yet\n")
        (folder / "usbipshare.yaml").write_text(VIRTUAL)
        status, output = self.exit("--config", f"{folder}/usbipshare/server.yaml", "--check")
        self.assertEqual((status, output), (0, f"{folder}/usbipshare.yaml: configuration OK\n"))

    def test_errors(self) -> None:
        """An error is reported with the file and line, or with the option. One of a backend on the
        command line is not attributed to the file, unless the file's options are used."""
        certificate, _ = signed("localhost").write(self.mktemp(), "server")
        _, other = signed("other").write(self.mktemp(), "other")
        noTls = f"needs a certificate: see `tls` in {DOCUMENTS}/reference/configuration.md"
        for text, problem in (
            ("backend: {type: virtual, prot: 5}\n", ":1: backend.prot: unknown key"),
            ("backend:\n  type: virtual\n  devices: 9\n", ":3: backend.devices: "),
            ("backend: {type: vitrual}\n", ":1: backend.type: there is no backend 'vitrual'"),
            (VIRTUAL + "listen:\n  - tcp:x\n", ":4: listen.0: "),
            (VIRTUAL + "listen:\n  - tcp6:99999\n", ":4: listen.0: 'tcp6:99999' is not "),
            (VIRTUAL + "listen:\n  - tcp:1\n  - 'unix:'\n", ":5: listen.1: 'unix:' is not "),
            (VIRTUAL + "listen: [tcp:1:interface=x]\n", ":3: listen.0: 'tcp:1:interface=x' is "),
            (VIRTUAL + "listen: [tcp:1, tls:2]\n", f':3: listen.1: "tls:2" {noTls}'),
            ("export: {listen: [tls:2]}\n" + BACKEND, f':1: export.listen.0: "tls:2" {noTls}'),
            (f"{VIRTUAL}tls: {{certificate: /no}}\n", ":3: tls.certificate: /no cannot be read"),
            (
                f"{VIRTUAL}tls:\n  certificate: {certificate}\n  key: {other}\n",
                f":5: tls.key: the key in {other}",
            ),
            (
                "backend:\n  type: virtual\n  devices:\n  - {bus_id: usb1}\n",
                ":4: backend.devices.0.bus_id: 'usb1' is not a bus id",
            ),
            (WRONG, ":3: backend.colour: red is not a colour"),
        ):
            self.patch(plugin, "getPlugins", withPlugins(WrongMaker()))
            path = file(self, text)
            self.assertStarts(path + problem, "--check", "--config", path)
        missing, good = self.mktemp(), file(self, f"\n\n{BACKEND}")
        wrong = file(self, WRONG)
        for arguments, problem in (
            (("-c", missing), f"{missing}: cannot be read"),
            (("-b", "virtual", "--listen", "tcp:x"), "--listen: "),
            (("-c", good, "--listen", "tls:2"), f'--listen: "tls:2" {noTls}'),
            (("-c", good, "--export", "tls:2"), f'--export: "tls:2" {noTls}'),
            (("-b", "virtual", "--export", "tcp:x"), "--export: 'x' is not a port"),
            (("-b", "virtual", "--export", "ssl:3240"), "--export: USB/IP cannot be served with"),
            (("-b", "wrong"), "--backend: colour: red is not a colour"),
            (("-b", "wrong", "-c", good), "--backend: colour: red is not a colour"),
            (("-b", "wrong", "-c", wrong), f"{wrong}:3: backend.colour: red is not a colour"),
            (("-b", "none", "-c", good), "--backend: none is not a backend: "),
        ):
            self.patch(plugin, "getPlugins", withPlugins(WrongMaker(), NoMaker()))
            self.assertStarts(problem, *arguments)

    def test_unknownBackend(self) -> None:
        """For an unknown backend the installed ones are listed."""
        path = file(self, "backend: {type: cloud}\n")
        for arguments, where in (
            (("--backend", "cloud"), "--backend: "),
            (("--config", path), f"{path}:1: "),
        ):
            message = self.assertStarts(where, *arguments)
            for name in ("remote", "sysfs", "usbip", "virtual"):
                self.assertIn(name, message)

    def test_help(self) -> None:
        """--version prints name and version, and the help contains each option and each installed
        backend, with its description."""
        status, output = self.exit("--version")
        self.assertEqual(status, 0)
        self.assertRegex(output, r"^usbipshare \d+\.\d+")
        self.patch(plugin, "getPlugins", withPlugins(WrongMaker()))
        for text in (str(Options()), self.exit("--help")[1]):
            for part in ("--config", "--listen", "--backend", "--check", "--version", "-c", "-l"):
                self.assertIn(part, text)
            self.assertIn("reference/configuration.md", text)
            for maker in (*getPlugins(IUsbBackendMaker), WrongMaker()):
                self.assertRegex(text, rf"\n  {maker.name} +{re.escape(maker.description)}\n")


class PluginTests(SynchronousTestCase):
    """
    What twistd finds.
    """

    def test_service(self) -> None:
        """twistd finds the service by its name."""
        [maker] = [m for m in getPlugins(IServiceMaker) if m.tapname == "usbipshare"]
        self.assertIs(maker.options, Options)
        self.assertIs(maker.makeService, makeService)

    def test_backends(self) -> None:
        """The backends are found, each with a name and a description."""
        makers = {maker.name: maker for maker in getPlugins(IUsbBackendMaker)}
        self.assertLessEqual({"sysfs", "usbip", "virtual"}, set(makers))
        for maker in makers.values():
            verifyObject(IUsbBackendMaker, maker)
            self.assertNotEqual(maker.description, "")


class ServiceTests(CommandLineCase):
    """
    What twistd runs.
    """

    def test_taken(self) -> None:
        """If a port is in use, the program exits with the reason; at the port for USB/IP without
        TLS the message mentions a stock usbipd, and what to do."""
        path = file(self, VIRTUAL + tls(self))
        here = ("-c", path, "-l", "tcp:0:interface=127.0.0.1")
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            for arguments, place, isStock in (
                (("-c", path, "-l"), f"tcp:{port}", False),
                (("-c", path, "-l"), f"tcp:{port}:interface=127.0.0.1", False),
                ((*here, "--export"), f"tcp:{port}:interface=127.0.0.1", True),
                ((*here, "--export"), f"tls:{port}:interface=127.0.0.1", False),
            ):
                service = makeService(parsed(*arguments, place))
                error = self.assertRaises(CannotListen, service.privilegedStartService)
                message = str(error)
                self.assertIn(f"cannot listen on {place}: Address already in use. Some", message)
                for part in ("a stock usbipd", "export: off"):
                    self.assertEqual(part in message, isStock, message)
                self.assertIsInstance(error, SystemExit)

    def test_export(self) -> None:
        """USB/IP is served where the file or the command line says, or not at all."""
        path = file(
            self,
            "backend: {type: virtual, devices: []}\nlisten: ['tcp:1:interface=127.0.0.1']\n"
            "export: {listen: ['tcp:2:interface=127.0.0.1', 'tcp:3:interface=127.0.0.1']}\n",
        )
        for options, ports in (
            ((), [1, 2, 3]),
            (("-e", "tcp:4:interface=127.0.0.1"), [1, 4]),
            (("--export", "off"), [1]),
        ):
            memory = MemoryReactorClock()
            service = assemble(parsed("--config", path, *options), memory)
            service.privilegedStartService()
            self.assertEqual([server[0] for server in memory.tcpServers], ports)

    def test_tls(self) -> None:
        """
        TLS for requests is Twisted's; TLS for USB/IP is not, so its ports are plain TCP to
        Twisted.
        """
        path = file(
            self,
            tls(self) + "backend: {type: virtual, devices: []}\n"
            "listen: ['tcp:1:interface=127.0.0.1', 'tls:2:interface=127.0.0.1']\n"
            "export: {listen: ['tcp:3:interface=127.0.0.1', 'tls:4:interface=127.0.0.1']}\n",
        )
        memory = MemoryReactorClock()
        assemble(parsed("--config", path), memory).privilegedStartService()
        self.assertEqual([server[0] for server in memory.tcpServers], [1, 2, 3, 4])
        factories: list[Any] = [server[1] for server in memory.tcpServers]
        plain, secured, *others = factories
        self.assertIsInstance(plain, FirstByteFactory)
        self.assertIsInstance(secured, TLSMemoryBIOFactory)
        self.assertIs(secured.wrappedFactory, plain)
        self.assertEqual([type(other) for other in others], [ExporterFactory, SecuredFactory])

    def test_stopWithoutStart(self) -> None:
        """The service can be stopped without having been started."""
        service = makeService(parsed("-b", "virtual", "-l", "tcp:0"))
        self.successResultOf(service.stopService())
        self.assertFalse(service.running)

    def test_startsOnce(self) -> None:
        """
        It listens once on each endpoint, whether twistd starts it in one step or in two,
        and stops.
        """
        config = 'listen: ["tcp:1:interface=127.0.0.1"]\nadvertise: off\n'
        path = file(self, VIRTUAL + config)
        for privileged in (False, True):
            memory = MemoryReactorClock()
            service = assemble(parsed("--config", path), memory)
            if privileged:
                service.privilegedStartService()
                self.assertFalse(service.running)
            service.startService()
            self.assertEqual(len(memory.tcpServers), 1)
            self.assertTrue(service.running)
            self.successResultOf(service.stopService())
            self.assertFalse(service.running)
