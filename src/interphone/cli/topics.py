"""Topics: sub and pub."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Annotated, Any, Literal

import msgspec
import typer

from ..subscription import Gap, Publication, Receipt
from .asking import Count
from .command import connecting
from .ending import TIMED_OUT, UNREACHABLE, Misuse
from .lines import lines_of
from .output import Output, escape, json_of
from .target import Target
from .values import value_of, value_of_line

__all__ = ["pub", "sub"]


@connecting(endless=True)
async def sub(
    target: Target,
    out: Output,
    patterns: Annotated[
        list[str],
        typer.Argument(
            metavar="PATTERN",
            help="Topics: * stands for one level, > at the end for the rest.",
            show_default=False,
        ),
    ],
    count: Count = None,
    for_seconds: Annotated[
        float | None,
        typer.Option(
            "--for", min=0, metavar="SECONDS", help="End after so long.", show_default=False
        ),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            "--group",
            metavar="NAME",
            help="Share the publications with the others of this group.",
            show_default=False,
        ),
    ] = None,
) -> int:
    """Print what is published, until Ctrl-C.

    With --count, exit code 4 says that --for was over before there were so many.
    """
    if group is not None and not group.isprintable():
        raise Misuse(f"{escape(group)!r} is no name for a group")
    heard = 0
    async with target.reached(out) as client:
        subscription = client.subscribe(*patterns, group=group, gaps=True)
        try:
            async with asyncio.timeout(for_seconds), subscription as items:
                out.note(f"subscribed to {escape(', '.join(patterns))}; Ctrl-C ends")
                async for item in items:
                    if isinstance(item, Gap):
                        out.note("the connection was away: publications may be missing")
                        continue
                    _show(out, item)
                    heard += 1
                    if heard == count:
                        return 0
        except TimeoutError:
            return 0 if count is None else TIMED_OUT
    out.note("the server has closed")
    return 0 if count is None else UNREACHABLE


def _show(out: Output, item: Publication[Any]) -> None:
    value = item.value
    text = escape(value, keep="\t") if isinstance(value, str) else json_of(value)
    mark = " (last value)" if item.retained else ""
    record: dict[str, Any] = {"topic": item.topic, "value": value}
    if item.retained:
        record["retained"] = True
    out.record(record, (escape(item.topic), "cyan"), (mark, "dim"), " ", text)


@connecting()
def pub(
    target: Target,
    out: Output,
    topic: Annotated[
        str, typer.Argument(metavar="TOPIC", help="Where to publish.", show_default=False)
    ],
    value: Annotated[
        str,
        typer.Argument(
            metavar="VALUE", help="JSON or a text; - is stdin, @file a file.", show_default=False
        ),
    ] = "null",
    retain: Annotated[
        bool, typer.Option("--retain", help="Keep it as the last value of the topic.")
    ] = False,
    delivered: Annotated[
        bool, typer.Option("--delivered", help="Wait until it has left to every subscriber.")
    ] = False,
    lines: Annotated[
        bool,
        typer.Option("--lines", help="Publish each line of - or @file by itself, as it comes."),
    ] = False,
) -> Coroutine[Any, Any, None]:
    """Publish a value.

    What is printed tells for how many subscriptions it was.
    """
    if lines and value != "-" and not value.startswith("@"):
        raise Misuse("--lines reads '-', which is stdin, or '@file'")
    values = _each_line(value) if lines else _only(value_of(value))
    return _pub(target, out, topic, values, retain=retain, delivered=delivered)


async def _only(value: Any) -> AsyncIterator[Any]:
    yield value


async def _each_line(where: str) -> AsyncIterator[Any]:
    async for line in lines_of(where):
        yield value_of_line(line)


async def _pub(
    target: Target,
    out: Output,
    topic: str,
    values: AsyncIterator[Any],
    *,
    retain: bool,
    delivered: bool,
) -> None:
    ack: Literal["queued", "delivered"] = "delivered" if delivered else "queued"
    async with target.reached(out) as client:
        async for value in values:
            receipt = await client.publish(
                topic, value, retain=retain, ack=ack, timeout=target.timeout
            )
            _tell(out, receipt)


def _tell(out: Output, receipt: Receipt) -> None:
    facts: dict[str, int | None] = msgspec.to_builtins(receipt)
    known = [f"{name} {count}" for name, count in facts.items() if count is not None]
    out.record(facts, ", ".join(known) or "published; the server does not say to how many")
