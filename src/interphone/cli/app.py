"""The app: all commands under one name."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer

from . import asking, doctoring, helping, looking, measuring, serving, tapping, topics
from .command import quiet
from .ending import INTERRUPTED, UNREAD, Misuse, explain
from .output import Output, Unread, escape, unread

__all__ = ["app", "run_app"]

app = typer.Typer(
    name="interphone",
    help="Talk with programs on this machine: servers of interphone, net-ipc and @isdk/ipc-server.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_COMMANDS: dict[str, Callable[..., None]] = {
    "list": looking.list_servers,
    "info": looking.info,
    "describe": looking.describe,
    "call": asking.call,
    "request": asking.request,
    "send": asking.send,
    "stream": asking.stream,
    "sub": topics.sub,
    "pub": topics.pub,
    "ping": measuring.ping,
    "bench": measuring.bench,
    "tap": tapping.tap,
    "serve": serving.serve,
    "doctor": doctoring.doctor,
    "help": helping.help_about,
}
for _name, _command in _COMMANDS.items():
    app.command(_name)(_command)


_UsageError: Any = typer.BadParameter.__base__  # typer has no public name for it


def run_app(argv: Sequence[str]) -> int:
    """Run a command; return its exit code."""
    try:
        quiet()
        _occupy_standard_descriptors()
        for file in (sys.stdout, sys.stderr):
            if isinstance(file, io.TextIOWrapper):
                file.reconfigure(errors="backslashreplace")  # in a locale without these characters
        return _run(argv)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except OSError as exc:
        if isinstance(exc, Unread) or unread():  # what typer writes itself fails with anything
            return _nobody_reads()
        if exc.errno != errno.ENOSPC:
            raise
        _write_nowhere()
        return explain(Misuse(f"cannot write the output: {exc.strerror}"), _output(argv))


def _run(argv: Sequence[str]) -> int:
    try:
        return app(list(argv), prog_name="interphone", standalone_mode=False) or 0
    except _UsageError as exc:
        if not argv:
            exc.show()  # it is the help
            return int(exc.exit_code)
        return explain(_misuse(exc), _output(argv))
    except SystemExit as exc:
        if exc.code == 1 and isinstance(exc.__context__, BrokenPipeError):  # as typer does
            raise Unread from None
        return exc.code if isinstance(exc.code, int) else 0 if exc.code is None else 1


def _misuse(error: Any) -> Misuse:
    """What typer says of it, as our errors are said."""
    what = escape(error.format_message()).rstrip(".")
    command = "interphone" if error.ctx is None else error.ctx.command_path
    return Misuse(f"{what[:1].lower()}{what[1:]}: see '{command} --help'")


def _output(argv: Sequence[str]) -> Output:
    """The output of a command whose options could not be read, or are forgotten."""
    options = argv[: argv.index("--")] if "--" in argv else argv
    return Output(json="--json" in options)


def _nobody_reads() -> int:
    """stdout is closed: end without a word."""
    _write_nowhere()
    return UNREAD


def _write_nowhere() -> None:
    """What is flushed at exit would fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _occupy_standard_descriptors() -> None:
    """Whoever starts us may have closed them, and a socket that gets their number is no stdin."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it takes the lowest number that is free
