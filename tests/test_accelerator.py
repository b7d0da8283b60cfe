"""The compiled form of the hot modules: that it is chosen, and does what the sources do."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interphone.accelerator import PURE, compiled
from support.rubbish import STARTS, rubbish
from support.twin import Twin, trace

ROOT = Path(__file__).parent.parent
ASK = "from interphone.accelerator import compiled; print(compiled())"


def hot_modules() -> list[Path]:
    """What hatch_build.py compiles."""
    tree = ast.parse((ROOT / "hatch_build.py").read_text("utf-8"))
    (names,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "COMPILED"
    )
    return [ROOT / "src" / "interphone" / name for name in names]


@pytest.mark.parametrize("path", hot_modules(), ids=lambda path: path.stem)
def test_no_name_is_bound_by_two_except_clauses_of_a_hot_function(path: Path) -> None:
    """mypyc would take what the second one catches for what the first one does."""
    for function in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        types: dict[str, set[str]] = {}
        for clause in ast.walk(function):
            if isinstance(clause, ast.ExceptHandler) and clause.name and clause.type:
                types.setdefault(clause.name, set()).add(ast.unparse(clause.type))
        assert all(len(each) == 1 for each in types.values()), f"{function.name}: {types}"


@pytest.mark.parametrize("asked", ["1", "0", "", None])
def test_sources_are_imported_on_request(asked: str | None) -> None:
    environment = {name: value for name, value in os.environ.items() if name != PURE}
    if asked is not None:
        environment[PURE] = asked
    done = subprocess.run(
        [sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=True
    )
    pure = asked == "1" or not compiled()
    assert done.stdout.strip() == str(not pure)


@pytest.fixture(scope="module")
def twin() -> Iterator[Twin]:
    with Twin() as twin:
        yield twin


@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    role=st.sampled_from(["client", "server"]),
    start=st.sampled_from(STARTS),
    interphone=st.booleans(),
    data=st.data(),
)
def test_both_forms_understand_the_same(
    twin: Twin, role: str, start: int, interphone: bool, data: st.DataObject
) -> None:
    wire = data.draw(rubbish(start) | st.binary(max_size=80))
    cut = data.draw(st.integers(0, len(wire)))
    asked = role, start, interphone, [wire[:cut], wire[cut:]]

    assert trace(*asked) == twin.trace(*asked)
