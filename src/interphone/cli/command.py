"""Commands: a function with its own options becomes one with those that all commands share.

The function says what to do with a `Target` and an `Output`; it returns a coroutine, which is
run. Whatever it raises becomes a sentence and an exit code.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

import typer

# Not from `..run`: that would put the module in the place of the function `interphone.run`.
from .. import run
from ..address import private_directory
from ..errors import AddressError, InterphoneError
from .ending import INTERRUPTED, Misuse, explain
from .output import Output
from .target import Target, address_of
from .values import value_of

__all__ = [
    "ADDRESS_HELP",
    "AddressArgument",
    "Isdk",
    "Json",
    "NetIpc",
    "complete_address",
    "connecting",
    "finish",
    "local",
    "perform",
    "quiet",
]

ADDRESS_HELP = "A name, a path, or tcp://host:port."


def complete_address(incomplete: str) -> list[str]:
    """The names of sockets in our private directory that begin like this."""
    try:
        found = os.listdir(private_directory())
    except (OSError, AddressError):
        return []
    names = (name.removesuffix(".sock") for name in found if name.endswith(".sock"))
    return sorted(name for name in names if name.startswith(incomplete))


AddressArgument = Annotated[
    str,
    typer.Argument(
        metavar="ADDRESS", help=ADDRESS_HELP, show_default=False, autocompletion=complete_address
    ),
]
Isdk = Annotated[
    bool, typer.Option("--isdk", help="ADDRESS is a name as @isdk/ipc-server takes it.")
]
NetIpc = Annotated[bool, typer.Option("--net-ipc", help="ADDRESS is a name as net-ipc takes it.")]
Timeout = Annotated[
    float,
    typer.Option(
        "--timeout",
        "-t",
        min=0.001,
        metavar="SECONDS",
        help="How long to wait for the connection, and for each answer.",
    ),
]
Wait = Annotated[
    float | None,
    typer.Option(
        "--wait",
        min=0.001,
        metavar="SECONDS",
        show_default=False,
        help="Wait so long for a server that is not there yet, and come back to one that is lost.",
    ),
]
Classic = Annotated[
    bool, typer.Option("--classic", help="Speak the packets of Node, with whomever.")
]
Payload = Annotated[
    str | None,
    typer.Option(
        "--payload",
        metavar="VALUE",
        show_default=False,
        help="What to tell the server when connecting, for its authorize.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object in a line.")]

_SHARED = (
    ("isdk", Isdk, False),
    ("net_ipc", NetIpc, False),
    ("timeout", Timeout, 10.0),
    ("wait", Wait, None),
    ("classic", Classic, False),
    ("payload", Payload, None),
    ("json", Json, False),
)

Work = Callable[..., Coroutine[Any, Any, int | None]]


def connecting(*, endless: bool = False) -> Callable[[Work], Callable[..., None]]:
    """Make a command of ``work(target, out, …own)``, with the address and the shared options.

    Args:
        endless: Whether it runs until Ctrl-C, which then is no failure.
    """

    def decorate(work: Work) -> Callable[..., None]:
        @functools.wraps(work)
        def command(
            *,
            address: str,
            isdk: bool,
            net_ipc: bool,
            timeout: float,
            wait: float | None,
            classic: bool,
            payload: str | None,
            json: bool,
            **own: Any,
        ) -> None:
            out = Output(json=json)

            def begin() -> Coroutine[Any, Any, int | None]:
                where = address_of(address, isdk=isdk, net_ipc=net_ipc)
                told = None if payload is None else value_of(payload)
                return work(Target(address, where, timeout, wait, classic, told), out, **own)

            finish(perform(begin, out, where=address, endless=endless))

        command.__signature__ = _signature(work)  # type: ignore[attr-defined]  # typer reads it
        return command

    return decorate


def _signature(work: Work) -> inspect.Signature:
    """The address, the parameters of `work` but for target and output, the shared options."""
    own = [*inspect.signature(work, eval_str=True).parameters.values()][2:]
    keyword = inspect.Parameter.KEYWORD_ONLY
    shared = [
        inspect.Parameter(name, keyword, default=default, annotation=annotation)
        for name, annotation, default in _SHARED
    ]
    address = inspect.Parameter("address", keyword, annotation=AddressArgument)
    return inspect.Signature([address, *(each.replace(kind=keyword) for each in own), *shared])


def local(work: Callable[[], object], out: Output) -> None:
    """Run a command that needs no loop."""
    try:
        result = work()
        code = result if isinstance(result, int) else 0
    except (InterphoneError, Misuse) as exc:
        code = explain(exc, out)
    finish(code)


def perform(
    begin: Callable[[], Coroutine[Any, Any, int | None]],
    out: Output,
    *,
    where: str | None = None,
    endless: bool = False,
) -> int:
    """Run what `begin` returns; return the exit code."""
    try:
        return run(begin()) or 0
    except KeyboardInterrupt:
        return out.code if endless else INTERRUPTED
    except (InterphoneError, Misuse) as exc:
        return explain(exc, out, where)


def finish(code: int) -> None:
    """Leave the command with this exit code."""
    raise typer.Exit(code)


def quiet() -> None:
    """What the library logs is said by the commands themselves."""
    logging.getLogger("interphone").addHandler(logging.NullHandler())
