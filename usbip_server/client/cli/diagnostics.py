"""
What can be wrong on the way from a device to a program here, looked at one thing after the
other.
"""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Iterable, Iterator

import msgspec
from rich.table import Table

from usbip_server import __version__
from usbip_server.client.attach import Attached
from usbip_server.client.blocking import ask, received, talking
from usbip_server.client.cli.tables import cell
from usbip_server.client.imports import listDevices
from usbip_server.client.servers import Server
from usbip_server.kernel import usbip_host
from usbip_server.kernel.system import ISystem
from usbip_server.kernel.vhci.ports import PortState, Vhci
from usbip_server.model.errors import LocalTrouble, Unreachable
from usbip_server.model.replies import NO_ANSWER, Status
from usbip_server.model.usbip import NotGiven, OtherVersion

STATUS = "/proc/self/status"

UPDATE = "pip install --upgrade usbipshare"

FILES = "`tls` of this server in client.yaml: its `ca`, our `certificate` and `key`"

TOO_OLD = "there: update usbip, and the kernel with it: usbip 0.1.8 and older speak 0x0106"
"""C{configure.ac} of these has it so, and that of the kernel's C{tools/usb/usbip} 0x0111."""

LEAVES = "does something else listen there? or it is usbip 0.1.8 or older, which is to be updated"
"""These close when they are spoken to in another version than their own."""

OF_WINDOWS = "; on Windows its rule usbipd lets in only who is in the same subnet"
"""The firewall, as C{usbipd-win} sets it up (C{Installer/Server.wxs})."""


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """
    One thing that was looked at.

    @ivar what: in a word or two.
    @ivar ok: is it as it should be?
    @ivar found: how it is.
    @ivar fix: what to do.
    """

    what: str
    ok: bool
    found: str
    fix: str | None = None


def thisMachine(vhci: Vhci, system: ISystem, isRoot: bool, status: str) -> Iterator[Check]:
    """
    Can devices be plugged in here, and, if it shares some of its own, how many more?

    @param status: what the kernel says of this process (proc_pid_status(5)).
    """
    try:
        ports = vhci.ports()
    except LocalTrouble as error:
        yield Check(
            what="vhci-hcd",
            ok=False,
            found=str(error),
            fix="sudo modprobe vhci-hcd; for every boot: "
            "echo vhci-hcd | sudo tee /etc/modules-load.d/vhci-hcd.conf",
        )
    else:
        yield Check(what="vhci-hcd", ok=True, found=f"loaded, with {len(ports)} ports")
        for isSuper, kind in ((False, "for USB 1 and 2"), (True, "for USB 3")):
            there = [port for port in ports if port.isSuper is isSuper]
            free = sum(port.state is PortState.FREE for port in there)
            yield Check(
                what="free ports",
                ok=free > 0,
                found=f"{free} of {len(there)} {kind}",
                fix=None if free else "usbipshare ports; usbipshare detach --port N",
            )
        yield _permission(vhci, isRoot, status)
    yield from _slots(system)


def _permission(vhci: Vhci, isRoot: bool, status: str) -> Check:
    try:
        vhci.require()
    except LocalTrouble as error:
        fix = "sudo usbipshare attach ..."
        if "NoNewPrivs:\t1" in status:
            fix = (
                "sudo cannot work in here: run it outside of this container or service "
                "(NoNewPrivileges=), or use the client service's socket"
            )
        return Check(what="permission", ok=False, found=str(error), fix=None if isRoot else fix)
    return Check(what="permission", ok=True, found="devices can be plugged in")


def _slots(system: ISystem) -> Iterator[Check]:
    """
    Nothing, where no devices are shared.
    """
    taken = usbip_host.taken(system)
    if taken is None:
        return
    yield Check(
        what="usbip-host",
        ok=taken < usbip_host.SLOTS,
        found=f"this machine shares devices too: {taken} of its kernel's {usbip_host.SLOTS} places "
        "are taken",
        fix=None
        if taken < usbip_host.SLOTS
        else "detach a device for good, or restart the machine",
    )


def server(asked: Server, seconds: float, isStock: bool = False) -> list[Check]:
    """
    Does a server answer at both its ports, let us, and speak as we do? USB/IP comes last.

    @param isStock: it is known to have only the one for USB/IP.
    """
    if isStock:
        return [_export(asked, seconds, True, OF_WINDOWS)]
    control = _control(asked, seconds)
    version = [_version(asked, seconds)] if control.ok else []
    return [control, *version, _export(asked, seconds, control.ok)]


def _control(asked: Server, seconds: float) -> Check:
    what, tcp = f"{asked}: requests", f"{asked.port}/tcp"
    begin = time.monotonic()
    try:
        answer = ask(asked, {"command": "list"}, seconds)
    except Unreachable as error:
        fix = f"is it on? does a firewall keep {tcp} closed? there: sudo ufw allow {tcp}"
        if isinstance(error.__cause__, ConnectionRefusedError):
            fix = "there: systemctl status usbipshare; a stock usbipd has no such port"
        elif isinstance(error.__cause__, ssl.SSLError):
            fix = FILES
        return Check(what=what, ok=False, found=str(error), fix=fix)
    took = f"answers within {1000 * (time.monotonic() - begin):.0f} ms"
    if answer.status is not Status.SUCCESS:
        fix = "a token, or another address: `access` in the server's configuration"
        return Check(what=what, ok=False, found=f"{took}: {answer.message}", fix=fix)
    return Check(what=what, ok=True, found=f"{took}, {len(answer.data)} devices")


