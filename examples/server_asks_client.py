"""Requests both ways: a server asks one of its clients, and all of them at once."""

from __future__ import annotations

from typing import Any

import interphone
from interphone import Client, MemoryAddress, Peer, RemoteError, Server

address = MemoryAddress("workers")
server = Server(address)


@server.on_request
async def double(peer: Peer, number: int) -> int:
    """Ask back before answering: requests of both sides may nest."""
    factor = await peer.request("by how much?", returns=int)
    return number * factor


async def worker(name: str, factor: int) -> Client:
    client = Client(address)

    @client.on_request
    async def answer(question: str) -> Any:
        if question == "by how much?":
            return factor
        if question == "how are you?" and factor > 0:
            return f"{name} is fine"
        raise RemoteError("rather not say", kind="Shy", data={"name": name})

    return await client.connect()


async def main() -> None:
    async with server:
        clients = [await worker("Ada", 2), await worker("Bob", 3), await worker("Cyd", 0)]
        clients.append(await Client(address).connect())  # handles no requests

        print("21 times 2 is", await clients[0].request(21))

        # One outcome for each peer: an answer or an error. Nobody spoils it for the others.
        for outcome in await server.survey("how are you?", returns=str, timeout=2):
            print(
                outcome.value
                if outcome.ok
                else f"({type(outcome.error).__name__}: {outcome.error})"
            )

        for client in clients:
            await client.close()


if __name__ == "__main__":
    interphone.run(main())
