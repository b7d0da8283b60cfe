"""What happens at the limits: every one of them raises where it can be handled."""

from __future__ import annotations

import asyncio
from typing import Any

import interphone
from interphone import (
    Client,
    Limits,
    MemoryAddress,
    MessageTooBig,
    Overflow,
    Overloaded,
    Peer,
    Refused,
    RequestTimeout,
    Server,
)

address = MemoryAddress("limits")
server = Server(address, max_connections=1)


@server.on_request
async def answer(peer: Peer, data: Any) -> Any:
    if data == "slow":
        await asyncio.sleep(0.2)
    return "done"


async def main() -> None:
    limits = Limits(max_frame=64 * 1024, max_pending=10)
    async with server, Client(address, limits=limits) as client:
        try:
            await client.send("x" * 100_000)
        except MessageTooBig as error:
            print(f"too big: {error.size} bytes, the limit is {error.limit}; {error.delivery}")

        try:
            await client.request("slow", timeout=0.05)
        except RequestTimeout as error:
            print(f"too slow: {error}; {error.delivery}")

        asked = [client.request("slow") for _ in range(12)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        refused = [each for each in answers if isinstance(each, Overloaded)]
        print(f"too many: {len(refused)} of {len(asked)} were not sent: {refused[0]}")

        try:
            await Client(address).connect()
        except Refused as error:
            print(f"no room ({error.code}): {error.reason}")

        async with client.subscribe("news", queue=3) as news:
            for number in range(5):
                await server.publish("news", number)
            await client.ping()
            try:
                async for item in news:
                    print(f"read {item.value}")
            except Overflow as error:
                print(f"reads too slowly: {error}")

        # Say what to lose, and nothing is raised.
        async with client.subscribe("news", queue=3, overflow="drop_oldest") as news:
            for number in range(5):
                await server.publish("news", number)
            await client.ping()
            print(f"the newest: {[(await anext(news)).value for _ in range(3)]}", end="; ")
            print(f"{news.dropped} lost")


if __name__ == "__main__":
    interphone.run(main())
