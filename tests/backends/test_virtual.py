"""
Tests of L{usbip_server.backends.virtual}: its options, and devices that nobody imports.
"""

from __future__ import annotations

import socket
from collections.abc import Coroutine
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from usbip_server.backends import softdevice
from usbip_server.backends.virtual import SAMPLES, VirtualBackend, makeBackend
from usbip_server.interfaces import IUsbBackend
from usbip_server.model.device import DeviceState, Holder, UsbDevice
from usbip_server.model.errors import OperationFailed
from usbip_server.model.options import InvalidOption


class VirtualTests(SynchronousTestCase):
    """
    A backend without clients.
    """

    def started(self, *devices: dict[str, Any]) -> VirtualBackend:
        """A backend with these devices."""
        backend = makeBackend({"devices": list(devices)}, reactor)
        verifyObject(IUsbBackend, backend)
        self.successResultOf(Deferred.fromCoroutine(backend.start()))
        return backend

    def fails(self, operation: Coroutine[Any, Any, UsbDevice]) -> str:
        """The message of an operation that fails."""
        return str(self.failureResultOf(Deferred.fromCoroutine(operation), OperationFailed).value)

    def test_invalidOptions(self) -> None:
        """An invalid option is refused with the path of its key."""
        uno = {"bus_id": "1-1"}
        wrong: list[tuple[dict[str, Any], tuple[str | int, ...]]] = [
            ({"colour": "red"}, ("colour",)),
            ({"port": 3240}, ("port",)),
            ({"devices": [{}]}, ("devices", 0, "bus_id")),
            ({"devices": [{"bus_id": "usb1"}]}, ("devices", 0, "bus_id")),
            ({"devices": [uno, uno]}, ("devices", 1, "bus_id")),
            ({"devices": [{**uno, "kind": "x"}]}, ("devices", 0, "kind")),
            ({"devices": [{**uno, "vendor_id": "12"}]}, ("devices", 0, "vendor_id")),
            ({"devices": [{**uno, "size": 1}]}, ("devices", 0, "size")),
            ({"devices": [{**uno, "serial": ""}]}, ("devices", 0, "serial")),
        ]
        for key in ("manufacturer", "product", "serial"):
            for half in ("\ud800x", "x\udfff"):
                devices = [uno, {"bus_id": "1-2", key: half}]
                wrong.append(({"devices": devices}, ("devices", 1, key)))
        for options, path in wrong:
            error = self.assertRaises(InvalidOption, makeBackend, options, reactor)
            self.assertEqual(error.path, path)

    def test_devices(self) -> None:
        """Declared devices are listed if they are plugged in, with strings in any language; without
        a declaration there are samples."""
        backend = self.started(
            {"bus_id": "1-1", "product": "Gerät \U0001f50c", "serial": "№1"},
            {"bus_id": "1-3", "vendor_id": "ABCD"},
            {"bus_id": "1-4.1", "plugged": False},
        )
        one, other = backend.inventory.snapshot.devices
        self.assertEqual((one.product, one.serial), ("Gerät \U0001f50c", "№1"))
        self.assertEqual(
            (one.description, one.path), ("Gerät \U0001f50c", "platform-virtual.1-usb-0:1")
        )
        self.assertEqual((other.description, other.serial), ("USB device abcd:0001", None))
        backend.plug("1-4.1")
        self.assertIsNotNone(backend.inventory.get("1-4.1"))
        self.assertEqual(self.started().inventory.snapshot.devices, ())
        if softdevice.installed:
            samples = makeBackend({}, reactor)
            self.successResultOf(Deferred.fromCoroutine(samples.start()))
            self.assertEqual(len(samples.inventory.snapshot.devices), len(SAMPLES))

    def test_withoutPackage(self) -> None:
        """Without the package C{usbip} only inert devices can be declared."""
        self.patch(softdevice, "installed", False)
        self.started({"bus_id": "1-1"})
        options = {"devices": [{"bus_id": "1-1", "kind": "disk"}]}
        error = self.assertRaises(InvalidOption, makeBackend, options, reactor)
        self.assertIn("pip install", str(error))

    def test_inert(self) -> None:
        """An inert device can be bound and unbound, repeatedly, but not imported; after a replug it
        is another device."""
        backend = self.started({"bus_id": "1-3"})
        lamp = backend.inventory.snapshot.devices[0]
        ours, theirs = socket.socketpair()
        for method, state in (
            (backend.bind, DeviceState.BOUND),
            (backend.bind, DeviceState.BOUND),
            (backend.unbind, DeviceState.FREE),
            (backend.unbind, DeviceState.FREE),
        ):
            now = self.successResultOf(Deferred.fromCoroutine(method(lamp, 5)))
            self.assertEqual((now.state, now), (state, backend.inventory.get("1-3")))
            message = self.fails(backend.export(lamp, ours, Holder(), 5))
            self.assertIn("cannot be imported: it is of kind inert", message)
        ours.close()
        self.assertEqual(theirs.recv(1), b"")  # the backend has no duplicate
        theirs.close()
        backend.unplug("1-3")
        self.fails(backend.bind(lamp, 5))
        backend.plug("1-3")
        for method in (backend.bind, backend.unbind):
            self.assertIn("it was unplugged", self.fails(method(lamp, 5)))
