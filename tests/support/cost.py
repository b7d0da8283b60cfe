"""Count what a message costs: calls of functions, and system calls; never time.

    python tests/support/cost.py count request     what one kind of message costs, as JSON
    python tests/support/cost.py repeat request 9  do it nine times, for strace
    python tests/support/cost.py record            count all, and write tests/cost.json

Both ends run in one thread over a real Unix socket, on asyncio's own loop, where `sys.setprofile`
sees every call, also of the loop and the transport. So the same code gives the same numbers,
whatever else the machine does. System calls are counted by strace where it works, on uvloop, as
the difference between a long and a short run.
"""

from __future__ import annotations

import asyncio
import gc
import json
import select
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import interphone
from interphone import Client, Peer, Server

RECORDED = Path(__file__).resolve().parents[1] / "cost.json"
VERSION = "{}.{}".format(*sys.version_info)
PAYLOAD = {"id": 7, "name": "a name", "value": 1.5, "tags": ["a", "b"]}
BURST = 64
TIMES = 10 * BURST
SUBSCRIBERS = 10

Work = Callable[[int], Awaitable[object]]
IO = {"send", "sendmsg", "recv", "recv_into", "recvmsg", "poll", "register", "modify", "unregister"}


class Ends:
    """A server, its clients, and what one may do with them."""

    def __init__(self, server: Server, clients: list[Client]) -> None:
        self.server, (self.client, *self.others) = server, clients
        self.missing = 0
        self.arrived = asyncio.Event()

    def expect(self, count: int) -> None:
        self.missing = count
        self.arrived.clear()

    def one(self, *_: object) -> None:
        self.missing -= 1
        if not self.missing:
            self.arrived.set()

    async def request(self, times: int) -> None:
        for _ in range(times):
            await self.client.request(PAYLOAD)

    async def requests(self, times: int) -> None:
        await asyncio.gather(*(self.request(times // BURST) for _ in range(BURST)))

    async def call(self, times: int) -> None:
        for _ in range(times):
            await self.client.call("same", PAYLOAD)

    async def send(self, times: int) -> None:
        for _ in range(times // BURST):
            self.expect(BURST)
            for _ in range(BURST):
                await self.client.send(PAYLOAD)
            await self.arrived.wait()

    async def publish(self, times: int) -> None:
        for _ in range(times // BURST):
            self.expect(BURST * SUBSCRIBERS)
            for _ in range(BURST):
                await self.server.publish("a", PAYLOAD)
            await self.arrived.wait()

    async def stream(self, times: int) -> None:
        async with self.client.stream("items", times) as stream:
            async for _ in stream:
                pass


WORK: dict[str, tuple[str, Callable[[Ends], Work]]] = {
    "request": ("a request and its answer, one at a time", lambda ends: ends.request),
    "requests": ("a request and its answer, 64 at once", lambda ends: ends.requests),
    "call": ("a call of a method, one at a time", lambda ends: ends.call),
    "send": ("a one-way message, 64 at once", lambda ends: ends.send),
    "publish": ("a publication to 10 subscribers, 64 at once", lambda ends: ends.publish),
    "stream": ("an item of a stream", lambda ends: ends.stream),
}


async def with_ends(name: str, use: Callable[[Work], Awaitable[Any]], *, extra: int = 0) -> Any:
    """Connect as many clients as the work needs, and hand the work over, warmed up.

    `extra` calls are made by the handler of requests, to see that they are counted.
    """
    with tempfile.TemporaryDirectory(prefix="ip-") as place:
        server = Server(Path(place, "s"), heartbeat=3600, latency="idle")

        @server.on_request(on="inline")
        def echo(peer: Peer, data: Any) -> Any:
            for _ in range(extra):
                nothing()
            return data

        @server.method(on="inline")
        def same(data: Any) -> Any:
            return data

        @server.method
        async def items(times: int) -> AsyncIterator[Any]:
            for _ in range(times):
                yield PAYLOAD

        async with AsyncExitStack() as stack:
            await stack.enter_async_context(server)
            clients = [
                await stack.enter_async_context(
                    Client(server.address, heartbeat=3600, latency="idle")
                )
                for _ in range(SUBSCRIBERS if name == "publish" else 1)
            ]
            ends = Ends(server, clients)
            server.on_message(ends.one)
            if name == "publish":
                for client in clients:
                    client.on_topic("a")(ends.one)
                    await client.ping()
            work = WORK[name][1](ends)
            await work(BURST)
            return await use(work)


def nothing() -> None: ...


async def count_calls(work: Work) -> dict[str, float]:
    """Count the calls of one message of this work, and those of them that go to the system."""
    counted: Counter[str] = Counter()

    def seen(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            counted["calls"] += 1
        elif event == "c_call":
            counted["calls"] += 1
            target = getattr(argument, "__self__", None)
            if argument.__name__ in IO and isinstance(target, socket.socket | select.epoll):
                counted["io"] += 1

    gc.collect()
    gc.disable()
    sys.setprofile(seen)
    try:
        await work(TIMES)
    finally:
        sys.setprofile(None)
        gc.enable()
    return {name: round(counted[name] / TIMES, 2) for name in ("calls", "io")}


# strace


def count_system_calls(name: str) -> float:
    """Have strace count what a long run of a work does more often than a short one."""
    few, many = (traced(name, times) for times in (TIMES, 4 * TIMES))
    return round((many - few) / (3 * TIMES), 2)


def traced(name: str, times: int) -> int:
    with tempfile.NamedTemporaryFile("r", prefix="ip-strace-") as table:
        strace = ["strace", "-f", "-c", "-o", table.name]
        subprocess.run([*strace, sys.executable, __file__, "repeat", name, str(times)], check=True)
        *_, total = table.read().split("\n", 2)[-1].strip().splitlines()
    columns = total.split()  # 100.00, seconds, µs each (not every strace), calls, errors, "total"
    assert columns[-1] == "total", f"strace says: {total}"
    whole = [int(column) for column in columns if column.isdigit()]
    return max(whole)


def strace_works() -> bool:
    """Whether there is a strace that may trace (in a container it may not)."""
    if not shutil.which("strace"):
        return False
    probe = ["strace", "-f", "-c", "-o", "/dev/null", sys.executable, "-c", ""]
    return subprocess.run(probe, capture_output=True).returncode == 0


# As a program


def count(name: str, *, extra: int = 0) -> dict[str, float]:
    """Count in a process of its own, where nothing else watches (pytest, coverage, blockbuster)."""
    command = [sys.executable, __file__, "count", name, str(extra)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    numbers: dict[str, float] = json.loads(done.stdout)
    return numbers


def recorded() -> dict[str, dict[str, dict[str, float]]]:
    """What was counted when it was last recorded, by version of Python and by work."""
    numbers: dict[str, dict[str, dict[str, float]]] = json.loads(RECORDED.read_text("utf-8"))
    return numbers


def record() -> None:
    """Count all, write it down for this version of Python, and print what changed."""
    numbers = recorded() if RECORDED.exists() else {}
    before = numbers.get(VERSION, {})
    now: dict[str, dict[str, float]] = {}
    for name, (title, _) in WORK.items():
        now[name] = count(name)
        if strace_works():
            now[name]["system_calls"] = count_system_calls(name)
        elif "system_calls" in before.get(name, {}):
            now[name]["system_calls"] = before[name]["system_calls"]
        changes = (
            f"{what} {before.get(name, {}).get(what, '–')} → {n}" for what, n in now[name].items()
        )
        print(f"{VERSION}, {title}: {', '.join(changes)}")
    numbers[VERSION] = now
    RECORDED.write_text(json.dumps(dict(sorted(numbers.items())), indent=2) + "\n", "utf-8")


def main(command: str, name: str = "", number: str = "0") -> None:
    if command == "record":
        record()
    elif command == "count":
        print(json.dumps(asyncio.run(with_ends(name, count_calls, extra=int(number)))))
    else:
        interphone.run(with_ends(name, lambda work: work(int(number))))


if __name__ == "__main__":
    main(*sys.argv[1:])
