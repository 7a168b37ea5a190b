"""
What can be wrong on the way from a device to a program here, looked at one thing after the
other.
"""

from __future__ import annotations

import functools
import ssl
from collections.abc import Iterator
from typing import Any

import msgspec
from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet.error import ConnectionRefusedError as Refused

from usbip_server.client.core.asking import ask
from usbip_server.client.core.attaching import Attached
from usbip_server.client.core.importing import listDevices
from usbip_server.client.core.servers import Server
from usbip_server.errors import LocalTrouble, ShareError, Unreachable
from usbip_server.kernel import slots
from usbip_server.kernel.system import ISystem
from usbip_server.kernel.vhci import PortState, Vhci
from usbip_server.opcodec import NotGiven
from usbip_server.replies import Status
from usbip_server.threads import BlockingCalls, TookTooLong

STATUS = "/proc/self/status"


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
    taken = slots.taken(system)
    if taken is None:
        return
    yield Check(
        what="usbip-host",
        ok=taken < slots.SLOTS,
        found=f"this machine shares devices too: {taken} of its kernel's {slots.SLOTS} places "
        "are taken",
        fix=None if taken < slots.SLOTS else "detach a device for good, or restart the machine",
    )


async def server(reactor: Any, asked: Server, seconds: float) -> list[Check]:
    """
    Does a server answer at both its ports, and let us?
    """
    control = await _control(reactor, asked, seconds)
    return [control, await _export(reactor, asked, seconds, control.ok)]


async def _control(reactor: Any, asked: Server, seconds: float) -> Check:
    what, tcp = f"{asked}: requests", f"{asked.port}/tcp"
    begin = reactor.seconds()
    try:
        answer = await ask(reactor, asked, {"command": "list"}, seconds)
    except Unreachable as error:
        fix = f"is it on? does a firewall keep {tcp} closed? there: sudo ufw allow {tcp}"
        if isinstance(error.__cause__, Refused):
            fix = "there: systemctl status usbipshare; a stock usbipd has no such port"
        elif isinstance(error.__cause__, SSL.Error | VerificationError):
            fix = "`tls` of this server in client.yaml: its `ca`, our `certificate` and `key`"
        return Check(what=what, ok=False, found=str(error), fix=fix)
    took = f"answers within {1000 * (reactor.seconds() - begin):.0f} ms"
    if answer.status is not Status.SUCCESS:
        fix = "a token, or another address: `access` in the server's configuration"
        return Check(what=what, ok=False, found=f"{took}: {answer.message}", fix=fix)
    return Check(what=what, ok=True, found=f"{took}, {len(answer.data)} devices")


async def _export(reactor: Any, asked: Server, seconds: float, answers: bool) -> Check:
    what, tcp = f"{asked}: USB/IP", f"{asked.exportPort}/tcp"
    calls = BlockingCalls(reactor)
    try:
        work = functools.partial(listDevices, asked, seconds)
        listed = await calls.call(asked, seconds + 1, work)
    except (Unreachable, NotGiven, TookTooLong) as error:
        found = str(error) if isinstance(error, ShareError | NotGiven) else "no answer in time"
        fix = f"does a firewall keep {tcp} closed? there: sudo ufw allow {tcp}"
        if isinstance(error.__cause__, ssl.SSLError):
            fix = "`tls` of this server in client.yaml: its `ca`, our `certificate` and `key`"
        elif isinstance(error.__cause__, ConnectionRefusedError):
            fix = "there: `export` in the configuration is off, or: sudo systemctl start usbipd"
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
