"""Exit: what is still open or at work when the program ends, and is ended then.

Python ends a program in this order:

1. Threads that are no daemons are waited for; pools of `concurrent.futures` are shut down just
   before. From here on Python 3.12 starts no thread any more.
2. The functions given to `atexit` are called, the last one first.
3. Daemons stop wherever they are.

So our threads are daemons, and one function that `atexit` is given when this module is imported
ends them. What a program gives later is called before it, and finds everything at work.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Literal

__all__ = ["PATIENCE", "at_exit"]

PATIENCE = 3.0  # seconds that all of it may take

Part = Literal["clients", "portal", "threads"]

# In this order: a client that nobody drives would keep its server waiting for its goodbye, and
# the threads run handlers of the goodbye.
_ends: dict[Part, Callable[[float], object] | None] = {
    "clients": None,
    "portal": None,
    "threads": None,
}


def at_exit(part: Part, end: Callable[[float], object]) -> None:
    """Have a part ended when the program is; it is told when that must be over, monotonic."""
    _ends[part] = end


def _exit() -> None:
    until = monotonic() + PATIENCE
    with suppress(KeyboardInterrupt):  # who has no patience ends it at once
        for end in _ends.values():
            if end is not None:
                end(until)


atexit.register(_exit)
