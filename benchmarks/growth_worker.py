"""One process of `bench_growth.py`: a server, or clients, told what to do line by line.

    python growth_worker.py server|client ADDRESS

Commands come on standard input, as words, and are answered by a line of JSON on standard output,
with the times of the monotonic clock between which the work was done.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "versus"))
from worker import item, say, stdin_lines

from interphone import Client, InterphoneError, Limits, Server

LIMITS = Limits(max_inflight=65_536, max_pending=65_536, max_subscriptions=200_000, max_held=2**28)
TIGHT = Limits(max_pending=65_536)  # a server that takes 1,024 at once, as by default
AT_ONCE = 50  # connects and subscriptions under way
Command = Callable[..., Awaitable[None]]


class Serving:
    """The commands of a server."""

    def __init__(self, address: str) -> None:
        self.waiting: list[asyncio.Future[None]] = []
        self.server = server = Server(
            Path(address),
            limits=TIGHT if address.endswith("tight") else LIMITS,
            max_connections=20_000,
            max_subscriptions=400_000,
            max_retained=200_000,
            max_retained_bytes=2**28,
            latency="idle",
        )
        self.collecting = self.collections = 0.0
        gc.callbacks.append(self.note_collection)

        @server.on_request(on="inline")
        def echo(peer: Any, data: Any) -> Any:
            return data

        @server.method
        async def wait() -> None:
            self.waiting.append(asyncio.get_running_loop().create_future())
            await self.waiting[-1]

    def note_collection(self, phase: str, facts: dict[str, int]) -> None:
        self.collecting += perf_counter() * (1 if phase == "stop" else -1)
        self.collections += phase == "stop"

    async def begin(self) -> None:
        await self.server.start()

    async def collected(self) -> None:
        """How long Python's collector has run so far."""
        say(seconds=self.collecting, times=self.collections, objects=len(gc.get_objects()))

    async def publish(self, topic: str, count: str) -> None:
        started = perf_counter()
        for number in range(int(count)):
            await self.server.publish(topic, item(number))
        say(started=started, ended=perf_counter())

    async def retain(self, count: str) -> None:
        for number in range(int(count)):
            await self.server.publish(f"kept.{number}.x", number, retain=True)
        say(ok=True)

    async def waits(self) -> None:
        """How many requests wait here."""
        say(count=sum(not one.done() for one in self.waiting))

    async def forget(self) -> None:
        for one in self.waiting:
            if not one.done():
                one.set_result(None)
        self.waiting.clear()
        say(ok=True)

    async def close(self) -> None:
        started = perf_counter()
        await self.server.close()
        say(started=started, ended=perf_counter())


