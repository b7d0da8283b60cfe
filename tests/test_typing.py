"""What mypy and pyright make of tests/typing: `api.py` is right, `wrong.py` is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.node import NODE_MODULES, node_command, node_environment, require_node

HERE = Path(__file__).parent / "typing"

Findings = list[tuple[int, str]]
"""The number of each line that a checker remarks on, and the remark."""


def mypy(page: Path) -> tuple[Findings, Findings]:
    """What is revealed and what is refused."""
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", str(page)]
    revealed, refused = [], []
    for line in stdout_of(command).splitlines():
        match = re.match(r".*\.py:(\d+): (note|error): (.*)", line)
        assert match is not None, line
        if match[2] == "error":
            refused.append((int(match[1]), match[3]))
        elif shown := re.fullmatch(r'Revealed type is "(.*)"', match[3]):
            revealed.append((int(match[1]), shown[1].removeprefix("def ")))
    return revealed, refused


def pyright(page: Path) -> tuple[Findings, Findings]:
    """What is revealed and what is refused."""
    require_node()
    command = [*node_command(), str(NODE_MODULES / "pyright" / "index.js")]
    report = stdout_of([*command, "--outputjson", "--pythonpath", sys.executable, str(page)])
    revealed, refused = [], []
    for remark in json.loads(report)["generalDiagnostics"]:
        number, message = remark["range"]["start"]["line"] + 1, remark["message"]
        if remark["severity"] != "information":
            refused.append((number, message))
        elif shown := re.fullmatch(r'Type of ".*" is "(.*)"', message, re.DOTALL):
            revealed.append((number, shown[1].replace("CoroutineType[", "Coroutine[")))
    return revealed, refused


def stdout_of(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=node_environment())
    assert not done.stderr, done.stderr
    return done.stdout


Checker = Callable[[Path], tuple[Findings, Findings]]
checkers = pytest.mark.parametrize(
    "check", [mypy, pytest.param(pyright, marks=pytest.mark.node)], ids=["mypy", "pyright"]
)


def lines_of(page: Path) -> list[tuple[int, str]]:
    return [*enumerate(page.read_text("utf-8").splitlines(), 1)]


@checkers
def test_types_are_inferred_as_written(check: Checker):
    page = HERE / "api.py"
    expected = {
        number: line.rpartition("# ")[2]
        for number, line in lines_of(page)
        if line.strip().startswith("reveal_type") and "# " in line
    }

    revealed, refused = check(page)

    assert {n: re.sub(r"\b(\w+\.)+(?=\w)", "", shown) for n, shown in revealed} == expected
    assert not refused


@checkers
def test_wrong_handlers_calls_and_options_are_refused(check: Checker):
    page = HERE / "wrong.py"
    expected = {number for number, line in lines_of(page) if line.endswith("# wrong")}

    refused = check(page)[1]

    assert {number for number, _ in refused} == expected
