"""Loops: the fastest event loop there is here."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

__all__ = ["loop_factory"]


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes the fastest loop here: uvloop's where it is installed, else asyncio's."""
    if sys.platform == "win32":
        return None
    try:
        import uvloop
    except (ImportError, RuntimeError):  # PyPy, or an installation without it, or the end has begun
        return None
    return uvloop.new_event_loop
