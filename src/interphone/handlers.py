"""Handlers: where user code runs, and what becomes of what it raises.

`Tasks` owns the tasks and the worker threads that one Server or Client runs its handlers
in. A `Handler` is a function with the place it runs in, decided once, when it is
registered. A `Chain` asks its handlers in turn until one of them answers.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from queue import SimpleQueue
from threading import Thread
from types import CoroutineType
from typing import Any, Final, Generic, Literal, ParamSpec, TypeVar, overload

from .errors import InterphoneError
from .hooks import Hook
from .host import Poll
from .workers import Workers, holdable

__all__ = [
    "PASS",
    "Chain",
    "Handler",
    "Handlers",
    "Place",
    "Tasks",
    "check_host",
    "handling",
    "log_error",
    "log_raised",
    "set_handling",
]

logger = logging.getLogger("interphone")

P = ParamSpec("P")
R = TypeVar("R")

Place = Literal["loop", "thread", "inline", "host"]
"""Where a handler runs: a coroutine on the loop, a function in a worker thread, a function on the
loop's own thread, which must not block, or a function in the thread of the host (`Poll`)."""


_handling: ContextVar[asyncio.Task[Any] | None] = ContextVar("interphone_handling", default=None)


def set_handling(task: asyncio.Task[Any] | None) -> None:
    """Note that this task, and what it starts, is a handler's."""
    _handling.set(task)


def handling() -> asyncio.Task[Any] | None:
    """The task of the handler that this is called from, also by a task it has started itself.

    ``wait_for`` and ``gather`` run what they are given in tasks of their own.
    """
    task = _handling.get()
    return asyncio.current_task() if task is None or task.done() else task


def log_error(error: Exception, where: object) -> None:
    """Log it, once: user code's with its traceback, our own with a sentence."""
    if isinstance(error, InterphoneError):
        logger.warning("%r: %s", where, error)
    else:
        log_raised(error, where)


def log_raised(error: Exception, where: object) -> None:
    """Log what a handler raised, whatever it is, with its traceback."""
    logger.error("%r: a handler raised", where, exc_info=error)


class _Pass:
    def __repr__(self) -> str:
        return "PASS"


PASS: Final = _Pass()
"""What an `on_request` handler returns to leave the request to the next one."""


