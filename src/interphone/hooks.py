"""Hook: a typed moment that user code can attach to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from inspect import iscoroutine
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

__all__ = ["Hook", "Runner", "being_cancelled"]

P = ParamSpec("P")
R = TypeVar("R")


def being_cancelled() -> bool:
    """Whether it is this task that is cancelled, and not something that its handler awaited."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


class Runner(Protocol):
    """Where a hook's coroutines run, and who hears of their failures."""

    def spawn(
        self, coroutine: Coroutine[Any, Any, object], args: tuple[object, ...] = (), /
    ) -> None:
        """Run a coroutine as a task of its own; what it raises is reported with `args`."""
        ...

    def report(self, error: Exception, args: tuple[object, ...], /) -> None:
        """Hear of a handler that raised; `args` are what it was called with."""
        ...

    def placed(
        self, handler: Callable[..., object], *, awaited: bool = True
    ) -> Callable[..., object]:
        """Return what is to be called for a handler: itself, or what has the host run it."""
        ...


class Hook(Generic[P]):
    """A moment. Call it with a handler, or use it as a decorator, to be told of it.

    Handlers that are plain functions run at once, in the order they were registered, or, where
    there is a host, in its thread; coroutines run as tasks. A handler that raises disturbs no
    other.

        @server.on_connect
        async def greet(peer: Peer, payload: object) -> None:
            await peer.send("welcome")

    Attributes:
        calls: What is called for the handlers, in order.
    """

    def __init__(self, runner: Runner, *, awaited: bool = True) -> None:
        self._runner = runner
        self._awaited = awaited  # else nobody waits for a host to run its handlers
        self._handlers: list[tuple[Callable[P, object], Callable[P, object]]] = []
        self.calls: tuple[Callable[P, object], ...] = ()

    def __call__(self, handler: Callable[P, R]) -> Callable[P, R]:
        """Register a handler and return it."""
        self._handlers.append((handler, self._runner.placed(handler, awaited=self._awaited)))
        self._note_calls()
        return handler

    def _note_calls(self) -> None:
        self.calls = tuple([call for _, call in self._handlers])

    def __bool__(self) -> bool:
        """Whether anybody listens."""
        return bool(self._handlers)

    def remove(self, handler: Callable[P, object]) -> None:
        """Take a handler off; raise `ValueError` if it is not registered."""
        for index, (known, _) in enumerate(self._handlers):
            if known == handler:
                del self._handlers[index]
                self._note_calls()
                return
        raise ValueError(f"{handler!r} is not registered")

    def fire(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Tell everybody; coroutines run as tasks."""
        for coroutine in self.start(*args, **kwargs):
            self._runner.spawn(coroutine, args)

    def start(self, *args: P.args, **kwargs: P.kwargs) -> list[Coroutine[Any, Any, object]]:
        """Call the plain handlers; return the coroutines of the others, not started."""
        coroutines: list[Coroutine[Any, Any, object]] = []
        for call in self.calls:
            try:
                result = call(*args, **kwargs)
            except Exception as exc:
                self.report(exc, args)
            else:
                if iscoroutine(result):
                    coroutines.append(result)
        return coroutines

    def report(self, error: Exception, args: tuple[object, ...]) -> None:
        """Tell the runner of a handler that raised."""
        self._runner.report(error, args)

    async def guard(self, coroutine: Coroutine[Any, Any, object], args: tuple[object, ...]) -> None:
        """Await a coroutine that `start` returned; report what it raises."""
        try:
            await coroutine
        except asyncio.CancelledError:
            if being_cancelled():
                raise
            self._runner.report(RuntimeError("the handler was cancelled by somebody else"), args)
        except Exception as exc:
            self._runner.report(exc, args)
