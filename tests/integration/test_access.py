"""
Access rules over TCP, HTTP, USB/IP and a unix socket.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import stat
import tempfile
from pathlib import Path
from typing import Any

from tests.integration.case import DaemonCase
from usbip_server.model.tokens import hashOf, newToken

TOKEN = newToken()
LIST = bytes.fromhex("0111 8005 00000000")

CONFIG = """
export: {{listen: ['tcp:0:interface=127.0.0.1']}}
backend:
  type: virtual
  devices:
    - {{bus_id: 1-1, product: Lamp}}
    - {{bus_id: 1-2, product: Bell}}
devices:
  - {{match: {{bus: "*"}}, share: always}}
access: {access}
"""

RULES = f"""
  principals:
    me: {{uid: {os.getuid()}}}
    other: {{uid: {os.getuid() + 1}}}
    ci: {{token: "{hashOf(TOKEN)}"}}
  allow:
    - {{who: [me, ci]}}
    - {{who: local, commands: [list, watch, import], devices: {{id: 1-1}}}}
  deny:
    - {{who: me, commands: detach}}
    - {{who: other}}
"""


class AccessTests(DaemonCase):
    """
    Local clients may see one device; this user on the unix socket may do everything but detach,
    and clients with the token everything.
    """

    def setUp(self) -> None:
        stack = contextlib.ExitStack()
        self.addCleanup(stack.close)
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        self.path = Path(folder, "usbipshare.sock")
        self.listen = ("tcp:0:interface=127.0.0.1", f"unix:{self.path}:mode=660")
        self.config = CONFIG.format(access=RULES)
        self.server = self.daemon(self.config, listen=self.listen)

    def local(self, command: str, **more: object) -> dict[str, Any]:
        """Send a request over the unix socket."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.path))
            connection.sendall(json.dumps({"command": command, **more}).encode() + b"\n")
            answer: dict[str, Any] = json.loads(connection.makefile().read())
        return answer

    def http(self, request: object, token: str | None) -> tuple[int, dict[str, Any]]:
        """Send a request over HTTP; return the status and the reply."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        with contextlib.closing(connection):
            connection.request("POST", "/", json.dumps(request), headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())

    def busIds(self, answer: dict[str, Any]) -> list[str]:
        """The bus ids of the devices in a reply."""
        self.assertEqual(answer["status"], "success", answer)
        return [device["bus_id"] for device in answer["data"]]

    def test_lines(self) -> None:
        """Over TCP: a device without the right to see it is not listed, a command without the right
        is refused; a token grants both."""
        ask = self.server.ask
        self.assertEqual(self.busIds(ask("list")), ["1-1"])
        self.assertEqual(self.busIds(ask("list", token=TOKEN)), ["1-1", "1-2"])
        answer = ask("detach", id="1-1")
        self.assertEqual(answer["status"], "error")
        self.assertIn("127.0.0.1 may not detach: `access` in", answer["message"])
        self.assertEqual(ask("detach", id="1-1", token=TOKEN)["status"], "success")
        audit = self.server.logged("audit")["entry"]
        self.assertEqual(json.loads(audit)["result"], "refused")
        audit = json.loads(self.server.logged("audit")["entry"])
        self.assertEqual(audit["who"], {"address": "127.0.0.1", "token": "ci"})
        self.assertEqual((audit["command"], audit["result"]), ("detach", "done"))

    def test_http(self) -> None:
        """Over HTTP: a bearer token grants rights, and a request without them gets 403."""
        request = {"command": "find", "id": "1-2"}
        code, answer = self.http(request, None)
        self.assertEqual((code, answer["status"]), (403, "error"))
        code, answer = self.http(request, TOKEN)
        self.assertEqual((code, answer["status"]), (200, "success"))
        code, answer = self.http(request, "wrong")
        self.assertEqual(code, 403)
        self.assertIn("the token that 127.0.0.1 shows is not known", answer["message"])

    def test_unix(self) -> None:
        """On the unix socket the user is known; its mode is the configured one."""
        mode = stat.S_IMODE(self.path.stat().st_mode)
        self.assertEqual(mode, 0o660)
        self.assertEqual(self.busIds(self.local("list")), ["1-1", "1-2"])
        self.assertEqual(self.local("kick", id="1-2")["status"], "success")
        answer = self.local("detach", id="1-1")
        self.assertIn(f"local (uid {os.getuid()}) may not detach:", answer["message"])

    def test_watch(self) -> None:
        """Events of a device that the client may not see are not sent."""
        with self.server.watch() as watching, self.server.watch(token=TOKEN) as everything:
            self.assertEqual(self.busIds(watching.answer), ["1-1"])
            for busId in ("1-2", "1-1"):
                self.server.ask("detach", id=busId, token=TOKEN)
            watching.told("unbound", "1-1")
            everything.told("unbound", "1-2")
            self.assertEqual({event["data"]["bus_id"] for event in watching.events}, {"1-1"})

    def test_export(self) -> None:
        """The list over USB/IP has one device, and the audit log has the refused import of the
        other."""
        port = self.server.exportPort
        with socket.create_connection(("127.0.0.1", port), 10) as connection:
            connection.sendall(LIST)
            devices = connection.makefile("rb").read()
        self.assertIn(b"1-1\0", devices)
        self.assertNotIn(b"1-2\0", devices)
        with socket.create_connection(("127.0.0.1", port), 10) as connection:
            connection.sendall(bytes.fromhex("0111 8003 00000000") + b"1-2".ljust(32, b"\0"))
            self.assertEqual(connection.makefile("rb").read(), bytes.fromhex("0111000300000004"))
        entry = json.loads(self.server.logged("audit")["entry"])
        self.assertEqual((entry["command"], entry["device"]), ("import", "1-2"))
        self.assertEqual(entry["result"], "refused")

    def test_reload(self) -> None:
        """A reload changes the rights, of open connections as well; a refusal ends one."""
        with socket.create_connection(("127.0.0.1", self.server.port), 10) as connection:
            lines = connection.makefile("rb")

            def listed() -> int:
                connection.sendall(b'{"command":"list","keep_alive":true}\n')
                return len(json.loads(lines.readline()).get("data", ""))

            self.assertEqual(listed(), 1)
            for access, count in (("open", 2), ("local", 2)):
                told = self.server.reload(CONFIG.format(access=access))
                self.assertIn("configuration reloaded", told["log_format"])
                self.assertEqual(listed(), count, access)
            told = self.server.reload(CONFIG.format(access="{allow: [{who: nobody}]}"))
            self.assertIn("unknown principal 'nobody'", told["error"])
            self.assertEqual(listed(), 2)
            self.server.reload(CONFIG.format(access="{}"))
            self.assertEqual(listed(), 0)
            self.assertEqual(lines.read(), b"")
