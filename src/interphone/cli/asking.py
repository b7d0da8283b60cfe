"""Asking: call, request, send, stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine
from typing import Annotated, Any

import typer

from .command import connecting
from .ending import Misuse
from .lines import lines_of
from .output import Output, escape, json_of, value_text
from .target import Target, require_interphone
from .values import arguments, value_of, value_of_line
from .waiting import Waiting

__all__ = ["call", "request", "send", "stream"]

METHOD_HELP = "The name of a method; 'interphone describe' lists them."
ARGS_HELP = "Parameters: JSON or a text, or key=value; - is stdin, @file a file."
VALUE_HELP = "JSON or a text; - is stdin, @file a file."

Method = Annotated[str, typer.Argument(metavar="METHOD", help=METHOD_HELP, show_default=False)]
Args = Annotated[
    list[str] | None,
    typer.Argument(metavar="ARG", help=ARGS_HELP, show_default=False),
]
Value = Annotated[str, typer.Argument(metavar="VALUE", help=VALUE_HELP, show_default=False)]
Count = Annotated[
    int | None,
    typer.Option(
        "--count", "-n", min=1, metavar="N", help="End after so many.", show_default=False
    ),
]


@connecting()
def call(
    target: Target, out: Output, method: Method, args: Args = None
) -> Coroutine[Any, Any, None]:
    """Call a method, and print what it returns.

    A method that streams is for 'interphone stream'.
    """
    params, named = arguments(args or ())
    return _call(target, out, method, params, named)


async def _call(
    target: Target, out: Output, method: str, params: list[Any], named: dict[str, Any]
) -> None:
    async with target.reached(out) as client, Waiting(out, escape(method)) as waiting:
        require_interphone(client, "call")
        result = await client.call(
            method, *params, named=named, timeout=target.timeout, on_progress=waiting.show
        )
    out.record(result, value_text(result))


@connecting()
def request(target: Target, out: Output, value: Value) -> Coroutine[Any, Any, None]:
    """Send a request, and print the answer."""
    return _request(target, out, value_of(value))


async def _request(target: Target, out: Output, value: Any) -> None:
    async with target.reached(out) as client, Waiting(out, "request"):
        answer = await client.request(value, timeout=target.timeout)
    out.record(answer, value_text(answer))


@connecting()
def send(target: Target, out: Output, value: Value) -> Coroutine[Any, Any, None]:
    """Send a message, which has no answer."""
    return _send(target, out, value_of(value))


async def _send(target: Target, out: Output, value: Any) -> None:
    async with target.reached(out) as client:
        await client.send(value, timeout=target.timeout)
    if out.json:
        out.record({"sent": True})


@connecting()
def stream(
    target: Target,
    out: Output,
    method: Method,
    args: Args = None,
    items: Annotated[
        str | None,
        typer.Option(
            "--items",
            metavar="-|@FILE",
            help="What the method reads: a value in each line.",
            show_default=False,
        ),
    ] = None,
    count: Count = None,
) -> Coroutine[Any, Any, None]:
    """Call a method piece by piece.

    It answers with a stream, reads one, or both. Each piece that comes is a line.
    Printing is what paces it: the method waits when nobody reads on.
    """
    params, named = arguments(args or ())
    if items is not None and items != "-" and not items.startswith("@"):
        raise Misuse("--items reads '-', which is stdin, or '@file'")
    return _stream(target, out, method, params, named, items, count)


async def _stream(
    target: Target,
    out: Output,
    method: str,
    params: list[Any],
    named: dict[str, Any],
    items: str | None,
    count: int | None,
) -> None:
    async with target.reached(out) as client:
        require_interphone(client, "stream")
        given = None if items is None else _items(items)
        async with client.stream(method, *params, named=named, items=given) as pieces:
            left = count
            async for piece in pieces:
                out.record(piece, _line(piece))
                left = None if left is None else left - 1
                if left == 0:
                    return
            result = await pieces.result()
        if result is not None:
            out.record(result, value_text(result))


async def _items(where: str) -> AsyncIterator[Any]:
    async for line in lines_of(where):
        yield value_of_line(line)


def _line(value: object) -> str:
    return escape(value, keep="\t") if isinstance(value, str) else json_of(value)
