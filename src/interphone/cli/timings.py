"""Timings: many durations, and what they have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .output import milliseconds, number

__all__ = ["Timings", "histogram_lines"]

PER_DECADE = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
"""Where the buckets of a histogram begin, times a power of ten."""

WIDEST = 40


class Timings:
    """Durations in seconds; all of them are kept."""

    def __init__(self) -> None:
        self._all: list[float] = []
        self._in_order = 0  # so many of them are

    def __len__(self) -> int:
        return len(self._all)

    def add(self, seconds: float) -> None:
        """Note one; it costs next to nothing, for it may be done while others are measured."""
        self._all.append(seconds)

    @property
    def _sorted(self) -> list[float]:
        if self._in_order < len(self._all):
            self._all.sort()
            self._in_order = len(self._all)
        return self._all

    def at(self, share: float) -> float:
        """The duration that this share of all did not exceed."""
        index = math.ceil(share * len(self._all)) - 1
        return self._sorted[max(index, 0)]

    def facts(self) -> dict[str, float]:
        """The usual ones, in milliseconds; none if there is no duration."""
        if not self._all:
            return {}
        shares = {"min": 0.0, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
        return {name: round(1000 * self.at(share), 4) for name, share in shares.items()}

    def text(self, *names: str) -> str:
        """Some of them for people."""
        return "  ".join(f"{name} {milliseconds(self.facts()[name] / 1000)}" for name in names)

    def histogram(self) -> list[tuple[float, int]]:
        """How many lie below each bound, in seconds, and not below the one before it."""
        if not self._all:
            return []
        bounds = _bounds(self._sorted[0], self._sorted[-1])
        counts = [0] * len(bounds)
        at = 0
        for each in self._sorted:
            while each >= bounds[at]:
                at += 1
            counts[at] += 1
        return list(zip(bounds, counts, strict=True))


def _bounds(least: float, most: float) -> list[float]:
    decade = math.floor(math.log10(max(least, 1e-9)))
    bounds: list[float] = []
    while not bounds or bounds[-1] <= most:
        bounds += [step * 10.0**decade for step in PER_DECADE if step * 10.0**decade > least]
        decade += 1
    return bounds[: 1 + sum(bound <= most for bound in bounds)]


def histogram_lines(histogram: Sequence[tuple[float, int]]) -> list[str]:
    """A histogram as lines of text."""
    longest: Any = max((count for _, count in histogram), default=0)
    return [
        f"{'< ' + milliseconds(bound):>12} │{'█' * math.ceil(WIDEST * count / longest):<{WIDEST}}"
        f" {number(count)}"
        for bound, count in histogram
    ]
