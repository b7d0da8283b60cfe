"""A bot and its dashboard: two programs that ask and tell each other things, and restart alone.

Each is a process of its own (`python dashboard.py bot NAME`, `… board NAME`). The bot is killed
and started again under the dashboard, which has its subscriptions back without doing anything.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import interphone
from interphone import Backoff, Client, Gap, Peer, Server, contract


@dataclass
class Guild:
    name: str
    members: int


# The contract both sides share.


@contract("guild.list")
def list_guilds(*, at_least: int = 0) -> list[Guild]:
    raise NotImplementedError


@contract("guild.greet")
def greet_guild(name: str, words: str) -> bool:
    raise NotImplementedError


def bot(name: str) -> Server:
    guilds = [Guild("Chess", 40), Guild("Cats", 12)]
    server = Server(name)

    @server.method(list_guilds)
    async def listed(*, at_least: int = 0) -> list[Guild]:
        return [guild for guild in guilds if guild.members >= at_least]

    @server.method(greet_guild)
    async def greet(name: str, words: str) -> bool:
        known = any(guild.name == name for guild in guilds)
        if known:
            await server.publish(f"guild.{name}.said", words)
        return known

    @server.on_connect
    async def ask_back(peer: Peer, payload: object) -> None:
        print("bot: the board shows", await peer.call("title"), flush=True)

    return server


async def board(name: str) -> None:
    client = Client(name, backoff=Backoff(cap=0.05))

    @client.method
    async def title() -> str:
        return "My guilds"

    async with client, client.subscribe("guild.*.said", of=str, gaps=True) as said:
        big = await client.call(list_guilds, at_least=20)
        print("board: guilds of 20 and more:", *(guild.name for guild in big), flush=True)
        await client.call(greet_guild, "Chess", "hello")
        gone = False
        async for item in said:
            if isinstance(item, Gap):
                gone = True
                print("board: the bot was away", flush=True)
                await client.call(greet_guild, "Cats", "back again")
                continue
            print(f"board: {item.topic}: {item.value}", flush=True)
            if gone:
                return
            print("kill the bot", flush=True)


@contextmanager
def started(*command: str, **options: object) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, __file__, *command],
        text=True,
        **options,  # type: ignore[call-overload]  # what Popen takes
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def both() -> None:
    name = f"guilds-{os.getpid()}"
    with started("board", name, stdout=subprocess.PIPE) as dashboard:
        assert dashboard.stdout is not None
        with started("bot", name) as first:
            for line in dashboard.stdout:
                if line == "kill the bot\n":
                    break
                print(line, end="")
            first.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
        with started("bot", name):
            for line in dashboard.stdout:
                print(line, end="")
            if dashboard.wait() != 0:
                raise SystemExit("the dashboard failed")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["bot", name]:
            interphone.run(bot(name).serve_forever())
        case ["board", name]:
            interphone.run(board(name))
        case _:
            both()
