"""Loops: the fastest event loop there is here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["loop_factory"]


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes the fastest loop here: uvloop's where it is installed, else asyncio's."""
    try:
        import uvloop
    except (ImportError, RuntimeError):  # Windows, PyPy, or without it; or the program is ending
        return None
    return uvloop.new_event_loop
