"""Lines: input that is read line by line, while other things go on."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from contextlib import suppress

from .ending import Misuse
from .output import escape

__all__ = ["lines_of"]

AHEAD = 64  # lines that are read ahead
CHUNK = 64 * 1024


async def lines_of(where: str) -> AsyncIterator[bytes]:
    """Yield the lines of '-', which is stdin, or of '@file', without their ends; no empty ones."""
    try:
        fd = 0 if where == "-" else os.open(where[1:], os.O_RDONLY)
    except OSError as exc:
        raise Misuse(f"cannot read {escape(where[1:])}: {exc.strerror}") from exc
    reader = _Reader(fd)
    try:
        while (line := await reader.next()) is not None:
            if isinstance(line, OSError):
                name = "stdin" if where == "-" else escape(where[1:])
                raise Misuse(f"cannot read {name}: {line.strerror}")
            if line := line.removesuffix(b"\r"):  # as Windows ends lines
                yield line
    finally:
        reader.close()


class _Reader:
    """Reads in a thread of its own, which nobody waits for: a terminal may stay silent for ever."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[bytes | OSError | None] = asyncio.Queue()
        self._room = threading.Semaphore(AHEAD)
        self._closed = False
        threading.Thread(target=self._read, name="interphone input", daemon=True).start()

    async def next(self) -> bytes | OSError | None:
        """The next line, or why there is none; None at the end."""
        line = await self._queue.get()
        self._room.release()
        return line

    def close(self) -> None:
        """Read no more."""
        self._closed = True
        self._room.release()

    def _read(self) -> None:
        rest = b""
        try:
            # Not sys.stdin: a thread that waits in there keeps the interpreter from ending.
            while not self._closed and (data := os.read(self._fd, CHUNK)):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._put(line)
        except OSError as exc:  # a directory, say
            self._put(exc)
        if rest:
            self._put(rest)
        self._put(None)
        if self._fd:
            os.close(self._fd)

    def _put(self, line: bytes | OSError | None) -> None:
        self._room.acquire()
        if not self._closed:
            with suppress(RuntimeError):  # the loop has ended meanwhile
                self._loop.call_soon_threadsafe(self._queue.put_nowait, line)
