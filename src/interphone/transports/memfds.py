"""Memory that two processes of one user share: a memfd of the one, mapped by the other to read.

The one who made it names its descriptor, and the other opens that by way of ``/proc``, of the
process that the kernel says is at the other end. So nothing but bytes goes over the socket, and
what the system refuses (seccomp, another pid namespace, a process that may not be looked into)
is no more than memory that is not to be had.

The other end is not believed. It could shrink what it made, and whoever reads behind the end of
a file is killed by SIGBUS: so the memory must be sealed against that, and be what it says it is.
That it is written while it is read cannot be prevented: see `interphone.protocol.pool`.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from ..protocol.pool import KEY_SIZE, Made

assert sys.platform == "linux"

__all__ = ["SharedMemory"]

NO_EXEC = 0x0008  # MFD_NOEXEC_SEAL, of Linux 6.3
FUTURE_WRITE = 0x0010  # F_SEAL_FUTURE_WRITE, of Linux 5.1: who opens it later cannot write it
FIXED = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class SharedMemory:
    """What can be shared with the process at the other end of a connection.

    Attributes:
        guard: Held while a block is taken.
        tell: Is called when there is something to return.
    """

    __slots__ = ("_pid", "guard", "tell")

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.guard: AbstractContextManager[Any] = threading.RLock()
        self.tell: Callable[[], None] | None = None

    def make(self, size: int) -> Made | None:
        """Make memory that the other end can open; None if the system refuses."""
        try:
            fd = _memfd()
        except OSError:
            return None
        try:
            os.ftruncate(fd, size)
            view = memoryview(_map(fd, size, mmap.PROT_READ | mmap.PROT_WRITE))
            _seal(fd)
            key = os.urandom(KEY_SIZE)
            return Made(view, fd, os.fstat(fd).st_ino, key, partial(os.close, fd))
        except (OSError, ValueError, OverflowError, MemoryError):
            os.close(fd)
            return None

    def open(self, fd: int, inode: int, size: int, most: int) -> memoryview | None:
        """Map what the other end made, to read, up to `most` bytes; None if that cannot be."""
        try:
            own = _open_memfd(f"/proc/{self._pid}/fd/{fd}", inode, size)
        except (OSError, ValueError, OverflowError):
            return None
        try:
            mapped = min(size, most) // mmap.PAGESIZE * mmap.PAGESIZE
            return memoryview(_map(own, mapped, mmap.PROT_READ)) if mapped else None
        except (OSError, ValueError, OverflowError, MemoryError):
            return None
        finally:
            os.close(own)


def _memfd() -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("interphone", flags | NO_EXEC)
    except OSError:
        return os.memfd_create("interphone", flags)  # an older kernel


def _seal(fd: int) -> None:
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, FIXED | FUTURE_WRITE)
    except OSError:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, FIXED)  # an older kernel


def _map(fd: int, size: int, access: int) -> mmap.mmap:
    if sys.version_info >= (3, 13):
        return mmap.mmap(fd, size, mmap.MAP_SHARED, access, trackfd=False)
    return mmap.mmap(fd, size, mmap.MAP_SHARED, access)  # it keeps a descriptor of its own


def _open_memfd(path: str, inode: int, size: int) -> int:
    """Open a descriptor of another process; raise `OSError` unless it is memory of fixed size."""
    if not _fits(os.stat(path), inode, size):  # opening what it might be could wait, or do harm
        raise OSError("it is not what was told")
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)  # fails for what is no memory
        # Huge pages may be missing when they are first read, which kills as well.
        huge = os.fstatvfs(fd).f_bsize != mmap.PAGESIZE
        if not _fits(os.fstat(fd), inode, size) or seals & FIXED != FIXED or huge:
            raise OSError("it is no sealed memory")
    except BaseException:
        os.close(fd)
        raise
    return fd


def _fits(found: os.stat_result, inode: int, size: int) -> bool:
    return (
        stat.S_ISREG(found.st_mode)
        and found.st_ino == inode
        and found.st_size == size
        and found.st_uid == os.geteuid()
    )
