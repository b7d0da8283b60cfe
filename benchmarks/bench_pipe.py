r"""Clients that connect to a named pipe at once, against asyncio's own pipe server and client.

For Windows: `make bench` runs it there. Each client connects, says one byte, hears one
and leaves; everything runs in this process.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from harness import compare

from interphone.transports import connect, listen

if sys.platform == "win32":
    from interphone.address import PipeAddress

assert sys.platform == "win32", "named pipes are a thing of Windows"

numbers = itertools.count()


class End(asyncio.BufferedProtocol):
    """Answers a byte with a byte; a client's `done` is set when its answer has come."""

    def __init__(self, *, asks: bool) -> None:
        self.asks = asks
        self.done = asyncio.get_running_loop().create_future()
        self.buffer = bytearray(16)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        if self.asks:
            transport.write(b"?")

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self.asks:
            self.done.set_result(None)
        else:
            self.transport.write(b"!")

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(exc)


async def storm(clients: int, join: Callable[[Callable[[], End]], Awaitable[object]]) -> None:
    """All of them at once; every one must be answered."""
    ends: list[End] = []

    def make() -> End:
        ends.append(End(asks=True))
        return ends[-1]

    await asyncio.gather(*(join(make) for _ in range(clients)))
    assert len(ends) == clients
    assert await asyncio.gather(*(end.done for end in ends)) == [None] * clients
    for end in ends:
        end.transport.close()


async def ours(clients: int) -> None:
    address = PipeAddress(new_name())
    listener = await listen(address, lambda: End(asks=False))
    await storm(clients, lambda make: connect(address, make))
    listener.close()


async def asyncios(clients: int) -> None:
    name, loop = new_name(), asyncio.get_running_loop()
    (server,) = await loop.start_serving_pipe(lambda: End(asks=False), name)
    await storm(clients, lambda make: loop.create_pipe_connection(make, name))
    server.close()


def new_name() -> str:
    return rf"\\.\pipe\interphone-bench-{os.getpid()}-{next(numbers)}"


async def main() -> None:
    for clients in (1, 100, 500):
        variants = {"asyncio": asyncios, "interphone": ours}
        await compare(f"{clients} clients at once", "asyncio", variants, times=clients)


if __name__ == "__main__":
    asyncio.run(main())
