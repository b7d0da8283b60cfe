"""Publishing to 1, 10 and 100 subscribers over real Unix sockets; every one gets everything.

`hand` is what one would write: encode once, write the bytes to every connection, read them with a
length-prefixed Protocol; no topics, limits, receipts or slow subscribers. Everything runs in this
process, so that one core does all the work. A row counts one publication to one subscriber.
"""

from __future__ import annotations

import asyncio
import struct
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
from harness import compare

from interphone import Client, Server, run

VALUE = {"id": 7, "name": "a name", "value": 1.5, "tags": ["a", "b"]}
LENGTH = struct.Struct("<I")
AT_ONCE = 64  # publications before the publisher looks whether they have come
encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode


class Hand(asyncio.Protocol):
    """A subscriber by hand: counts and decodes what comes."""

    def __init__(self, arrivals: Arrivals) -> None:
        self.arrivals = arrivals
        self.rest = b""

    def data_received(self, data: bytes) -> None:
        data, at = self.rest + data, 0
        while len(data) - at >= 4:
            end = at + 4 + LENGTH.unpack_from(data, at)[0]
            if len(data) < end:
                break
            decode(data[at + 4 : end])
            self.arrivals.one()
            at = end
        self.rest = data[at:]


class Arrivals:
    """Waits until so many publications have come, to all subscribers together."""

    def __init__(self) -> None:
        self.missing = 0
        self.done = asyncio.Event()

    def expect(self, count: int) -> None:
        self.missing = count
        self.done.clear()

    def one(self) -> None:
        self.missing -= 1
        if not self.missing:
            self.done.set()


async def main(directory: str) -> None:
    for subscribers in (1, 10, 100):
        async with AsyncExitStack() as stack:
            variants = {
                "hand": await by_hand(stack, f"{directory}/hand{subscribers}", subscribers),
                "handlers": await ours(stack, Path(directory) / f"h{subscribers}", subscribers),
                "iterators": await ours(
                    stack, Path(directory) / f"i{subscribers}", subscribers, iterate=True
                ),
            }
            await compare(f"{subscribers} subscribers", "hand", variants, times=12_800)


async def by_hand(stack: AsyncExitStack, path: str, subscribers: int) -> Any:
    loop, arrivals, transports = asyncio.get_running_loop(), Arrivals(), []

    class Accepted(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            transports.append(transport)

    server = await loop.create_unix_server(Accepted, path)
    stack.callback(server.close)
    for _ in range(subscribers):
        transport, _ = await loop.create_unix_connection(lambda: Hand(arrivals), path)
        stack.callback(transport.close)

    async def publish(times: int) -> None:
        for _ in range(times // subscribers // AT_ONCE or 1):
            arrivals.expect(AT_ONCE * subscribers)
            for _ in range(AT_ONCE):
                body = encode({"pub": "a", "message": VALUE})
                data = LENGTH.pack(len(body)) + body
                for transport in transports:
                    transport.write(data)
            await arrivals.done.wait()

    return publish


async def ours(
    stack: AsyncExitStack, path: Path, subscribers: int, *, iterate: bool = False
) -> Any:
    arrivals = Arrivals()
    server = await stack.enter_async_context(Server(path))
    for _ in range(subscribers):
        client = await stack.enter_async_context(Client(path))
        if iterate:
            items = await stack.enter_async_context(client.subscribe("a"))
            reader = asyncio.create_task(read(items, arrivals))
            stack.callback(reader.cancel)
        else:
            client.on_topic("a")(lambda item: arrivals.one())
            await client.ping()

    async def publish(times: int) -> None:
        for _ in range(times // subscribers // AT_ONCE or 1):
            arrivals.expect(AT_ONCE * subscribers)
            for _ in range(AT_ONCE):
                await server.publish("a", VALUE)
            await arrivals.done.wait()

    return publish


async def read(items: Any, arrivals: Arrivals) -> None:
    async for _ in items:
        arrivals.one()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="ip-") as place:
        print(f"Python {sys.version.split()[0]}", end="")
        run(main(place))
