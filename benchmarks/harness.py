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
    reference: str,
    variants: dict[str, Callable[[int], None]],
    *,
    times: int,
    per: int = 1,
    rounds: int = 15,
) -> None:
    """The same for what needs no loop, in nanoseconds; each operation counts `per` times."""
    wall: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            started = perf_counter()
            run(times)
            wall[name].append((perf_counter() - started) / times / per)
    print(f"\n{title}: ns per crossing, and the ratio to {reference} (median of {rounds} rounds)\n")
    print("| | ns | best | ratio | beyond |\n| - | -: | -: | -: | -: |")
    for name in variants:
        beyond = statistics.median(
            mine - theirs for mine, theirs in zip(wall[name], wall[reference], strict=True)
        )
        print(
            f"| {name} | {statistics.median(wall[name]) * 1e9:.0f} | {min(wall[name]) * 1e9:.0f} "
            f"| {_ratio(wall[name], wall[reference]):.2f} | {beyond * 1e9:.0f} |"
        )


def _ratio(mine: list[float], theirs: list[float]) -> float:
    # Windows counts the CPU in ticks of 16 ms: a short round may have none.
    ratios = [a / b for a, b in zip(mine, theirs, strict=True) if b]
    return statistics.median(ratios) if ratios else math.nan
