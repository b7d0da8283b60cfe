"""Calls beside a stream that never stops, and how fast streams are.

A call must not wait for a stream on the same connection. Both ends run in this process; the
stream is read as fast as it comes, and calls are made one at a time meanwhile. `hand` is a
stream as one would write it by hand: length-prefixed msgspec frames with no flow control but
the transport's.
"""

from __future__ import annotations

import asyncio
import statistics
import struct
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec
from harness import compare

from interphone import Client, Server, run

ITEM = {"id": 7, "name": "a name", "value": 1.5, "tags": ["a", "b"]}
CHUNK = bytes(64 * 1024)
CALLS, ROUNDS = 1_000, 9
LENGTH = struct.Struct("<I")


async def main(directory: str) -> None:
    server = Server(Path(directory) / "ours")

    @server.method
    async def items(item: Any, times: int) -> AsyncIterator[Any]:
        for _ in range(times):
            yield item

    @server.method(on="inline")
    def same(value: Any) -> Any:
        return value

    async with server, Client(server.address) as client:
        await calls_beside_a_stream(client)
        async with await hand_server(f"{directory}/hand"):
            reader, writer = await asyncio.open_unix_connection(f"{directory}/hand")

            async def by_hand(times: int) -> None:
                writer.write(LENGTH.pack(times))
                for _ in range(times):
                    size = LENGTH.unpack(await reader.readexactly(4))[0]
                    msgspec.msgpack.decode(await reader.readexactly(size))

            def streamed(item: Any) -> Any:
                async def read(times: int) -> None:
                    async with client.stream("items", item, times) as stream:
                        async for _ in stream:
                            pass

                return read

            variants = {"hand": by_hand, "stream of small items": streamed(ITEM)}
            await compare("small items", "hand", variants, times=20_000)
            await compare("64 KiB", "stream", {"stream": streamed(CHUNK)}, times=500)
            writer.close()


async def hand_server(path: str) -> asyncio.Server:
    encode = msgspec.msgpack.Encoder().encode

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.read(4):
            for _ in range(LENGTH.unpack(head)[0]):
                body = encode(ITEM)
                writer.write(LENGTH.pack(len(body)) + body)
                await writer.drain()
        writer.close()

    return await asyncio.start_unix_server(serve, path)


async def calls_beside_a_stream(client: Client) -> None:
    """Print the median and the 99th percentile of calls, idle and beside a saturated stream."""
    rows: dict[str, list[tuple[float, float]]] = {"idle": [], "small items": [], "64 KiB": []}
    for _ in range(ROUNDS):
        rows["idle"].append(await latencies(client))
        for name, item in (("small items", ITEM), ("64 KiB", CHUNK)):
            busy = asyncio.create_task(saturate(client, item))
            await asyncio.sleep(0.05)
            rows[name].append(await latencies(client))
            busy.cancel()
            await asyncio.wait([busy])
    print(f"\nA call beside a stream: µs, and the ratio to idle (median of {ROUNDS} rounds)\n")
    print("| | p50 | p99 | p50 | p99 |\n| - | -: | -: | -: | -: |")
    for name, measured in rows.items():
        p50, p99 = (statistics.median(column) * 1e6 for column in zip(*measured, strict=True))
        ratios = [
            statistics.median(
                mine[at] / idle[at] for mine, idle in zip(measured, rows["idle"], strict=True)
            )
            for at in (0, 1)
        ]
        print(f"| {name} | {p50:.0f} | {p99:.0f} | {ratios[0]:.1f} | {ratios[1]:.1f} |")


async def saturate(client: Client, item: Any) -> None:
    async with client.stream("items", item, 10**9) as stream:
        async for _ in stream:
            pass


async def latencies(client: Client) -> tuple[float, float]:
    took = []
    for _ in range(CALLS):
        started = perf_counter()
        await client.call("same", 1)
        took.append(perf_counter() - started)
    took.sort()
    return took[len(took) // 2], took[len(took) * 99 // 100]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="ip-") as place:
        print(f"Python {sys.version.split()[0]}", end="")
        run(main(place))
