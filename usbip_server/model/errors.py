"""
Everything that can go wrong with a request and is not a bug.

A L{ShareError} becomes an answer to the client. Its text says what is wrong and,
where there is something to be done, what.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from usbip_server.model.device import Holder, Lease, Traffic, UsbDevice
from usbip_server.model.timestamps import timestamp

NAMED_AT_MOST = 10
"""How many devices a message lists: an old client takes no more than 4096 bytes."""


NAME_AT_MOST = 50
"""Characters of a name in such a list; one can take up to four bytes."""


ASK_AGAIN = "ask again to hear how it went"
"""How the message ends of an answer that comes before the end: clients look for it."""


class ShareError(Exception):
    """
    The family. The message is for the person at the other end.
    """


class InvalidRequest(ShareError):
    """
    The request is not one we understand: malformed, an unknown key, a wrong type.
    """


class NotAllowed(ShareError):
    """
    Whoever asks may not have this.

    @ivar device: where it is about one that they may see.
    """

    def __init__(self, message: str, device: UsbDevice | None = None) -> None:
        super().__init__(message)
        self.device = device


class BackendUnavailable(ShareError):
    """
    There are no devices to speak of at present: no USB here, still starting, stopping.
    """


class NotDone(ShareError):
    """
    The time ran out before anything was done; nothing has changed.
    """


class DeviceNotFound(ShareError):
    """
    No device meets the criteria.
    """


class SeveralMatch(ShareError):
    """
    More than one device meets the criteria, and C{first} was not asked for.

    @ivar devices: those that do, in bus order.
    """

    def __init__(self, criteria: str, devices: Sequence[UsbDevice]) -> None:
        named = [
            f"{device.busId} ({device.description[:NAME_AT_MOST]})"
            f" id={device.vendorId}:{device.productId}"
            f" serial={(device.serial or '-')[:NAME_AT_MOST]}"
            for device in devices[:NAMED_AT_MOST]
        ]
        if len(devices) > NAMED_AT_MOST:
            named.append(f"and {len(devices) - NAMED_AT_MOST} more")
        super().__init__(
            f"{len(devices)} devices match {criteria}: {'; '.join(named)}. "
            'Narrow the criteria, or say "first": true.'
        )
        self.devices = tuple(devices)


class SnapshotNeeded(ShareError):
    """
    A watcher wants to go on where the history does not reach.
    """

    def __init__(self, since: int) -> None:
        super().__init__(
            f'what happened since {since} is not known any more: watch without "since" to begin '
            "with all devices anew"
        )


class OperationFailed(ShareError):
    """
    The device was found, but what was asked of it was refused or went wrong.

    @ivar device: the device, as it was then.
    """

    def __init__(self, device: UsbDevice, message: str) -> None:
        super().__init__(message)
        self.device = device


class DeviceInUse(OperationFailed):
    """
    A client has imported the device; it is not disturbed.
    """

    def __init__(self, device: UsbDevice, traffic: Traffic | None = None) -> None:
        """
        @param traffic: what the client has moved, if that is known.
        """
        holder = device.holder or Holder()
        who = holder.address or "a client of usbipd, which does not say who it is"
        if holder.since is not None:
            who += f" since {timestamp(holder.since)}"
        if traffic is not None:
            who += f" ({traffic.bytesIn} bytes in, {traffic.bytesOut} out)"
        # An old client shows only the beginning and the end of a failure's message.
        super().__init__(device, f"in use by {who}: {device}")


class DeviceLeased(OperationFailed):
    """
    The device is somebody else's for a time.
    """

    def __init__(self, device: UsbDevice, lease: Lease, left: float | None) -> None:
        """
        @param left: the seconds that are left; C{None}: as long as its connection lasts.
        """
        until = "while its connection lasts" if left is None else f"for {left:.0f} s more"
        super().__init__(device, f"leased by {lease.owner} ({lease.address}) {until}: {device}")


class NotLeased(OperationFailed):
    """
    There is no lease that could be renewed.
    """

    def __init__(self, device: UsbDevice) -> None:
        super().__init__(
            device, f'nobody has leased {device}: attach it with "lease", or its lease has ended'
        )


class DeviceAwaited(OperationFailed):
    """
    Others wait for the device, and have their turn first.
    """

    def __init__(self, device: UsbDevice, waiting: int) -> None:
        super().__init__(
            device, f'others wait for {device} ({waiting}): queue up with "wait": seconds'
        )


class DeviceMounted(OperationFailed):
    """
    The device is a disk that this machine uses itself; it was not touched.
    """

    def __init__(self, device: UsbDevice, uses: Sequence[str]) -> None:
        """
        @param uses: what for: C{"/dev/sda1 is mounted on /boot"}.
        """
        super().__init__(
            device,
            f"{device} is in use by the server itself: {', '.join(uses)}. Unmount it there; to "
            "share it all the same give it a rule with a `name` and `allow_mounted: true`",
        )


class StillWorking(OperationFailed):
    """
    The operation takes longer than an answer may; it goes on, and asking again tells.
    """


class OperationTimedOut(OperationFailed):
    """
    The operation did not come to an end within its deadline. It may still be stuck in
    the kernel; the device is shown as C{error} until it comes back.
    """


class Unreachable(BackendUnavailable):
    """
    Another machine does not answer, or says what we do not understand.
    """


class LocalTrouble(ShareError):
    """
    This machine's kernel does not do what it takes to import a device.
    """


Settle = Callable[[ShareError | None], None]
"""To be told, once, what went wrong; C{None}: nothing."""
