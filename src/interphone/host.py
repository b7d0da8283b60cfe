"""Host: handlers that run in the thread of the program that hosts this library.

Blender, Tk, Qt and games own their main thread, and their objects may be touched in it only.
A `Poll` is the way in: what is to run there waits in it, and the host runs it from a timer of
its own, a little at a time. The loop goes on meanwhile: pings are answered, answers come.

What waits is bounded: past the limit the asker is told `Overloaded`. Who gives up waiting, or
is cancelled, takes its handler out of the queue. A host that never polls runs nothing: askers
wait for their timeout.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from time import monotonic
from typing import Any, TypeVar

from .errors import ForkedError, Overloaded, WrongThread
from .workers import holdable

__all__ = ["HostBusy", "Poll", "poll_from_blender", "poll_from_qt", "poll_from_tk"]

logger = logging.getLogger("interphone")

R = TypeVar("R")

LIMIT = 1_024
BUDGET = 0.01
INTERVAL = 0.01

QT_BINDINGS = ("PySide6", "PyQt6", "PySide2", "PyQt5")


class HostBusy(Overloaded):
    """There is no room for one more handler to wait for the host."""


class Poll:
    """What waits for the host's thread, which runs it by calling `run_pending`.

        host = Poll()
        server = Server("blender", host=host)

        @server.method
        def add_sphere(radius: float) -> str: ...  # runs in the thread that calls run_pending

        timer(every=0.01, call=host.run_pending)

    The first thread that calls `run_pending` is the host's; no other may. One `Poll` may serve
    several servers and clients.

    Args:
        limit: Handlers that may wait; one more is `Overloaded`.
        wake: Called when the first one comes to wait, from another thread: it must not block.

    Attributes:
        limit: As given.
        refused: How many found no room.
    """

    def __init__(self, *, limit: int = LIMIT, wake: Callable[[], object] | None = None) -> None:
        if limit < 1:
            raise ValueError(f"limit={limit}: a host needs room for one handler")
        self.limit = limit
        self.refused = 0
        self._wake = wake
        self._queue: deque[_Job] = deque()
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._thread: int | None = None
        self._running = False

    def __repr__(self) -> str:
        return f"<Poll {self.pending} pending>"

    @property
    def pending(self) -> int:
        """Handlers that wait."""
        return len(self._queue)

    @property
    def here(self) -> bool:
        """Whether this is the host's thread; False until `run_pending` was called."""
        return self._thread == threading.get_ident()

    def run_pending(self, budget: float | None = BUDGET) -> int:
        """Run what waits, in order; return how many handlers were run.

        Handlers run one at a time: called by one of them, as by a dialog that it shows, this
        does nothing. What they raise goes to their askers, except for `KeyboardInterrupt` and
        `SystemExit`, which are raised here, too.

        Args:
            budget: Seconds after which no further handler is begun; the first one always is.
                None runs all that waited when it was called.

        Raises:
            WrongThread: Another thread has called it before.
            ForkedError: It belongs to the parent of this process.
        """
        self._check_caller()
        if self._running or not self._queue:
            return 0
        self._running = True
        try:
            return self._run(budget)
        finally:
            self._running = False

    def _run(self, budget: float | None) -> int:
        until = None if budget is None else monotonic() + budget
        count, most = 0, len(self._queue)
        while (until is not None or count < most) and (job := self._next()) is not None:
            job.run()
            count += 1
            if until is not None and monotonic() >= until:
                break
        return count

    def _next(self) -> _Job | None:
        with self._lock:
            return self._queue.popleft() if self._queue else None

    def _check_caller(self) -> None:
        if os.getpid() != self._pid:
            raise ForkedError("the host belongs to the parent process: make a new one after fork")
        if self._thread is None:
            self._thread = threading.get_ident()
        elif not self.here:
            raise WrongThread("the host's handlers run in the thread that polled it first")

    # What a Server or Client calls, on its loop

    async def call(self, function: Callable[..., R], *args: Any) -> R:
        """Have the host run a function in a copy of this context; return its result.

        Cancelling takes it out of the queue; one that runs goes on, and nobody hears of it.

        Raises:
            HostBusy: There is no room; the function will not run.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[R] = loop.create_future()

        def settled(result: Any, error: Exception | None) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody is left to be told
                loop.call_soon_threadsafe(_settle, done, result, error)

        job = self._put(function, args, settled)
        try:
            return await done
        except asyncio.CancelledError:
            with self._lock, suppress(ValueError):  # it runs, or has run
                self._queue.remove(job)
            raise

    def post(
        self, function: Callable[..., object], *args: Any, report: Callable[[Exception], None]
    ) -> None:
        """Have the host run a function at some time; nobody waits for it.

        There always is room, because it belongs to something that ends. What it raises is
        reported in the host's thread.
        """

        def settled(_: object, error: Exception | None) -> None:
            if error is not None:
                report(error)

        self._put(function, args, settled, always=True)

    def _put(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        settled: Callable[[Any, Exception | None], object],
        *,
        always: bool = False,
    ) -> _Job:
        job = _Job(partial(contextvars.copy_context().run, function, *args), settled)
        with self._lock:
            first = not self._queue
            if len(self._queue) >= self.limit and not always:
                self.refused += 1
                raise HostBusy(f"{self.limit} handlers wait for the host's thread")
            self._queue.append(job)
        if first and self._wake is not None:
            try:
                self._wake()
            except Exception:  # it is user code; the host's timer comes all the same
                logger.exception("%r: its wake raised", self)
        return job


class _Job:
    """A function that waits for the host, and who is told what became of it."""

    __slots__ = ("_call", "_settled")

    def __init__(
        self, call: Callable[[], Any], settled: Callable[[Any, Exception | None], object]
    ) -> None:
        self._call = call
        self._settled = settled

    def run(self) -> None:
        try:
            result = self._call()
        except Exception as exc:
            self._settled(None, holdable(exc))
        except BaseException as exc:  # it is the host's, but the asker must not wait for ever
            self._settled(None, RuntimeError(f"the handler was ended by {type(exc).__name__}"))
            raise
        else:
            self._settled(result, None)


def _settle(done: asyncio.Future[Any], result: object, error: Exception | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)


# Timers of some hosts. Each returns a function that ends it.


def poll_from_tk(
    host: Poll, widget: Any, *, interval: float = INTERVAL, budget: float = BUDGET
) -> Callable[[], None]:
    """Have Tk poll the host every so many seconds, as long as the widget lives."""
    import tkinter

    milliseconds = max(1, round(interval * 1_000))
    ended = False

    def tick() -> None:
        if ended:
            return
        try:
            host.run_pending(budget)
        finally:
            with suppress(tkinter.TclError):  # a handler has destroyed the widget
                widget.after(milliseconds, tick)

    def end() -> None:
        nonlocal ended
        ended = True

    widget.after(milliseconds, tick)
    return end


def poll_from_qt(
    host: Poll, parent: Any = None, *, interval: float = INTERVAL, budget: float = BUDGET
) -> Callable[[], None]:
    """Have Qt poll the host every so many seconds; whichever binding the program has imported.

    Args:
        host: What is polled.
        parent: The object that the timer lives as long as; by default as long as what is returned.
        interval: Seconds between two looks.
        budget: As for `Poll.run_pending`.

    Raises:
        RuntimeError: The program has imported no Qt.
    """
    cores = (sys.modules.get(f"{binding}.QtCore") for binding in QT_BINDINGS)
    core: Any = next(filter(None, cores), None)
    if core is None:
        raise RuntimeError(f"import QtCore of one of {', '.join(QT_BINDINGS)} first")
    timer = core.QTimer(parent)
    timer.timeout.connect(lambda: host.run_pending(budget))
    timer.start(max(1, round(interval * 1_000)))

    def end() -> None:
        timer.stop()

    return end


def poll_from_blender(
    host: Poll, *, interval: float = INTERVAL, budget: float = BUDGET
) -> Callable[[], None]:
    """Have Blender poll the host every so many seconds, also when another file is opened."""
    timers = import_module("bpy").app.timers

    def tick() -> float:
        host.run_pending(budget)
        return interval

    def end() -> None:
        if timers.is_registered(tick):
            timers.unregister(tick)

    timers.register(tick, first_interval=interval, persistent=True)
    return end
