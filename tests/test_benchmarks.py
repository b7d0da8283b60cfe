"""The benchmarks still run, and what they say of what they measured is right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
VERSUS = BENCHMARKS / "versus"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="they pin processes")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes what the report computes with, out of (peer, at, value, foreign)."""
    monkeypatch.syspath_prepend(str(VERSUS))
    from report import Runs

    def make(*rows: tuple[str, float, float, float]) -> Any:
        names = ("peer", "at", "value", "foreign")
        place = {"workload": "W1", "placement": "one core", "count": 2, "cpu": 3.0}
        return Runs([{**place, **dict(zip(names, row, strict=True))} for row in rows])

    return make


def test_ratio_is_to_the_run_nearest_in_time(runs: Any) -> None:
    found = runs(("hand", 0, 10, 0), ("ours", 2, 30, 0), ("hand", 3, 15, 0), ("hand", 9, 1, 0))

    assert found.ratio("W1", "one core", "ours", "hand")[0] == 2.0
    assert found.ratio("W1", "one core", "ours", "hand", "cpu")[0] == 1.0
    assert found.ratio("W1", "one core", "ours", "nobody") is None


def test_loud_runs_do_not_count_if_three_are_quiet(runs: Any) -> None:
    loud = [("ours", 0, 100, 0.9), ("ours", 1, 1, 0), ("ours", 2, 2, 0), ("ours", 3, 100, 0.9)]

    few, enough = runs(*loud), runs(*loud, ("ours", 4, 3, 0))

    assert few.value("W1", "one core", "ours") == 51
    assert enough.value("W1", "one core", "ours") == 2


@pytest.mark.slow
def test_every_workload_runs(tmp_path: Path) -> None:
    command = [sys.executable, VERSUS / "run.py", "quick", "--peers", "interphone"]
    short = ["--only", "W1,W3,W4×10,W9,W10", "--rounds", "1", "--seconds", "0.01"]

    done = subprocess.run([*command, *short, "--out", tmp_path], capture_output=True, text=True)

    assert not done.returncode, done.stderr
    assert "left out" not in done.stdout
    _, *records = map(json.loads, (tmp_path / "results.jsonl").read_text("utf-8").splitlines())
    workloads = {record["workload"] for record in records if record["peer"] == "interphone"}
    assert workloads == {"W1", "W3", "W4×10", "W9", "W10"}
    assert all(record["value"] > 0 and record["count"] > 0 for record in records)
    assert "W1, one core" in (tmp_path / "report.md").read_text("utf-8")


@pytest.mark.slow
def test_growth_is_measured(tmp_path: Path) -> None:
    command = [sys.executable, BENCHMARKS / "bench_growth.py", "quick", "--rounds", "1"]

    done = subprocess.run(
        [*command, "--most", "10", "--out", tmp_path], capture_output=True, text=True
    )

    assert not done.returncode, done.stderr
    _, *records = map(json.loads, (tmp_path / "growth.jsonl").read_text("utf-8").splitlines())
    measured = [record for record in records if "case" in record]
    plots = {path.stem for path in tmp_path.glob("growth-*.svg")}
    assert plots == {f"growth-{record['part'].replace(' ', '-')}" for record in measured}
    assert all(record["wall"] > 0 and record["cpu"] > 0 for record in measured)
    assert "one more connects" in (tmp_path / "growth.md").read_text("utf-8")


def test_a_ratio_is_to_the_smallest_of_the_same_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from bench_growth import ratios

    rows = [(0, 1, 2.0), (0, 10, 3.0), (1, 1, 4.0), (1, 10, 4.0)]
    records = [
        {"case": "it", "round": at, "size": size, "cpu": cpu, "wall": 0.0} for at, size, cpu in rows
    ]

    assert ratios(records, "it", 10, "cpu") == [1.5, 1.0]
    assert ratios(records, "it", 10, "wall") == []
