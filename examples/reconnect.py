"""A server is restarted under its client, which comes back by itself, subscriptions and all."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import interphone
from interphone import Backoff, Client, Gap, Peer, Publication, Server, Status


def make_server(address: Path, version: int) -> Server:
    server = Server(address)

    @server.on_request
    async def answer(peer: Peer, data: Any) -> str:
        return f"{data}, says version {version}"

    return server


def tell(item: Publication[object] | Gap) -> None:
    if isinstance(item, Gap):
        print("a gap: what was published meanwhile is lost")
    else:
        print(item.value)


async def main(address: Path) -> None:
    client = Client(address, backoff=Backoff(initial=0.01, cap=0.1))

    @client.on_status
    def show(status: Status) -> None:
        why = f" ({client.outage.error})" if status is Status.RECONNECTING and client.outage else ""
        print(f"  status: {status.name}{why}")

    first = make_server(address, 1)
    await first.start()
    await client.connect({"program": "reconnect.py"})  # each new connection gets this payload
    print(await client.request("hello"))

    async with client.subscribe("news", gaps=True) as news:
        await first.publish("news", "before")
        tell(await anext(news))

        # A goodbye for good ends a client; this one lets it come back.
        await first.close("restarting", allow_reconnect=True)

        async with make_server(address, 2) as second:
            # Asked while there is no connection: it waits for one, within its own timeout.
            print(await client.request("hello again", timeout=5))

            # The client has subscribed again before it was ready, and we are told of the gap.
            await second.publish("news", "after")
            tell(await anext(news))
            tell(await anext(news))

    await client.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="ip-") as directory:
        interphone.run(main(Path(directory, "news.sock")))
