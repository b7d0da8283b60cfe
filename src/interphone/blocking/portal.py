"""Portal: one event loop in a thread of its own, for all blocking ends of a process.

It is started by the first `Server` or `Client` that needs it and stopped by the last. Whoever
calls from another thread waits for a task of the loop in a way that signals can interrupt:
Ctrl-C cancels the task, and is raised once that has tidied up.

A forked child has no such thread, whatever it inherited: it starts one of its own.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextvars
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakKeyDictionary

from ..errors import ConnectionClosed, ForkedError, WrongThread
from ..handlers import MAX_WORKERS
from ..host import Poll
from ..loops import loop_factory

__all__ = ["Mailbox", "Portal", "User", "enter", "leave"]

logger = logging.getLogger("interphone")

R = TypeVar("R")

SLICE = 1.0  # seconds of one wait: where signals do not interrupt a wait, they come between two
HOST_SLICE = 0.01
LAST_WAIT = 2.0  # seconds that the end of the program may take
ENDING = "the background loop has ended"


class User(Protocol):
    """A Server or Client that uses the portal."""

    async def abandon(self) -> None:
        """End, because the program does."""


class Mailbox:
    """What a task of the loop tells the thread that waits for it."""

    def __init__(self, hear: Callable[[Any], object] | None = None) -> None:
        self._hear = hear
        self._letters: SimpleQueue[tuple[bool, Any]] = SimpleQueue()

    def put(self, value: object) -> None:
        """Tell it something, which it hears while it waits."""
        self._letters.put((False, value))

    def close(self, _: object = None) -> None:
        """Tell it that the task is done."""
        self._letters.put((True, None))

    def wait(self, timeout: float) -> bool:
        """Wait for one letter; return whether the task is done."""
        try:
            done, value = self._letters.get(timeout=timeout)
        except Empty:
            return False
        if not done and self._hear is not None:
            self._hear(value)
        return done


class Portal:
    """The loop, its thread, and the threads of the handlers.

    Attributes:
        loop: The loop.
        users: Who needs it.
    """

    def __init__(self) -> None:
        self.loop = (loop_factory() or asyncio.new_event_loop)()
        self.users: set[User] = set()
        self._pid = os.getpid()
        # Not before it is needed: while the program ends, Python has no more of these.
        self._workers: concurrent.futures.ThreadPoolExecutor | None = None
        self._lanes: WeakKeyDictionary[Any, asyncio.Lock] = WeakKeyDictionary()
        self._thread = threading.Thread(target=self._main, name="interphone portal", daemon=True)
        self._thread.start()

    def _main(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
            self._tidy()
        finally:
            asyncio.set_event_loop(None)
            self.loop.close()

    def _tidy(self) -> None:
        while left := asyncio.all_tasks(self.loop):
            for task in left:
                task.cancel()
            self.loop.run_until_complete(asyncio.wait(left, timeout=LAST_WAIT))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())

    @property
    def here(self) -> bool:
        """Whether this is its own thread, which must not wait for itself."""
        return threading.get_ident() == self._thread.ident

    @property
    def inherited(self) -> bool:
        """Whether it belongs to the parent of this process."""
        return os.getpid() != self._pid

    def run(
        self,
        start: Callable[[], Coroutine[Any, Any, R]],
        *,
        mailbox: Mailbox | None = None,
        late: Callable[[R], object] | None = None,
        host: Poll | None = None,
    ) -> R:
        """Run a coroutine function on the loop and wait for its result, in a copy of this context.

        Whatever interrupts the waiting cancels it, and is raised when it has ended.

        Args:
            start: What is run.
            mailbox: Where it says something before it is done.
            late: Is given a result that came although the waiting was interrupted.
            host: Polled meanwhile if this is its thread.

        Raises:
            WrongThread: This is the loop's thread.
            ForkedError: The loop belongs to the parent of this process.
        """
        mailbox = Mailbox() if mailbox is None else mailbox
        task = _Task(start, mailbox)
        try:
            self._begin(task)
            self._wait(mailbox, host)
            return task.result()
        except BaseException:
            self._end(task, mailbox)
            if late is not None and task.succeeded:
                late(task.result())
            raise

    def _begin(self, task: _Task[Any]) -> None:
        self._check_caller()
        try:
            self.loop.call_soon_threadsafe(task.start)
        except RuntimeError:
            raise ConnectionClosed(ENDING, delivery="not_sent") from None
        task.begun = True

    def _end(self, task: _Task[Any], mailbox: Mailbox) -> None:
        """See to it that a task runs no more; it may be done, or not even begun."""
        if task.done:
            return
        task.unwanted = True
        with suppress(RuntimeError):  # the loop has ended meanwhile
            self.loop.call_soon_threadsafe(task.cancel)
            while task.begun and not task.done and self._thread.is_alive():
                mailbox.wait(SLICE)

    def _check_caller(self) -> None:
        if self.inherited:
            raise ForkedError("it belongs to the parent process: make a new one after fork")
        if self.here:
            raise WrongThread(
                "a handler on the loop's own thread, as on='inline', cannot wait for the loop"
            )

    def _wait(self, mailbox: Mailbox, host: Poll | None) -> None:
        if host is None or not host.here:
            while not mailbox.wait(SLICE):
                if not self._thread.is_alive():
                    raise ConnectionClosed(ENDING, delivery="maybe_sent")
        else:
            while not mailbox.wait(HOST_SLICE):
                host.run_pending()

    def call(self, function: Callable[..., R], *args: Any) -> R:
        """Run a plain function on the loop and wait for its result; on the loop, just call it."""
        if self.here:
            return function(*args)

        async def called() -> R:
            return function(*args)

        return self.run(called)

    # On the loop: handlers

    async def in_worker(self, function: Callable[..., R], *args: Any) -> R:
        """Run a function in one of the threads for handlers, in a copy of this context."""
        if self._workers is None:
            self._workers = concurrent.futures.ThreadPoolExecutor(
                MAX_WORKERS, thread_name_prefix="interphone handler"
            )
        call = partial(contextvars.copy_context().run, function, *args)
        return await self.loop.run_in_executor(self._workers, _without_stop, call)

    async def in_turn(self, lane: object, function: Callable[..., R], *args: Any) -> R:
        """The same after those before it in the same lane, one at a time."""
        lock = self._lanes.setdefault(lane, asyncio.Lock())
        async with lock:
            return await self.in_worker(function, *args)

    def pulled(self, items: Iterable[object]) -> Iterable[object] | AsyncIterator[object]:
        """Return what the loop can iterate without being blocked by the items."""
        return items if isinstance(items, list | tuple) else self._pull(items)

    async def _pull(self, items: Iterable[object]) -> AsyncIterator[object]:
        iterator = await self.in_worker(iter, items)
        try:
            while (item := await self.in_worker(next, iterator, _END)) is not _END:
                yield item
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                await self.in_worker(close)

    # The end

    def stop(self) -> None:
        """End the loop; wait for its thread, unless this is it."""
        with suppress(RuntimeError):  # it has ended already
            self.loop.call_soon_threadsafe(self.loop.stop)
        if not self.here:
            self._thread.join(LAST_WAIT)
        if self._workers is not None:
            self._workers.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """End everything that uses it: the program is over."""
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self._abandon)
        self._thread.join(LAST_WAIT)
        if self._workers is not None:
            self._workers.shutdown(wait=False, cancel_futures=True)

    def _abandon(self) -> None:
        async def abandon() -> None:
            ends = [user.abandon() for user in self.users]
            for ended in await asyncio.gather(*ends, return_exceptions=True):
                if isinstance(ended, Exception):
                    logger.error("an end could not be closed at exit", exc_info=ended)
            self.loop.stop()

        self._abandoning = self.loop.create_task(abandon())


_END = object()


async def _called(start: Callable[[], Coroutine[Any, Any, R]]) -> R:
    return await start()  # what it raises before it is a coroutine is its caller's, too


def _without_stop(call: Callable[[], R]) -> R:
    try:
        return call()
    except StopIteration as exc:  # a Future cannot hold it
        raise RuntimeError("the handler raised StopIteration") from exc


class _Task(Generic[R]):
    """A coroutine that another thread waits for.

    Attributes:
        begun: Whether the loop was asked to run it.
        unwanted: Whether nobody waits for it any more.
    """

    def __init__(self, start: Callable[[], Coroutine[Any, Any, R]], mailbox: Mailbox) -> None:
        self.begun = self.unwanted = False
        self._start = start
        self._mailbox = mailbox
        self._task: asyncio.Task[R] | None = None

    def start(self) -> None:
        """Begin, on the loop."""
        if not self.unwanted:
            self._task = asyncio.get_running_loop().create_task(_called(self._start))
            self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[R]) -> None:
        task.cancelled() or task.exception()  # who was interrupted does not look
        self._mailbox.close()

    def cancel(self) -> None:
        """End it, on the loop."""
        if self._task is None:
            self._mailbox.close()
        else:
            self._task.cancel()

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self._task.done() if self._task is not None else self.unwanted

    @property
    def succeeded(self) -> bool:
        """Whether it has ended with a result."""
        task = self._task
        return task is not None and task.done() and not (task.cancelled() or task.exception())

    def result(self) -> R:
        """Return its result, or raise what it raised."""
        assert self._task is not None  # it is done
        try:
            return self._task.result()
        except asyncio.CancelledError:
            raise ConnectionClosed(ENDING, delivery="maybe_sent") from None


# The portal of this process


class _Present:
    """The portal of one process, if there is one, and the lock that guards it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.portal: Portal | None = None


_presents: dict[int, _Present] = {}  # by process: a child must not trust what it inherited


def _present() -> _Present:
    return _presents.setdefault(os.getpid(), _Present())


def enter(user: User) -> Portal:
    """Return the portal, which lives until every user has left; start it if need be."""
    present = _present()
    with present.lock:
        if present.portal is None:
            present.portal = Portal()
            atexit.register(_exit, present)
        present.portal.users.add(user)
        return present.portal


def leave(user: User) -> None:
    """Need the portal no more. The last one to leave stops it."""
    present = _present()
    with present.lock:
        portal = present.portal
        if portal is None or user not in portal.users:
            return
        portal.users.discard(user)
        if portal.users:
            return
        present.portal = None
        atexit.unregister(_exit)
    portal.stop()


def _exit(present: _Present) -> None:
    portal = present.portal
    if portal is not None and not portal.inherited:
        portal.close()
