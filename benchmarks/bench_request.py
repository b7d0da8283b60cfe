"""A request and its answer over a real Unix socket, against what one would write by hand.

`hand` is an asyncio Protocol with a 4-byte length and msgspec's JSON, without limits, errors,
handshake or reconnection. Both ends run in this process, so that one core does all the work.
"""

from __future__ import annotations

import asyncio
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
from harness import compare

from interphone import Client, Peer, Server, run

PAYLOAD = {"id": 7, "name": "a name", "value": 1.5, "tags": ["a", "b"]}
encode, decode = msgspec.json.Encoder().encode, msgspec.json.Decoder().decode
LENGTH = struct.Struct("<I")


class Hand(asyncio.Protocol):
    """Length-prefixed JSON; answers requests, or settles futures in order."""

    def __init__(self, *, serving: bool) -> None:
        self.serving = serving
        self.waiting: list[asyncio.Future[Any]] = []
        self.rest = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        data = self.rest + data
        while len(data) >= 4:
            end = 4 + LENGTH.unpack_from(data)[0]
            if len(data) < end:
                break
            value, data = decode(data[4:end]), data[end:]
            if self.serving:
                self.put(value)
            else:
                self.waiting.pop(0).set_result(value)
        self.rest = data

    def put(self, value: object) -> None:
        body = encode(value)
        self.transport.write(LENGTH.pack(len(body)) + body)

    def request(self, value: object) -> asyncio.Future[Any]:
        future = asyncio.get_running_loop().create_future()
        self.waiting.append(future)
        self.put(value)
        return future


async def main(directory: str) -> None:
    loop = asyncio.get_running_loop()
    by_hand = await loop.create_unix_server(lambda: Hand(serving=True), f"{directory}/hand")
    _, hand = await loop.create_unix_connection(lambda: Hand(serving=False), f"{directory}/hand")
    server = Server(Path(directory) / "ours")

    @server.on_request(on="inline")
    def echo(peer: Peer, data: Any) -> Any:
        return data

    @server.method(on="inline")
    def same(data: Any) -> Any:
        return data

    async with (
        server,
        Client(server.address) as native,
        Client(server.address, dialect="classic") as classic,
    ):
        asks = {
            "hand": lambda: hand.request(PAYLOAD),
            "request, native": lambda: native.request(PAYLOAD),
            "request, classic": lambda: classic.request(PAYLOAD),
            "call, native": lambda: native.call("same", PAYLOAD),
        }
        for at_once in (1, 64):
            await compare(
                f"{at_once} at once",
                "hand",
                {name: workers(ask, at_once) for name, ask in asks.items()},
                times=6_400,
            )
    hand.transport.close()
    by_hand.close()


def workers(ask: Any, at_once: int) -> Any:
    async def worker(times: int) -> None:
        for _ in range(times):
            await ask()

    async def everybody(times: int) -> None:
        await asyncio.gather(*(worker(times // at_once) for _ in range(at_once)))

    return everybody


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="ip-") as place:
        print(f"Python {sys.version.split()[0]}", end="")
        run(main(place))
