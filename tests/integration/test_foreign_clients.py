"""
Requests with programs that others wrote: C{nc}, C{socat}, C{curl} and C{usb-remote}.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.support.childdaemon import SECONDS, PatientDaemon

HOST = "127.0.0.1"

BUS_IDS = ["1-1", "1-2.4", "2-1"]

CONFIG = """
backend:
  type: virtual
  devices:
    - {bus_id: 1-1, product: Blinking Lamp, serial: LAMP1}
    - {bus_id: 1-2.4, product: Desk Lamp, serial: LAMP2}
    - {bus_id: 2-1, product: Door Bell, serial: BELL1}
"""

LIST = '{"command":"list"}'


class ForeignClientCase(SynchronousTestCase):
    """
    A daemon with three devices.
    """

    def setUp(self) -> None:
        self.daemon = PatientDaemon(CONFIG)
        self.daemon.__enter__()
        self.addCleanup(self.daemon.__exit__, None, None, None)
        self.port = str(self.daemon.port)

    def said(self, *command: str, stdin: str = "", **environment: str) -> str:
        """
        Run a program, which has to succeed.

        @return: what it prints to its standard output and standard error.
        """
        done = subprocess.run(
            command,
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            text=True,
            timeout=SECONDS,
            check=False,
        )
        self.assertEqual(done.returncode, 0, f"{command}: {done.stdout}")
        return done.stdout

    def assertLists(self, answer: str | bytes) -> None:
        """An answer has all devices, in order."""
        said = json.loads(answer)
        self.assertEqual([device["bus_id"] for device in said["data"]], BUS_IDS, answer)


class ProgramTests(ForeignClientCase):
    """
    Programs that are on many machines.
    """

    def require(self, *programs: str) -> None:
        """Skip a test where programs are not installed."""
        missing = [program for program in programs if shutil.which(program) is None]
        if missing:
            raise SkipTest(f"not installed: {', '.join(missing)}")

    def bridge(self) -> str:
        """
        Have socat forward connections to the daemon until the test ends.

        @return: the port where it listens.
        """
        socat = subprocess.Popen(
            ["socat", "-d", "-d", f"TCP-LISTEN:0,fork,bind={HOST}", f"TCP:{HOST}:{self.port}"],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert socat.stderr is not None
        self.addCleanup(socat.stderr.close)
        self.addCleanup(socat.wait, SECONDS)
        self.addCleanup(socat.terminate)
        for line in socat.stderr:
            if listening := re.search(r"listening on .*:(\d+)$", line.rstrip()):
                return listening[1]
        raise AssertionError("socat has ended")

    def test_netcat(self) -> None:
        """OpenBSD nc prints all devices and ends, with and without a line feed behind the request,
        and with and without -N."""
        self.require("nc")
        for options in ((), ("-N",)):
            for end in ("\n", "", "\r\n"):
                self.assertLists(self.said("nc", *options, HOST, self.port, stdin=LIST + end))

    def test_socat(self) -> None:
        """socat prints all devices and ends, with and without a line feed behind the request. It
        closes its side at once, and is told to wait longer for the answer than half a second."""
        self.require("socat")
        socat = ("socat", f"-t{SECONDS}", "-", f"TCP:{HOST}:{self.port}")
        for end in ("\n", ""):
            self.assertLists(self.said(*socat, stdin=LIST + end))

    def test_curl(self) -> None:
        """curl gets the answer over HTTP, whatever it says of the content."""
        self.require("curl")
        url = f"http://{HOST}:{self.port}/"
        for options in (("-X", "POST"), ("-H", "Content-Type: application/json")):
            self.assertLists(self.said("curl", "-sS", *options, url, "-d", LIST))

    def test_curlThroughSocat(self) -> None:
        """curl gets it through a port that socat forwards."""
        self.require("curl", "socat")
        url = f"http://localhost:{self.bridge()}"
        self.assertLists(self.said("curl", "-sS", "-X", "POST", url, "-d", LIST))

    def test_attach(self) -> None:
        """nc attaches a device and curl detaches it."""
        self.require("nc", "curl")
        request = '{"command":"attach","bus":"1-2.4"}'
        attached = json.loads(self.said("nc", "-N", HOST, self.port, stdin=request))
        self.assertEqual((attached["status"], attached["data"]["serial"]), ("success", "LAMP2"))
        self.assertEqual(self.state("1-2.4"), "bound")
        request = '{"command":"detach","serial":"LAMP2"}'
        detached = self.said("curl", "-sS", f"http://{HOST}:{self.port}/", "-d", request)
        self.assertEqual(json.loads(detached)["status"], "success")
        self.assertEqual(self.state("1-2.4"), "free")

    def state(self, busId: str) -> str:
        """The state of a device, as the daemon tells it."""
        state: str = self.daemon.ask("find", id=busId, detail=True)["data"]["state"]
        return state

    def test_python(self) -> None:
        """A client with a plain socket sends one line and gets the whole answer with one
        C{recv(4096)}."""
        with socket.create_connection((HOST, self.daemon.port), SECONDS) as connection:
            connection.sendall(f"{LIST}\n".encode())
            self.assertLists(connection.recv(4096))


class UsbRemoteTests(ForeignClientCase):
    """
    usb-remote 2.3.2, the most used client of this protocol.
    """

    if find_spec("usb_remote") is None:
        skip = "the package usb-remote is not installed: it needs Python 3.11"

    def usbRemote(self, *arguments: str) -> str:
        """
        Run its command line. Its exit status is 0 whatever happens, so what it says counts.
        """
        config = Path(self.mktemp()).absolute()
        config.write_text(f"server_port: {self.port}\ntimeout: {SECONDS}\n")
        command = (sys.executable, "-m", "usb_remote", *arguments, "--host", HOST)
        return self.said(*command, USB_REMOTE_CONFIG_PATH=str(config))

    def test_list(self) -> None:
        """Its list shows all devices."""
        said = self.usbRemote("list")
        for busId in BUS_IDS:
            self.assertIn(f"bus={busId}", said)

    def test_find(self) -> None:
        """It finds one device, and is told when several devices or none match."""
        self.assertIn("bus=1-2.4", self.usbRemote("find", "--serial", "LAMP2"))
        self.assertIn("Narrow the criteria", self.usbRemote("find", "--desc", "Lamp"))
        self.assertIn("No matching device found", self.usbRemote("find", "--desc", "Toaster"))
