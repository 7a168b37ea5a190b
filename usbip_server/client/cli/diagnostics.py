"""
The checks of C{usbipshare doctor}: this machine's kernel, each server, each attached device.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from usbip_server import __version__
from usbip_server.client.attach import Attached
from usbip_server.client.blocking import ask, isTlsError, received, talking
from usbip_server.client.cli.attachments import Attacher
from usbip_server.client.cli.context import CommandContext
from usbip_server.client.cli.discovery import askAll
from usbip_server.client.cli.text import Table, cell
from usbip_server.client.config import ClientSettings
from usbip_server.client.devices import foundIn
from usbip_server.client.imports import listDevices
from usbip_server.client.servers import Server
from usbip_server.kernel import usbip_host
from usbip_server.kernel.system import ISystem
from usbip_server.kernel.vhci.ports import PortState, Vhci
from usbip_server.model.errors import LocalTrouble, Unreachable
from usbip_server.model.replies import NO_ANSWER, Code, Status
from usbip_server.model.usbip import NotGiven, OtherVersion

UNREACHABLE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN)
"""Errors of a network that does not lead to the server."""

UPDATE = "pip install --upgrade usbipshare"

LOAD_MODULE = (
    "sudo modprobe vhci-hcd; for every boot: "
    "echo vhci-hcd | sudo tee /etc/modules-load.d/vhci-hcd.conf"
)

NO_MODULE = (
    "install the modules of the running kernel (Ubuntu: sudo apt install "
    "linux-modules-extra-$(uname -r)), or restart if the kernel was updated; in a container: on "
    "its host"
)
"""After modprobe's C{Module vhci-hcd not found in directory /lib/modules/...}"""

TLS_FILES = "check `tls` of this server in client.yaml: `ca`, and `certificate` and `key`"

TOO_OLD = "on the server: update usbip and the kernel; usbip 0.1.8 and older speak 0x0106"
"""C{configure.ac} of these versions; the kernel's C{tools/usb/usbip} speaks 0x0111."""

CLOSES = (
    "does another program listen on this port? usbip 0.1.8 and older also close the connection: "
    "update them"
)
"""They close a connection on which the client speaks another version than theirs."""

WINDOWS_FIREWALL = "; on Windows, its rule usbipd admits only clients in the same subnet"
"""C{usbipd-win} creates this rule (C{Installer/Server.wxs})."""

LONGEST_HEAD = 16 * 1024
"""Bytes of an HTTP response that are read at most."""


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """
    The result of one check.

    @ivar what: the subject.
    @ivar ok: is everything as it should be?
    @ivar found: the facts.
    @ivar fix: what to do; C{None}: nothing.
    """

    what: str
    ok: bool
    found: str
    fix: str | None = None


def diagnose(context: CommandContext) -> tuple[list[Check], list[Check]]:
    """
    Check everything: this machine, the servers of a command, the servers of attached devices.

    @return: the results for this machine, and the others.
    """
    machine = context.machine
    status = Path("/proc/self/status").read_text()
    local = [*thisMachine(machine.vhci(), machine.system, os.geteuid() == 0, status)]
    try:
        attached = Attacher(context).attached()
    except LocalTrouble:
        attached = ()
    others = _otherServers(context, attached)
    stock = context.settings.stock
    replies = askAll(
        [*context.servers, *others],
        lambda server: checkServer(server, context.seconds, server in stock),
    )
    asked = [(server, found) for server, found in replies.answers if server not in others]
    remote = [*_summarized(asked, context.settings)]
    answering = {
        (server.host, str(server.exportPort)): found[-1].ok for server, found in replies.answers
    }
    for each in attached:
        source = ("", "") if each.record is None else (each.record.host, each.record.service)
        remote.append(attachment(each, answering.get(source, True)))
    return local, remote


def _summarized(
    results: Iterable[tuple[Server, list[Check]]], settings: ClientSettings
) -> Iterator[Check]:
    """
    The checks of all servers, with one for all addresses of a range that do not answer: most
    addresses of a range may be unused.
    """
    silent: dict[str, int] = {}
    for server, checks in results:
        name = settings.rangeOf(server)
        if name is None or any(check.ok for check in checks):
            yield from checks
        else:
            silent[name] = silent.get(name, 0) + 1
    for name, count in silent.items():
        addresses = len(settings.known[name])
        ok = count < addresses
        yield Check(
            what=name,
            ok=ok,
            found=f"{count} of its {addresses} addresses do not answer",
            fix=None if ok else f"is `range` of {name} right in client.yaml?",
        )


def _otherServers(context: CommandContext, attached: Iterable[Attached]) -> list[Server]:
    """
    The servers of attached devices that the command does not ask anyway.
    """
    asked = {(server.host, str(server.exportPort)) for server in context.servers}
    sources = {
        (each.record.host, each.record.service) for each in attached if each.record is not None
    }
    return [
        context.settings.exporting(host, service)
        for host, service in sorted(sources - asked)
        if service.isdigit()
    ]


