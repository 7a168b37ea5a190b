"""
Options that several commands share, and how a command ends.
"""

from __future__ import annotations

import contextlib
import functools
import math
import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from usbip_server.client.cli import INTERRUPTED, SIGNALS
from usbip_server.client.cli.completion import devices, serialNumbers, servers

if TYPE_CHECKING:  # loaded when a command runs
    from usbip_server.client.cli.exitcodes import Exit
    from usbip_server.client.cli.output import Printer

LONGEST = 86400.0
"""Seconds of the longest C{--timeout} and C{--wait}."""

INTERRUPTION = 0.5
"""Seconds after which a signal is noticed that did not interrupt a system call."""


class Duration(click.FloatRange):
    """
    A number of seconds, or a text with units, as C{10m}.
    """

    name = "duration"

    def __init__(self, most: float, isZeroValid: bool = False) -> None:
        """
        @param most: the largest valid number of seconds.
        """
        super().__init__(0, most, min_open=not isZeroValid)

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> Any:
        """See C{click.ParamType}."""
        from usbip_server.model.durations import seconds

        try:
            number = float(value)
        except ValueError:
            try:
                number = seconds(value)
            except ValueError as error:
                self.fail(str(error), parameter, context)
        try:
            if not math.isnan(number):
                return super().convert(number, parameter, context)
        except click.BadParameter:
            pass
        least = ">" if self.min_open else ">="
        why = f"{value!r} is not a number of seconds {least} 0 and <= {self.max:.0f}"
        self.fail(why, parameter, context)

    def _describe_range(self) -> str:
        return ""  # the help is short enough without


Command = Callable[..., None]

Offers = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def withServers(command: Command) -> Command:
    """
    Decorates the function of a command, whose first parameter is a
    L{usbip_server.client.cli.context.CommandContext}: adds the options that name servers, and
    C{--json}.
    """

    @functools.wraps(command)
    def wrapped(
        host: tuple[str, ...], config: str | None, timeout: float | None, asJson: bool, **rest: Any
    ) -> None:
        from usbip_server.client.cli.context import CommandContext, Machine
        from usbip_server.client.cli.output import Printer

        machine = click.get_current_context().obj or Machine()
        printer = Printer(asJson)
        with ending(printer):
            command(CommandContext.of(machine, printer, host, config, timeout), **rest)

    for option in (
        click.option("--json", "asJson", is_flag=True, help="Print the result as JSON."),
        click.option(
            "--timeout",
            type=Duration(LONGEST),
            metavar="SECONDS",
            help="Time limit for each server's reply.  [default: `timeout` in client.yaml, or 3]",
        ),
        click.option(
            "--config",
            metavar="FILE",
            type=click.Path(dir_okay=False),
            help="Read the servers from FILE.  [default: ~/.config/usbipshare/client.yaml, or "
            "/etc/usbipshare/client.yaml]",
        ),
        click.option(
            "--host",
            metavar="SERVER",
            multiple=True,
            shell_complete=servers,
            help="Ask this server: NAME, NAME:PORT, or a name in client.yaml. Repeat it for "
            "several.  [default: USBIPSHARE_HOSTS, or all servers in client.yaml, or those in the "
            "local network]",
        ),
    ):
        wrapped = option(wrapped)
    return wrapped


def withSelector(required: bool = True, offers: Offers = devices) -> Callable[[Command], Command]:
    """
    Decorates the function of a command: adds the argument and the options that select a device,
    which become its parameter C{selector}: a L{usbip_server.client.selection.Selector}, or
    C{None} if none is given.

    @param required: is a selector required?
    @param offers: completes the argument.
    """

    def decorated(command: Command) -> Command:
        @functools.wraps(command)
        def wrapped(
            *args: Any,
            word: str | None,
            id: str | None,
            bus: str | None,
            serial: str | None,
            desc: str | None,
            path: str | None,
            first: bool,
            **rest: Any,
        ) -> None:
            from usbip_server.client.selection import selectorOf

            try:
                selector = selectorOf(
                    word, first, id=id, bus=bus, serial=serial, desc=desc, path=path
                )
            except ValueError as error:
                raise click.UsageError(str(error)) from error
            if selector is None and required:
                raise click.UsageError(
                    "name the device: by a WORD (a name, a bus id, vid:pid, a serial number or a "
                    "part of the description), or by --id, --bus, --serial, --desc or --path"
                )
            command(*args, selector=selector, **rest)

        for parameter in (
            click.option("--first", is_flag=True, help="If several devices match, use the first."),
            click.option(
                "--path",
                metavar="PATH",
                help="Select by the path of the physical port, or a glob.",
            ),
            click.option(
                "--desc",
                metavar="TEXT",
                help="Select by a part of the description, or a glob.",
            ),
            click.option(
                "--serial",
                metavar="NUMBER",
                shell_complete=serialNumbers,
                help="Select by serial number, or a glob.",
            ),
            click.option(
                "--bus",
                metavar="BUS",
                shell_complete=devices,
                help="Select by bus number, or by bus id or a glob of it.",
            ),
            click.option(
                "--id",
                metavar="ID",
                shell_complete=devices,
                help="Select by bus id, name or vid:pid, or a glob.",
            ),
            click.argument("word", required=False, shell_complete=offers),
        ):
            wrapped = parameter(wrapped)
        return wrapped

    return decorated


def failure(status: Exit, message: str) -> click.ClickException:
    """
    The error of a command that has no L{usbip_server.client.cli.context.CommandContext}.
    """
    error = click.ClickException(message)
    vars(error)["exit_code"] = status  # declared as an attribute of the class
    return error


@contextlib.contextmanager
def ending(printer: Printer) -> Iterator[None]:
    """
    Report the error of a command, and exit with its code.
    """
    from usbip_server.client.cli.exitcodes import Exit, exitFor
    from usbip_server.client.selection import SeveralFound
    from usbip_server.model.errors import ShareError
    from usbip_server.model.usbip import NotGiven
    from usbip_server.runtime.yamlfile import ConfigError

    try:
        with interruptible():
            yield
    except (KeyboardInterrupt, click.Abort):
        printer.note("interrupted")
        raise SystemExit(INTERRUPTED) from None
    except SeveralFound as error:
        from usbip_server.client.cli.output import fieldsOf
        from usbip_server.client.cli.tables import devicesTable

        printer.note(f"{error}: give more criteria, or --first")
        printer.table(devicesTable(error.found), err=True)
        printer.result([fieldsOf(each) for each in error.found], Exit.SEVERAL.word, str(error))
        raise SystemExit(Exit.SEVERAL) from error
    except (ShareError, NotGiven, ConfigError) as error:
        status = Exit.REFUSED
        if isinstance(error, ConfigError):
            status = Exit.USAGE
        elif isinstance(error, ShareError):
            status = exitFor(error)
        printer.note(str(error))
        printer.result(status=status.word, message=str(error))
        raise SystemExit(status) from error


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """
    Have C{SIGINT} and C{SIGTERM} raise C{KeyboardInterrupt}, at the latest after L{INTERRUPTION}
    seconds, whatever this thread waits for. A signal that the parent process has ignored stays so.

    CPython checks for signals before a system call that blocks, and again when the call has been
    interrupted or has returned. A signal that arrives after the first check and before the call,
    or in another thread, does not interrupt the call, and would not be noticed before it returns.
    So a timer interrupts all calls that take long; Python resumes them.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    alarm = signal.signal(signal.SIGALRM, lambda number, frame: None)
    signal.setitimer(signal.ITIMER_REAL, INTERRUPTION, INTERRUPTION)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, alarm)
        for number, handler in before.items():
            signal.signal(number, handler)
