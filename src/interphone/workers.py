"""Workers: a bounded pool of threads that handlers run in.

It is not `concurrent.futures.ThreadPoolExecutor`, because that takes nothing any more as soon as
the program begins to end, and then waits for its threads, for ever. These are daemons: they
serve to the very end, and then have a little time to finish (`exit.py`).
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, TypeVar
from weakref import WeakSet

from .exit import at_exit

__all__ = ["MAX_WORKERS", "Workers", "holdable"]

logger = logging.getLogger("interphone")

R = TypeVar("R")
ErrorT = TypeVar("ErrorT", bound=BaseException)

MAX_WORKERS = 32


def holdable(error: ErrorT) -> ErrorT | RuntimeError:
    """What a Future can hold instead of an error: all but `StopIteration`."""
    if isinstance(error, StopIteration):
        held = RuntimeError("the handler raised StopIteration")
        held.__cause__ = error
        return held
    return error


class Workers:
    """Threads that are started when they are needed, and then wait for more to do.

    Args:
        name: What its threads are called.
        ready: Whether to start the first one now: there may come a time when none can be.
    """

    def __init__(self, name: str, *, limit: int = MAX_WORKERS, ready: bool = False) -> None:
        self._name = name
        self._limit = limit
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._load = _Load()
        self._stopped = False
        if ready:
            self._start_thread()
        _pools.add(self)

    async def run(
        self, function: Callable[..., R], *args: Any, ended: Callable[[], None] | None = None
    ) -> R:
        """Run a function in one of the threads, in a copy of this context.

        `ended` is called when it has ended there, or never begins: a thread is not cancelled.

        Raises:
            RuntimeError: No thread can be started, and there is none.
        """
        loop = asyncio.get_running_loop()
        job = _Job(function, partial(contextvars.copy_context().run, function, *args))
        self._put(job)
        if ended is not None:

            def tell(_: object) -> None:
                with suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(ended)

            job.future.add_done_callback(tell)
        result: R = await asyncio.wrap_future(job.future)
        return result

    def _put(self, job: _Job) -> None:
        if self._stopped:
            raise RuntimeError("the threads for handlers have ended")
        load = self._load
        with load.lock:
            load.jobs += 1
            enough = load.jobs <= load.threads or load.threads >= self._limit
        self._jobs.put(job)
        if enough:
            return
        try:
            self._start_thread()
        except RuntimeError:  # the program is ending, or has all the threads it may have
            if load.threads:
                return  # one of those it has will come to it
            self._jobs.get_nowait()
            load.done()
            if not _lend(job):
                raise

    def _start_thread(self) -> None:
        # It must not know the pool: one that is forgotten ends its threads.
        arguments = (self._jobs, self._load)
        threading.Thread(target=_work, name=self._name, args=arguments, daemon=True).start()
        with self._load.lock:
            self._load.threads += 1

    def take(self, job: _Job) -> bool:
        """Do what another pool has no thread for; return whether there is one here."""
        with self._load.lock:
            if not self._load.threads:
                return False
            self._load.jobs += 1
        self._jobs.put(job)
        return True

    def stop(self) -> None:
        """Begin nothing any more, and end the threads, each when it has done what it does."""
        self._stopped = True
        with self._load.lock:
            self._load.threads = 0
        with suppress(Empty):
            while True:
                job = self._jobs.get_nowait()
                if job is not None:
                    job.future.cancel()
        self._jobs.put(None)

    def __del__(self) -> None:
        self._jobs.put(None)


class _Load:
    """What a pool and its threads know of each other.

    Attributes:
        jobs: Those that wait or run: no thread is idle if there are as many as threads.
        threads: Those that were started.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.jobs = 0
        self.threads = 0

    def done(self) -> None:
        """Note that one has ended."""
        with self.lock:
            self.jobs -= 1


class _Job:
    """A function to be run, and what becomes of it."""

    def __init__(self, function: Callable[..., Any], call: Callable[[], Any]) -> None:
        self.function = function
        self.future: Future[Any] = Future()
        self.pid = os.getpid()
        self._call = call

    def run(self, load: _Load) -> None:
        if not self.future.set_running_or_notify_cancel():
            load.done()
            return
        _running.add(self)
        try:
            result = self._call()
        except BaseException as exc:
            load.done()  # first: whoever hears of it may have more to do
            self.future.set_exception(holdable(exc))
        else:
            load.done()
            self.future.set_result(result)
        finally:
            _running.discard(self)


def _work(jobs: SimpleQueue[_Job | None], load: _Load) -> None:
    while True:
        job = jobs.get()
        if job is None:
            jobs.put(None)  # for the next one
            return
        job.run(load)
        del job  # what it holds may be freed while this waits


_pools: WeakSet[Workers] = WeakSet()
_running: set[_Job] = set()


def _lend(job: _Job) -> bool:
    """Have a thread of another pool do it, because its own has none."""
    return any(pool.take(job) for pool in tuple(_pools))


def _see_out(until: float) -> None:
    """Give what runs the time to end, and name what does not."""
    pid = os.getpid()  # a forked child has none of the threads it remembers
    running = [job for job in tuple(_running) if job.pid == pid]
    wait([job.future for job in running], timeout=max(0.0, until - monotonic()))
    late = sorted({_name(job.function) for job in running if not job.future.done()})
    if late:
        logger.warning("the program ends, although this has not: %s", ", ".join(late))


def _name(function: Any) -> str:
    while (inner := getattr(function, "__wrapped__", getattr(function, "func", None))) is not None:
        function = inner
    name = getattr(function, "__qualname__", None)
    return repr(function) if name is None else f"{function.__module__}.{name}"


at_exit("threads", _see_out)
