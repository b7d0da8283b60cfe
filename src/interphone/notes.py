"""Notes: what an exception carries from one end to the other beside its class and its text.

Python prints the notes of an exception below it, so what a handler noted, and with
``debug=True`` its traceback, is shown where the asker's program shows the exception.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "MAX_NOTE",
    "MAX_NOTES",
    "MAX_TRACEBACK",
    "RemoteTraceback",
    "add_notes",
    "notes_of",
    "text_of",
    "traceback_of",
]

MAX_NOTES = 16
MAX_NOTE = 2_000  # characters
MAX_TRACEBACK = 32_000  # characters

HEADING = "Traceback at the other end:\n"


class RemoteTraceback(str):
    """A note that shows the traceback of the other end; it never goes any further by itself."""

    __slots__ = ()

    @property
    def text(self) -> str:
        """The traceback alone."""
        return self.removeprefix(HEADING)


def text_of(error: BaseException) -> str:
    """Return the text of an exception, also of one that has none."""
    try:
        return str(error)
    except Exception as exc:  # its `__str__` is user code
        return f"<no text: {type(exc).__name__} in its __str__>"


def notes_of(error: BaseException) -> tuple[str, ...]:
    """Return the notes of an exception that may go to another end, as far as there is room."""
    kept = vars(error).get("__notes__")
    if not isinstance(kept, list | tuple):  # anybody may assign anything
        return ()
    notes = [
        _cut(note) for note in kept if isinstance(note, str) and type(note) is not RemoteTraceback
    ]
    if len(notes) > MAX_NOTES:
        more = len(notes) - MAX_NOTES + 1
        notes[MAX_NOTES - 1 :] = [f"… and {more} more notes"]
    return tuple(notes)


def traceback_of(error: BaseException) -> str:
    """Return the traceback of an exception as Python prints it; of a long one, the end."""
    from traceback import format_exception  # not at the top: 2 ms, and a client may never need it

    text = "".join(format_exception(error))
    return text if len(text) <= MAX_TRACEBACK else "…" + text[1 - MAX_TRACEBACK :]


def add_notes(error: BaseException, notes: Iterable[str], trace: str | None) -> None:
    """Give an exception the notes, and the traceback, that came from the other end."""
    added: list[str] = [_cut(note) for note in notes][:MAX_NOTES]
    if trace is not None:
        added.append(RemoteTraceback(HEADING + trace[-MAX_TRACEBACK:]))
    if added:  # not by `add_note`, which a frozen dataclass refuses
        kept = vars(error).get("__notes__") or []
        BaseException.__setattr__(error, "__notes__", [*kept, *added])


def _cut(note: str) -> str:
    return str(note) if len(note) <= MAX_NOTE else note[: MAX_NOTE - 1] + "…"
