"""Memory that two processes of one user share on Windows: what Windows calls a section.

The one who made it tells a random number, of which its name is made, and the other opens that,
to read. What cannot be opened (another session, another integrity level) is memory that is not
to be had. It lives until the last of the two lets go of it, so nothing is left behind.

The other end is not believed, as in `memfds`. It cannot take away what is mapped: a section
does not shrink. But it must all be there: what is only reserved kills whoever reads it.
"""

from __future__ import annotations

import mmap
import os
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from ..protocol.pool import KEY_SIZE, Made

if sys.platform == "win32":
    import _winapi

    from .windows import is_committed

assert sys.platform == "win32"

__all__ = ["SharedMemory"]


class SharedMemory:
    """What can be shared with the process at the other end of a connection.

    Attributes:
        guard: Held while a block is taken.
        tell: Is called when there is something to return.
    """

    __slots__ = ("guard", "tell")

    def __init__(self) -> None:
        self.guard: AbstractContextManager[Any] = threading.RLock()
        self.tell: Callable[[], None] | None = None

    def make(self, size: int) -> Made | None:
        """Make memory that the other end can open; None if the system refuses."""
        number = int.from_bytes(os.urandom(8)) >> 1
        try:
            view = memoryview(mmap.mmap(-1, size, tagname=_name(number)))
        except (OSError, ValueError, OverflowError, MemoryError):
            return None
        return Made(view, 0, number, os.urandom(KEY_SIZE), _nothing)

    def open(self, fd: int, inode: int, size: int, most: int) -> memoryview | None:
        """Map what the other end made, to read, up to `most` bytes; None if that cannot be."""
        name, mapped = _name(inode), min(size, most) // mmap.PAGESIZE * mmap.PAGESIZE
        try:
            # Or else, if there is none, one would be made now, and be read as zeros.
            section = _winapi.OpenFileMapping(_winapi.FILE_MAP_READ, False, name)
        except (OSError, ValueError):
            return None
        try:
            if not mapped or not is_committed(section, mapped):
                return None
            return memoryview(mmap.mmap(-1, mapped, tagname=name, access=mmap.ACCESS_READ))
        except (OSError, ValueError, OverflowError, MemoryError):
            return None
        finally:
            _winapi.CloseHandle(section)


def _name(number: int) -> str:
    return f"Local\\interphone-{number:016x}"


def _nothing() -> None:
    """The section has no descriptor besides its mapping."""
