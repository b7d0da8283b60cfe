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

from interphone import PipeAddress
from interphone.transports import connect, listen

assert sys.platform == "win32", "named pipes are a thing of Windows: `make bench` runs it in Wine"

numbers = itertools.count()


class End(asyncio.BufferedProtocol):
    """A client's end says a byte and hears one; a server's end answers."""

    def __init__(self, *, asks: bool) -> None:
        loop = asyncio.get_running_loop()
        self.asks = asks
        self.answered = loop.create_future()
        self.lost = loop.create_future()
        self.buffer = bytearray(16)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        if self.asks:
            transport.write(b"?")

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self.asks:
            self.answered.set_result(None)
        else:
            self.transport.write(b"!")

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(None)


class Storm:
    """So many clients at once, until all have left; every one must be answered."""

    def __init__(self) -> None:
        self.near: list[End] = []
        self.far: list[End] = []
        self.name = rf"\\.\pipe\interphone-bench-{os.getpid()}-{next(numbers)}"

    def make_near(self) -> End:
        self.near.append(End(asks=True))
        return self.near[-1]

    def make_far(self) -> End:
        self.far.append(End(asks=False))
        return self.far[-1]

    async def blow(self, clients: int, join: Callable[[], Awaitable[object]]) -> None:
        await asyncio.gather(*(join() for _ in range(clients)))
        await asyncio.gather(*(end.answered for end in self.near))
        assert len(self.near) == len(self.far) == clients
        for end in self.near:
            end.transport.close()
        await asyncio.gather(*(end.lost for end in self.near + self.far))


async def ours(clients: int) -> None:
    storm = Storm()
    address = PipeAddress(storm.name)
    listener = await listen(address, storm.make_far)
    await storm.blow(clients, lambda: connect(address, storm.make_near))
    listener.close()


async def asyncios(clients: int) -> None:
    storm, loop = Storm(), asyncio.get_running_loop()
    (server,) = await loop.start_serving_pipe(storm.make_far, storm.name)
    await storm.blow(clients, lambda: loop.create_pipe_connection(storm.make_near, storm.name))
    server.close()


async def main() -> None:
    for clients in (1, 100):
        variants = {"asyncio": asyncios, "interphone": ours}
        await compare(f"{clients} at once, each", "asyncio", variants, times=clients)


if __name__ == "__main__":
    asyncio.run(main())
