"""Interleave variants and print medians as ratios to a reference; the only clock here."""

from __future__ import annotations

import math
import statistics
from collections.abc import Awaitable, Callable
from time import perf_counter, process_time

Variant = Callable[[int], Awaitable[object]]


async def compare(
    title: str, reference: str, variants: dict[str, Variant], *, times: int, rounds: int = 9
) -> None:
    """Run each variant `times` operations a round, in turn, and print a table.

    A ratio is to the reference of the same round: the machine changes its speed between rounds.
    """
    wall: dict[str, list[float]] = {name: [] for name in variants}
    cpu: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            started, used = perf_counter(), process_time()
            await run(times)
            wall[name].append((perf_counter() - started) / times)
            cpu[name].append((process_time() - used) / times)
    print(f"\n{title}: µs each, and the ratio to {reference} (median of {rounds} rounds)\n")
    print("| | µs | wall | CPU |\n| - | -: | -: | -: |")
    for name in variants:
        print(
            f"| {name} | {statistics.median(wall[name]) * 1e6:.1f} "
            f"| {_ratio(wall[name], wall[reference]):.2f} "
            f"| {_ratio(cpu[name], cpu[reference]):.2f} |"
        )


def compare_calls(
    title: str,
    variants: dict[str, tuple[str, Callable[[int], None]]],
    *,
    times: int,
    per: int = 1,
    rounds: int = 15,
) -> None:
    """The same for what needs no loop, in nanoseconds; each operation counts `per` times.

    Each variant comes with the name of the one it is compared to.
    """
    wall: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, (_, run) in variants.items():
            started = perf_counter()
            run(times)
            wall[name].append((perf_counter() - started) / times / per)
    print(f"\n{title}: ns per crossing (median of {rounds} rounds)\n")
    print("| | ns | best | ratio | beyond |\n| - | -: | -: | -: | -: |")
    for name, (reference, _) in variants.items():
        mine, theirs = wall[name], wall[reference]
        beyond = statistics.median(a - b for a, b in zip(mine, theirs, strict=True))
        print(
            f"| {name} | {statistics.median(mine) * 1e9:.0f} | {min(mine) * 1e9:.0f} "
            f"| {_ratio(mine, theirs):.2f} | {beyond * 1e9:.0f} |"
        )


def _ratio(mine: list[float], theirs: list[float]) -> float:
    # Windows counts the CPU in ticks of 16 ms: a short round may have none.
    ratios = [a / b for a, b in zip(mine, theirs, strict=True) if b]
    return statistics.median(ratios) if ratios else math.nan
