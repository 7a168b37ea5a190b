"""
Turns of a reactor with a C{Clock}.
"""

from __future__ import annotations

from twisted.internet.task import Clock


def turn(clock: Clock) -> None:
    """One turn of the reactor: what is scheduled in it is for the next one."""
    for call in tuple(clock.calls):
        if call.getTime() <= clock.seconds() and call.active():
            clock.calls.remove(call)
            call.called = 1
            call.func(*call.args, **call.kw)
