"""Portal: one event loop in a thread of its own, for all blocking ends of a process.

It is started by the first `Server` or `Client` that needs it and stopped by the last. Whoever
calls from another thread waits for a task of the loop in a way that signals can interrupt:
Ctrl-C cancels the task, and is raised once that has tidied up.

A forked child has no such thread, whatever it inherited: it starts one of its own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import suppress
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakKeyDictionary

from ..errors import ConnectionClosed, ForkedError, LocalProtocolError, WrongThread
from ..exit import at_exit
from ..host import Poll
from ..loops import loop_factory
from ..workers import Workers

__all__ = ["Mailbox", "Portal", "User", "enter", "leave"]

logger = logging.getLogger("interphone")

R = TypeVar("R")

SLICE = 1.0  # seconds of one wait: where signals do not interrupt a wait, they come between two
HOST_SLICE = 0.01
LAST_WAIT = 2.0  # seconds that the end of the loop may take
LAST_GRACE = 1.0  # seconds that handlers have at the end of the program
ENDING = "the background loop has ended"


class User(Protocol):
    """A Server or Client that uses the portal."""

    async def abandon(self, grace: float) -> None:
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
        users: Who needs it, and whose thread their handlers run in, if that is a host's.

    Raises:
        LocalProtocolError: There can be no thread, as at the end of a program on Python 3.12.
    """

    def __init__(self) -> None:
        self.loop = (loop_factory() or asyncio.new_event_loop)()
        self.users: dict[User, Poll | None] = {}
        self._pid = os.getpid()
        self._lanes: WeakKeyDictionary[Any, asyncio.Lock] = WeakKeyDictionary()
        self._thread = threading.Thread(target=self._main, name="interphone portal", daemon=True)
        try:
            self._workers = Workers("interphone handler", ready=True)
            self._thread.start()
        except RuntimeError as exc:
            self.loop.close()
            raise LocalProtocolError(f"the background loop cannot begin: {exc}") from exc

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
        return await self._workers.run(function, *args)

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
        self._workers.stop()

    def close(self, until: float) -> None:
        """Close everything that uses it: the program is over.

        Handlers of a host whose thread this is are run meanwhile.
        """
        users = dict(self.users)
        hosts = {host for host in users.values() if host is not None and host.here}
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self._abandon, users)
        while self._thread.is_alive() and (left := until - monotonic()) > 0:
            self._thread.join(min(left, HOST_SLICE) if hosts else left)
            for host in hosts:
                host.run_pending()
        if self._thread.is_alive():
            logger.warning("the program ends, although these are not closed: %s", [*users])
        self._workers.stop()

    def _abandon(self, users: Iterable[User]) -> None:
        async def abandon() -> None:
            ends = [user.abandon(LAST_GRACE) for user in users]
            for ended in await asyncio.gather(*ends, return_exceptions=True):
                if isinstance(ended, Exception):
                    logger.error("an end could not be closed at exit", exc_info=ended)
            self.loop.stop()

        self._abandoning = self.loop.create_task(abandon())


_END = object()


async def _called(start: Callable[[], Coroutine[Any, Any, R]]) -> R:
    return await start()  # what it raises before it is a coroutine is its caller's, too


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


def enter(user: User, host: Poll | None = None) -> Portal:
    """Return the portal, which lives until every user has left; start it if need be."""
    present = _present()
    with present.lock:
        if present.portal is None:
            present.portal = Portal()
        present.portal.users[user] = host
        return present.portal


def leave(user: User) -> None:
    """Need the portal no more. The last one to leave stops it."""
    present = _present()
    with present.lock:
        portal = present.portal
        if portal is None or user not in portal.users:
            return
        del portal.users[user]
        if portal.users:
            return
        present.portal = None
    portal.stop()


def _exit(until: float) -> None:
    portal = _present().portal
    if portal is not None:
        portal.close(until)


at_exit("portal", _exit)
