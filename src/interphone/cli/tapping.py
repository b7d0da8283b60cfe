"""Tapping: tap."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from datetime import datetime
from typing import Annotated, Any, get_args

import typer
from rich.live import Live
from rich.text import Text

from ..errors import MethodNotFound, Unsupported
from ..sightings import MAX_SHOWN, Sighting, SightingKind
from .asking import Count
from .command import connecting
from .ending import UNREACHABLE, Misuse
from .output import Output, Part, escape, milliseconds, number
from .target import Target, require_interphone

__all__ = ["tap"]

BACKSTAGE = frozenset({"ping", "pong", "grant", "demand", "allow"})
"""What keeps the machinery going, and is shown only on request."""

KINDS: tuple[SightingKind, ...] = get_args(SightingKind)
CUT = 200

STYLES = {"failure": "red", "missed": "red", "connect": "green", "disconnect": "yellow"}
ARROWS = {"in": "→", "out": "←"}
REFRESH = 0.5  # seconds between two looks at the count below


@connecting(endless=True)
def tap(
    target: Target,
    out: Output,
    kinds: Annotated[
        list[str] | None,
        typer.Option(
            "--kind",
            "-k",
            metavar="KIND",
            help="Only these; may be repeated: call, answer, failure, pub ...",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            metavar="PATTERN",
            help="Only about methods and topics that fit, as 'user.*'.",
            show_default=False,
        ),
    ] = None,
    peer: Annotated[
        str | None,
        typer.Option("--peer", metavar="ID", help="Only of this peer.", show_default=False),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Pings and flow control, too.")] = False,
    cut: Annotated[
        int,
        typer.Option(
            "--cut", min=0, max=MAX_SHOWN, metavar="N", help="Characters of each payload; 0: none."
        ),
    ] = CUT,
    secrets: Annotated[
        bool,
        typer.Option("--secrets", help="Show values with names such as password and token, too."),
    ] = False,
    count: Count = None,
) -> Coroutine[Any, Any, int]:
    """Watch what a server says and hears, until Ctrl-C.

    Only its own user may. Payloads are cut, and secrets left out by their names, before they
    leave the server. It slows nobody down: what comes too fast is missed, and counted.
    """
    wanted: dict[str, Any] = {"cut": cut, "redact": not secrets}
    if kinds:
        for kind in kinds:
            if kind not in KINDS:
                raise Misuse(f"there is no kind {escape(kind)!r}: take of {', '.join(KINDS)}")
        wanted["kinds"] = kinds
    elif not everything:
        wanted["kinds"] = [kind for kind in KINDS if kind not in BACKSTAGE]
    if name is not None:
        wanted["name"] = name
    if peer is not None:
        wanted["peer"] = peer
    return _tap(target, out, wanted, count)


async def _tap(target: Target, out: Output, wanted: dict[str, Any], count: int | None) -> int:
    async with target.reached(out) as client, AsyncExitStack() as stack:
        require_interphone(client, "tap")
        sightings = await stack.enter_async_context(
            client.stream("$tap", named=wanted, of=Sighting)
        )
        try:
            await anext(sightings)  # from here on
        except MethodNotFound:
            raise Unsupported("the server is of a version without tap: update it") from None
        screen = stack.enter_context(_Screen(out, target.name))
        seen = 0
        async for sighting in sightings:
            screen.show(sighting)
            seen += 1
            if seen == count:
                return 0
    out.note("the server has closed")
    return 0 if count is None else UNREACHABLE


class _Screen:
    """Lines that scroll, and below them, in a terminal, how many there were."""

    def __init__(self, out: Output, name: str) -> None:
        self._out = out
        self._name = escape(name)
        self._seen = self._missed = 0
        self._live = Live(console=out.console, auto_refresh=False, transient=True)
        self._refreshing: asyncio.Task[None] | None = None

    def __enter__(self) -> _Screen:
        if self._out.live:
            self._live.start()
            self._refreshing = asyncio.get_running_loop().create_task(self._refresh())
        else:
            self._out.note(f"watching {self._name}; Ctrl-C ends")
        return self

    def __exit__(self, *_: object) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
            self._live.stop()
        self._out.note(self._count())

    def _count(self) -> str:
        missed = f", {number(self._missed)} missed" if self._missed else ""
        return f"{number(self._seen)} seen{missed}"

    async def _refresh(self) -> None:
        while True:
            text = f"watching {self._name}: {self._count()}; Ctrl-C ends"
            self._live.update(Text(text, style="dim"), refresh=True)
            await asyncio.sleep(REFRESH)

    def show(self, sighting: Sighting) -> None:
        """Print one."""
        self._seen += 1
        if sighting.missed:
            self._missed += sighting.missed
            if not self._out.json:
                self._out.text((f"... {number(sighting.missed)} missed ...", "red"))
        self._out.record(sighting, *_line(sighting))


def _line(sighting: Sighting) -> list[Part]:
    kind = sighting.kind
    at = datetime.fromtimestamp(sighting.time)
    parts: list[Part] = [
        (f"{at:%H:%M:%S.%f}"[:-3], "dim"),
        f" {ARROWS[sighting.way]} ",
        (f"{escape(sighting.peer)[:8]:<8} ", "cyan"),
        (f"{kind:<11} ", STYLES.get(kind, "bold")),
    ]
    if sighting.name is not None:
        parts.append((f"{escape(sighting.name)} ", "blue"))
    if sighting.took is not None:
        parts.append((f"{milliseconds(sighting.took)} ", "magenta"))
    if sighting.code is not None:
        parts.append((f"{escape(sighting.code)} ", "red"))
    if kind in ("connect", "disconnect") and sighting.pid is not None:
        parts.append(f"process {sighting.pid}")
    if sighting.value is not None:
        parts.append(escape(sighting.value))
    return parts
