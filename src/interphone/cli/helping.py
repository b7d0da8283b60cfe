"""Helping: help, with what is true of many commands."""

from __future__ import annotations

from typing import Annotated

import typer

from .command import local
from .ending import CODES, Misuse
from .output import Output, escape

__all__ = ["PEERS", "help_about"]

PEERS: tuple[tuple[str, str, str], ...] = (
    ("list", "yes", "yes, without peers"),
    ("info", "yes", "what it shows when one connects"),
    ("describe", "yes", "no"),
    ("call", "yes", "no: use request"),
    ("request", "yes", "yes"),
    ("send", "yes", "yes"),
    ("stream", "yes", "no"),
    ("sub", "yes", "@isdk/ipc-server, without patterns"),
    ("pub", "yes", "@isdk/ipc-server, without --retain, --delivered"),
    ("ping", "yes", "yes"),
    ("bench", "yes", "ping and --request"),
    ("tap", "yes", "no"),
    ("doctor", "yes", "yes, its place"),
)
"""Which command works with which server."""

VALUES = """\
JSON is that value:            3  true  null  '"3"'  '[1,2]'  '{"a":1}'
- is what stdin has:           JSON, or a text
@file is what the file has:    JSON, or a text
anything else is a text:       hello  'two words'
A parameter by its name:       days=3  title=Emma  tags='["a"]'
"""

ADDRESSES = """\
app                            a name: a socket in the directory that is only yours
/run/app.sock  ./app  ~/app    a path
tcp://127.0.0.1:4466           TCP; [::1] for IPv6
app --isdk                     where @isdk/ipc-server puts that name
app --net-ipc                  where net-ipc puts it: the current directory
"""


def help_about(
    context: typer.Context,
    topic: Annotated[
        str | None,
        typer.Argument(
            metavar="TOPIC",
            help="peers, exits, values, addresses, or a command.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Explain peers, exits, values, addresses, or a command.

    'help peers' tells which command works with which server.
    """
    out = Output()
    local(lambda: _explain(context, topic, out), out)


def _explain(context: typer.Context, topic: str | None, out: Output) -> None:
    if topic == "peers":
        out.table(("COMMAND", "INTERPHONE", "NODE"), PEERS)
    elif topic == "exits":
        for code, meaning in CODES.items():
            out.text(f"{code:>3}  {meaning}")
    elif topic == "values":
        out.text(VALUES.rstrip())
    elif topic == "addresses":
        out.text(ADDRESSES.rstrip())
    else:
        out.text(_help_of(context, topic).rstrip())


def _help_of(context: typer.Context, topic: str | None) -> str:
    parent = context.parent
    assert parent is not None  # this is a command of the app
    if topic is None:
        return parent.get_help()
    command = parent.command.get_command(parent, topic)  # type: ignore[attr-defined]  # a group
    if command is None:
        raise Misuse(f"there is no help about {escape(topic)!r}")
    with typer.Context(command, info_name=topic, parent=parent) as inner:
        return str(inner.get_help())
