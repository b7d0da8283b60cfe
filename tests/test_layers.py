"""The order of the house: a module imports only from its own layer and those below it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = "interphone"
SOURCE = Path(__file__).resolve().parents[1] / "src" / PACKAGE
MODULES = sorted(path.relative_to(SOURCE) for path in SOURCE.rglob("*.py"))

LAYERS = [
    {
        "accelerator",
        "awake",
        "notes",
        "errors",
        "exit",
        "address",
        "hooks",
        "limits",
        "backoff",
        "status",
        "version",
    },
    {"protocol"},
    {"transports"},
    {"connection"},
    {
        "deadlines",
        "host",
        "workers",
        "handlers",
        "signatures",
        "contracts",
        "methods",
        "declared",
        "stream",
        "publication",
        "backlog",
        "subscription",
        "calls",
        "hearing",
        "prompt",
        "asker",
        "asking",
        "inbox",
        "peer",
    },
    {
        "introspection",
        "sightings",
        "inspector",
        "admission",
        "lanes",
        "traffic",
        "exchange",
        "feed",
        "server",
        "client",
    },
    {"loops", "run", "blocking", "backplane", "testing"},
    {"cli"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
RANK["__init__"] = RANK["__main__"] = len(LAYERS)  # the doors: they may know everybody

PURE = {"asyncio", "logging", "os", "socket", "ssl", "sys", "threading", "time"}

# What may be imported only when it is needed: it is not there on every platform, or takes long.
LATE = {
    "accelerator": {"importlib"},
    "backoff": {"random"},
    "transports": {
        "_overlapped",
        "_winapi",
        "ctypes",
        "fcntl",
        "grp",
        "msvcrt",
        "pwd",
        "winreg",
        "asyncio",
    },
    "loops": {"uvloop"},
    "host": {"tkinter"},
    "contracts": {"inspect", "signatures"},
    "declared": {"inspect", "signatures"},
    "methods": {"difflib"},
    "notes": {"traceback"},
    "protocol": {"ctypes", "json", "msgspec"},  # of msgspec what looks into types
}
KNOW_THE_PLATFORM = {"address", "transports"}

every_module = pytest.mark.parametrize("module", MODULES, ids=str)


@every_module
def test_every_module_has_its_layer(module: Path) -> None:
    assert part_of(module) in RANK


@every_module
def test_imports_point_downwards(module: Path) -> None:
    own = part_of(module)

    above = [name for name in own_imports(module) if RANK[top(name)] > RANK[own]]

    assert not above, f"{module} may not know {above}"


@every_module
def test_protocol_is_pure(module: Path) -> None:
    if part_of(module) == "protocol":
        roots = {name.partition(".")[0] for name in imported_names(module)}

        assert not roots & PURE


@every_module
def test_imports_stand_on_top(module: Path) -> None:
    own = part_of(module)
    late = LATE.get(own, set())
    for function in functions_of(tree_of(module)):
        for node in imports_in(function):
            for name in names_of(node, module):
                # transports: one per platform; blocking: a client may do without the portal
                room = own == top(name) in ("transports", "blocking")
                root = name.removeprefix(f"{PACKAGE}.").partition(".")[0]
                assert room or root in late, f"{module}:{node.lineno}: {name}"


@every_module
def test_few_know_the_platform(module: Path) -> None:
    if part_of(module) in KNOW_THE_PLATFORM:
        return

    lines = [*lines_naming_the_platform(tree_of(module))]

    assert not lines, f"{module}: sys.platform in lines {lines}"


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {
        dotted(module): {name for name in own_imports(module) if name != dotted(module)}
        for module in MODULES
        if module.name != "__init__.py"  # a package's door may know its rooms
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join((*path, name))
        if name in graph and name not in done:
            for imported in graph[name]:
                visit(imported, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


# Reading the source


@cache
def tree_of(module: Path) -> ast.Module:
    return ast.parse((SOURCE / module).read_text("utf-8"), str(module))


def part_of(module: Path) -> str:
    """`protocol/wire.py` → `protocol`, `errors.py` → `errors`."""
    return module.parts[0].removesuffix(".py")


def dotted(module: Path) -> str:
    return ".".join((PACKAGE, *module.with_suffix("").parts)).removesuffix(".__init__")


def top(name: str) -> str:
    """`interphone.protocol.wire` → `protocol`, `interphone` → `__init__`."""
    return (*name.split("."), "__init__")[1]


def own_imports(module: Path) -> set[str]:
    names = imported_names(module)
    return {name for name in names if name == PACKAGE or name.startswith(f"{PACKAGE}.")}


def imported_names(module: Path) -> set[str]:
    return {name for node in imports_in(tree_of(module)) for name in names_of(node, module)}


def imports_in(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node


def functions_of(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node


def names_of(node: ast.Import | ast.ImportFrom, module: Path) -> Iterator[str]:
    """The modules that a statement imports, by their full names."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        package = (PACKAGE, *module.parts[:-1])
        base = ".".join((*package[: len(package) - node.level + 1], *base.split("."))).rstrip(".")
    for alias in node.names:
        inner = f"{base}.{alias.name}"
        yield inner if is_module(inner) else base


def is_module(name: str) -> bool:
    path = SOURCE.joinpath(*name.split(".")[1:])
    own = name.startswith(f"{PACKAGE}.")
    return own and (path.with_suffix(".py").is_file() or (path / "__init__.py").is_file())


def lines_naming_the_platform(tree: ast.AST) -> Iterator[int]:
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="sys"), attr="platform", lineno=line):
                yield line
            case ast.ImportFrom(module="sys", names=names, lineno=line):
                yield from (line for alias in names if alias.name == "platform")
