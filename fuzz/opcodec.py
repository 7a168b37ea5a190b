"""The decoder of USB/IP requests."""

from __future__ import annotations

from usbip_server.model.usbip import (
    LONGEST_REQUEST,
    ImportRequest,
    ListRequest,
    NotUsbIp,
    decode,
    encodeRequest,
)

LIST = bytes.fromhex("0111 8005 00000000")
IMPORT = bytes.fromhex("0111 8003 00000000")

SEEDS = (
    LIST,
    IMPORT + b"1-1".ljust(32, b"\0"),
    IMPORT + b"1-1.4.2".ljust(32, b"\0"),
    IMPORT + b"3-7\0left from the last".ljust(32, b"\xa5"),
)

WORDS = (LIST[:2], LIST[2:4], IMPORT[2:4], b"1-", b".1", b"usb1")


def check(data: bytes) -> None:
    """An input is a request, the beginning of one, or refused, in any segmentation."""
    request = outcome(data)
    before = [outcome(data[:length]) for length in range(min(len(data), LONGEST_REQUEST + 2))]
    if isinstance(request, NotUsbIp):
        refused = [isinstance(found, NotUsbIp) for found in before]
        assert sorted(refused) == refused
    else:
        assert before == [None] * len(before)
        assert len(data) < LONGEST_REQUEST or request is not None
    if isinstance(request, ListRequest | ImportRequest):
        assert encodeRequest(request) == cleared(data)
        assert isinstance(outcome(data + b"\0"), NotUsbIp)


def cleared(data: bytes) -> bytes:
    """A request without the bytes behind the end of its bus id, which are ignored."""
    head, busId = data[: len(IMPORT)], data[len(IMPORT) :]
    return head + busId.partition(b"\0")[0].ljust(len(busId), b"\0")


def outcome(data: bytes) -> ListRequest | ImportRequest | NotUsbIp | None:
    """The request, the refusal, or C{None} for the beginning of a request."""
    try:
        return decode(data)
    except NotUsbIp as error:
        assert str(error).isprintable()
        return error
