"""Threads to test with: they end with the test, and tell what they raised."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

WAIT = 30  # seconds after which a test fails that waits for a thread


class Worker:
    """A function that runs in a thread."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self._result: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(function, args), daemon=True)
        self._thread.start()

    def _run(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        try:
            self._result = function(*args)
        except BaseException as exc:
            self._error = exc

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def result(self) -> Any:
        """Wait for its end; return what it returned, or raise what it raised."""
        self._thread.join(WAIT)
        assert not self._thread.is_alive(), "the thread did not end"
        if self._error is not None:
            raise self._error
        return self._result

    def error(self) -> BaseException | None:
        """Wait for its end; return what it raised."""
        try:
            self.result()
        except Exception as exc:
            return exc
        return None


class Gate:
    """Where one thread waits for another."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def open(self, *_: object) -> None:
        self._event.set()

    @property
    def is_open(self) -> bool:
        return self._event.is_set()

    def wait(self) -> None:
        assert self._event.wait(WAIT), "nobody opened the gate"


class Inbox:
    """What handlers got, for the test to wait for."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Any] = SimpleQueue()

    def put(self, *got: Any) -> None:
        self._queue.put(got[0] if len(got) == 1 else got)

    def next(self) -> Any:
        return self._queue.get(timeout=WAIT)

    @property
    def empty(self) -> bool:
        return self._queue.empty()


@contextmanager
def no_thread_left() -> Iterator[None]:
    """Fail if a thread of interphone's is left."""
    yield
    left = [
        thread for thread in threading.enumerate() if thread.name.startswith("interphone portal")
    ]
    assert not left, f"threads left: {left}"
