"""Waiting: what a terminal shows while something takes longer than a second."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from .output import Output, escape, json_of

__all__ = ["PATIENCE", "Waiting"]

PATIENCE = 1.0


class Waiting:
    """A bar on stderr, if that is a terminal, from the second second on."""

    def __init__(self, out: Output, what: str) -> None:
        self._shown = out.notes.is_terminal
        self._what = what
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TimeElapsedColumn(),
            console=out.notes,
            transient=True,
        )
        self._task: TaskID | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._known: float | None = None

    async def __aenter__(self) -> Self:
        if self._shown:
            self._timer = asyncio.get_running_loop().call_later(PATIENCE, self._start)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._progress.stop()

    def _start(self) -> None:
        self._progress.start()
        self._task = self._progress.add_task(self._what, total=None)
        self._update()

    def show(self, value: object) -> None:
        """How far it is: a number from 0 to 1, or anything else to be shown as it is."""
        if type(value) in (int, float) and 0 <= value <= 1:  # type: ignore[operator]  # a number
            self._known = float(value)  # type: ignore[arg-type]  # the same
        else:
            text = value if isinstance(value, str) else json_of(value)
            self._what = escape(text)[:60]
        self._update()

    def _update(self) -> None:
        if self._task is None:
            return
        if self._known is None:
            self._progress.update(self._task, description=self._what)
        else:
            done = self._known
            self._progress.update(self._task, description=self._what, total=1.0, completed=done)
