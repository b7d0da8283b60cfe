"""Without await: a script, its threads, and a server of plain functions.

The client begins without an event loop or a thread. With the first subscription it moves to
the background, where it listens; nothing else changes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from interphone import RemoteError
from interphone.blocking import Call, Client, Server

server = Server("warehouse")
stock = {"bolt": 1_000, "nut": 900}


@server.method
def count(part: str) -> int:
    return stock[part]


@server.method
def parts() -> Iterator[str]:
    yield from stock


@server.method
def take(call: Call, part: str, many: int) -> int:
    for done in range(0, many, 100):
        call.progress(f"{done} of {many}")
        time.sleep(0.01)  # it may block: it runs in a thread
    stock[part] -= many
    server.publish(f"stock.{part}", stock[part])
    return stock[part]


def main() -> None:
    with server, Client("warehouse") as client:
        print(f"{client.call('count', 'bolt', returns=int)} bolts")
        try:
            client.call("count", "cog")
        except RemoteError as error:
            print(f"cogs: {error}")

        threads = [threading.Thread(target=client.call, args=("take", "nut", 100)) for _ in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(f"{client.call('count', 'nut')} nuts are left by three threads")

        with client.subscribe("stock.*", of=int) as changes:
            client.call("take", "bolt", 300, on_progress=print)
            print(f"heard: {next(changes)}")

        with client.stream("parts", of=str) as names:
            print("we have", ", ".join(names))

        started = time.perf_counter()
        for _ in range(1_000):
            client.call("count", "bolt")
        print(f"a call takes {(time.perf_counter() - started) * 1e3:.0f} µs")


if __name__ == "__main__":
    main()
