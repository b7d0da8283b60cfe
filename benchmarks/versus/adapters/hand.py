"""What a good engineer writes by hand: a Protocol, 4-byte lengths, msgspec's JSON, nothing else.

No handshake, limits, deadlines, errors or reconnection. `hand` is on uvloop, `hand:asyncio` on
asyncio's own loop.
"""

from __future__ import annotations

import asyncio
import struct
from types import SimpleNamespace
from typing import Any

import msgspec
from worker import item

LENGTH = struct.Struct("<I")
REQUEST, ANSWER, MESSAGE, SUBSCRIBE, ECHO = range(5)


class Packet(msgspec.Struct, gc=False):
    k: int
    n: int = 0
    d: Any = None


class Bytes(msgspec.Struct, gc=False):
    """A packet whose payload is bytes: base64 in JSON."""

    k: int
    n: int
    d: bytes


encode, decode = msgspec.json.Encoder().encode, msgspec.json.Decoder(Packet).decode
decode_bytes = msgspec.json.Decoder(Bytes).decode


class End(asyncio.Protocol):
    def __init__(self, host: Any) -> None:
        self.host = host
        self.rest = bytearray()
        self.need = 4
        self.waiting: dict[int, asyncio.Future[Any]] = {}
        self.number = 0
        self.blocked: asyncio.Future[None] | None = None
        self.loop = asyncio.get_running_loop()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: Any) -> None:
        if self.rest:
            self.rest += data
            if len(self.rest) < self.need:
                return
            data, self.rest = self.rest, bytearray()
        at, size, view = 0, len(data), memoryview(data)
        while size - at >= 4:
            end = at + 4 + LENGTH.unpack_from(data, at)[0]
            if end > size:
                self.need = end - at
                break
            self.frame(view[at + 4 : end])
            at = end
        if at < size:
            self.rest += view[at:]

    def frame(self, body: memoryview) -> None:
        if len(body) > 60_000:  # only echoes are
            big = decode_bytes(body)
            if big.k == ECHO:
                self.put(Bytes(ANSWER, big.n, big.d))
            else:
                self.waiting.pop(big.n).set_result(big.d)
            return
        packet = decode(body)
        if packet.k == REQUEST:
            self.put(Packet(ANSWER, packet.n, self.host.handle(packet.d)))
        elif packet.k == ANSWER:
            self.waiting.pop(packet.n).set_result(packet.d)
        elif packet.k == MESSAGE:
            self.host.sink(packet.d)
        elif packet.k == SUBSCRIBE:
            self.host.subscribers.append(self)
            self.put(Packet(ANSWER, packet.n))

    def put(self, packet: Packet | Bytes) -> None:
        body = encode(packet)
        self.transport.write(LENGTH.pack(len(body)) + body)

    def ask(self, kind: int, value: Any) -> asyncio.Future[Any]:
        self.number += 1
        future = self.waiting[self.number] = self.loop.create_future()
        self.put(
            Bytes(kind, self.number, value) if kind == ECHO else Packet(kind, self.number, value)
        )
        return future

    def pause_writing(self) -> None:
        self.blocked = self.loop.create_future()

    def resume_writing(self) -> None:
        if self.blocked:
            self.blocked.set_result(None)
            self.blocked = None

    def connection_lost(self, exc: Exception | None) -> None:
        self.resume_writing()


class Server:
    def __init__(self, address: str, sink: Any) -> None:
        self.address, self.sink = address, sink
        self.subscribers: list[End] = []

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.create_unix_server(lambda: End(self), self.address, backlog=1024)

    def handle(self, value: Any) -> Any:
        return value

    async def publish(self, count: int) -> None:
        self.subscribers = [end for end in self.subscribers if not end.transport.is_closing()]
        for number in range(count):
            body = encode(Packet(MESSAGE, 0, item(number)))
            data = LENGTH.pack(len(body)) + body
            for end in self.subscribers:
                end.transport.write(data)
            for end in self.subscribers:
                if end.blocked:
                    await end.blocked
            if not number & 63:
                await asyncio.sleep(0)


class Client:
    sink: Any

    def __init__(self, address: str) -> None:
        self.address = address

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        _, self.end = await loop.create_unix_connection(lambda: End(self), self.address)

    def request(self, value: Any) -> asyncio.Future[Any]:
        return self.end.ask(REQUEST, value)

    def echo(self, data: bytes) -> asyncio.Future[Any]:
        return self.end.ask(ECHO, data)

    async def send(self, count: int) -> None:
        for number in range(count):
            self.end.put(Packet(MESSAGE, 0, item(number)))
            if self.end.blocked:
                await self.end.blocked

    async def subscribe(self, sink: Any) -> None:
        self.sink = sink
        await self.end.ask(SUBSCRIBE, None)

    async def close(self) -> None:
        self.end.transport.close()


def choose(variant: str, role: str) -> Any:
    return SimpleNamespace(Server=Server, Client=Client, BLOCKING=False, LOOP=variant or "uvloop")
