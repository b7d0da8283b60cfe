"""Running a program on the fastest event loop there is."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["loop_factory", "run"]

R = TypeVar("R")


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes the fastest loop here: uvloop's where it is installed, else asyncio's."""
    if sys.platform == "win32":
        return None
    try:
        import uvloop
    except ImportError:  # PyPy, or an installation without it
        return None
    return uvloop.new_event_loop


def run(main: Coroutine[Any, Any, R], *, debug: bool | None = None) -> R:
    """Run a coroutine to its end, as `asyncio.run`, on the fastest loop there is.

    interphone.run(main())
    """
    with asyncio.Runner(debug=debug, loop_factory=loop_factory()) as runner:
        return runner.run(main)
