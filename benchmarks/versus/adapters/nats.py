"""nats-py and a nats-server of its own, over loopback TCP: NATS has no Unix sockets."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import msgspec
import nats
from worker import item, start_broker

BLOCKING = False
LIMITS = {"pending_msgs_limit": -1, "pending_bytes_limit": -1}
encode, decode = msgspec.json.Encoder().encode, msgspec.json.Decoder().decode


class Server:
    def __init__(self, address: str, sink: Any) -> None:
        self.address, self.sink = address, sink

    async def start(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        Path(f"{self.address}.port").write_text(str(port))
        config = Path(f"{self.address}.conf")
        config.write_text("max_pending: 1GB\n")
        self.pids = [start_broker("nats-server", "-a", "127.0.0.1", "-p", port, "-c", config)]
        self.nats = await connected(self.address)
        await self.nats.subscribe("echo", cb=self.answer, **LIMITS)
        await self.nats.subscribe("sink", cb=self.hear, **LIMITS)
        await self.nats.flush()

    async def answer(self, message: Any) -> None:
        await message.respond(encode(decode(message.data)))

    async def hear(self, message: Any) -> None:
        self.sink(decode(message.data))

    async def publish(self, count: int) -> None:
        for number in range(count):
            await self.nats.publish("news", encode(item(number)))
        await self.nats.flush(30)


class Client:
    def __init__(self, address: str) -> None:
        self.address = address

    async def connect(self) -> None:
        self.nats = await connected(self.address)

    async def request(self, value: Any) -> Any:
        return decode((await self.nats.request("echo", encode(value), timeout=10)).data)

    async def send(self, count: int) -> None:
        for number in range(count):
            await self.nats.publish("sink", encode(item(number)))
        await self.nats.flush(30)

    async def subscribe(self, sink: Any) -> None:
        async def hear(message: Any) -> None:
            sink(decode(message.data))

        await self.nats.subscribe("news", cb=hear, **LIMITS)
        await self.nats.flush()

    async def close(self) -> None:
        await self.nats.close()


async def connected(address: str) -> Any:
    url = f"nats://127.0.0.1:{Path(f'{address}.port').read_text()}"
    for _ in range(100):
        try:
            return await nats.connect(url, allow_reconnect=False, pending_size=2**26)
        except (OSError, nats.errors.Error):
            await asyncio.sleep(0.05)  # the broker is starting
    raise OSError("no nats-server")
