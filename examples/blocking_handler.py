"""Where handlers run: coroutines on the loop, plain functions in threads, `inline` at once.

A plain function may block: it runs in a worker thread, and neither the other requests nor
the pings wait for it. Several handlers are asked in turn; one that returns `PASS` leaves
the request to the next.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import interphone
from interphone import PASS, Client, MemoryAddress, Peer, Server, Unhandled

address = MemoryAddress("kitchen")
server = Server(address)
cache = {"soup": "soup, from the pot"}


@server.on_request(on="inline")
def look_up(peer: Peer, dish: str) -> Any:
    """Never blocks: it needs neither a thread nor a task. The fastest there is."""
    return cache.get(dish, PASS)


@server.on_request
def cook(peer: Peer, dish: str) -> Any:
    """Blocks, as an old library would."""
    if dish != "stew":
        return PASS
    time.sleep(0.2)
    return f"stew, cooked in the thread {threading.current_thread().name}"


@server.on_request
async def order(peer: Peer, dish: str) -> Any:
    """Waits, but for something asyncio can wait for."""
    if dish != "pizza":
        return PASS
    await asyncio.sleep(0.05)
    return "pizza, by bicycle"


async def main() -> None:
    async with server, Client(address) as client:
        start = time.perf_counter()
        stews = [asyncio.create_task(client.request("stew")) for _ in range(8)]
        print(await client.request("soup"))
        print(await client.request("pizza"))
        print(f"ping meanwhile: {await client.ping() * 1000:.1f} ms")
        print((await asyncio.gather(*stews))[0])
        print(f"eight stews of 0.2 s each took {time.perf_counter() - start:.1f} s")

        try:
            await client.request("caviar")
        except Unhandled as error:
            print(f"caviar: {error}")


if __name__ == "__main__":
    interphone.run(main())