def thisMachine(vhci: Vhci, system: ISystem, isRoot: bool, status: str) -> Iterator[Check]:
    """
    Can this machine attach devices, and, if it shares devices, can it share more?

    @param status: of this process in the format of proc_pid_status(5).
    """
    try:
        ports = vhci.ports()
    except LocalTrouble as error:
        yield Check(
            what="vhci-hcd",
            ok=False,
            found=str(error),
            fix=NO_MODULE if "not found in directory" in str(error) else LOAD_MODULE,
        )
    else:
        yield Check(what="vhci-hcd", ok=True, found=f"loaded, with {len(ports)} ports")
        for isSuper, kind in ((False, "for USB 1 and 2"), (True, "for USB 3")):
            alike = [port for port in ports if port.isSuper is isSuper]
            free = sum(port.state is PortState.FREE for port in alike)
            yield Check(
                what="free ports",
                ok=free > 0,
                found=f"{free} of {len(alike)} {kind}",
                fix=None if free else "usbipshare ports; usbipshare detach --port N",
            )
        yield _permission(vhci, isRoot, status)
    yield from _usbipHost(system)


def _permission(vhci: Vhci, isRoot: bool, status: str) -> Check:
    try:
        vhci.require()
    except LocalTrouble as error:
        fix = "sudo usbipshare attach ..."
        if "NoNewPrivs:\t1" in status:
            fix = (
                "sudo is disabled in this container or service (NoNewPrivileges=): run the command "
                "outside of it, or use the client service's socket"
            )
        return Check(what="permission", ok=False, found=str(error), fix=None if isRoot else fix)
    return Check(what="permission", ok=True, found="this user may attach devices")


def _usbipHost(system: ISystem) -> Iterator[Check]:
    """
    One check where C{usbip-host} is loaded; none otherwise.
    """
    taken = usbip_host.taken(system)
    if taken is None:
        return
    isFull = taken >= usbip_host.SLOTS
    yield Check(
        what="usbip-host",
        ok=not isFull,
        found=f"this machine shares devices: {taken} of the {usbip_host.SLOTS} that its kernel "
        "supports",
        fix="unbind a device, or restart the machine" if isFull else None,
    )


def checkServer(server: Server, seconds: float, isStock: bool = False) -> list[Check]:
    """
    Does a server answer on both ports, accept requests, and have the same version? The check of
    USB/IP is the last.

    @param seconds: for each reply.
    @param isStock: it is known to have only the port of USB/IP.
    """
    if isStock:
        return [_export(server, seconds, True, WINDOWS_FIREWALL)]
    requests = _requests(server, seconds)
    version = [_version(server, seconds)] if requests.ok else []
    return [requests, *version, _export(server, seconds, requests.ok)]


def _requests(server: Server, seconds: float) -> Check:
    what, tcp = f"{server}: requests", f"{server.port}/tcp"
    begin = time.monotonic()
    try:
        reply = ask(server, {"command": "list", "detail": True}, seconds)
        took = f"answers within {1000 * (time.monotonic() - begin):.0f} ms"
        if reply.status is not Status.SUCCESS:
            fix = "set `token` in client.yaml, or change `access` in the server's configuration"
            if reply.code not in (None, Code.NOT_ALLOWED.value):
                fix = "see the server's log: journalctl -u usbipshare"
            return Check(what=what, ok=False, found=f"{took}: {reply.message}", fix=fix)
        found = foundIn(server, reply.data)
    except Unreachable as error:
        refused = (
            "on the server: systemctl status usbipshare; for a stock usbipd set `stock: true` in "
            "client.yaml"
        )
        fix = _remedy(server, error, tcp, refused, "`port`")
        return Check(what=what, ok=False, found=str(error), fix=fix)
    return Check(what=what, ok=True, found=f"{took}, {len(found)} devices")


def _remedy(server: Server, error: Exception, tcp: str, refused: str, key: str) -> str:
    """
    What to do about a port that does not answer as it should.

    @param tcp: the port.
    @param refused: what to do if nothing listens on it.
    @param key: the key of the port in client.yaml.
    """
    cause = error.__cause__
    if isTlsError(cause):
        return TLS_FILES
    if isinstance(cause, ConnectionRefusedError):
        return refused
    if isinstance(cause, socket.gaierror | UnicodeError):
        return f"is {server.host!r} the right name? its address works, too"
    if isinstance(cause, OSError) and cause.errno in UNREACHABLE:
        return f"is the server on, and {server.host} its address? does `ping {server.host}` work?"
    other = f"another program answers on {tcp}: set {key} of this server in client.yaml"
    if isinstance(cause, ConnectionError) and server.tls is None:
        return f"if the server requires TLS, set `tls` in client.yaml; or {other}"
    if isinstance(cause, OSError):  # TimeoutError is one of these
        return f"is the server on? does a firewall block {tcp}? on the server: sudo ufw allow {tcp}"
    return other


