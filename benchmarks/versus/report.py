"""Tables and plots of the runs: medians, ratios to the nearest run of a reference, and the goals.

python report.py DIRECTORY          once more, of the results.jsonl there
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import plot
from plan import GOALS, REFERENCES, TITLES, WORKLOADS, Goal

Record = dict[str, Any]
PAGE = Path(__file__).resolve().parents[2] / "docs" / "topics" / "performance.md"
PLOTS = PAGE.with_suffix("")
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
QUIET = 0.35  # of a core used by others: if three runs had less, the others are not counted


def middle(found: list[float]) -> tuple[float, float, float] | None:
    """The median, and the middle half."""
    if not found:
        return None
    if len(found) < 2:
        return found[0], found[0], found[0]
    low, _, high = statistics.quantiles(found, n=4, method="inclusive")
    return statistics.median(found), low, high


class Runs:
    """All runs, by workload, placement and peer."""

    def __init__(self, records: list[Record]) -> None:
        self.all: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
        for record in records:
            self.all[record["workload"], record["placement"], record["peer"]].append(record)

    def of(self, workload: str, placement: str, peer: str) -> list[Record]:
        runs = self.all.get((workload, placement, peer), [])
        quiet = [run for run in runs if run["foreign"] <= QUIET]
        return quiet if len(quiet) >= 3 else runs

    def peers(self, workload: str, placement: str) -> list[str]:
        return [peer for name, place, peer in self.all if (name, place) == (workload, placement)]

    def value(self, workload: str, placement: str, peer: str, of: str = "value") -> float | None:
        runs = self.of(workload, placement, peer)
        return statistics.median(number(run, of) for run in runs) if runs else None

    def ratio(
        self, workload: str, placement: str, ours: str, versus: str, of: str = "value"
    ) -> tuple[float, float, float] | None:
        """The median of the ratios to the nearest run of the other, and their middle half."""
        mine = self.of(workload, placement, ours)
        theirs = self.all.get((workload, placement, versus), [])
        ratios = []
        for run in mine:
            near = min(theirs, key=lambda other: abs(other["at"] - run["at"]), default=None)
            if near and number(near, of):
                ratios.append(number(run, of) / number(near, of))
        return middle(ratios)


def number(run: Record, of: str) -> float:
    """One number of a run: its own, CPU seconds for each operation, or a ratio within it."""
    if of == "cpu":
        return float(run["cpu"]) / run["count"]
    if of == "beside":
        return float(run["value"]) / run["idle"]
    return float(run["value"])


def write(directory: Path, about: Record, records: list[Record]) -> None:
    """Write report.md and the plots."""
    runs = Runs(records)
    lines = ["# interphone beside its peers", "", about_text(about, records), ""]
    lines += ["## Goals", "", *goals(runs), ""]
    for workload in WORKLOADS:
        for placement in workload.placements:
            if peers := runs.peers(workload.name, placement):
                lines += [f"## {workload.name}, {placement}: {workload.title}", ""]
                lines += [*table(runs, workload, placement, peers), ""]
                draw(directory, runs, workload, placement, peers)
    named = sorted({record["peer"] for record in records} & TITLES.keys())
    lines += ["## Who is who", "", *(f"- `{name}`: {TITLES[name]}" for name in named), ""]
    (directory / "report.md").write_text("\n".join(lines), "utf-8")


def put_into_docs(directory: Path) -> None:
    """Replace what the page says was measured, and its plots."""
    _, *body = (directory / "report.md").read_text("utf-8").splitlines()
    lines = []
    for line in body:
        lines.append(line)
        name, _, title = line.removeprefix("## ").partition(": ")
        plot_file = f"{file_name(name.replace(', ', ' '))}.svg"
        if line.startswith("## W") and (directory / plot_file).exists():
            lines += ["", f"![{title}, as ratios to hand]({put_plot(directory, plot_file)})"]
    replace_in_page(BEGIN, END, lines)


def put_plot(directory: Path, plot_file: str) -> str:
    """Copy a plot to where those of the page are; return how the page calls it."""
    PLOTS.mkdir(exist_ok=True)
    shutil.copy(directory / plot_file, PLOTS / plot_file)
    return f"{PLOTS.name}/{plot_file}"


def replace_in_page(begin: str, end: str, lines: list[str]) -> None:
    """Replace what is between two marks of the page."""
    head, rest = PAGE.read_text("utf-8").split(begin)
    _, tail = rest.split(end)
    PAGE.write_text("\n".join([head + begin, *lines, end + tail]), "utf-8")


def about_text(about: Record, records: list[Record]) -> str:
    foreign = sorted(record["foreign"] for record in records)
    middle, high = foreign[len(foreign) // 2], foreign[len(foreign) * 9 // 10]
    changed = ", with changes" if about["changed"] else ""
    return (
        f"Commit {about['commit']} (source: {about.get('source', '?')}{changed}), "
        f"{about['date']}, Python {about['python']}, {about['machine']}; form `{about['form']}`, "
        f"{about['rounds']} rounds. Others used "
        f"{middle:.2f} cores in the middle run, {high:.2f} in every tenth. Ratios are to the "
        "nearest run in time; medians, and the middle half. CPU is of both ends and brokers, µs "
        "for each operation. Absolute numbers mean nothing beyond this run."
    )


def goals(runs: Runs) -> list[str]:
    lines = [
        "| | measured on | ours | against | goal | measured | | goal, pure | measured | |",
        "| - | - | - | - | -: | -: | - | -: | -: | - |",
    ]
    for goal in GOALS:
        where = f"{goal.workload}, {goal.placement}"
        against = goal.versus or ("idle" if goal.of == "beside" else "")
        compiled = compared(runs, goal, goal.ours, goal.compiled)
        pure = ["", "", ""]
        if goal.ours == "interphone":
            pure = compared(runs, goal, "interphone:pure", goal.pure)
        elif goal.pure is not None:
            pure[0] = bound(goal, goal.pure)
        cells = [goal.row, where, goal.ours, against, *compiled, *pure]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def compared(runs: Runs, goal: Goal, ours: str, limit: float | None) -> list[str]:
    """A goal, what was measured, and whether that reaches it."""
    found = measured(runs, goal, ours)
    said = "" if limit is None else bound(goal, limit)
    if found is None:
        return [said, "not measured" if said else "", ""]
    reached = limit is not None and (found <= limit if goal.most else found >= limit)
    verdict = "" if limit is None else "reached" if reached else "short"
    return [said, f"{found:.2f}{unit(goal)}", verdict]


def bound(goal: Goal, limit: float) -> str:
    return f"{'≤' if goal.most else '≥'} {limit:g}{unit(goal)}"


def unit(goal: Goal) -> str:
    return " KiB" if goal.of == "own" else "×"


def measured(runs: Runs, goal: Goal, ours: str) -> float | None:
    if goal.of in ("own", "beside"):
        return runs.value(goal.workload, goal.placement, ours, goal.of)
    found = runs.ratio(goal.workload, goal.placement, ours, goal.versus, goal.of)
    return None if found is None else found[0]


def table(runs: Runs, workload: Any, placement: str, peers: list[str]) -> list[str]:
    references = [name for name in (*REFERENCES, "asyncio") if name in peers]
    head = ["", workload.unit, *(f"/ {name}" for name in references), "CPU µs"]
    if "hand" in references:
        head.append("CPU / hand")
    if workload.kind in ("requests", "typed", "beside"):
        head.append("p99 µs")
    if workload.kind == "publish":
        head.append("lost")
    lines = [f"| {' | '.join(head)} |", "| - " + "| -: " * (len(head) - 1) + "|"]
    order = sorted(peers, key=lambda peer: by_value(runs, workload, placement, peer))
    for peer in order:
        cells = [f"**{peer}**" if peer.startswith("interphone") else peer]
        cells.append(short(runs.value(workload.name, placement, peer)))
        for reference in references:
            cells.append(spread(runs.ratio(workload.name, placement, peer, reference)))
        cpu = runs.value(workload.name, placement, peer, "cpu")
        cells.append(short(cpu * 1e6) if cpu else "")
        if "hand" in references:
            found = runs.ratio(workload.name, placement, peer, "hand", "cpu")
            cells.append(f"{found[0]:.2f}" if found and found[0] else "")
        done = runs.of(workload.name, placement, peer)
        if workload.kind in ("requests", "typed", "beside"):
            cells.append(short(statistics.median(run["p99"] for run in done) * 1e6))
        if workload.kind == "publish":
            cells.append(str(sum(run["lost"] for run in done)))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def by_value(runs: Runs, workload: Any, placement: str, peer: str) -> float:
    value = runs.value(workload.name, placement, peer) or 0.0
    return value if workload.less else -value


def spread(found: tuple[float, float, float] | None) -> str:
    return "" if found is None else f"{found[0]:.2f} ({found[1]:.2f}–{found[2]:.2f})"


def short(value: float | None) -> str:
    """Three figures, with k and M."""
    if value is None:
        return ""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def draw(directory: Path, runs: Runs, workload: Any, placement: str, peers: list[str]) -> None:
    """A dot for each peer: its ratio to `hand`, with the middle half of the runs."""
    if "hand" not in peers or len(peers) < 3:
        return
    rows = []
    for peer in sorted(peers, key=lambda peer: by_value(runs, workload, placement, peer)):
        if found := runs.ratio(workload.name, placement, peer, "hand"):
            rows.append(plot.Row(peer, *found, strong=peer.startswith("interphone")))
    marks = {
        goal.compiled: "goal"
        for goal in GOALS
        if (goal.workload, goal.placement, goal.versus, goal.of)
        == (workload.name, placement, "hand", "value")
        and goal.ours == "interphone"
    }
    better = "less is better" if workload.less else "more is better"
    title = f"{workload.name}, {placement}: {workload.title}; ratio to hand, {better}"
    name = file_name(f"{workload.name} {placement}")
    (directory / f"{name}.svg").write_text(plot.dots(title, rows, marks), "utf-8")


def file_name(title: str) -> str:
    return title.replace(" ", "-").replace("×", "x").lower()


if __name__ == "__main__":
    place = Path(sys.argv[1])
    first, *rest = map(json.loads, (place / "results.jsonl").read_text("utf-8").splitlines())
    write(place, first["about"], rest)
    if "--docs" in sys.argv:
        put_into_docs(place)
