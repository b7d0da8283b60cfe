"""Deadlines: how long the asker of the request being handled will wait.

It travels along with a request, and shrinks: what a handler asks of others while it runs
may take no longer than what is left. What it leaves behind (a connection, a task) has a
copy of its context for good; so a deadline is an object, and is over with its handler. It is
kept in the time of `time.monotonic`, because what a handler asks may be asked in another
thread, by another loop or by none.
"""

from __future__ import annotations

from contextvars import ContextVar
from time import monotonic
from typing import Final

from .errors import RequestTimeout

__all__ = ["Deadline", "current_deadline", "deadline", "set_deadline", "shrunk"]


class Deadline:
    """When the asker of one request stops waiting, as long as it is being handled.

    Attributes:
        until: By `time.monotonic`; None: never, or it has been answered.
    """

    __slots__ = ("until",)

    def __init__(self, until: float | None) -> None:
        self.until = until

    def end(self) -> None:
        """The handler has ended: what it has left behind may take its time."""
        self.until = None


deadline: Final[ContextVar[Deadline | None]] = ContextVar("interphone_deadline", default=None)
"""That of the request being handled, also if it is over; None: none is."""


def set_deadline(until: float | None) -> Deadline:
    """Note, for this task and what it starts until it ends, when the asker stops waiting."""
    handled = Deadline(until)
    deadline.set(handled)
    return handled


def current_deadline() -> float | None:
    """When the asker stops waiting, by `time.monotonic`; None: never, or nobody asks."""
    handled = deadline.get()
    return None if handled is None else handled.until


def shrunk(timeout: float | None) -> float | None:
    """Return the timeout, or what is left of the deadline if that is less.

    Raises:
        RequestTimeout: Nothing is left; nothing was sent.
    """
    handled = deadline.get()
    if handled is None or handled.until is None:
        return timeout
    left = handled.until - monotonic()
    if left <= 0:
        raise RequestTimeout(0.0, delivery="not_sent")
    return left if timeout is None else min(timeout, left)
