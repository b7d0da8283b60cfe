"""Deadlines: how long the asker of the request being handled will wait.

It travels along with a request, and shrinks: what a handler asks of others while it runs
may take no longer than what is left. Whoever sets or looks brings the clock: a loop's time,
or, where there is no loop, `time.monotonic`, of which the loops' times are copies.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

from .errors import RequestTimeout

__all__ = ["current_deadline", "set_deadline", "shrunk"]

_deadline: ContextVar[float | None] = ContextVar("interphone_deadline", default=None)


def set_deadline(seconds: float | None, clock: Callable[[], float]) -> None:
    """Note, for this task and what it starts, that the asker waits so many seconds."""
    _deadline.set(None if seconds is None else clock() + seconds)


def current_deadline() -> float | None:
    """When the asker stops waiting, in the loop's time; None: never, or nobody asks."""
    return _deadline.get()


def shrunk(timeout: float | None, clock: Callable[[], float]) -> float | None:
    """Return the timeout, or what is left of the deadline if that is less.

    Raises:
        RequestTimeout: Nothing is left; nothing was sent.
    """
    until = _deadline.get()
    if until is None:
        return timeout
    left = until - clock()
    if left <= 0:
        raise RequestTimeout(0.0, delivery="not_sent")
    return left if timeout is None else min(timeout, left)
