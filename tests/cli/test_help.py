"""What `--help` says, word by word. ``python tests/cli/test_help.py`` writes it anew."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

import pytest

from interphone.cli import main

GOLDEN = Path(__file__).parent / "golden"
COMMANDS = (
    "",
    "list",
    "info",
    "describe",
    "call",
    "request",
    "send",
    "stream",
    "sub",
    "pub",
    "ping",
    "bench",
    "tap",
    "serve",
    "doctor",
    "help",
)


def help_of(command: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main([*filter(None, [command]), "--help"]) == 0
    return out.getvalue()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_as_it_was(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")

    assert help_of(command) == (GOLDEN / f"{command or 'interphone'}.txt").read_text("utf-8")


def test_every_command_has_its_help():
    listed = help_of("").partition("Commands:\n")[2]

    assert [line.split()[0] for line in listed.splitlines() if line[:3].strip()] == [*COMMANDS[1:]]


if __name__ == "__main__":
    os.environ["COLUMNS"] = "80"
    GOLDEN.mkdir(exist_ok=True)
    for each in COMMANDS:
        (GOLDEN / f"{each or 'interphone'}.txt").write_text(help_of(each), "utf-8")
