"""Public is what `__all__` lists and the pages tell."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import interphone
from interphone import blocking

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "interphone"
MODULES = sorted(p.relative_to(SOURCE) for p in SOURCE.rglob("*.py") if p.name != "__main__.py")

# They resolve their names when they are asked for.
DOORS = {Path("__init__.py"): interphone, Path("blocking/__init__.py"): blocking}

every_module = pytest.mark.parametrize("module", MODULES, ids=str)


@every_module
def test_all_is_there_and_sorted(module: Path) -> None:
    names = exports(module)

    assert names is not None, f"{module} has no __all__"
    assert names == sorted(set(names), key=order)


@every_module
def test_all_names_exist(module: Path) -> None:
    defined = {*names_bound_by(tree_of(module).body)}
    for path, door in DOORS.items():
        if module == path:
            defined |= {name for name in door.__all__ if hasattr(door, name)}

    missing = {*exports(module)} - defined

    assert not missing


@pytest.mark.parametrize("name", interphone.__all__)
def test_public_name_resolves(name: str) -> None:
    assert getattr(interphone, name) is not None
    assert name in dir(interphone)


@pytest.mark.parametrize("name", interphone.__all__)
def test_public_name_is_documented(name: str) -> None:
    assert re.search(rf"(?<!\w){re.escape(name)}(?!\w)", all_pages()), f"no page mentions {name}"


@pytest.mark.parametrize("name", blocking.__all__)
def test_public_name_of_the_blocking_api_resolves(name: str) -> None:
    assert getattr(blocking, name) is not None
    assert name in dir(blocking)


PROMISES = re.findall(
    r"^\| ([A-Z]\d+) \| .+? \| ?([^|]*?) ?\|?$",
    (ROOT / "docs/topics/semantics.md").read_text("utf-8"),
    re.MULTILINE,
)


def test_every_promise_is_read() -> None:
    page = (ROOT / "docs/topics/semantics.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if line.startswith("|")]
    heads = [line for line in rows if line.startswith(("| |", "| ---"))]

    assert len(PROMISES) == len(rows) - len(heads) > 100
    assert len({number for number, _ in PROMISES}) == len(PROMISES)


@pytest.mark.parametrize(("number", "proofs"), PROMISES, ids=[number for number, _ in PROMISES])
def test_promise_names_the_tests_that_prove_it(number: str, proofs: str) -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", proofs)

    missing = [
        f"{module}::{name}"
        for module, name in named
        if not re.search(rf"\bdef {name}\(", (ROOT / "tests" / module).read_text("utf-8"))
    ]

    assert named, f"{number} names no test"
    assert len(named) == proofs.count("`") / 2, "a name that is none"
    assert not missing


def order(name: str) -> tuple[int, str]:
    """As ruff sorts `__all__` (RUF022): CONSTANTS, Classes, functions."""
    constant = len(name) > 1 and name.isupper()
    return (0 if constant else 1 if name[0].isupper() else 2, name)


@cache
def all_pages() -> str:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return "\n".join(page.read_text("utf-8") for page in pages if page.exists())


@cache
def tree_of(module: Path) -> ast.Module:
    return ast.parse((SOURCE / module).read_text("utf-8"), str(module))


def exports(module: Path) -> list[str]:
    """`__all__` as it is written: pipe.py cannot be imported everywhere."""
    for node in tree_of(module).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="__all__")], value=value):
                return list(ast.literal_eval(value))
            case ast.AnnAssign(target=ast.Name(id="__all__"), value=ast.expr() as value):
                return list(ast.literal_eval(value))
    pytest.fail(f"{module} has no __all__")


def names_bound_by(body: list[ast.stmt]) -> Iterator[str]:
    """The names that these statements bind in their module."""
    for node in body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.ClassDef(name=name):
                yield name
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                yield from (alias.asname or alias.name for alias in names)
            case ast.If(body=then, orelse=otherwise):
                if "TYPE_CHECKING" not in ast.unparse(node.test):
                    yield from names_bound_by([*then, *otherwise])
            case ast.Try(body=then, orelse=otherwise, handlers=handlers):
                caught = [statement for handler in handlers for statement in handler.body]
                yield from names_bound_by([*then, *otherwise, *caught])
            case ast.Assign() | ast.AnnAssign():
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    yield from (n.id for n in ast.walk(target) if isinstance(n, ast.Name))


def test_no_submodule_hides_a_public_name() -> None:
    """`interphone.run` is the function, also when something has imported the module `run`."""
    imported = {
        name
        for module in MODULES
        if module != Path("__init__.py")
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.ImportFrom) and node.level
        for name in [(node.module or "").split(".")[0]]
    }

    assert not imported & {*interphone.__all__}