class Tasks:
    """The tasks and threads of one Server or Client, and the host's thread, if there is one."""

    def __init__(
        self, report: Callable[[Exception, tuple[object, ...]], None], host: Poll | None = None
    ) -> None:
        self.report = report
        self.host = host
        self._tasks: set[asyncio.Task[Any]] = set()
        self._farewells: set[asyncio.Task[Any]] = set()
        self._workers: Workers | None = None

    def spawn(self, coroutine: Coroutine[Any, Any, object], args: tuple[object, ...] = ()) -> None:
        """Run a coroutine as a task; what it raises is reported with `args`.

        Its first step runs at once where Python can do that.
        """

        def ended(task: asyncio.Task[object]) -> None:
            if not task.cancelled() and isinstance(error := task.exception(), Exception):
                self.report(error, args)

        task = self.start(coroutine)
        if task.done():
            ended(task)
        else:
            task.add_done_callback(ended)

    def begin(
        self, coroutine: Coroutine[Any, Any, R], then: Callable[[asyncio.Task[R]], None]
    ) -> asyncio.Task[R]:
        """Run a coroutine as a task and return it; `then` is called at its end, and tells `ended`.

        One callback for both: each costs a handle and a step of the loop.
        """
        task = _start(coroutine)
        if task.done():
            then(task)
        else:
            self._tasks.add(task)
            task.add_done_callback(then)
        return task

    def ended(self, task: asyncio.Task[Any]) -> None:
        """Note the end of a task that has begun."""
        self._tasks.discard(task)

    def start(self, coroutine: Coroutine[Any, Any, R]) -> asyncio.Task[R]:
        """Run a coroutine as a task and return it; its end is the caller's business."""
        task = _start(coroutine)
        if not task.done():
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return task

    def see_out(self, coroutine: Coroutine[Any, Any, object]) -> None:
        """Run a coroutine that `close` waits for without cancelling it: an `on_close`."""
        task = _start(coroutine)
        if not task.done():
            self._farewells.add(task)
            task.add_done_callback(self._farewells.discard)

    async def in_thread(
        self, function: Callable[..., R], *args: Any, ended: Callable[[], None] | None = None
    ) -> R:
        """Run a function in a worker thread, in a copy of this context.

        `ended` is called when it has ended there, or never begins: a thread is not cancelled.
        """
        if self._workers is None:
            self._workers = Workers("interphone handler")
        return await self._workers.run(function, *args, ended=ended)

    async def alone(self, function: Callable[[], R]) -> R:
        """Run a function in a thread of its own: one that may take as long as a stream."""
        loop, context = asyncio.get_running_loop(), contextvars.copy_context()
        answer: asyncio.Future[Any] = loop.create_future()

        def run() -> None:
            try:
                result = context.run(function)
            except BaseException as exc:
                tell(_fail, holdable(exc))
            else:
                tell(_settle, result)

        def tell(how: Callable[..., None], what: object) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody is left to be told
                loop.call_soon_threadsafe(how, answer, what)

        Thread(target=run, name="interphone stream", daemon=True).start()
        result: R = await answer
        return result

    async def in_own_thread(
        self, function: Callable[[], Generator[Any, Any, Any]]
    ) -> AsyncGenerator[Any, None]:
        """Yield what a generator function yields; it runs in one thread from begin to end.

        A thread of its own: streams live long, and would take the workers from the others.
        """
        asked: SimpleQueue[asyncio.Future[Any] | None] = SimpleQueue()
        loop, context = asyncio.get_running_loop(), contextvars.copy_context()
        pump = _Pump(function, asked, loop, self.report)
        Thread(target=context.run, args=(pump.run,), name="interphone stream", daemon=True).start()
        try:
            while True:
                answer = loop.create_future()
                asked.put(answer)
                item = await answer
                if item is _END:
                    return
                yield item
        finally:
            asked.put(None)

    async def on_host(self, function: Callable[..., R], *args: Any) -> R:
        """Run a function in the host's thread."""
        assert self.host is not None  # without it nothing is registered for it
        return await self.host.call(function, *args)

    async def on_host_each(
        self, function: Callable[[], Generator[Any, Any, Any]]
    ) -> AsyncGenerator[Any, None]:
        """Yield what a generator function yields; the host has a turn between two items."""
        assert self.host is not None
        generator = await self.on_host(function)
        try:
            while (item := await self.on_host(next, generator, _END)) is not _END:
                yield item
        finally:
            self.host.post(generator.close, report=partial(log_raised, where=self.host))

    def placed(
        self, handler: Callable[..., object], *, awaited: bool = True
    ) -> Callable[..., object]:
        """Return what is to be called for the handler of a hook or topic.

        A coroutine function is called itself. A plain one is, too, unless there is a host:
        then it returns a coroutine that has the host run it, or, not `awaited`, nothing.
        """
        if self.host is None or _waits(handler):
            return handler
        if awaited:
            return partial(self._hear_on_host, handler)
        return partial(self.host.post, handler, report=partial(log_raised, where=self.host))

    async def _hear_on_host(self, handler: Callable[..., object], *args: object) -> None:
        result = await self.on_host(handler, *args)
        if isinstance(result, CoroutineType):
            await result

    async def close(self, grace: float) -> None:
        """Give what runs `grace` seconds to end, then cancel it; end the threads."""
        mine = {asyncio.current_task(), handling()}
        running = self._tasks - mine
        if running and grace > 0:
            try:
                await asyncio.wait(running, timeout=grace)
            except asyncio.CancelledError:
                for task in running:
                    task.cancel()
                raise
        while running := self._tasks - mine:
            for task in running:
                task.cancel()
            _, stubborn = await asyncio.wait(running, timeout=1)
            if stubborn:
                logger.warning("%d handlers ignore that they are cancelled", len(stubborn))
                break
        while farewells := self._farewells - mine:
            await asyncio.wait(farewells)
        if self._workers is not None:
            self._workers.stop()
            self._workers = None


