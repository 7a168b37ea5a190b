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
    What the command line says.
    """

    def test_config(self) -> None:
        """It listens where the file says."""
        path = file(self, VIRTUAL + "listen: [tcp:1, 'tcp:2:interface=127.0.0.1']\n")
        for option in ("--config", "-c"):
            self.assertEqual(self.places(option, path), ["tcp:1", "tcp:2:interface=127.0.0.1"])

    def test_defaults(self) -> None:
        """Without a file the defaults apply."""
        self.assertEqual(self.places("--backend", "virtual"), ["tcp:5055", "tcp:3240"])

    def test_listen(self) -> None:
        """Endpoints on the command line replace those of the file."""
        path = file(self, VIRTUAL + "listen: [tcp:1]\n")
        places = self.places("-c", path, "--listen", "tcp:2", "-l", "tcp:3:interface=127.0.0.1")
        self.assertEqual(places, ["tcp:2", "tcp:3:interface=127.0.0.1"])

    def test_backend(self) -> None:
        """
        A backend on the command line replaces that of the file, and the file's backend
        options are not used.
        """
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

    def test_checkWrong(self) -> None:
        """An invalid one is reported with file and line."""
        for text, problem in (
            ("backend: {type: virtual, prot: 5}\n", ":1: backend.prot: unknown key"),
            ("backend:\n  type: virtual\n  devices: 9\n", ":3: backend.devices: "),
            ("backend: {type: vitrual}\n", ":1: backend.type: there is no backend 'vitrual'"),
            (VIRTUAL + "listen:\n  - tcp:x\n", ":4: listen.0: "),
            (VIRTUAL + "listen:\n  - tcp6:99999\n", ":4: listen.0: 'tcp6:99999' is not "),
            (VIRTUAL + "listen:\n  - tcp:1\n  - 'unix:'\n", ":5: listen.1: 'unix:' is not "),
            (
                VIRTUAL + "listen: [tcp:1:interface=x]\n",
                ":3: listen.0: 'tcp:1:interface=x' is not ",
            ),
            (
                "backend:\n  type: virtual\n  devices:\n  - {bus_id: usb1}\n",
                ":4: backend.devices.0.bus_id: 'usb1' is not a bus id",
            ),
        ):
            path = file(self, text)
            message, _ = self.exit("--check", "--config", path)
            self.assertTrue(str(message).startswith(path + problem), message)

    def test_unknownBackend(self) -> None:
        """For an unknown backend the installed ones are listed."""
        for arguments, where in (
            (("--backend", "cloud"), "--backend: "),
            (("--config", path := file(self, "backend: {type: cloud}\n")), f"{path}:1: "),
        ):
            message, _ = self.exit(*arguments)
            self.assertTrue(str(message).startswith(where), message)
            for name in ("remote", "sysfs", "usbip", "virtual"):
                self.assertIn(name, str(message))

    def test_wrongListen(self) -> None:
        """An invalid endpoint on the command line is reported with the option."""
        message, _ = self.exit("-b", "virtual", "--listen", "tcp:x")
        self.assertTrue(str(message).startswith("--listen: "), message)

    def test_tlsWithoutCertificate(self) -> None:
        """TLS needs a certificate, for each endpoint, in the file and on the command line."""
        reason = (
            f'"tls:5056" needs a certificate: see `tls` in {DOCUMENTS}/reference/configuration.md'
        )
        listen = file(self, VIRTUAL + "listen: [tcp:1, tls:5056]\n")
        export = file(self, "export: {listen: [tls:5056]}\nbackend: {type: virtual}\n")
        plain = file(self, VIRTUAL)
        for arguments, where in (
            (("-c", listen), f"{listen}:3: listen.1: "),
            (("-c", export), f"{export}:1: export.listen.0: "),
            (("-c", plain, "--listen", "tls:5056"), "--listen: "),
            (("-c", plain, "--export", "tls:5056"), "--export: "),
        ):
            self.assertEqual(self.exit(*arguments)[0], where + reason)
        good = file(self, VIRTUAL + tls(self))
        self.assertEqual(
            self.places("-c", good, "--listen", "tls:5056", "--export", "tls:5057"),
            ["tls:5056", "tls:5057"],
        )

    def test_wrongCertificate(self) -> None:
        """A certificate file that cannot be used is reported with the line that names it."""
        other = signed("other").write(self.mktemp(), "other")[1]
        certificate = signed("localhost").write(self.mktemp(), "server")[0]
        path = file(self, VIRTUAL + f"tls:\n  certificate: {certificate}\n  key: {other}\n")
        message, _ = self.exit("--check", "--config", path)
        self.assertTrue(str(message).startswith(f"{path}:5: tls.key: the key in {other}"), message)
        path = file(self, VIRTUAL + "tls: {certificate: /nowhere}\n")
        message, _ = self.exit("--check", "--config", path)
        self.assertIn(":3: tls.certificate: /nowhere cannot be read", str(message))

    def test_wrongBackend(self) -> None:
        """
        An error of a backend on the command line is not attributed to the file, unless the
        file's options are used.
        """
        path = file(self, "\n\nbackend: {type: virtual, port: 0}\n")
        other = file(self, "backend:\n  type: wrong\n  colour: red\n")
        self.patch(plugin, "getPlugins", lambda interface: [*getPlugins(interface), WrongMaker()])
        for arguments, expected in (
            (("-b", "wrong"), "--backend: colour: red is not a colour"),
            (("-b", "wrong", "-c", path), "--backend: colour: red is not a colour"),
            (("-b", "wrong", "-c", other), f"{other}:3: backend.colour: red is not a colour"),
            (("-c", other), f"{other}:3: backend.colour: red is not a colour"),
        ):
            self.assertEqual(self.exit(*arguments)[0], expected)

    def test_noBackend(self) -> None:
        """Nor is an object that is no backend."""

        class NoMaker(WrongMaker):
            def makeBackend(self, options: Mapping[str, Any], reactor: Any) -> IUsbBackend:
                return object()  # type: ignore[return-value]

        path = file(self, "backend: {type: virtual}\n")
        self.patch(plugin, "getPlugins", lambda interface: [*getPlugins(interface), NoMaker()])
        message, _ = self.exit("-b", "wrong", "-c", path)
        self.assertTrue(str(message).startswith("--backend: wrong is not a backend: "), message)

    def test_missingFile(self) -> None:
        """A missing file is an error: the defaults do not apply."""
        path = self.mktemp()
        self.assertIn(f"{path}: cannot be read", str(self.exit("--config", path)[0]))

    def test_version(self) -> None:
        """--version prints name and version."""
        status, output = self.exit("--version")
        self.assertEqual(status, 0)
        self.assertRegex(output, r"^usbipshare \d+\.\d+")

    def test_help(self) -> None:
        """The help contains each option and the backends."""
        text = str(Options())
        for part in ("--config", "--listen", "--backend", "--check", "--version", "-c", "-l"):
            self.assertIn(part, text)
        for part in ("sysfs", "usbip", "virtual", "5055", "reference/configuration.md"):
            self.assertIn(part, text)

    def test_helpBackends(self) -> None:
        """It contains each installed backend, with its description."""
        self.patch(plugin, "getPlugins", lambda interface: [*getPlugins(interface), WrongMaker()])
        for maker in (*getPlugins(IUsbBackendMaker), WrongMaker()):
            for text in (str(Options()), self.exit("--help")[1]):
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
        """If a port is in use the program exits with the reason."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            for place in (f"tcp:{port}", f"tcp:{port}:interface=127.0.0.1"):
                service = makeService(parsed("-b", "virtual", "-l", place))
                with self.assertRaises(CannotListen) as caught:
                    service.privilegedStartService()
                self.assertIn(
                    f"cannot listen on {place}: Address already in use", str(caught.exception)
                )
                self.assertIsInstance(caught.exception, SystemExit)
                self.assertIsInstance(caught.exception, Exception)

    def test_exportTaken(self) -> None:
        """If the port for USB/IP is in use, the message mentions a stock usbipd and what to do."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            place = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
            here = "tcp:0:interface=127.0.0.1"
            service = makeService(parsed("-b", "virtual", "-l", here, "--export", place))
            with self.assertRaises(CannotListen) as caught:
                service.privilegedStartService()
        message = str(caught.exception)
        self.assertIn(f"cannot listen on {place}: Address already in use", message)
        self.assertIn("a stock usbipd", message)
        self.assertIn("export: off", message)

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
        for wrong, reason in (("tcp:x", "is not a port"), ("ssl:3240", "use `tls:`, as in")):
            message, _ = self.exit("-b", "virtual", "--export", wrong)
            self.assertIn("--export: ", message)
            self.assertIn(reason, message)

    def test_exportTlsTaken(self) -> None:
        """If the port for USB/IP over TLS is in use, the message does not mention usbipd."""
        path = file(self, VIRTUAL + tls(self))
        with socket.create_server(("127.0.0.1", 0)) as taken:
            place = f"tls:{taken.getsockname()[1]}:interface=127.0.0.1"
            here = "tcp:0:interface=127.0.0.1"
            service = makeService(parsed("-c", path, "-l", here, "--export", place))
            with self.assertRaises(CannotListen) as caught:
                service.privilegedStartService()
        message = str(caught.exception)
        self.assertIn(f"cannot listen on {place}: Address already in use. Something", message)
        self.assertNotIn("usbipd", message)

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
