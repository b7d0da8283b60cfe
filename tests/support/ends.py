"""Ends to test with: a server and a client that meet, and a raw end that says what it likes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from interphone import Client, Server
from interphone.protocol.wire import Wire, tag
from support.node import end_writing, listen_streams, open_streams

PREAMBLE = b"IPC"


@asynccontextmanager
async def meeting(server: Server, **options: Any) -> AsyncIterator[Client]:
    """Start the server and connect a client to it."""
    async with server, Client(server.address, **options) as client:
        yield client


async def until(reached: Callable[[], object]) -> None:
    """Let the loop turn until something is so; it has ten seconds."""
    async with asyncio.timeout(10):
        while not reached():  # noqa: ASYNC110  any condition, none of which has an event
            await asyncio.sleep(0.001)


async def raised_by(awaitable: Awaitable[object]) -> BaseException | None:
    """What an awaitable raises."""
    try:
        await awaitable
    except Exception as exc:
        return exc
    return None


def frame(packet: object) -> bytes:
    """A packet as Node writes it."""
    body = json.dumps(packet, separators=(",", ":")).encode()
    return tag(len(body)) + body


class Raw:
    """An end that knows frames and nothing else."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._wire = Wire(limit=2**30)
        self._packets: list[Any] = []

    @classmethod
    @asynccontextmanager
    async def connect(cls, path: str) -> AsyncIterator[Raw]:
        raw = cls(*await open_streams(path))
        try:
            yield raw
        finally:
            raw.writer.transport.abort()

    @classmethod
    @asynccontextmanager
    async def serve(cls, path: str) -> AsyncIterator[asyncio.Queue[Raw]]:
        """Listen; every connection that comes is put into the queue."""
        comers: asyncio.Queue[Raw] = asyncio.Queue()
        all_of_them: list[Raw] = []

        def came(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            raw = cls(reader, writer)
            all_of_them.append(raw)
            comers.put_nowait(raw)

        server = await listen_streams(path, came)
        try:
            yield comers
        finally:
            server.close()
            for raw in all_of_them:
                raw.writer.transport.abort()

    def write(self, *parts: object) -> None:
        """Write bytes as they are and everything else as a packet, in one piece."""
        self.writer.write(b"".join(p if isinstance(p, bytes) else frame(p) for p in parts))

    def end(self) -> None:
        """End this side of the stream; where there is no half-close, both."""
        end_writing(self.writer)

    async def packet(self) -> Any:
        """The next packet; None at the end of the stream."""
        async with asyncio.timeout(10):
            while not self._packets:
                data = await self.reader.read(65536)
                if not data:
                    return None
                self._wire.receive(data, lambda body: self._packets.append(json.loads(body)))
        return self._packets.pop(0)

    async def rest(self) -> bytes:
        """Everything until the end of the stream."""
        async with asyncio.timeout(10):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    async def open(self, **d: object) -> Any:
        """Shake hands as net-ipc's client; return the reply."""
        self.write(
            PREAMBLE, {"t": 0, "d": {"compress": False, "messagepack": False, "id": None, **d}}
        )
        return await self.packet()

    async def let_in(self, **d: object) -> Any:
        """Shake hands as a server; return the client's CONNECTION."""
        async with asyncio.timeout(10):
            assert await self.reader.readexactly(3) == PREAMBLE
        hello = await self.packet()
        reply = {"id": "raw-1", "compress": False, "messagepack": False, **d}
        self.write({"t": 0, "d": {key: value for key, value in reply.items() if value is not None}})
        return hello
