"""Dot plots on a logarithmic axis, and lines on two, as SVG."""

from __future__ import annotations

import math
from dataclasses import dataclass
from xml.sax.saxutils import escape

LEFT, WIDTH, RIGHT, TOP, STEP = 170, 560, 70, 44, 22
STYLE = (
    "text{font:12px sans-serif;fill:#333}.t{font-weight:bold}.s{font-weight:bold;fill:#05a}"
    ".g{stroke:#ddd}.one{stroke:#999}.goal{stroke:#2a2;stroke-dasharray:4 3}"
    ".r{stroke:#888;stroke-width:2}.d{fill:#666}.o{fill:#05a}"
)


@dataclass(frozen=True)
class Row:
    """One dot: a number, and the ends of the line through it."""

    name: str
    value: float
    low: float
    high: float
    strong: bool = False


def dots(title: str, rows: list[Row], marks: dict[float, str]) -> str:
    """Draw each row's dot, with lines at 1 and at the marks."""
    numbers = [n for row in rows for n in (row.low, row.value, row.high)] + [1.0, *marks]
    low, high = math.log10(min(numbers)) - 0.05, math.log10(max(numbers)) + 0.05

    def x(number: float) -> float:
        return round(LEFT + WIDTH * (math.log10(number) - low) / (high - low), 1)

    bottom = TOP + STEP * len(rows)
    background = '<rect width="100%" height="100%" fill="#fff"/>'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + RIGHT}" '
        f'height="{bottom + 34}"><style>{STYLE}</style>{background}',
        text(10, 20, title, "start", "t"),
    ]
    for tick in ticks(low, high):
        parts.append(line("g", x(tick), TOP - 8, x(tick), bottom))
        parts.append(text(x(tick), bottom + 16, f"{tick:g}×", "middle"))
    parts.append(line("one", x(1), TOP - 8, x(1), bottom))
    for mark, name in marks.items():
        parts.append(line("goal", x(mark), TOP - 8, x(mark), bottom))
        parts.append(text(x(mark), bottom + 30, f"{name} {mark:g}×", "middle"))
    for at, row in enumerate(rows):
        y = TOP + STEP * at + STEP / 2
        name, dot = ("s", "o") if row.strong else ("", "d")
        parts += [
            text(LEFT - 10, y + 4, row.name, "end", name),
            line("r", x(row.low), y, x(row.high), y),
            f'<circle class="{dot}" cx="{x(row.value)}" cy="{y}" r="5"/>',
            text(x(row.high) + 9, y + 4, f"{row.value:.2g}", "start"),
        ]
    return "\n".join([*parts, "</svg>", ""])


COLOURS = ("#05a", "#c50", "#283", "#a2a", "#777", "#b80", "#078")
HEIGHT = 300


def lines(
    title: str, across: str, curves: dict[str, list[tuple[float, float]]], *, unit: str = "×"
) -> str:
    """Draw a line through the points of each curve, both axes logarithmic, with a line at 1."""
    xs = [math.log10(x) for curve in curves.values() for x, _ in curve]
    ys = [math.log10(y) for curve in curves.values() for _, y in curve] + [0.0]
    left, right = min(xs), max(max(xs), min(xs) + 0.1)
    low, high = min(*ys, -0.3) - 0.05, max(*ys, 0.7) + 0.05
    edge, bottom = 60, TOP + HEIGHT

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            round(edge + WIDTH * (math.log10(x) - left) / (right - left), 1),
            round(bottom - HEIGHT * (math.log10(y) - low) / (high - low), 1),
        )

    total = bottom + 52 + STEP * len(curves)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{edge + WIDTH + RIGHT}" '
        f'height="{total}"><style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/>',
        text(10, 20, title, "start", "t"),
    ]
    for tick in ticks(low, high):
        y = at(1, tick)[1]
        parts.append(line("one" if tick == 1 else "g", edge, y, edge + WIDTH, y))
        parts.append(text(edge - 8, y + 4, f"{tick:g}{unit}", "end"))
    for power in range(math.ceil(left), math.floor(right) + 1):
        x = at(10.0**power, 1)[0]
        parts.append(line("g", x, TOP, x, bottom))
        parts.append(text(x, bottom + 16, f"{10**power:,}", "middle"))
    parts.append(text(edge + WIDTH / 2, bottom + 34, across, "middle"))
    for number, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = [at(x, y) for x, y in sorted(curve)]
        joined = " ".join(f"{x},{y}" for x, y in points)
        parts.append(
            f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        parts += [f'<circle cx="{x}" cy="{y}" r="3.5" fill="{colour}"/>' for x, y in points]
        y = bottom + 52 + STEP * number
        parts.append(f'<circle cx="{edge + 6}" cy="{y}" r="5" fill="{colour}"/>')
        parts.append(text(edge + 18, y + 4, name, "start"))
    return "\n".join([*parts, "</svg>", ""])


def text(x: float, y: float, words: str, anchor: str, name: str = "") -> str:
    return f'<text class="{name}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>'


def line(name: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{name}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'


def ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten; fewer where they would touch."""
    steps = (1, 2, 5) if high - low < 2.2 else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1)
    found = [step * 10.0**power for power in powers for step in steps]
    return [tick for tick in found if low <= math.log10(tick) <= high]
