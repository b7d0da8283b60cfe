from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent / "typing"


def mypy(name: str) -> list[str]:
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", str(HERE / name)]
    return subprocess.run(command, capture_output=True, text=True).stdout.splitlines()


def test_types_are_inferred_as_written():
    lines = (HERE / "api.py").read_text().splitlines()
    expected = {
        n: line.rpartition("# ")[2]
        for n, line in enumerate(lines, 1)
        if line.strip().startswith("reveal_type") and "# " in line
    }

    revealed = {}
    for line in mypy("api.py"):
        match = re.match(r'.*api\.py:(\d+): note: Revealed type is "(.*)"', line)
        assert match is not None, line
        revealed[int(match[1])] = re.sub(r"\b(\w+\.)+(?=\w)", "", match[2])

    assert revealed == expected


def test_wrong_handlers_and_options_are_refused():
    lines = (HERE / "wrong.py").read_text().splitlines()
    expected = {n for n, line in enumerate(lines, 1) if line.endswith("# wrong")}

    refused = {int(line.split(":")[1]) for line in mypy("wrong.py") if ": error:" in line}

    assert refused == expected
