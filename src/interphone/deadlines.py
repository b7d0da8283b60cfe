"""Deadlines: how long the asker of the request being handled will wait.

It travels along with a request, and shrinks: what a handler asks of others while it runs
may take no longer than what is left. It is kept in the time of `time.monotonic`, because
what a handler asks may be asked in another thread, by another loop or by none.
"""

from __future__ import annotations

from contextvars import ContextVar
from time import monotonic

from .errors import RequestTimeout

__all__ = ["current_deadline", "set_deadline", "shrunk"]

_deadline: ContextVar[float | None] = ContextVar("interphone_deadline", default=None)


def set_deadline(seconds: float | None) -> None:
    """Note, for this task and what it starts, that the asker waits so many seconds."""
    _deadline.set(None if seconds is None else monotonic() + seconds)


def current_deadline() -> float | None:
    """When the asker stops waiting, by `time.monotonic`; None: never, or nobody asks."""
    return _deadline.get()


def shrunk(timeout: float | None) -> float | None:
    """Return the timeout, or what is left of the deadline if that is less.

    Raises:
        RequestTimeout: Nothing is left; nothing was sent.
    """
    until = _deadline.get()
    if until is None:
        return timeout
    left = until - monotonic()
    if left <= 0:
        raise RequestTimeout(0.0, delivery="not_sent")
    return left if timeout is None else min(timeout, left)
