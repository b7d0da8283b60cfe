"""The demo is what a newcomer sees first: it works, says so, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.node import NODE_MODULES, node_command, require_node

DEMO = Path(__file__).resolve().parents[1] / "examples" / "demo.py"
TIMEOUT = 60

pytestmark = pytest.mark.skipif(
    not os.path.isfile(os.__file__), reason="this Python has no library to make an index of"
)
posix = pytest.mark.skipif(os.name == "nt", reason="signals are sent")


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory of one's own, with a name short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="ip-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


class Demo:
    """A running demo, whose sockets lie in a directory of its own."""

    def __init__(self, home: Path, *, node: str | None, **options: int) -> None:
        path = [str(Path(node).parent)] if node else []
        place = {name: str(home) for name in ("XDG_RUNTIME_DIR", "TMPDIR", "TEMP", "TMP")}
        self.home = home
        self.said = ""
        self.process = subprocess.Popen(
            [sys.executable, "-u", str(DEMO)],
            env={
                **os.environ,
                **place,
                "PATH": os.pathsep.join(path),
                "NODE_PATH": str(NODE_MODULES),
            },
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=options.get("stdout", subprocess.PIPE),
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            start_new_session=True,
        )

    def __enter__(self) -> Demo:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def read_until(self, words: str) -> None:
        """Read until a line with these words."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line
            if words in line:
                return
        pytest.fail(f"it never said {words!r}:\n{self.said}")

    def finish(self) -> str:
        """Read to the end; everything it said."""
        rest, _ = self.process.communicate(timeout=TIMEOUT)
        self.said += rest
        return self.said

    @property
    def daemon(self) -> int:
        found = re.search(r"^Daemon (\d+) listens on ", self.said, re.MULTILINE)
        assert found, self.said
        return int(found[1])

    def left(self) -> list[str]:
        """What is left of it: files, and the daemon."""
        files = [str(path) for path in self.home.rglob("*") if not path.is_dir()]
        return files + (["the daemon"] if alive(self.daemon) else [])


def alive(pid: int) -> bool:
    if os.name == "nt":
        listed = subprocess.run(["tasklist", "/FI", f"PID eq {pid}"], capture_output=True)
        return str(pid).encode() in listed.stdout
    listed = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True)
    return bool(listed.stdout.strip()) and not listed.stdout.startswith(b"Z")


def summary(said: str) -> dict[str, tuple[float, str]]:
    """The table at the end: what was measured, seconds, and the note beside it."""
    rows = re.findall(
        r"^  (\S.*?)  +([\d.]+) (s|ms)   (\S.*)$", said.partition("\nSummary\n")[2], re.MULTILINE
    )
    units = {"s": 1.0, "ms": 0.001}
    return {what: (float(number) * units[unit], note) for what, number, unit, note in rows}


def number(note: str) -> int:
    return int(note.split()[0].replace(",", ""))


def check_python_part(said: str) -> None:
    rows = summary(said)
    cold, documents = rows["cold: start, read, answer"]
    warm, faster = rows["warm: the next searches"]
    assert number(documents) > 3_000
    assert warm < cold / 10
    assert number(faster) > 10
    assert number(rows["1,000 one after another"][1]) > 50
    assert number(rows["64 at once"][1]) > 50
    assert rows["a bad request"][0] < 2
    for hit in (
        "asyncio.tasks.wait_for ",
        "secrets.token_hex ",
        "textwrap.wrap ",
        "statistics.median ",
    ):
        assert hit in said
    assert re.search(r"^  read \d+ modules, [\d,]+ docstrings$", said, re.MULTILINE)
    assert "\nA bad request: BadRequest: " in said
    assert "\nStopped: " in said
    assert "Traceback" not in said


@pytest.mark.node
def test_everything_happens(home: Path) -> None:
    require_node()
    started = time.monotonic()
    with Demo(home, node=node_command()[0]) as demo:
        said = demo.finish()
    assert demo.process.returncode == 0, said
    check_python_part(said)
    rows = summary(said)
    assert number(rows["1,000 from Node"][1]) > 50
    assert rows["a bad request from Node"][0] < 2
    assert re.search(r"^Node v\d+", said, re.MULTILINE)
    assert said.count("asyncio.tasks.wait_for ") == 2
    assert said.count("BadRequest") == 2
    assert demo.left() == []
    assert time.monotonic() - started < 40  # 20 s on a machine that does nothing else


def test_without_node_it_says_so_and_all_else_happens(home: Path) -> None:
    with Demo(home, node=None) as demo:
        said = demo.finish()
    assert demo.process.returncode == 0, said
    check_python_part(said)
    assert "\nNode: not on PATH here" in said
    assert not [row for row in summary(said) if "Node" in row]
    assert demo.left() == []


def test_two_at_once_do_not_meet(home: Path) -> None:
    with Demo(home, node=None) as one, Demo(home, node=None) as other:
        for demo in (one, other):
            said = demo.finish()
            assert demo.process.returncode == 0, said
    assert one.daemon != other.daemon
    assert one.left() == other.left() == []


@posix
def test_a_bar_is_drawn_on_a_terminal(home: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    said = b""
    with Demo(home, node=None, stdout=theirs) as demo:
        os.close(theirs)
        try:
            while data := os.read(ours, 65536):
                said += data
        except OSError:  # how Linux tells that nobody has the other end any more
            pass
        finally:
            os.close(ours)
        assert demo.process.wait(TIMEOUT) == 0
    bars = [len(bar.rstrip()) for bar in re.findall(rb"reading \[(#* *)\]", said)]
    assert len(bars) > 10
    assert bars == sorted(bars)
    assert bars[-1] == 30


@posix
@pytest.mark.parametrize("everybody", [False, True], ids=["demo", "group"])
@pytest.mark.parametrize(
    ("moment", "node"),
    [
        pytest.param("Daemon ", False, id="it reads"),
        pytest.param("'secure random token' took", False, id="it answers"),
        pytest.param("A bad request", True, id="Node asks", marks=pytest.mark.node),
    ],
)
def test_ctrl_c_leaves_nothing(home: Path, moment: str, node: bool, everybody: bool) -> None:
    if node:
        require_node()
    with Demo(home, node=node_command()[0] if node else None) as demo:
        demo.read_until(moment)
        (os.killpg if everybody else os.kill)(demo.process.pid, signal.SIGINT)
        said = demo.finish()
    assert demo.process.returncode == 130, said
    assert said.endswith("\nInterrupted. The daemon is stopped.\n")
    assert "Traceback" not in said
    assert demo.left() == []


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="it cannot be waited for here")
@pytest.mark.slow
def test_a_daemon_whose_demo_was_killed_ends_by_itself(home: Path) -> None:
    with Demo(home, node=None) as demo:
        demo.read_until("Daemon ")
        demo.process.kill()
        demo.process.wait()
        assert alive(demo.daemon)
        ended = os.pidfd_open(demo.daemon)
        try:
            assert select.select([ended], [], [], TIMEOUT)[0]
        finally:
            os.close(ended)
        assert demo.left() == []
