"""
Which module may know which other: the law that keeps the parts apart.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import usbip_server

PACKAGE = Path(usbip_server.__file__).parent
OURS = "usbip_server"

VOCABULARY = {
    *("commands", "device", "errors", "limits", "matching", "opcodec", "policy", "replies"),
    *("keepalive", "rules", "settings", "state", "timestamps", "tokens", "versions"),
}
PROTOCOLS = {"exporter", "firstbyte", "lines", "secured", "web"}
TOOLS = {
    *("admission", "framing", "halfclose", "handshake", "httpcodes", "keepalive"),
    *("ktls", "sse", "tlsrelay", "tlssocket", "watcher"),
}
"""What protocols are made with: these may be known to all of them."""

REQUESTS = {
    *("access", "answers", "audit", "caller", "catalogue", "claims", "exports", "feed"),
    *("gate", "handoff", "herald", "keeper", "looking", "operations", "patience", "sharing"),
    *("waiting", "wishes"),
}
"""What knows who asks for what: nothing of that concerns a backend."""

SHARING = {
    *("access", "audit", "catalogue", "claims", "exports", "gate", "keeper", "operations"),
    *("sharing", "waiting"),
}
"""What carries out the requests of those who want a device of this machine."""

CLIENT_KERNEL = (
    "kernel.nodes",
    "kernel.slots",
    "kernel.system",
    "kernel.vhci",
    "kernel.vhcirecords",
)
CLIENT_TOOLS = ("protocols.keepalive", "protocols.ktls", "threads")

LAYERS = {
    "vocabulary": VOCABULARY,
    "interfaces": {"interfaces"},
    "middle": {
        *("access", "answers", "audit", "caller", "catalogue", "childprocess", "claims"),
        *("damper", "exports", "feed", "gate", "handoff", "hangups", "herald", "history"),
        *("hooks", "httppost"),
        *("inventory", "keeper", "looking", "operation", "operations", "patience", "sharing"),
        *("statefile", "threads", "waiting", "wishes", "yamlfile"),
    },
    "backends": {"backends"},
    "kernel": {"kernel"},
    "protocols": {"protocols"},
    "outermost": {
        *("certificates", "config", "daemon", "descriptors", "listening", "notify", "places"),
        *("rereading", "statepath", "tap"),
    },
    "testing": {"testing"},
    "data": {"data"},
    "client": {"client"},
}
"""The modules of each layer, and the packages that are one as a whole."""
LONGEST = 320
"""Lines in a file."""


class Module:
    """
    A module of the package.

    @ivar name: below the package, C{"kernel.scan"}; empty for the package itself.
    """

    def __init__(self, path: Path) -> None:
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        self.name = ".".join(part for part in parts if part != "__init__")
        self.text = path.read_text()
        self.tree = ast.parse(self.text)

    @cached_property
    def imports(self) -> set[str]:
        """The modules that it imports, anywhere in it, and the names imported from them."""
        return {name for node in ast.walk(self.tree) for name in imported(node)}

    @property
    def ours(self) -> set[str]:
        """Those of ours, below the package."""
        return {
            name.removeprefix(OURS + ".")
            for name in self.imports
            if name.split(".")[0] == OURS and name != OURS
        }

    def knows(self, *others: str) -> set[str]:
        """Which of the others, or what is in them, it imports."""
        return {
            name
            for name in self.ours
            if any(name == other or name.startswith(other + ".") for other in others)
        }

    @property
    def inFunctions(self) -> set[str]:
        """What is imported within functions."""
        return {
            name
            for function in ast.walk(self.tree)
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for node in ast.walk(function)
            for name in imported(node)
        }

    @property
    def strings(self) -> Iterator[str]:
        """The strings in its code, without docstrings."""
        documentation = {
            id(node.value)
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Constant) and id(node) not in documentation:
                if isinstance(node.value, str):
                    yield node.value
                elif isinstance(node.value, bytes):
                    yield node.value.decode("latin-1")


def imported(node: ast.AST) -> Iterator[str]:
    """The modules that a statement imports, and the names that it imports from them."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative imports are not used here"
        yield str(node.module)
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


