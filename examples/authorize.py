"""Who may come in: `authorize` decides before the client is answered."""

from __future__ import annotations

from typing import Any

import interphone
from interphone import Client, MemoryAddress, Peer, Refuse, Refused, Server

TOKENS = {"s3cret": "Ada", "hunter2": "Bob"}

address = MemoryAddress("club")
server = Server(address)


@server.authorize
async def check(peer: Peer, payload: Any) -> str:
    """What is returned is the peer's `session` from now on."""
    token = payload.get("token") if isinstance(payload, dict) else None
    if token not in TOKENS:
        raise Refuse({"why": "bad token", "hint": "ask Ada"})
    return TOKENS[token]


@server.on_connect  # only those that were let in get here
def welcome(peer: Peer, payload: Any) -> None:
    print(f"{peer.session} is in")


@server.on_request
async def whoami(peer: Peer, data: Any) -> str:
    return f"you are {peer.session}"


async def main() -> None:
    async with server:
        client = Client(address)
        await client.connect({"token": "s3cret"})
        print(await client.request("who am I?"))
        await client.close()

        # To be refused is an answer: it comes at once, with a reason, and nobody tries again.
        for payload in ({"token": "guess"}, None):
            try:
                await Client(address).connect(payload)
            except Refused as no:
                print(f"refused: {no.reason['why']} ({no.reason['hint']})")
            else:
                raise SystemExit("the door is open")


if __name__ == "__main__":
    interphone.run(main())
