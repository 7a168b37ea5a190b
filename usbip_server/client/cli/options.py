"""
Options that many commands have, and how each command ends.
"""

from __future__ import annotations

import contextlib
import functools
import signal
from collections.abc import Callable, Iterator
from typing import Any

import click
from click.shell_completion import CompletionItem

from usbip_server.client.cli.completion import devices, serialNumbers, servers
from usbip_server.client.cli.context import CommandContext, Machine
from usbip_server.client.cli.exitcodes import INTERRUPTED, Exit, exitFor
from usbip_server.client.cli.output import Show, fieldsOf
from usbip_server.client.cli.tables import devicesTable
from usbip_server.client.config import HOSTS
from usbip_server.client.selection import SeveralFound, meant
from usbip_server.model.errors import ShareError
from usbip_server.model.usbip import NotGiven
from usbip_server.runtime.yamlfile import ConfigError

LONGEST = 86400.0
"""Seconds."""

INTERRUPTION = 0.5
"""Seconds after which a signal is noticed that did not interrupt a system call."""

Offers = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def asking(command: Callable[..., None]) -> Callable[..., None]:
    """
    Makes a command of a function whose first parameter is an L{CommandContext}: adds the options
    that select servers, and C{--json}.
    """

    @functools.wraps(command)
    def wrapped(
        host: tuple[str, ...], config: str | None, timeout: float | None, asJson: bool, **rest: Any
    ) -> None:
        machine = click.get_current_context().obj or Machine()
        show = Show(asJson)
        with ending(show):
            command(CommandContext.of(machine, show, host, config, timeout), **rest)

    for option in (
        click.option("--json", "asJson", is_flag=True, help="Print JSON, for programs."),
        click.option(
            "--timeout",
            type=click.FloatRange(0, LONGEST, min_open=True),
            metavar="SECONDS",
            help="How long a server may take to answer; 3 if the file does not say either.",
        ),
        click.option(
            "--config",
            metavar="FILE",
            type=click.Path(dir_okay=False),
            help="The file of servers; ~/.config/usbipshare/client.yaml, or "
            "/etc/usbipshare/client.yaml, if not given.",
        ),
        click.option(
            "--host",
            metavar="SERVER",
            multiple=True,
            shell_complete=servers,
            help="Whom to ask: NAME, NAME:PORT, or a name in the file. Can be given several "
            f"times. Otherwise: {HOSTS}, or all in the file, or this machine.",
        ),
    ):
        wrapped = option(wrapped)
    return wrapped


def meaning(
    required: bool = True, offers: Offers = devices
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """
    Adds what tells which device is meant: a command's parameter C{meant}, which is a
    L{usbip_server.client.selection.Selection}, or C{None} where none is required.

    @param offers: what shells offer for the word.
    """

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def wrapped(
            *args: Any,
            word: str | None,
            id: str | None,
            bus: str | None,
            serial: str | None,
            desc: str | None,
            first: bool,
            **rest: Any,
        ) -> None:
            try:
                which = meant(word, first, id=id, bus=bus, serial=serial, desc=desc)
            except ValueError as error:
                raise click.UsageError(str(error)) from error
            if which is None and required:
                raise click.UsageError(
                    "say which device: a word (a name, a bus id, vid:pid, a serial number, a part "
                    "of the description), or --id, --bus, --serial, --desc"
                )
            command(*args, meant=which, **rest)

        for parameter in (
            click.option("--first", is_flag=True, help="Of several devices take the first."),
            click.option("--desc", metavar="TEXT", help="A part of the description, or a glob."),
            click.option(
                "--serial",
                metavar="NUMBER",
                shell_complete=serialNumbers,
                help="The serial number, or a glob of it.",
            ),
            click.option(
                "--bus",
                metavar="BUS",
                shell_complete=devices,
                help="A bus number, a bus id, or a glob of one.",
            ),
            click.option(
                "--id",
                metavar="ID",
                shell_complete=devices,
                help="A bus id, a name, vid:pid, or a glob of one.",
            ),
            click.argument("word", required=False, shell_complete=offers),
        ):
            wrapped = parameter(wrapped)
        return wrapped

    return decorated


@contextlib.contextmanager
def ending(show: Show) -> Iterator[None]:
    """
    Say what has gone wrong, and leave with the exit code for it.
    """
    try:
        with interruptible():
            yield
    except (KeyboardInterrupt, click.Abort):
        show.note("interrupted")
        raise SystemExit(INTERRUPTED) from None
    except SeveralFound as error:
        show.note(f"{error}: narrow it down, or say --first")
        show.table(devicesTable(error.found), err=True)
        show.result([fieldsOf(each) for each in error.found], Exit.SEVERAL, str(error))
        raise SystemExit(Exit.SEVERAL) from error
    except (ShareError, NotGiven, ConfigError) as error:
        status = _status(error)
        show.note(str(error))
        show.result(status=status, message=str(error))
        raise SystemExit(status) from error


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """
    Have C{SIGTERM} raise C{KeyboardInterrupt}, as C{SIGINT} does, and either of them at the latest
    after L{INTERRUPTION} seconds, whatever this thread waits for.

    CPython checks for signals before a system call that blocks, and again when the call has been
    interrupted or has returned. A signal that arrives after the first check and before the call,
    or in another thread, does not interrupt the call, and would not be noticed before it returns.
    So a timer interrupts all calls that take long; Python resumes them.
    """
    terminate = signal.signal(signal.SIGTERM, signal.default_int_handler)
    alarm = signal.signal(signal.SIGALRM, lambda number, frame: None)
    signal.setitimer(signal.ITIMER_REAL, INTERRUPTION, INTERRUPTION)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, alarm)
        signal.signal(signal.SIGTERM, terminate)


def _status(error: ShareError | NotGiven | ConfigError) -> Exit:
    if isinstance(error, ConfigError):
        return Exit.USAGE
    return Exit.REFUSED if isinstance(error, NotGiven) else exitFor(error)
