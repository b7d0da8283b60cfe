"""websockets over a Unix socket: text frames of msgspec's JSON, binary frames for bytes."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import msgspec
from websockets.asyncio.client import unix_connect
from websockets.asyncio.server import broadcast, unix_serve
from worker import item

BLOCKING = False
REQUEST, MESSAGE, SUBSCRIBE = range(3)
OPTIONS: dict[str, Any] = {"compression": None, "max_size": None, "ping_interval": None}
encode, decode = msgspec.json.Encoder().encode, msgspec.json.Decoder().decode


class Server:
    def __init__(self, address: str, sink: Any) -> None:
        self.address, self.sink = address, sink
        self.subscribers: set[Any] = set()

    async def start(self) -> None:
        self.server = await unix_serve(self.serve, self.address, **OPTIONS)

    async def serve(self, socket: Any) -> None:
        try:
            async for frame in socket:
                if isinstance(frame, bytes) and frame[:1] != b"[":
                    await socket.send(frame)
                    continue
                kind, number, value = decode(frame)
                if kind == REQUEST:
                    await socket.send(encode((number, value)))
                elif kind == MESSAGE:
                    self.sink(value)
                else:
                    self.subscribers.add(socket)
                    await socket.send(encode((number, None)))
        finally:
            self.subscribers.discard(socket)

    async def publish(self, count: int) -> None:
        for number in range(count):
            broadcast(self.subscribers, encode((0, item(number))))
            if not number & 7:  # broadcast has no backpressure: let them read
                await asyncio.sleep(0)
                for socket in self.subscribers:
                    while socket.transport.get_write_buffer_size() > 1_000_000:
                        await asyncio.sleep(0.001)


class Client:
    sink: Any = None

    def __init__(self, address: str) -> None:
        self.address = address
        self.waiting: dict[int, asyncio.Future[Any]] = {}
        self.numbers = itertools.count(1)

    async def connect(self) -> None:
        uri = "ws://localhost/"
        self.socket = await unix_connect(self.address, uri, **OPTIONS)
        self.reading = asyncio.create_task(self.read())

    async def read(self) -> None:
        async for frame in self.socket:
            if isinstance(frame, bytes) and frame[:1] != b"[":
                self.waiting.pop(0).set_result(frame)
                continue
            number, value = decode(frame)
            if number:
                self.waiting.pop(number).set_result(value)
            else:
                self.sink(value)

    async def ask(self, kind: int, value: Any) -> Any:
        number = next(self.numbers)
        future = self.waiting[number] = asyncio.get_running_loop().create_future()
        await self.socket.send(encode((kind, number, value)))
        return await future

    async def request(self, value: Any) -> Any:
        return await self.ask(REQUEST, value)

    async def echo(self, data: bytes) -> Any:
        future = self.waiting[0] = asyncio.get_running_loop().create_future()
        await self.socket.send(b"b" + data)
        return memoryview(await future)[1:]

    async def send(self, count: int) -> None:
        for number in range(count):
            await self.socket.send(encode((MESSAGE, 0, item(number))))

    async def subscribe(self, sink: Any) -> None:
        self.sink = sink
        await self.ask(SUBSCRIBE, None)

    async def close(self) -> None:
        self.reading.cancel()
        await self.socket.close()
