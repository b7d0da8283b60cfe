"""The command line in processes of its own: run to the end, watched meanwhile, or in a terminal.

done = interphone("call", "shop", "add", "1", "2")
assert (done.code, done.out) == (0, "3\\n")

with Running("sub", "shop", "news") as sub:
    sub.wait_for("subscribed")
    sub.interrupt()
    assert sub.end() == 0
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

__all__ = ["Done", "Running", "Terminal", "interphone", "plain"]

PATIENCE = 30.0
# Not `-X dev`: asyncio then says on stderr when a machine is slow.
COMMAND = [sys.executable, "-W", "error", "-m", "interphone"]
# `login_tty` makes the terminal the one that Ctrl-C in it is meant for.
IN_TERMINAL = "import os, sys; os.login_tty(0); os.execv(sys.argv[1], sys.argv[1:])"

_escapes = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07|\r")


class Done(NamedTuple):
    """What a command that has ended said."""

    code: int
    out: str
    err: str


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR",)}
    return {**kept, "COLUMNS": "100", "TERM": "xterm-256color", **(more or {})}


def interphone(
    *args: str,
    input: str = "",
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Done:
    """Run a command to its end."""
    done = subprocess.run(
        [*COMMAND, *args],
        input=input,
        capture_output=True,
        encoding="utf-8",
        cwd=cwd,
        env=environment(env),
        timeout=PATIENCE,
    )
    return Done(done.returncode, done.stdout, done.stderr)


class Running:
    """A command that runs; what it says on stdout and stderr is read as one text.

    Attributes:
        said: What it has said so far.
        process: The process.
    """

    def __init__(
        self, *args: str, cwd: Path | None = None, stdin: Any = subprocess.DEVNULL
    ) -> None:
        self.said = ""
        self._reads, writes = self._open()
        self.process = subprocess.Popen(
            self._command(args),
            stdin=writes if stdin is None else stdin,
            stdout=writes,
            stderr=writes,
            cwd=cwd,
            env=environment(),
        )
        os.close(writes)

    def _open(self) -> tuple[int, int]:
        return os.pipe()

    def _command(self, args: tuple[str, ...]) -> list[str]:
        return [*COMMAND, *args]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()
        os.close(self._reads)

    def wait_for(self, text: str) -> None:
        """Read until it has said this, from now on."""
        begin, until = len(self.said), time.monotonic() + PATIENCE
        while text not in plain(self.said[begin:]):
            if not self._read(until):
                raise AssertionError(f"never said {text!r}, but: {self.said!r}")

    def _read(self, until: float) -> bool:
        """Read what there is; False at the end, and when the time is over."""
        ready, _, _ = select.select([self._reads], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            return False
        try:
            data = os.read(self._reads, 65536)
        except OSError:  # how a terminal says that nobody has it open any more
            return False
        self.said += data.decode()
        return bool(data)

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def end(self) -> int:
        """Read to the end; return the exit code."""
        until = time.monotonic() + PATIENCE
        while self._read(until):
            pass
        return self.process.wait(PATIENCE)


class Terminal(Running):
    """The same in a terminal of 100 columns."""

    def __init__(self, *args: str, cwd: Path | None = None) -> None:
        super().__init__(*args, cwd=cwd, stdin=None)

    def _open(self) -> tuple[int, int]:
        import pty  # which Windows does not have

        return pty.openpty()

    def _command(self, args: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-c", IN_TERMINAL, *COMMAND, *args]

    def interrupt(self) -> None:
        """Type Ctrl-C."""
        os.write(self._reads, b"\x03")


def plain(text: str) -> str:
    """Without what moves the cursor and colours."""
    return _escapes.sub("", text)