if sys.version_info >= (3, 12):

    def _start(coroutine: Coroutine[Any, Any, R]) -> asyncio.Task[R]:
        # Eager: 0.7 µs instead of 5 where the coroutine never waits (house.md 2.1).
        return asyncio.Task(coroutine, loop=asyncio.get_running_loop(), eager_start=True)

else:

    def _start(coroutine: Coroutine[Any, Any, R]) -> asyncio.Task[R]:
        return asyncio.get_running_loop().create_task(coroutine)


_END = object()


class _Pump:
    """The thread side of `Tasks.in_own_thread`: one item for each time it is asked."""

    def __init__(
        self,
        function: Callable[[], Generator[Any, Any, Any]],
        asked: SimpleQueue[asyncio.Future[Any] | None],
        loop: asyncio.AbstractEventLoop,
        report: Callable[[Exception, tuple[object, ...]], None],
    ) -> None:
        self._function = function
        self._asked = asked
        self._loop = loop
        self._report = report

    def run(self) -> None:
        generator = None
        while (answer := self._asked.get()) is not None:
            try:
                generator = generator or self._function()
                item = next(generator, _END)
            except BaseException as exc:
                self._tell(_fail, answer, exc)
                return
            self._tell(_settle, answer, item)
            if item is _END:
                return
        try:
            if generator is not None:
                generator.close()
        except Exception as exc:
            self._tell(self._report, exc, ())

    def _tell(self, what: Callable[..., object], *args: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            self._loop.call_soon_threadsafe(what, *args)


def _settle(answer: asyncio.Future[Any], item: object) -> None:
    if not answer.done():
        answer.set_result(item)


def _fail(answer: asyncio.Future[Any], error: BaseException) -> None:
    if not answer.done():
        answer.set_exception(error)


class Handler:
    """A function and the place it runs in."""

    __slots__ = ("function", "inline", "place")

    def __init__(
        self, function: Callable[..., object], on: Place | None = None, *, hosted: bool = False
    ) -> None:
        waits = _waits(function)
        place = on or ("loop" if waits else "host" if hosted else "thread")
        if waits and place != "loop":
            raise ValueError(
                f"{function!r} is a coroutine function: it runs on the loop, not {place!r}"
            )
        if not waits and place == "loop":
            raise ValueError(f"{function!r} is a plain function: run it on a 'thread' or 'inline'")
        check_host(place, hosted=hosted)
        self.function = function
        self.place = place
        self.inline = place == "inline"

    async def run(self, tasks: Tasks, args: Sequence[Any], kwargs: Mapping[str, Any]) -> object:
        """Call the function where it runs, and await what it returns."""
        if self.place == "thread":
            return await tasks.in_thread(partial(self.function, *args, **kwargs))
        if self.place == "host":
            return await tasks.on_host(partial(self.function, *args, **kwargs))
        result: Any = self.function(*args, **kwargs)
        return await result if isinstance(result, CoroutineType) else result

    def iterate(
        self, tasks: Tasks, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> AsyncGenerator[Any, None]:
        """Call the function, which is a generator of some kind, and yield what it yields."""
        call = partial(self.function, *args, **kwargs)
        if self.place == "thread":
            return tasks.in_own_thread(call)  # type: ignore[arg-type]  # it was looked at
        if self.place == "host":
            return tasks.on_host_each(call)  # type: ignore[arg-type]  # it was looked at
        made: Any = call()
        return _as_async(made) if inspect.isgenerator(made) else made


def check_host(place: Place | None, *, hosted: bool) -> None:
    """Raise `ValueError` if something is to run in the thread of a host that is not there."""
    if place == "host" and not hosted:
        raise ValueError("on='host' needs a host: make the Server or Client with host=Poll()")


async def _as_async(generator: Generator[Any, Any, Any]) -> AsyncGenerator[Any, None]:
    try:
        for item in generator:
            yield item
    finally:
        generator.close()


def _waits(function: object) -> bool:
    while hasattr(function, "func"):  # functools.partial
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004  the method itself is looked at
    )


class Chain(Generic[P]):
    """Handlers that are asked in turn; the first result that is not `PASS` is the answer.

    Use it as a decorator: ``@server.on_request``, or ``@server.on_request(on="inline")``.
    A coroutine runs on the loop; a plain function runs in a worker thread, or in the host's
    where there is one, unless it says ``on="inline"`` and never blocks. None is an answer.
    """

    def __init__(self, *, hosted: bool = False) -> None:
        self.handlers: tuple[Handler, ...] = ()
        self._hosted = hosted

    @overload
    def __call__(self, handler: Callable[P, R], /) -> Callable[P, R]: ...
    @overload
    def __call__(
        self, /, *, on: Place | None = None
    ) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
    def __call__(self, handler: Any = None, /, *, on: Place | None = None) -> Any:
        """Register a handler and return it."""
        if handler is None:
            return lambda function: self._add(function, on)
        return self._add(handler, on)

    def _add(self, function: Callable[P, R], on: Place | None) -> Callable[P, R]:
        self.handlers += (Handler(function, on, hosted=self._hosted),)
        return function

    def __bool__(self) -> bool:
        """Whether anybody answers."""
        return bool(self.handlers)

    def remove(self, handler: Callable[P, object]) -> None:
        """Take a handler off; raise `ValueError` if it is not registered."""
        for index, known in enumerate(self.handlers):
            if known.function == handler:
                self.handlers = self.handlers[:index] + self.handlers[index + 1 :]
                return
        raise ValueError(f"{handler!r} is not registered")

    async def answer(self, tasks: Tasks, args: tuple[Any, ...], *, asked: int = 0) -> object:
        """Ask the handlers in turn, but for those `asked` already; `PASS` if none answers."""
        for handler in self.handlers[asked:]:
            result: Any
            if handler.place == "loop" or handler.inline:
                result = handler.function(*args)  # not by `run`: a coroutine less
                if isinstance(result, CoroutineType):
                    result = await result
            else:
                result = await handler.run(tasks, args, {})
            if isinstance(result, CoroutineType):  # a function in a thread returned it
                result = await result
            if result is not PASS:
                return result
        return PASS


class Handlers:
    """What a Server or Client does about what its peers say; shared by all its peers.

    Attributes:
        told: Whether handlers are given the peer as their first argument.
        builtins: Methods that the library itself answers, for ends of the same user: how each
            is made, which takes as long as ten requests.
    """

    def __init__(
        self,
        *,
        tasks: Tasks,
        on_message: Hook[...],
        on_request: Chain[...],
        methods: Any,
        errors: Any,
        told: bool,
    ) -> None:
        self.tasks = tasks
        self.on_message = on_message
        self.on_request = on_request
        self.methods = methods  # a Methods, which is made of Handlers
        self.errors = errors  # a Declared, which knows methods
        self.builtins: Mapping[str, Callable[[], Any]] = {}
        self._built: dict[str, Any] = {}
        self.running: dict[str, int] = {}  # how often each method runs, for whomever
        self.told = told

    def builtin(self, name: str) -> Any:
        """Return a method of the library's own, which is made when it is first called."""
        if name not in self._built:
            self._built[name] = self.builtins[name]()
        return self._built[name]