class LayeringTests(SynchronousTestCase):
    """
    The import law.
    """

    modules = tuple(Module(path) for path in sorted(PACKAGE.rglob("*.py")))

    def within(self, *names: str) -> list[Module]:
        """The modules of these names, and those in packages of these names."""
        found = [
            module
            for module in self.modules
            if any(module.name == name or module.name.startswith(name + ".") for name in names)
        ]
        self.assertNotEqual(found, [])
        return found

    def assertKnows(self, modules: list[Module], *forbidden: str) -> None:
        """None of the modules imports what is forbidden to it."""
        broken = {
            module.name: known
            for module in modules
            if (
                known := {
                    name
                    for name in module.knows(*forbidden)
                    if not self.isWithin(name, module.name)
                }
            )
        }
        self.assertEqual(broken, {})

    def isWithin(self, name: str, other: str) -> bool:
        """Is it that, or in that?"""
        return name == other or name.startswith(other + ".")

    def test_layers(self) -> None:
        """Each module belongs to one layer and to no other, and each layer's modules are there:
        whoever adds one has to say where it belongs."""
        there = {
            path.name.removesuffix(".py")
            for path in PACKAGE.iterdir()
            if path.suffix == ".py" or (path.is_dir() and any(path.rglob("*.py")))
        }
        placed = [name for layer in LAYERS.values() for name in layer]
        self.assertEqual(sorted(placed), sorted(there - {"__init__"}))

    def test_vocabulary(self) -> None:
        """The vocabulary imports the standard library, msgspec and itself."""
        for module in self.within(*VOCABULARY):
            roots = {name.split(".")[0] for name in module.imports} - {OURS, "msgspec"}
            self.assertLessEqual(roots, sys.stdlib_module_names, module.name)
            allowed = {name for known in VOCABULARY for name in module.knows(known)}
            self.assertEqual(module.ours - allowed, set(), module.name)

    def test_interfaces(self) -> None:
        """The interfaces import zope.interface and the vocabulary."""
        [module] = self.within("interfaces")
        roots = {name.split(".")[0] for name in module.imports} - {OURS, "zope"}
        self.assertLessEqual(roots, sys.stdlib_module_names)
        self.assertEqual(module.ours - module.knows(*VOCABULARY), set())

    def test_protocols(self) -> None:
        """Protocols know nothing of what carries requests out, nor of each other."""
        self.assertKnows(self.within("protocols"), "backends", "kernel", "config", "tap", "daemon")
        for name in PROTOCOLS:
            others = (f"protocols.{other}" for other in PROTOCOLS - {name})
            self.assertKnows(self.within(f"protocols.{name}"), *others)
        for name in TOOLS:
            self.assertKnows(
                self.within(f"protocols.{name}"), *(f"protocols.{other}" for other in PROTOCOLS)
            )

    def test_protocolsAreKnown(self) -> None:
        """The protocols that this test knows are those there are."""
        names = {module.name.partition(".")[2] for module in self.within("protocols")}
        self.assertEqual(names - {""}, PROTOCOLS | TOOLS)

    def test_backends(self) -> None:
        """Backends know nothing of who asks, nor of each other."""
        backends = self.within("backends")
        self.assertKnows(backends, "protocols", *REQUESTS, "config", "tap", "daemon")
        for name in ("sysfs", "usbiptool", "virtual"):
            others = (f"backends.{other}" for other in ("sysfs", "usbiptool", "virtual"))
            self.assertKnows(
                self.within(f"backends.{name}"),
                *(other for other in others if other != f"backends.{name}"),
            )

    def test_kernel(self) -> None:
        """The part that knows the kernel knows nothing of either."""
        self.assertKnows(
            self.within("kernel"),
            "protocols",
            "backends",
            *REQUESTS,
            "config",
            "tap",
            "daemon",
        )

    def test_onlyKernelNamesSys(self) -> None:
        """Only that part names a path below /sys, or a netlink number."""
        for module in self.modules:
            if self.isWithin(module.name, "kernel") or self.isWithin(module.name, "testing"):
                continue
            for text in module.strings:
                self.assertFalse(
                    text.startswith(("/sys/", "sys/", "bus/usb")) and " " not in text,
                    f"{module.name}: {text}",
                )
            names = {node.attr for node in ast.walk(module.tree) if isinstance(node, ast.Attribute)}
            self.assertEqual({name for name in names if "NETLINK" in name}, set(), module.name)

    def test_config(self) -> None:
        """Only the outermost module imports the configuration, and only one knows YAML; those who
        read a file that people write know that one."""
        for module in self.modules:
            if module.name != "tap":
                self.assertEqual(module.knows("config"), set(), module.name)
            if module.name != "yamlfile":
                self.assertNotIn("yaml", {name.split(".")[0] for name in module.imports})
            if module.name not in ("config", "tap") and not self.isWithin(module.name, "client"):
                self.assertEqual(module.knows("yamlfile"), set(), module.name)

    def test_outermost(self) -> None:
        """Nobody imports the outermost module, and only tests import what is for tests."""
        for module in self.modules:
            self.assertEqual(module.knows("tap"), set(), module.name)
            if not self.isWithin(module.name, "testing"):
                self.assertEqual(module.knows("testing"), set(), module.name)
                roots = {name.split(".")[0] for name in module.imports}
                self.assertEqual(roots & {"tests", "unittest", "pytest"}, set(), module.name)

    def test_client(self) -> None:
        """The client knows its own part of the kernel, and nothing of who shares devices; its
        core knows little more than the vocabulary. Nobody imports it."""
        for module in self.modules:
            if not self.isWithin(module.name, "client"):
                self.assertEqual(module.knows("client"), set(), module.name)
                continue
            kernel = module.knows("kernel") - module.knows(*CLIENT_KERNEL)
            self.assertLessEqual(kernel, {"kernel"}, module.name)
            self.assertKnows([module], *SHARING, "config", "daemon", "tap")
            if self.isWithin(module.name, "client.core"):
                allowed = module.knows(
                    "client.core", *VOCABULARY, *CLIENT_KERNEL, *CLIENT_TOOLS, "yamlfile"
                )
                self.assertLessEqual(module.ours - allowed, {"kernel", "protocols"}, module.name)

    def test_clientParts(self) -> None:
        """What is for the terminal, the service and the gateway know the core and not each other;
        commands know what is for the terminal. Nobody knows the service's outermost module, and
        the gateway is known by its plugin only."""
        parts = {"client.terminal", "client.service", "client.remote", "client.commands"}
        for part in parts:
            others = parts - {part}
            if part == "client.commands":
                others -= {"client.terminal"}
            self.assertKnows(self.within(part), *others)
        for module in self.modules:
            self.assertEqual(module.knows("client.service.tap"), set(), module.name)

    def test_gateway(self) -> None:
        """The backend for devices of other servers knows the contract of backends, and what
        fetches devices."""
        contract = ("interfaces", "inventory", "threads", "backends.options", "hangups")
        for module in self.within("client.remote"):
            allowed = module.knows("client", *VOCABULARY, *contract)
            self.assertLessEqual(module.ours - allowed, {"backends"}, module.name)

    def test_imports(self) -> None:
        """Nothing of ours is imported within a function, and the reactor only there."""
        for module in self.modules:
            ours = {name for name in module.inFunctions if name.split(".")[0] == OURS}
            self.assertEqual(ours, set(), module.name)
            if "twisted.internet.reactor" in module.imports:
                top = {name for node in module.tree.body for name in imported(node)}
                self.assertNotIn("twisted.internet.reactor", top, module.name)
                runs = ("tap", "client.terminal.running", "client.service.tap")
                self.assertTrue(self.isWithin(module.name, "testing") or module.name in runs)

    def test_noCircles(self) -> None:
        """No module imports itself, by whichever way round."""
        direct = {
            module.name: {
                other.name for other in self.modules if other.name and other.name in module.ours
            }
            for module in self.modules
        }
        for name in direct:
            seen: set[str] = set()
            coming = set(direct[name])
            while coming:
                seen |= coming
                coming = {further for known in coming for further in direct[known]} - seen
            self.assertNotIn(name, seen)

    def test_length(self) -> None:
        """No file is so long that nobody reads it to its end; a fake may be long."""
        for module in self.modules:
            if self.isWithin(module.name, "testing"):
                continue
            self.assertLessEqual(module.text.count("\n"), LONGEST, module.name)

    def test_plugin(self) -> None:
        """The plugins name the services' modules by a string, so that twistd starts quickly."""
        for name in ("usbipshare", "usbipclient"):
            path = PACKAGE.parent / "twisted" / "plugins" / f"{name}_plugin.py"
            tree = ast.parse(path.read_text())
            names = {name for node in ast.walk(tree) for name in imported(node)}
            ours = {name for name in names if name.split(".")[0] == OURS}
            self.assertLessEqual(
                ours, {f"{OURS}.backends.maker", f"{OURS}.backends.maker.BackendMaker"}
            )
        for directory in (path.parent, path.parent.parent):
            self.assertFalse((directory / "__init__.py").exists())
