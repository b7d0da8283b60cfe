"""Messages both ways: a room that passes on what everybody says.

A message wants no answer. Those of one peer are handled one after the other, in order.
"""

from __future__ import annotations

import asyncio
from typing import Any

import interphone
from interphone import Client, MemoryAddress, Peer, Server

address = MemoryAddress("chat")
server = Server(address)


@server.on_connect
async def enter(peer: Peer, payload: Any) -> None:
    peer.session = payload["name"]  # `session` is yours, for what you want to know of a peer
    await peer.send(f"welcome, {peer.session}; {len(server.peers)} here")


@server.on_message
async def pass_on(peer: Peer, text: str) -> None:
    await server.broadcast(f"{peer.session}: {text}")


@server.on_disconnect
async def leave(peer: Peer, reason: Any) -> None:
    await server.broadcast(f"{peer.session} left: {reason}")


async def join(name: str) -> Client:
    client = Client(address)

    @client.on_message
    def read(text: str) -> None:
        print(f"{name} reads: {text}")

    return await client.connect({"name": name})


async def main() -> None:
    async with server:
        ada, bob = await join("Ada"), await join("Bob")
        await ada.send("is anybody here?")
        await bob.send("I am")
        await asyncio.gather(ada.ping(), bob.ping())  # what was sent before has arrived now
        await bob.close("tea is ready")
        await ada.ping()
        await ada.close()


if __name__ == "__main__":
    interphone.run(main())
