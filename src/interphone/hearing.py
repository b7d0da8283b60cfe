"""Hearing: the messages of one peer, as far as they are handled at once.

Plain handlers are called where a message comes. Everything else, which takes longer, is the
`Inbox`'s: coroutines, messages that must wait for others or for the end of a pause, and those of
a Node package, which may be about calls.
"""

from __future__ import annotations

from asyncio import Task
from collections.abc import Callable
from inspect import iscoroutine
from typing import Any

import msgspec

from .errors import PayloadError
from .hooks import Hook
from .protocol.session import Session

__all__ = ["Hearing"]

NO_REASON: frozenset[str] = frozenset()


class Hearing:
    """Whether, and how, messages are handled at once.

    Args:
        hook: Whose handlers hear them.
        told: What handlers are given besides the message: the peer, or nothing.
        otherwise: Takes a message that cannot be handled at once.
        wait: Awaits what handlers returned for a message.

    Attributes:
        deferring: Why nothing is handled; empty if it is.
        reader: The task that awaits the handlers of a message; None if there is none.
    """

    __slots__ = (
        "_hook",
        "_otherwise",
        "_peer",
        "_session",
        "_told",
        "_wait",
        "deferring",
        "reader",
    )

    def __init__(
        self,
        session: Session,
        hook: Hook[...],
        told: tuple[object, ...],
        otherwise: Callable[[msgspec.Raw], None],
        wait: Callable[[list[Any], msgspec.Raw], None],
    ) -> None:
        self._session = session
        self._hook = hook
        self._told = bool(told)
        self._peer = told[0] if told else None
        self._otherwise = otherwise
        self._wait = wait
        self.deferring: frozenset[str] = NO_REASON
        self.reader: Task[None] | None = None

    def on_message(self, raw: msgspec.Raw) -> None:
        """Handle a message now, or after those that came before it."""
        calls = self._hook.calls
        if self.deferring or self.reader is not None or not self._session.interphone or not calls:
            self._otherwise(raw)
            return
        try:
            data = self._session.values.decode(raw) if raw else None
        except PayloadError:
            self._otherwise(raw)  # which says why
            return
        waiting = self._call(calls, data)
        if waiting is not None:
            self._wait(waiting, raw)

    def _call(self, calls: tuple[Callable[..., object], ...], data: Any) -> list[Any] | None:
        """Call the handlers; return what is to be awaited."""
        waiting: list[Any] | None = None
        for call in calls:
            try:
                result = call(self._peer, data) if self._told else call(data)
            except Exception as exc:
                self._hook.report(exc, (self._peer, data) if self._told else (data,))
            else:
                if result is not None and iscoroutine(result):
                    if waiting is None:
                        waiting = []
                    waiting.append(result)
        return waiting
