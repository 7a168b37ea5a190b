"""
The errors of requests and operations: one family, L{ShareError}.

An error that is not in this family is a bug, and is logged with its traceback.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from usbip_server.model.device import Holder, Lease, Traffic, UsbDevice
from usbip_server.model.timestamps import timestamp

NAMED_AT_MOST = 10
"""The number of devices that a message lists: an old client reads at most 4096 bytes."""

NAME_BYTES = 80
"""Bytes of a description, product string or serial number in such a list, in UTF-8."""


class ShareError(Exception):
    """
    The base of all errors that a client is answered with or that a client reports. The message
    states what is wrong and, where the user can do something about it, what.
    """


class ClientError(ShareError):
    """
    The base of the errors that only clients raise, and that no server answers with.
    """


class InvalidRequest(ShareError):
    """
    The request is malformed, or has an unknown key or a value of a wrong type.
    """


class NotAllowed(ShareError):
    """
    The client has no permission for the request.

    @ivar device: the device that the request is about, if the client may see it.
    """

    def __init__(self, message: str, device: UsbDevice | None = None) -> None:
        super().__init__(message)
        self.device = device


class UnknownToken(NotAllowed):
    """
    The request contains a token that is not in the configuration.
    """


class BackendUnavailable(ShareError):
    """
    The backend has no devices at present: the machine has no USB, or the daemon is starting or
    stopping.
    """


class NoServerConnected(BackendUnavailable):
    """
    A gateway is connected to none of its servers.
    """


class NotDone(ShareError):
    """
    The time limit of the request was reached before anything was done; nothing has changed.
    """


class DeviceNotFound(ShareError):
    """
    No device matches the criteria.
    """


class SeveralMatch(ShareError):
    """
    Several devices match the criteria, and the request does not contain C{first}.

    @ivar devices: the devices that match, in bus order.
    """

    def __init__(self, criteria: str, devices: Sequence[UsbDevice]) -> None:
        named = [distinct(device) for device in devices[:NAMED_AT_MOST]]
        if len(devices) > NAMED_AT_MOST:
            named.append(f"and {len(devices) - NAMED_AT_MOST} more")
        super().__init__(
            f"{len(devices)} devices match {criteria}: {'; '.join(named)}. "
            'Narrow the criteria, or add "first": true.'
        )
        self.devices = tuple(devices)


def distinct(device: UsbDevice) -> str:
    """
    Format a device for a list of devices that a request selects, with what distinguishes them.
    """
    return (
        f"{device.busId} ({', '.join(map(_cut, device.names))})"
        f" id={device.vendorId}:{device.productId} serial={_cut(device.serial or '-')}"
    )


def _cut(text: str) -> str:
    return text.encode("utf-8", "replace")[:NAME_BYTES].decode("utf-8", "ignore")


class SnapshotNeeded(ShareError):
    """
    A watch request has a C{since} that the event log does not reach back to.
    """

    def __init__(self, since: int) -> None:
        super().__init__(
            f'the events since {since} are not stored any more: watch without "since" to start '
            "with a list of all devices"
        )


class OperationFailed(ShareError):
    """
    The device was found, but the operation was refused or has failed.

    @ivar device: the device at that time.
    """

    def __init__(self, device: UsbDevice, message: str) -> None:
        super().__init__(message)
        self.device = device


class DeviceInUse(OperationFailed):
    """
    A client has imported the device. Its session is not interrupted.
    """

    def __init__(self, device: UsbDevice, traffic: Traffic | None = None) -> None:
        """
        @param traffic: the bytes of the client's session; C{None}: not known.
        """
        holder = device.holder or Holder()
        who = holder.address or "a client whose address is not known"
        if holder.since is not None:
            who += f" since {timestamp(holder.since)}"
        if traffic is not None:
            who += f" ({traffic.bytesIn} bytes in, {traffic.bytesOut} out)"
        # An old client shows only the beginning and the end of a failure's message.
        super().__init__(device, f"in use by {who}: {device}")


class DeviceLeased(OperationFailed):
    """
    Another owner has a lease on the device.
    """

    def __init__(self, device: UsbDevice, lease: Lease, left: float | None) -> None:
        """
        @param left: the seconds until the lease ends; C{None}: it ends with its connection.
        """
        until = "while its connection lasts" if left is None else f"for {left:.0f} s more"
        super().__init__(device, f"leased by {lease.owner} ({lease.address}) {until}: {device}")


class NotLeased(OperationFailed):
    """
    A request to renew a lease, and there is none.
    """

    def __init__(self, device: UsbDevice) -> None:
        super().__init__(
            device,
            f'there is no lease on {device}, or it has ended: attach the device with "lease"',
        )


class DeviceAwaited(OperationFailed):
    """
    Other requests are waiting for the device, and come first.
    """

    def __init__(self, device: UsbDevice, waiting: int) -> None:
        super().__init__(
            device,
            f'other clients wait for {device} ({waiting}): join the queue with "wait": seconds',
        )


class DeviceMounted(OperationFailed):
    """
    The device is a disk that the server itself has mounted or uses otherwise.
    """

    def __init__(self, device: UsbDevice, uses: Sequence[str]) -> None:
        """
        @param uses: each use, such as C{"/dev/sda1 is mounted on /boot"}.
        """
        super().__init__(
            device,
            f"{device} is in use by the server itself: {', '.join(uses)}. Unmount it there; to "
            "share it nevertheless, give it a rule with a `name` and `allow_mounted: true`",
        )


class NetworkInUse(DeviceMounted):
    """
    The device is a network adapter that the server is reached through.
    """

    def __init__(self, device: UsbDevice, uses: Sequence[str]) -> None:
        """
        @param uses: each use, such as C{"eth0 has the default route"}.
        """
        OperationFailed.__init__(
            self,
            device,
            f"{device} is a network adapter that the server itself uses: {', '.join(uses)}. To "
            "share it nevertheless, which may cut the server off, attach it with `force`, or give "
            "it a rule with a `name` and `allow_mounted: true`",
        )


class StillWorking(OperationFailed):
    """
    The operation continues beyond the time limit of an answer. The same request, sent again,
    returns its result.
    """


class OperationTimedOut(OperationFailed):
    """
    The operation has not ended before its deadline. While it is stuck in the kernel the device is
    shown as C{error}.
    """


class Unreachable(BackendUnavailable):
    """
    Another server does not answer, or its answer is not understood.
    """


class LocalTrouble(ShareError):
    """
    A device cannot be imported because of the kernel of this machine.
    """


Settle = Callable[[ShareError | None], None]
"""Called once, with the error that an operation has ended with; C{None}: it has succeeded."""