def _version(server: Server, seconds: float) -> Check:
    what = f"{server}: version"
    try:
        remote = versionOf(server, seconds)
    except Unreachable as error:
        return Check(what=what, ok=False, found=str(error), fix="run `usbipshare doctor` again")
    return compared(what, remote)


def compared(what: str, remote: str | None, local: str = __version__) -> Check:
    """
    Are a server's version and this one the same, or which is older?

    @param remote: C{None}: the server does not send it, as only old versions do.
    """
    if remote == local:
        return Check(what=what, ok=True, found=f"usbipshare {remote} on both sides")
    if remote is None:
        found = f"the server sends no version, so it is older than {local}, which runs here"
        return Check(what=what, ok=False, found=found, fix=f"on the server: {UPDATE}")
    found = f"usbipshare {remote} on the server, {local} here"
    if isOlder(remote, local):
        found, fix = f"{found}: the server is older", f"on the server: {UPDATE}"
    elif isOlder(local, remote):
        found, fix = f"{found}: the client is older", f"here: {UPDATE}"
    else:
        fix = f"on the server and here: {UPDATE}"
    return Check(what=what, ok=False, found=found, fix=fix)


def _export(server: Server, seconds: float, isOn: bool, hint: str = "") -> Check:
    """
    @param isOn: is the machine known to be on?
    @param hint: the end of the advice if the port is blocked.
    """
    what, tcp = f"{server}: USB/IP", f"{server.exportPort}/tcp"
    try:
        listed = listDevices(server, seconds)
    except (Unreachable, NotGiven) as error:
        refused = "on the server: set `export` in its configuration, or sudo systemctl start usbipd"
        fix = _remedy(server, error, tcp, refused, "`export_port`")
        if isinstance(error.__cause__, TimeoutError):
            fix += hint
        elif isinstance(error.__cause__, OtherVersion):
            fix = TOO_OLD
        elif isinstance(error.__cause__, ConnectionError) and fix.startswith("if"):
            fix = CLOSES
        return Check(what=what, ok=False, found=str(error), fix=fix if isOn else None)
    return Check(what=what, ok=True, found=f"answers, {len(listed)} devices can be imported")


def attachment(attached: Attached, isAnswering: bool) -> Check:
    """
    Does the server of an attached device still answer?
    """
    what, record = f"port {attached.port}", attached.record
    if record is None:
        found = "its server is not known (no file in /var/run/vhci_hcd)"
        return Check(what=what, ok=True, found=found)
    source = f"{record.busId} of {record.host}:{record.service}"
    if isAnswering:
        return Check(what=what, ok=True, found=source)
    fix = f"sudo usbipshare detach --port {attached.port}"
    return Check(what=what, ok=False, found=f"{source}, which does not answer", fix=fix)


def table(checks: Iterable[Check]) -> Table:
    """
    The results, a row for each and one for what to do.
    """
    rows = []
    for check in checks:
        mark = cell("ok", "green") if check.ok else cell("not ok", "bold red")
        rows.append((mark, cell(check.what, "bold"), cell(check.found)))
        if check.fix is not None:
            rows.append((cell(" "), cell(" "), cell(f"-> {check.fix}")))
    return Table(rows)


def versionOf(server: Server, seconds: float) -> str | None:
    """
    Ask a server for its version. The server sends it to every client, so no token is sent.

    @param seconds: how long that may take.
    @return: C{None}: it is another program, or a version too old to send it.
    @raise Unreachable: there is no connection, or no reply in time.
    """
    until = time.monotonic() + seconds
    with talking(server, seconds, seconds) as connection:
        # Not HTTP/1.1, which requires a Host that the server knows.
        connection.sendall(b"HEAD / HTTP/1.0\r\n\r\n")
        head = b""
        while b"\r\n\r\n" not in head and len(head) < LONGEST_HEAD:
            more = received(connection, LONGEST_HEAD, until)
            if not more:
                break
            head += more
        if not head:
            raise ConnectionError(NO_ANSWER)
    for line in head.partition(b"\r\n\r\n")[0].split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"server":
            return versionIn(value.decode("latin-1").strip())
    return None


_PRODUCT = re.compile(r"(?:^|\s)usbipshare/(?P<version>[^\s()]{1,64})(?=$|[\s(])")

_RELEASE = re.compile(r"(?P<numbers>\d{1,9}(?:\.\d{1,9})*)(?P<rest>.*)")


def versionIn(server: str) -> str | None:
    """
    The version of usbipshare in a C{Server} header; C{None} if it is of another program.
    """
    found = _PRODUCT.search(server)
    return None if found is None else found["version"]


def isOlder(one: str, other: str) -> bool:
    """
    Does a version precede another (PEP 440)? Of versions with the same numbers only a pre-release
    precedes another one.
    """
    return _order(one) < _order(other)


def _order(text: str) -> tuple[tuple[int, ...], bool]:
    found = _RELEASE.match(text)
    if found is None:
        return (), False
    numbers = [int(number) for number in found["numbers"].split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers), re.match(r"[._-]?(a|b|c|rc|alpha|beta|pre|dev)", found["rest"]) is None
