"""Every example runs, and so does every block of Python of every page (tools/run_page.py), and
what is typed there into a shell (tools/run_console.py)."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.node import NODE_MODULES

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("[!_]*.py"))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
CONSOLES = [page for page in PAGES if "```console\n" in page.read_text("utf-8")]
TIMEOUT = 60


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory of one's own, with a name short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="ip-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(example: Path, home: Path) -> None:
    if example.name == "demo.py" and not os.path.isfile(os.__file__):
        pytest.skip("this Python has no library to make an index of")
    run(example, home=home)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_page_runs(page: Path, home: Path) -> None:
    run(ROOT / "tools" / "run_page.py", str(page), home=home)


@pytest.mark.skipif(os.name == "nt", reason="there is no bash")
@pytest.mark.parametrize("page", CONSOLES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_console_of_page_prints_what_the_page_says(page: Path, home: Path) -> None:
    run(ROOT / "tools" / "run_console.py", str(page), home=home)


# asyncio's debug mode looks at a file for every frame of a stack, which takes long under Wine.
STRICT = ["-W", "error", *(["-X", "dev"] if os.name != "nt" else [])]


def run(script: Path, *arguments: str, home: Path) -> None:
    """Run a script quietly strict; what it printed is shown if it fails."""
    done = subprocess.run(
        [sys.executable, *STRICT, str(script), *arguments],
        cwd=home,
        env={
            **os.environ,
            "NODE_PATH": str(NODE_MODULES),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "TMPDIR": str(home),
            "XDG_RUNTIME_DIR": str(home),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT,
    )
    told = f"{done.stdout}\n{done.stderr}"
    assert done.returncode == 0, told
    assert "Warning" not in done.stderr, told
    assert "was never" not in done.stderr, told
