"""Measuring: ping and bench."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from time import perf_counter
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn

from ..client import Client
from ..errors import RequestTimeout
from .asking import Args, Count
from .command import connecting
from .ending import TIMED_OUT, Misuse
from .output import Output, escape, milliseconds, number
from .target import Target, require_interphone
from .timings import Timings, histogram_lines
from .values import arguments, value_of
from .waiting import PATIENCE

__all__ = ["bench", "ping"]

Ask = Callable[[Client], Awaitable[object]]


@connecting(endless=True)
async def ping(
    target: Target,
    out: Output,
    count: Count = None,
    interval: Annotated[
        float,
        typer.Option("--interval", "-i", min=0, metavar="SECONDS", help="From one to the next."),
    ] = 1.0,
) -> int:
    """Measure how long an answer takes, until Ctrl-C.

    The library at the other end answers; its handlers may be busy.
    """
    timings, sent = Timings(), 0
    async with target.reached(out) as client:
        try:
            while sent != count:
                if sent:
                    await asyncio.sleep(interval)
                sent += 1
                await _ping_once(target, out, client, timings, sent)
        finally:
            out.code = TIMED_OUT if sent and not timings else 0
            _sum_up(target, out, timings, sent)
    return out.code


async def _ping_once(
    target: Target, out: Output, client: Client, timings: Timings, seq: int
) -> None:
    try:
        seconds = await client.ping(timeout=target.timeout)
    except RequestTimeout:
        out.record({"seq": seq, "ms": None}, f"seq={seq}  no answer within {target.timeout:g} s")
        return
    timings.add(seconds)
    so_far = timings.text("min", "median", "p99")
    out.record(
        {"seq": seq, "ms": round(1000 * seconds, 4)},
        f"seq={seq}  ",
        (milliseconds(seconds), "bold"),
        (f"   {so_far}", "dim"),
    )


def _sum_up(target: Target, out: Output, timings: Timings, sent: int) -> None:
    record = {"sent": sent, "answered": len(timings), "ms": timings.facts()}
    if out.json:
        out.record(record)
        return
    out.text(f"--- {escape(target.name)}: {sent} sent, {len(timings)} answered")
    if timings:
        out.text(timings.text("min", "median", "p99", "max"))


@connecting(endless=True)
def bench(
    target: Target,
    out: Output,
    method: Annotated[
        str | None,
        typer.Argument(metavar="METHOD", help="What to call; default: ping.", show_default=False),
    ] = None,
    args: Args = None,
    request: Annotated[
        str | None,
        typer.Option(
            "--request", metavar="VALUE", help="Send this request instead.", show_default=False
        ),
    ] = None,
    seconds: Annotated[
        float,
        typer.Option("--seconds", "-s", min=0.01, metavar="SECONDS", help="How long each part is."),
    ] = 2.0,
    at_once: Annotated[
        int,
        typer.Option("--at-once", min=1, metavar="N", help="How many wait at once, in part two."),
    ] = 32,
) -> Coroutine[Any, Any, int]:
    """Measure how fast a running server answers.

    First one asks at a time, then many at once. It runs on the real server: what you call is
    really done, again and again.
    """
    if method is not None and request is not None:
        raise Misuse("give a METHOD or --request, not both")
    if method is not None:
        ask = _calling(target, method, *arguments(args or ()))
    elif request is not None:
        ask = _requesting(target, value_of(request))
    else:
        ask = _pinging(target)
    return _bench(target, out, ask, seconds, at_once, calls=method is not None)


def _calling(target: Target, method: str, params: list[Any], named: dict[str, Any]) -> Ask:
    return lambda client: client.call(method, *params, named=named, timeout=target.timeout)


def _requesting(target: Target, value: Any) -> Ask:
    return lambda client: client.request(value, timeout=target.timeout)


def _pinging(target: Target) -> Ask:
    return lambda client: client.ping(timeout=target.timeout)


async def _bench(
    target: Target, out: Output, ask: Ask, seconds: float, at_once: int, *, calls: bool
) -> int:
    async with target.reached(out) as client:
        if calls:
            require_interphone(client, "bench METHOD")
        await ask(client)  # an error is found here, and not counted
        for name, many in (("one at a time", 1), (f"{at_once} at once", at_once)):
            await _Part(out, name, many, seconds).run(client, ask)
    return 0


class _Part:
    """One part of a benchmark; what is measured until Ctrl-C counts."""

    def __init__(self, out: Output, name: str, at_once: int, seconds: float) -> None:
        self._out = out
        self._name = name
        self._at_once = at_once
        self._seconds = seconds
        self._timings = Timings()
        self._began = perf_counter()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[answers]} answers"),
            console=out.notes,
            transient=True,
            disable=not out.notes.is_terminal or seconds < PATIENCE,
        )

    async def run(self, client: Client, ask: Ask) -> None:
        """Ask until the time is over, then tell."""
        self._began = perf_counter()
        with self._progress:
            task = self._progress.add_task(self._name, total=self._seconds, answers="0")
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(self._at_once):
                        group.create_task(self._ask(client, ask))
                    group.create_task(self._show(task))
            except ExceptionGroup as group_of_errors:
                raise group_of_errors.exceptions[0] from None
            finally:
                took = perf_counter() - self._began
                self._progress.stop()
                self._tell(took)

    async def _ask(self, client: Client, ask: Ask) -> None:
        now = perf_counter()
        while now - self._began < self._seconds:
            await ask(client)
            before, now = now, perf_counter()
            self._timings.add(now - before)

    async def _show(self, task: Any) -> None:
        while (passed := perf_counter() - self._began) < self._seconds:
            answers = number(len(self._timings))
            self._progress.update(task, completed=passed, answers=answers)
            await asyncio.sleep(min(0.1, self._seconds - passed))

    def _tell(self, took: float) -> None:
        histogram = self._timings.histogram()
        rate = len(self._timings) / took
        if self._out.json:
            record = {
                "at_once": self._at_once,
                "answers": len(self._timings),
                "seconds": round(took, 3),
                "per_second": round(rate, 1),
                "ms": self._timings.facts(),
                "histogram_ms": [[round(1000 * bound, 4), count] for bound, count in histogram],
            }
            self._out.record(record)
            return
        answers = number(len(self._timings))
        self._out.text(
            (self._name, "bold"), f": {answers} answers in {took:.2f} s, {number(rate)} per second"
        )
        if self._timings:
            self._out.text(f"  {self._timings.text('min', 'median', 'p90', 'p99', 'max')}")
            for line in histogram_lines(histogram):
                self._out.text(f"  {line}")
