"""interphone between two of its ends. Handlers are plain functions that run inline.

`interphone` speaks the native dialect on uvloop, `:classic` Node's packets in JSON, `:asyncio` is
on asyncio's own loop, `:task` answers with `async def` handlers, `:blocking` is the blocking client
against the same server, `:idle` never stays awake. `:view` reads large bytes
in the shared pool, where they are, and `:inline` has no pool. `:serves` and `:asks` are one end
towards net-ipc.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
from worker import item

import interphone

LIMITS = interphone.Limits(max_frame=2**27, hard_queue=2**28, max_held=2**28, max_pool=2**28)
INLINE = msgspec.structs.replace(LIMITS, max_pool=0)


class Item(msgspec.Struct):
    id: int
    name: str
    value: float
    tags: list[str]

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


class Server:
    dialect = "native"
    latency = "balanced"
    asynchronous = False
    limits = LIMITS

    def __init__(self, address: str, sink: Any) -> None:
        self.server = server = interphone.Server(
            Path(address),
            limits=self.limits,
            dialect=self.dialect,
            latency=self.latency,
            max_connections=20_000,
        )
        server.on_message(lambda peer, data: sink(data))
        if self.asynchronous:

            @server.on_request
            async def echo(peer: Any, data: Any) -> Any:
                return data

            @server.method
            async def same(value: Any) -> Any:
                return value
        else:

            @server.on_request(on="inline")
            def answer(peer: Any, data: Any) -> Any:
                return data

            @server.method("same", on="inline")
            def again(value: Any) -> Any:
                return value

        @server.method(on="inline")
        def view(data: memoryview) -> memoryview:
            return data

        @server.method(on="inline")
        def typed(value: Item) -> Item:
            return value

        @server.method
        async def items(value: Any) -> AsyncIterator[Any]:
            while True:
                yield value

    async def start(self) -> None:
        await self.server.start()

    async def publish(self, count: int) -> None:
        for number in range(count):
            await self.server.publish("a", item(number))
            if not number & 63:
                await asyncio.sleep(0)


class ToNode(Server):
    """Broadcasts, as net-ipc does; its own clients have no topics."""

    async def publish(self, count: int) -> None:
        for number in range(count):
            await self.server.broadcast(item(number))
            if not number & 63:
                await asyncio.sleep(0)


class Client:
    dialect = "native"
    latency = "balanced"
    limits = LIMITS

    def __init__(self, address: str) -> None:
        self.client = interphone.Client(
            Path(address),
            limits=self.limits,
            dialect=self.dialect,
            latency=self.latency,
            backoff=None,
        )
        self.request = self.client.request
        self.reading: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        await self.client.connect()

    async def call(self, value: Any) -> Any:
        return await self.client.call("same", value)

    async def typed(self, value: Any) -> Any:
        return await self.client.call("typed", Item(**value), returns=Item)

    async def send(self, count: int) -> None:
        send = self.client.send
        for number in range(count):
            await send(item(number))

    async def echo(self, data: bytes) -> Any:
        return await self.client.request(data, returns=bytes, timeout=60)

    async def subscribe(self, sink: Any) -> None:
        self.client.on_topic("a", overflow="block")(lambda publication: sink(publication.value))
        await self.client.ping()

    async def busy(self, on: bool) -> None:
        """Read a stream that never stops, as fast as it comes."""
        if on:
            self.reading = asyncio.create_task(self.read())
            await asyncio.sleep(0.05)
        elif self.reading:
            self.reading.cancel()
            with suppress(asyncio.CancelledError):
                await self.reading

    async def read(self) -> None:
        async with self.client.stream("items", item(7)) as stream:
            async for _ in stream:
                pass

    async def close(self) -> None:
        await self.client.close()


class FromNode(Client):
    async def subscribe(self, sink: Any) -> None:
        self.client.on_message(sink)
        await self.client.ping()


class Views(Client):
    """Large bytes are read where they are, at both ends."""

    async def echo(self, data: bytes) -> Any:
        return await self.client.call("view", data, returns=memoryview, timeout=60)


class BlockingClient:
    def __init__(self, address: str) -> None:
        from interphone.blocking import Client

        self.client = Client(Path(address))
        self.request = self.client.request

    def connect(self) -> None:
        self.client.connect()

    def close(self) -> None:
        self.client.close()


def choose(variant: str, role: str) -> Any:
    loop = "asyncio" if variant == "asyncio" else "uvloop"
    server, client = Server, Client
    if variant == "classic":
        Server.dialect = Client.dialect = "classic"
    elif variant == "idle":
        Server.latency = Client.latency = "idle"
    elif variant == "task":
        Server.asynchronous = True
    elif variant == "view":
        client = Views
    elif variant == "inline":
        Server.limits = Client.limits = INLINE
    elif variant == "serves":
        server = ToNode
    elif variant == "asks":
        client = FromNode
    blocking = variant == "blocking" and role == "client"
    return SimpleNamespace(
        Server=server,
        Client=BlockingClient if blocking else client,
        BLOCKING=blocking,
        LOOP=loop,
    )
