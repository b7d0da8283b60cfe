"""Output: what is printed, for people or as JSON, and never a control character of a peer's.

Results go to stdout, everything else to stderr. With ``--json`` each is one JSON value in a line
of its own. Colours are for terminals, unless ``NO_COLOR`` is set.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
from rich.console import Console
from rich.text import Text

__all__ = [
    "Output",
    "Part",
    "Unread",
    "duration",
    "escape",
    "json_of",
    "milliseconds",
    "number",
    "unread",
    "value_text",
]

# C0 but for tab and newline, DEL, C1; what reorders text; line ends that are none in a terminal.
_unsafe = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)

Part = str | Text | tuple[str, str]
"""A piece of a line: a text, or a text and its style."""


def escape(text: str, *, keep: str = "") -> str:
    """The text with everything in it that a terminal might act upon written out."""
    return _unsafe.sub(lambda found: _written_out(found[0], keep), text)


def _written_out(character: str, keep: str) -> str:
    if character in keep:
        return character
    return character.encode("unicode_escape").decode()


def json_of(value: object, *, indent: int = 0) -> str:
    """The value as JSON that is safe to print."""
    try:
        text = msgspec.json.encode(value, enc_hook=_told).decode()
    except (UnicodeEncodeError, OverflowError, TypeError, msgspec.MsgspecError):
        text = json.dumps(msgspec.to_builtins(value, enc_hook=_told), default=str)
    if indent:
        text = msgspec.json.format(text, indent=indent)
    return _unsafe.sub(lambda found: _json_escape(found[0]), text)


def _told(value: object) -> object:
    return str(value)


def _json_escape(character: str) -> str:
    # Within strings only: outside of them JSON has no such character but newlines.
    return character if character == "\n" else f"\\u{ord(character):04x}"


def value_text(value: object) -> str:
    """A payload for people: a text as it is, everything else as JSON."""
    if isinstance(value, str):
        return escape(value, keep="\n\t")
    return json_of(value, indent=2)


def milliseconds(seconds: float) -> str:
    """A short time for people: three digits."""
    value = 1000 * seconds
    digits = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f} ms"


def duration(seconds: float) -> str:
    """A long time for people: 45 s, 3 min, 5 h, 12 d."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def number(value: float) -> str:
    """A count for people."""
    return f"{value:,.0f}"


def _plain(part: Part) -> str:
    return part if isinstance(part, str) else part.plain if isinstance(part, Text) else part[0]


class Output:
    """Where a command prints to.

    Attributes:
        json: Whether to print objects instead of text.
        console: stdout.
        notes: stderr.
        code: The exit code of a command that runs until it is interrupted.
    """

    def __init__(self, *, json: bool = False) -> None:
        self.json = json
        self.console = _console(stderr=False)
        self.notes = _console(stderr=True)
        self.code = 0

    @property
    def live(self) -> bool:
        """Whether somebody looks at stdout, and text is wanted."""
        return self.console.is_terminal and not self.json

    def record(self, record: object, *text: Part) -> None:
        """Print a result: the record with ``--json``, else the text."""
        if self.json:
            with _results():
                print(json_of(record), flush=True)
        else:
            self.text(*text)

    def text(self, *parts: Part) -> None:
        """Print a line for people."""
        with _results():
            if self.console.is_terminal and not all(isinstance(part, str) for part in parts):
                self.console.print(Text.assemble(*parts))
            else:  # as it is: rich would make spaces of tabs, and takes its time
                print(*map(_plain, parts), sep="", file=self.console.file)
            self.console.file.flush()

    def table(self, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print columns for people."""
        all_rows = [tuple(row) for row in rows]
        widths = [max(map(len, column)) for column in zip(head, *all_rows, strict=True)]
        self.text((_columns(head, widths), "bold"))
        for row in all_rows:
            self.text(_columns(row, widths))

    def facts(self, facts: Iterable[tuple[str, str]]) -> None:
        """Print names and values for people."""
        pairs = list(facts)
        width = max(len(name) for name, _ in pairs)
        for name, value in pairs:
            self.text((f"{name:<{width}}", "bold"), "  ", value)

    def note(self, text: str) -> None:
        """Tell something that is no result."""
        if not self.json:
            self.notes.print(Text(text, style="dim"))

    def complain(self, sentence: str, facts: dict[str, Any], details: Iterable[str] = ()) -> None:
        """Tell why there is no result."""
        if self.json:
            print(json_of(facts), file=sys.stderr, flush=True)
            return
        self.notes.print(Text.assemble(("interphone: ", "bold red"), sentence))
        for detail in details:
            self.notes.print(Text(detail, style="dim"))


def _columns(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))
    return "  ".join(padded).rstrip()


class Unread(BrokenPipeError):
    """Nobody reads stdout any more."""

    def __init__(self) -> None:
        super().__init__(errno.EPIPE, os.strerror(errno.EPIPE))


@contextmanager
def _results() -> Iterator[None]:
    """Whatever is written to stdout: the C library of Windows has no EPIPE for nobody reads."""
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.EPIPE, errno.EINVAL):
            raise Unread from exc
        raise


def unread() -> bool:
    """Whether what was written to stdout cannot be, because nobody reads it."""
    try:
        with _results():
            sys.stdout.flush()
    except Unread:
        return True
    except OSError:
        pass
    return False


class _Console(Console):
    """One that lets the command end as it sees fit when nobody reads."""

    def on_broken_pipe(self) -> None:
        raise Unread


def _console(*, stderr: bool) -> Console:
    # Without a colour system there is no bold either: nothing but text.
    plain = "NO_COLOR" in os.environ
    return _Console(
        stderr=stderr,
        color_system=None if plain else "auto",
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=True,
    )
