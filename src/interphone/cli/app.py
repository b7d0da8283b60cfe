"""The app: all commands under one name."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence

import typer

from . import asking, doctoring, helping, looking, measuring, serving, tapping, topics
from .command import quiet

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


def run_app(argv: Sequence[str]) -> int:
    """Run a command; return its exit code."""
    quiet()
    _occupy_standard_descriptors()
    for file in (sys.stdout, sys.stderr):
        if isinstance(file, io.TextIOWrapper):
            file.reconfigure(errors="backslashreplace")  # in a locale without these characters
    try:
        app(list(argv), prog_name="interphone")
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else 0 if exc.code is None else 1
    return 0


def _occupy_standard_descriptors() -> None:
    """Whoever starts us may have closed them, and a socket that gets their number is no stdin."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it takes the lowest number that is free
