"""redis-py and a redis-server of its own over a Unix socket; a list is the way to the other end.

Requests are pushed to a list that the server waits for; answers to a list of the client.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import redis.asyncio
from worker import item, start_broker

BLOCKING = False
encode, decode = msgspec.json.Encoder().encode, msgspec.json.Decoder().decode


def opened(address: str) -> Any:
    return redis.asyncio.Redis(unix_socket_path=address, socket_timeout=None)


async def popped(connection: Any, name: str) -> list[bytes]:
    """Wait for something on a list, and take all that is there."""
    _, first = await connection.blpop(name)
    more = await connection.lpop(name, 512)
    return [first, *(more or ())]


class Server:
    def __init__(self, address: str, sink: Any) -> None:
        self.address, self.sink = address, sink

    async def start(self) -> None:
        options = {"port": 0, "unixsocket": self.address, "save": "", "maxclients": 5000}
        given = [word for name, value in options.items() for word in (f"--{name}", value)]
        place = ("--dir", Path(self.address).parent)
        unlimited = ("--client-output-buffer-limit", "pubsub 0 0 0")
        self.pids = [start_broker("redis-server", *given, *place, *unlimited)]
        while not Path(self.address).exists():
            await asyncio.sleep(0.02)  # the broker is starting
        self.redis = opened(self.address)
        self.tasks = [asyncio.create_task(self.answer()), asyncio.create_task(self.hear())]

    async def answer(self) -> None:
        connection = opened(self.address)
        while True:
            async with self.redis.pipeline(transaction=False) as pipeline:
                for body in await popped(connection, "ask"):
                    to, value = decode(body)
                    pipeline.rpush(to, encode(value))
                await pipeline.execute()

    async def hear(self) -> None:
        connection = opened(self.address)
        while True:
            for body in await popped(connection, "sink"):
                self.sink(decode(body))

    async def publish(self, count: int) -> None:
        for start in range(0, count, 64):
            async with self.redis.pipeline(transaction=False) as pipeline:
                for number in range(start, min(start + 64, count)):
                    pipeline.publish("news", encode(item(number)))
                await pipeline.execute()


class Client:
    def __init__(self, address: str) -> None:
        self.address, self.name = address, uuid4().hex
        self.tasks: list[asyncio.Task[None]] = []
        self.waiting: dict[int, asyncio.Future[Any]] = {}

    async def connect(self) -> None:
        self.redis, self.answers = opened(self.address), opened(self.address)
        self.tasks.append(asyncio.create_task(self.read()))

    async def read(self) -> None:
        while True:
            for body in await popped(self.answers, self.name):
                value = decode(body)
                self.waiting.pop(value["id"]).set_result(value)

    async def request(self, value: Any) -> Any:
        future = self.waiting[value["id"]] = asyncio.get_running_loop().create_future()
        await self.redis.rpush("ask", encode((self.name, value)))
        return await future

    async def send(self, count: int) -> None:
        for start in range(0, count, 64):
            bodies = [encode(item(number)) for number in range(start, min(start + 64, count))]
            await self.redis.rpush("sink", *bodies)

    async def subscribe(self, sink: Any) -> None:
        subscription = self.redis.pubsub(ignore_subscribe_messages=True)
        await subscription.subscribe("news")
        await subscription.get_message(timeout=5)
        self.tasks.append(asyncio.create_task(self.hear(subscription, sink)))

    async def hear(self, subscription: Any, sink: Any) -> None:
        async for message in subscription.listen():
            sink(decode(message["data"]))

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.wait(self.tasks)
        await self.answers.aclose()
        await self.redis.aclose()
