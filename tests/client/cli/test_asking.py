"""
Commands that ask servers: C{list}, C{find}, C{status}, C{kick}, C{renew}.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from typing import Any

from tests.client.cli.commandcase import VIRTUAL, CommandCase
from tests.support.childdaemon import EXPORT
from tests.support.scriptedserver import SECONDS, ScriptedServer
from usbip_server.client.cli import INTERRUPTED
from usbip_server.client.cli.exitcodes import Exit
from usbip_server.model.criteria import CRITERIA, describe
from usbip_server.model.device import UsbDevice
from usbip_server.model.usbip import encodeList

LAMP = "export: off\nbackend: {type: virtual, devices: [{bus_id: 1-1, product: Blinking Lamp}]}\n"

EVIL = 'export: off\nbackend: {type: virtual, devices: [{bus_id: 1-1, product: "\\e[31mred"}]}\n'

NAMED = (
    f"{EXPORT}backend: {{type: virtual}}\n"
    "devices: [{match: {serial: DISK1}, name: scratch-disk}]\n"
)


SERIAL_OR_DESC = ("serial", "desc")


def listen(connection: socket.socket) -> None:
    """A server that never answers."""
    while connection.recv(4096):
        pass


class ListTests(CommandCase):
    """
    C{usbipshare list}.
    """

    def test_allServers(self) -> None:
        """The devices of all servers are in one table, in the order of the servers; JSON contains
        what each server sent."""
        self.daemon("raspi")
        self.daemon("bench", LAMP)
        head, *lines = self.type("list").stdout.splitlines()
        titles = ["SERVER", "BUS", "ID", "NAME", "ID", "SERIAL", "DESCRIPTION", "STATE", "WHO"]
        self.assertEqual(head.split(), titles)
        self.assertEqual([line.split()[0] for line in lines], ["raspi", "raspi", "bench"])
        self.assertIn("usbipshare Small Disk", lines[1])
        self.assertIn("Blinking Lamp", lines[2])
        self.assertEqual(lines, [line.rstrip() for line in lines])
        said = self.json("list")
        self.assertEqual((said["status"], said["errors"], said["message"]), ("success", [], None))
        echo, disk, _ = said["devices"]
        self.assertEqual((echo["server"], echo["bus_id"]), ("raspi", "1-1"))
        self.assertEqual((disk["serial"], disk["state"]), ("DISK1", "free"))

    def gone(self, *names: str) -> None:
        """Servers whose ports are closed."""
        for name in names:
            self.known(name, host="127.0.0.1", port=self.nobody(), export_port=self.nobody())

    def test_serverDoesNotAnswer(self) -> None:
        """A server that refuses or does not answer in time is reported; the others are listed."""
        self.daemon("raspi")
        self.gone("gone")
        done = self.type("list")
        self.assertEqual(len(done.stdout.splitlines()), 3)
        self.assertRegex(done.stderr, r"\Agone .*: .*[Rr]efused.*\n\Z")
        said = self.json("list")
        [error] = said["errors"]
        self.assertEqual((said["status"], error["server"]), ("success", "gone"))
        with ScriptedServer(listen) as silent:
            self.known("silent", host="127.0.0.1", port=silent.port)
            done = self.type("list", "--timeout", "0.2")
        self.assertEqual(len(done.stdout.splitlines()), 3)
        self.assertIn("silent", done.stderr)

    def test_nobody(self) -> None:
        """If no server answers, that is an error with an exit code of its own."""
        self.gone("gone", "away")
        done = self.type("list", status=Exit.UNREACHABLE)
        self.assertEqual(done.stdout, "")
        self.assertEqual(done.stderr.splitlines()[-1], "none of 2 servers answers")
        for command in ("list", "status"):
            said = self.json(command, status=Exit.UNREACHABLE)
            self.assertEqual(said["status"], "unreachable")
            self.assertEqual([each["server"] for each in said["errors"]], ["gone", "away"])

    def test_missedSignal(self) -> None:
        """SIGINT and SIGTERM end a command also if they do not interrupt the system call in which
        it waits for a server, as they arrive shortly before it or in another thread."""
        # Where a reactor ran in this process before, its handler may still be there.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.addCleanup(signal.signal, signal.SIGINT, before)
        for number in (signal.SIGINT, signal.SIGTERM):
            ended = threading.Event()
            inTime: list[bool] = []

            def interrupt(
                peer: socket.socket,
                number: int = number,
                ended: threading.Event = ended,
                inTime: list[bool] = inTime,
            ) -> None:
                peer.recv(1)
                signal.pthread_kill(threading.get_ident(), number)
                inTime.append(ended.wait(SECONDS))

            with ScriptedServer(interrupt) as silent:
                self.known("silent", host="127.0.0.1", port=silent.port)
                done = self.type("list", "--timeout", "600", status=INTERRUPTED)
                ended.set()
            self.assertEqual((done.stderr, inTime), ("interrupted\n", [True]))

    def test_sudo(self) -> None:
        """Under sudo, a hint explains why the servers named in the environment are not used."""
        self.environment |= {"SUDO_USER": "alice", "USBIPSHARE_HOSTS": f"127.0.0.1:{self.nobody()}"}
        done = self.type("list", status=Exit.UNREACHABLE)
        self.assertIn("give --host, or create /etc/usbipshare/client.yaml", done.stderr)

    def test_unknownHost(self) -> None:
        """For a host that cannot be resolved the most similar name in client.yaml is suggested."""
        self.known("bench.invalid", host="127.0.0.1", port=self.nobody())
        done = self.type("list", "--host", "bensh.invalid", status=Exit.UNREACHABLE)
        self.assertIn("no machine of this name. Did you mean 'bench.invalid'?\n", done.stderr)

    def test_range(self) -> None:
        """For a range one line reports how many of its addresses do not answer."""
        daemon = self.daemon("raspi")
        self.known("lab", range="127.0.0.1-127.0.0.3", port=daemon.port, export_port=self.nobody())
        done = self.type("list", "--host", "lab")
        self.assertEqual(done.stderr, "lab: 2 of its 3 addresses do not answer\n")
        self.assertIn("127.0.0.1", done.stdout)

    def test_hosts(self) -> None:
        """Servers are named on the command line or in the environment."""
        there = f"127.0.0.1:{self.daemon('raspi').port}"
        self.known("gone", host="127.0.0.1", port=self.nobody())
        for arguments, hosts in (
            (("--host", "raspi"), ""),
            (("--host", there), ""),
            (("--host", "raspi", "--host", "raspi"), "gone"),
            ((), f" {there},"),
        ):
            self.environment["USBIPSHARE_HOSTS"] = hosts
            done = self.type("list", *arguments)
            self.assertEqual((len(done.stdout.splitlines()), done.stderr), (3, ""))

    def test_criteria(self) -> None:
        """With criteria, the devices that match are listed; none is no error."""
        self.daemon("raspi", NAMED)
        for arguments, busIds in (
            (("--desc", "disk"), ["1-2"]),
            (("scratch-disk",), ["1-2"]),
            (("1209:*",), ["1-1", "1-2"]),
            (("usbipshare", "--serial", "ECHO*"), ["1-1"]),
            (("nothing",), []),
        ):
            devices = self.json("list", *arguments)["devices"]
            self.assertEqual([device["bus_id"] for device in devices], busIds)

    def test_harmless(self) -> None:
        """Control characters in the name of a device are not printed."""
        self.daemon("raspi", EVIL)
        self.assertIn(r"\x1b[31mred", self.type("list").stdout)
        for arguments in (("list",), ("find", "1-1"), ("list", "--json")):
            self.assertNotIn("\x1b", self.type(*arguments).stdout)

    def test_wrongReplies(self) -> None:
        """A reply with a wrong value is an error of the server that sends it, for each command,
        and none of its control characters is printed."""
        device = {"vendor_id": "2341", "product_id": "0043", "description": "\x1b]0;\u202e\x9b"}
        wrong = {"bus_id": "1-1\x1b[2J", **device}
        listed = [{"bus_id": "1-1", **device}]
        replies: dict[str, Any] = {
            "list": listed,
            "kick": [wrong, wrong],
            "renew": 5,
            "attach": {},
            "detach": [],
        }

        def reply(peer: socket.socket) -> None:
            if peer.recv(1, socket.MSG_PEEK) != b"{":
                return  # USB/IP, whose requests are no lines
            for line in peer.makefile("rb"):
                data = replies[json.loads(line)["command"]]
                peer.sendall(json.dumps({"status": "success", "data": data}).encode() + b"\n")

        with ScriptedServer(reply) as server:
            self.known("raspi", host="127.0.0.1", port=server.port, export_port=server.port)
            for command in ("kick 1-1", "renew 1-1 --lease ci", "attach 1-1"):
                done = self.type(*command.split(), status=Exit.UNREACHABLE)
                self.assertIn("its answer is not understood", done.stderr)
                self.assertTrue(done.output.replace("\n", "").isprintable(), command)
            for replies["list"] in ([wrong], 5, {"bus_id": "1-1"}):
                for command in ("list", "status", "doctor"):
                    done = self.type(command, status=Exit.UNREACHABLE)
                    self.assertIn("its answer is not understood", done.output)
                    self.assertTrue(done.output.replace("\n", "").isprintable(), command)

    def test_away(self) -> None:
        """Devices that are attached and not plugged in are listed with --away, and forgotten with
        detach."""
        state = self.folder / "state.json"
        wish = {
            "vendor_id": "2341",
            "product_id": "0043",
            "serial": "GONE1",
            "bus_id": "3-1",
            "description": "A board",
            "kept": True,
            "lease": None,
        }
        state.write_text(json.dumps({"version": 1, "wishes": [wish]}))
        self.daemon("raspi", f"{VIRTUAL}state: {{file: {state}}}\n")
        self.assertNotIn("GONE1", self.type("list").stdout)
        self.assertRegex(self.type("list", "--away").stdout, r"3-1 .* GONE1 +A board +away")
        self.type("detach", "nothing", status=Exit.NOT_FOUND)
        done = self.type("detach", "GONE1")
        self.assertIn("3-1 (A board) at raspi is not plugged in", done.stderr)
        self.assertEqual(self.json("list", "--away")["devices"], [])
        self.assertIn("no devices", self.type("list", "--away").stderr)
        self.gone("gone")
        done = self.type("detach", "nothing", status=Exit.NOT_FOUND)
        self.assertEqual(done.stderr.count("Connection refused"), 1)
        self.assertIn("gone ", self.type("list", "--away").stderr)
        self.type("list", "--away", "--host", "gone", status=Exit.UNREACHABLE)

    def test_stock(self) -> None:
        """The devices of a stock usbipd are listed with what USB/IP describes."""
        device = UsbDevice(busId="3-2", vendorId="0781", productId="5581", description="any")
        self.daemon("raspi")
        with ScriptedServer(lambda peer: peer.sendall(encodeList([device]))) as usbipd:
            self.known("old", host="127.0.0.1", port=self.nobody(), export_port=usbipd.port)
            self.known("windows", host="127.0.0.1", export_port=usbipd.port, stock=True)
            said = self.json("list")
            self.assertEqual(said["errors"], [])
            _, _, *stock = said["devices"]
            for each, name in zip(stock, ("old", "windows"), strict=True):
                self.assertEqual((each["server"], each["bus_id"]), (name, "3-2"))
                self.assertEqual((each["vendor_id"], each["state"]), ("0781", "bound"))

    def test_config(self) -> None:
        """An error in client.yaml, or a certificate that is not there, is reported with its line,
        as an error of usage; no server is asked."""
        with ScriptedServer(listen) as silent:
            self.known("a", host="127.0.0.1", port=silent.port)
            self.known("b", tls={"ca": "no.pem"})
            for arguments in (("list",), ("list", "--host", "a"), ("doctor",)):
                done = self.type(*arguments, status=Exit.USAGE)
                self.assertRegex(done.stderr, r"servers.b.tls.ca: .*no.pem cannot be read: No such")
        self.assertEqual(silent.heard, [])
        self.write("usbipshare/client.yaml", "servers:\n  raspi: {prot: 5055}\n")
        done = self.type("list", status=Exit.USAGE)
        self.assertRegex(done.stderr, r"servers.raspi.prot: unknown key. Did you mean 'port'\?\n\Z")
        said = json.loads(self.type("list", "--json", status=Exit.USAGE).stdout)
        self.assertEqual((said["status"], said["devices"]), ("usage", []))
        other = self.write("other.yaml", "servers: {}\n")
        self.type("list", "--config", str(other), "--host", "a b", status=Exit.USAGE)

    def test_readable(self) -> None:
        """Who has a token in a file that others can read is warned."""
        self.daemon("raspi", token="secret")
        os.chmod(self.folder / "usbipshare/client.yaml", 0o644)
        done = self.type("list", status=Exit.REFUSED)  # nobody knows that token
        self.assertIn("warning: other users can read the token in", done.stderr)
        self.assertNotIn("secret", done.output)


class FindTests(CommandCase):
    """
    C{usbipshare find}.
    """

    def test_words(self) -> None:
        """A word is a name, a bus id, vid:pid, a serial number or a part of the description."""
        self.daemon("raspi", NAMED)
        for word in ("scratch-disk", "1-2", "1209:d15c", "DISK1", "small disk"):
            [device] = self.json("find", word)["devices"]
            self.assertEqual((device["bus_id"], device["name"]), ("1-2", "scratch-disk"))
        said = self.type("find", "--bus", "1", "--desc", "disk").stdout
        self.assertRegex(said, r"\Aserver +raspi \(127.0.0.1:\d+\)\n")
        self.assertRegex(said, r"\nserial +DISK1\n")

    def test_none(self) -> None:
        """None and several matches are errors; with C{--first} the first is shown."""
        self.daemon("raspi")
        done = self.type("find", "nothing", status=Exit.NOT_FOUND)
        self.assertEqual(done.stderr, "no device matches 'nothing'\n")
        said = self.json("find", "usbipshare", status=Exit.SEVERAL)
        self.assertEqual(said["status"], "multiple_matches")
        self.assertEqual([device["bus_id"] for device in said["devices"]], ["1-1", "1-2"])
        done = self.type("find", "usbipshare", status=Exit.SEVERAL)
        self.assertIn("2 devices match 'usbipshare': give more criteria, or --first", done.stderr)
        self.assertIn("DISK1", done.stderr)
        [device] = self.json("find", "usbipshare", "--first")["devices"]
        self.assertEqual(device["bus_id"], "1-1")

    def test_reasons(self) -> None:
        """If none matches, the reason why a server does not list the device is shown."""
        asked: list[dict[str, Any]] = []
        hub = "1-1 is a hub, and hubs are not shared"

        def reply(peer: socket.socket) -> None:
            for line in peer.makefile("rb"):
                request = json.loads(line)
                answer = {"status": "success", "data": []}
                if request["command"] == "find":
                    asked.append({key: request[key] for key in CRITERIA if key in request})
                    message = f"no device matches {describe(asked[-1])}: {hub}"
                    answer = {"status": "not_found", "message": message}
                peer.sendall(json.dumps(answer).encode() + b"\n")

        self.daemon("bench")
        with ScriptedServer(reply) as server:
            self.known("raspi", host="127.0.0.1", port=server.port)
            for arguments, shown, criteria in (
                (("1-9",), "'1-9'", [{"bus": "1-9"}]),
                (("--id", "9:*"), "id='9:*'", [{"id": "9:*"}]),
                (("h", "--id", "u"), "'h', id='u'", [{"id": "u", w: "h"} for w in SERIAL_OR_DESC]),
            ):
                asked.clear()
                done = self.type("find", *arguments, status=Exit.NOT_FOUND)
                self.assertEqual(done.stderr, f"no device matches {shown}; raspi: {hub}\n")
                self.assertEqual(asked, criteria)

    def test_question(self) -> None:
        """If several devices match, the user is asked on a terminal; end of input interrupts the
        command."""
        self.daemon("raspi")
        done = self.type("find", "usbipshare", given="7\n2\n", isTerminal=True)
        self.assertIn("DISK1", done.stdout)
        self.assertRegex(done.stderr, r"\n1 +raspi +1-1 ")
        self.assertIn("Which one", done.stderr)
        self.type("find", "usbipshare", given="", isTerminal=True, status=INTERRUPTED)

    def test_nothingSaid(self) -> None:
        """Without a word and criteria, or with an empty one, the usage is printed."""
        for arguments in ((), ("",), ("--serial", " "), ("--first",)):
            done = self.type("find", *arguments, status=Exit.USAGE)
            self.assertIn("Usage: usbipshare find", done.stderr)


class StatusTests(CommandCase):
    """
    C{usbipshare status}.
    """

    def test_status(self) -> None:
        """Each server has a line; one that does not answer is no error."""
        daemon = self.daemon("raspi")
        self.known("gone", host="127.0.0.1", port=self.nobody(), export_port=self.nobody())
        daemon.ask("attach", id="1-1")
        done = self.type("status")
        _, raspi, gone = done.stdout.splitlines()
        self.assertRegex(raspi, r"\Araspi +127.0.0.1:\d+ +usbipshare +2 +0 +\d+ ms\Z")
        self.assertRegex(gone, r"\Agone +127.0.0.1:\d+ +no answer ")
        said = self.json("status")
        there, away = said["servers"]
        self.assertEqual((there["reachable"], there["devices"], there["in_use"]), (True, 2, 0))
        self.assertEqual((away["reachable"], away["devices"], away["kind"]), (False, None, None))
        self.assertEqual(len(said["errors"]), 1)


class OthersTests(CommandCase):
    """
    C{usbipshare kick}, C{usbipshare renew}.
    """

    def test_lease(self) -> None:
        """Renewing or kicking a leased device requires the name of its owner, or C{--force}."""
        daemon = self.daemon("raspi")
        daemon.ask("attach", id="1-2", lease={"owner": "ci", "ttl": 100})
        said = self.type("renew", "DISK1", "--lease", "ci", "--ttl", "5000").stdout
        self.assertRegex(said, r"\A1-2 \(usbipshare Small Disk\) at raspi: leased by ci until ")
        [device] = self.json("renew", "DISK1", "--lease", "ci")["devices"]
        self.assertEqual(device["lease"]["ttl"], 5000)
        done = self.type("renew", "DISK1", "--lease", "others", status=Exit.REFUSED)
        self.assertIn("raspi: leased by ci (127.0.0.1) for", done.stderr)
        done = self.type("kick", "DISK1", status=Exit.REFUSED)
        self.assertIn("(give --lease OWNER if the lease is yours; --force ends it)\n", done.stderr)
        self.assertIn("--lease", self.type("renew", "x", status=Exit.USAGE).stderr)
        said = self.type("kick", "1-2", "--lease", "ci").stdout
        self.assertIn("no client was using it, so no session has ended", said)
        self.type("kick", "DISK1", "--force")
        told = self.json("renew", "ECHO1", "--lease", "ci", status=Exit.REFUSED)
        self.assertEqual(told["status"], "failure")
        self.assertIn("there is no lease on", told["message"])

    def test_stock(self) -> None:
        """A stock usbipd supports neither."""
        device = UsbDevice(busId="3-2", vendorId="0781", productId="5581", description="any")
        with ScriptedServer(lambda peer: peer.sendall(encodeList([device]))) as usbipd:
            self.known("old", host="127.0.0.1", port=self.nobody(), export_port=usbipd.port)
            for command in (("kick", "3-2"), ("renew", "3-2", "--lease", "ci")):
                done = self.type(*command, status=Exit.REFUSED)
                self.assertIn("at old: a stock usbipd supports only listing", done.stderr)
