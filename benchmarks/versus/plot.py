"""Dot plots on a logarithmic axis, as SVG."""

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
