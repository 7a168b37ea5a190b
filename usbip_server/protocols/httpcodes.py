"""
What HTTP has its own words for: how it went, and who asks.
"""

from __future__ import annotations

from usbip_server.answers import Answer
from usbip_server.replies import Status

CODE_OF = {
    Status.SUCCESS: 200,
    Status.ERROR: 400,
    Status.NOT_FOUND: 404,
    Status.MULTIPLE_MATCHES: 409,
    Status.FAILURE: 502,
}


def codeOf(answer: Answer) -> int:
    """
    The HTTP status (RFC 9110, 15) that goes with an answer.
    """
    if answer.broken:
        return 500
    return 403 if answer.forbidden else CODE_OF[answer.status]


def bearerToken(authorization: bytes | None) -> str | None:
    """
    The token in an C{Authorization} header (RFC 6750, 2.1); C{None} if there is none.
    """
    kind, _, token = (authorization or b"").strip().partition(b" ")
    return token.strip().decode("latin-1") if kind.lower() == b"bearer" else None
