"""Request and response: the smallest server, and a client that asks it something.

Both are in one process here. In two processes give both the same name instead of a
`MemoryAddress`: `Server("echo")` there and `Client("echo")` here.
"""

from __future__ import annotations

from typing import Any

import interphone
from interphone import Client, MemoryAddress, Peer, Server

address = MemoryAddress("echo")
server = Server(address)


@server.on_request
async def echo(peer: Peer, data: Any) -> Any:
    return data


async def main() -> None:
    async with server, Client(address) as client:
        print(await client.request("hello"))
        print(await client.request({"numbers": [1, 2.5, None], "text": "ünïcödé"}))

        # Say what type you expect, and both you and the type checker get it.
        numbers = await client.request([1, 2, 3], returns=list[int])
        print(sum(numbers))

        print(f"there and back in {await client.ping() * 1e6:.0f} µs")


if __name__ == "__main__":
    interphone.run(main())