def _version(asked: Server, seconds: float) -> Check:
    """
    Is the program there the same as here?
    """
    what = f"{asked}: version"
    try:
        there = versionOf(asked, seconds)
    except Unreachable as error:
        return Check(what=what, ok=False, found=str(error), fix="ask again")
    return compared(what, there)


def compared(what: str, there: str | None, here: str = __version__) -> Check:
    """
    Are two versions the same, or which is older?

    @param there: what a server says; C{None}: nothing, which only those do that are older than
        the header that says it.
    """
    if there == here:
        return Check(what=what, ok=True, found=f"usbipshare {there}, as here")
    if there is None:
        found = f"it does not say which, so it is older than {here}, which is here"
        return Check(what=what, ok=False, found=found, fix=f"there: {UPDATE}")
    found = f"usbipshare {there} there, and {here} here"
    if isOlder(there, here):
        found, fix = f"{found}: the server is older", f"there: {UPDATE}"
    elif isOlder(here, there):
        found, fix = f"{found}: the client is older", f"here: {UPDATE}"
    else:
        fix = f"there and here: {UPDATE}"
    return Check(what=what, ok=False, found=found, fix=fix)


def _export(asked: Server, seconds: float, answers: bool, more: str = "") -> Check:
    what, tcp = f"{asked}: USB/IP", f"{asked.exportPort}/tcp"
    try:
        listed = listDevices(asked, seconds)
    except (Unreachable, NotGiven) as error:
        found = str(error)
        fix = f"does a firewall keep {tcp} closed? there: sudo ufw allow {tcp}{more}"
        if isinstance(error.__cause__, ssl.SSLError):
            fix = FILES
        elif isinstance(error.__cause__, ConnectionRefusedError):
            fix = "there: `export` in the configuration is off, or: sudo systemctl start usbipd"
        elif isinstance(error.__cause__, OtherVersion):
            return Check(what=what, ok=False, found=found, fix=TOO_OLD)
        elif isinstance(error.__cause__, ConnectionError) and asked.tls is None:
            return Check(what=what, ok=False, found=found, fix=LEAVES)
        return Check(what=what, ok=False, found=found, fix=fix if answers else None)
    return Check(what=what, ok=True, found=f"answers, {len(listed)} devices can be imported")


def plugged(attached: Attached, isThere: bool) -> Check:
    """
    Is the server of something that is plugged in still there?
    """
    record = attached.record
    if record is None:
        found = "where it came from is not known (no file below /var/run/vhci_hcd)"
        return Check(what=f"port {attached.port}", ok=True, found=found)
    source = f"{record.busId} of {record.host}:{record.service}"
    if isThere:
        return Check(what=f"port {attached.port}", ok=True, found=source)
    return Check(
        what=f"port {attached.port}",
        ok=False,
        found=f"{source}, which does not answer",
        fix=f"sudo usbipshare detach --port {attached.port}",
    )


def table(checks: Iterable[Check]) -> Table:
    """
    What was looked at, a line for each, and one for what to do.
    """
    shown = Table(box=None, show_header=False, pad_edge=False)
    for check in checks:
        mark = cell("ok", "green") if check.ok else cell("not ok", "bold red")
        shown.add_row(mark, cell(check.what, "bold"), cell(check.found))
        if check.fix is not None:
            shown.add_row(cell(" "), cell(" "), cell(f"-> {check.fix}"))
    return shown


LONGEST = 16 * 1024
"""Bytes: the head of an answer."""


def versionOf(server: Server, seconds: float) -> str | None:
    """
    Ask a server for it. It tells everybody, so no token goes along.

    @param seconds: how long that may take.
    @return: C{None}: it does not say. It is no usbipshare, or one that is older than that.
    @raise Unreachable: there is no connection, or no answer in time.
    """
    until = time.monotonic() + seconds
    with talking(server, seconds, seconds) as connection:
        # Not 1.1: that wants to know by which of its names the server is meant.
        connection.sendall(b"HEAD / HTTP/1.0\r\n\r\n")
        head = b""
        while b"\r\n\r\n" not in head and len(head) < LONGEST:
            more = received(connection, LONGEST, until)
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


_OURS_IN = re.compile(r"(?:^|\s)usbipshare/(?P<version>[^\s()]{1,64})(?=$|[\s(])")

_RELEASE = re.compile(r"(?P<numbers>\d{1,9}(?:\.\d{1,9})*)(?P<rest>.*)")


def versionIn(server: str) -> str | None:
    """
    The version that a C{Server} header tells of; C{None} if it is none of ours.
    """
    found = _OURS_IN.search(server)
    return None if found is None else found["version"]


def isOlder(one: str, other: str) -> bool:
    """
    Does a version come before another? Of two that differ in what stands behind their numbers
    (PEP 440), those that come before a release are told from it, and others are the same.
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
