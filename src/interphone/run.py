"""Running a program on the fastest event loop there is."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from .loops import loop_factory

__all__ = ["run"]

R = TypeVar("R")


def run(main: Coroutine[Any, Any, R], *, debug: bool | None = None) -> R:
    """Run a coroutine to its end, as `asyncio.run`, on the fastest loop there is.

        interphone.run(main())

    Ctrl-C cancels it, and raises `KeyboardInterrupt` once it has tidied up, as `asyncio.run`
    does; SIGTERM cancels it likewise and ends the process with its code, 143. Either way
    servers are closed, and leave no socket behind.
    """
    with asyncio.Runner(debug=debug, loop_factory=loop_factory()) as runner:
        return runner.run(_until_terminated(main))


async def _until_terminated(main: Coroutine[Any, Any, R]) -> R:
    if threading.current_thread() is not threading.main_thread():
        return await main
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None  # a runner runs tasks
    terminated = False

    def terminate() -> None:
        nonlocal terminated
        terminated = True
        task.cancel()

    try:
        loop.add_signal_handler(signal.SIGTERM, terminate)
    except NotImplementedError:  # Windows: nobody can send it there
        return await main
    try:
        return await main
    except asyncio.CancelledError:
        if terminated:
            raise SystemExit(128 + signal.SIGTERM) from None
        raise
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