class Asking:
    """The commands of clients."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.clients: list[Client] = []
        self.pending: list[asyncio.Future[Any]] = []
        self.missing = 0

    async def begin(self) -> None: ...

    async def open_one(self) -> Client:
        client = Client(Path(self.address), limits=LIMITS, latency="idle", backoff=None)
        await client.connect()
        return client

    async def hold(self, count: str) -> None:
        """Connect so many; what is said is how long that took."""
        started, left = perf_counter(), int(count)
        while left:
            some = min(left, AT_ONCE)
            self.clients += await asyncio.gather(*(self.open_one() for _ in range(some)))
            left -= some
        say(started=started, ended=perf_counter())

    async def churn(self, count: str) -> None:
        """Connect, ask once and leave."""
        started = perf_counter()
        for number in range(int(count)):
            client = await self.open_one()
            await client.request(item(number))
            await client.close()
        say(started=started, ended=perf_counter())

    async def request(self, count: str) -> None:
        client, started = self.clients[-1], perf_counter()
        for number in range(int(count)):
            answer = await client.request(item(number))
            if answer["id"] != number:
                say(error=f"the answer to {number} was {answer}")
        say(started=started, ended=perf_counter())

    # Topics

    async def hear(self, count: str) -> None:
        """Say so when so many publications have come, to all subscriptions together."""
        self.missing = int(count)
        say(ok=True)

    def came(self, publication: Any) -> None:
        self.missing -= 1
        if not self.missing:
            say(done=perf_counter())

    async def listen(self, each: str, *topics: str) -> None:
        """Subscribe every client to topics: `each` times, or with what `{}` stands for in them.

        A topic `a.{}` is a subscription for each number below `each`, `a.{,}` one for them all.
        """
        for client in self.clients:
            for topic in topics:
                if "{,}" in topic:
                    names = [topic.replace("{,}", str(number)) for number in range(int(each))]
                    client.on_topic(*names)(self.came)
                    continue
                for number in range(int(each)):
                    client.on_topic(topic.replace("{}", str(number)))(self.came)
            await client.ping(timeout=None)
        say(ok=True)

    async def listen_in_tens(self, count: str, topic: str) -> None:
        """Subscribe to so many topics in all, ten to a subscription, in turn for each client."""
        total = int(count)
        for number, first in enumerate(range(0, total, 10)):
            client = self.clients[number % len(self.clients)]
            numbers = range(first, min(first + 10, total))
            client.on_topic(*(topic.replace("{}", str(each)) for each in numbers))(self.came)
            if number % 1_000 == 999:
                await asyncio.gather(*(one.ping(timeout=None) for one in self.clients))
        await asyncio.gather(*(one.ping(timeout=None) for one in self.clients))
        say(ok=True)

    async def listen_in_group(self, count: str, topic: str) -> None:
        for number in range(int(count)):
            client = self.clients[number % len(self.clients)]
            client.on_topic(topic, group="g")(self.came)
        await asyncio.gather(*(one.ping(timeout=None) for one in self.clients))
        say(ok=True)

    async def come_and_go(self, topic: str, times: str) -> None:
        """Subscribe and unsubscribe one more, so many times."""
        client, started = self.clients[0], perf_counter()
        for _ in range(int(times)):
            async with client.subscribe(topic):
                pass
        say(started=started, ended=perf_counter())

    async def all_come_and_go(self, count: str) -> None:
        """So many subscriptions of one client, one after the other, and their ends."""
        client, started = self.clients[0], perf_counter()
        async with AsyncExitStack() as stack:
            for number in range(int(count)):
                await stack.enter_async_context(client.subscribe(f"own.{number}"))
        say(started=started, ended=perf_counter())

    async def one_comes_and_goes(self, count: str) -> None:
        """One subscription to so many topics, and its end."""
        client, started = self.clients[0], perf_counter()
        async with client.subscribe(*(f"own.{number}" for number in range(int(count)))):
            pass
        say(started=started, ended=perf_counter())

    async def publish(self, topic: str, count: str) -> None:
        client, started = self.clients[0], perf_counter()
        for number in range(int(count)):
            await client.publish(topic, item(number))
        say(started=started, ended=perf_counter())

    # Pending requests

    def ask_many(self, count: int, timeouts: str) -> None:
        client = self.clients[-1]
        for number in range(count):
            wait = {
                "none": None,
                "one": 3600.0,
                "many": 3600.0 + number * 0.37 % 100,
                "soon": 0.2 + 0.8 * (number * 0.618 % 1),
            }[timeouts]
            self.pending.append(asyncio.ensure_future(client.call("wait", timeout=wait)))

    async def pend(self, count: str, timeouts: str) -> None:
        self.ask_many(int(count), timeouts)
        await asyncio.sleep(0)
        await self.clients[-1].ping(timeout=None)
        say(ok=True)

    async def expire(self, count: str) -> None:
        """Ask what is not answered in time; deadlines are spread over 0.8 s."""
        started = perf_counter()
        self.ask_many(int(count), "soon")
        await self.settled()
        say(started=started, ended=perf_counter())

    async def cancel(self, count: str) -> None:
        """Ask, and take all of it back."""
        self.ask_many(int(count), "none")
        await asyncio.sleep(0)
        await self.clients[-1].ping(timeout=None)
        started = perf_counter()
        for one in self.pending:
            one.cancel()
        await self.settled()
        await self.clients[-1].ping(timeout=None)
        say(started=started, ended=perf_counter())

    async def settled(self) -> None:
        for result in await asyncio.gather(*self.pending, return_exceptions=True):
            if isinstance(result, Exception) and not isinstance(result, InterphoneError):
                say(error=repr(result))
        self.pending.clear()

    async def drain(self, count: str) -> None:
        """So many requests at once, which are answered at once."""
        client, started = self.clients[-1], perf_counter()
        await asyncio.gather(*(client.request(1, timeout=None) for _ in range(int(count))))
        say(started=started, ended=perf_counter())


async def main(role: str, address: str) -> None:
    lines = stdin_lines()
    told = Serving(address) if role == "server" else Asking(address)
    await told.begin()
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    say(ready=True, descriptors=limit)
    while words := await lines.get():
        command: Command = getattr(told, words[0])
        try:
            await command(*words[1:])
        except Exception as exc:
            say(error=f"{words[0]}: {exc!r}")


if __name__ == "__main__":
    import uvloop

    if os.environ.get("GROWTH_GC") == "off":  # to see what of a bend is the collector's
        gc.disable()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(*sys.argv[1:]))
