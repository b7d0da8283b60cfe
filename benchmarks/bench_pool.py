"""Large payloads there and back: inline, through the pool as bytes, and read in place.

The server is a process of its own. Everything goes through the pool here, however small: from
which size on that pays is what `interphone.protocol.pooled.LARGE` is chosen by.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
from harness import Variant, compare

from interphone import Client, Limits, Server, run
from interphone.protocol import pool

POOLED = Limits(max_frame=2**27, hard_queue=2**28, max_held=2**28, max_pool=2**28)
INLINE = msgspec.structs.replace(POOLED, max_pool=0)
SIZES = {"32 KiB": 2**15, "64 KiB": 2**16, "128 KiB": 2**17, "256 KiB": 2**18, "512 KiB": 2**19}
SIZES |= {"1 MiB": 2**20, "16 MiB": 2**24}
MOVED = 2**23  # bytes in each round

pool.LARGE = 1


async def serve(path: str) -> None:
    server = Server(Path(path), limits=POOLED)

    @server.method(on="inline")
    def copied(data: bytes) -> bytes:
        return data

    @server.method(on="inline")
    def viewed(data: memoryview) -> memoryview:
        return data

    @server.on_ready
    def ready(_: object) -> None:
        print("ready", flush=True)

    await server.serve_forever()


async def main(directory: str) -> None:
    path = f"{directory}/s"
    process = subprocess.Popen([sys.executable, __file__, path], stdout=subprocess.PIPE)
    assert process.stdout is not None
    await asyncio.to_thread(process.stdout.readline)
    with process:
        async with (
            Client(Path(path), limits=POOLED) as pooled,
            Client(Path(path), limits=INLINE) as inline,
        ):
            for title, size in SIZES.items():
                data = bytes(size)
                variants = {
                    "inline": echoing(inline, "copied", data, bytes),
                    "pool, bytes": echoing(pooled, "copied", data, bytes),
                    "pool, in place": echoing(pooled, "viewed", data, memoryview),
                }
                await compare(title, "inline", variants, times=max(2, MOVED // size))
        process.kill()


def echoing(client: Client, method: str, data: bytes, of: Any) -> Variant:
    async def echo(times: int) -> None:
        for _ in range(times):
            await client.call(method, data, returns=of)

    return echo


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run(serve(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as directory:
            run(main(directory))
