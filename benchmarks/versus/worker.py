"""One process of a benchmark: the server or a client of one peer, told what to do line by line.

    python worker.py PEER server|client ADDRESS

Commands come on standard input and are answered by a line of JSON on standard output; `plan.py`
says which workload gives which. Programs in other languages (`adapters/floor.c`,
`adapters/net_ipc.js`) understand the same commands. Times are those of the monotonic clock, which
all processes share.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from time import perf_counter
from typing import Any

Item = dict[str, Any]
PR_SET_PDEATHSIG = 1
brokers: list[subprocess.Popen[bytes]] = []


def item(number: int) -> Item:
    """The small payload."""
    return {"id": number, "name": "a name", "value": 1.5, "tags": ["a", "b"]}


def say(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def start_broker(*command: object) -> int:
    """Start a program that ends with this process, however that ends; return its pid."""
    process = subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.DEVNULL,
        stderr=None if os.environ.get("BENCH_DEBUG") else subprocess.DEVNULL,
        preexec_fn=lambda: ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
    )
    brokers.append(process)  # or it would be waited for when it is collected
    return process.pid


class Sink:
    """Takes items, each of which must be the next one; says so when all have come."""

    def __init__(self, done: Callable[[], None]) -> None:
        self.done = done
        self.next = self.last = 0

    def expect(self, count: int) -> None:
        self.next, self.last = 0, count

    def __call__(self, value: Item) -> None:
        number = value["id"]
        if number != self.next:
            if number < self.next or number >= self.last:
                say(error=f"item {number} came where {self.next} should")
            self.next = number  # some were lost: `missing` tells how many are
        self.next += 1
        if self.next == self.last:
            self.done()


class Sinks:
    """The sinks of several subscribers; `done` is said once, for all."""

    def __init__(self, count: int) -> None:
        self.lock = threading.Lock()
        self.each = [Sink(self.one_done) for _ in range(count)]
        self.waiting = 0

    def expect(self, count: int) -> None:
        self.waiting = len(self.each)
        for sink in self.each:
            sink.expect(count)

    def one_done(self) -> None:
        with self.lock:
            self.waiting -= 1
            done = not self.waiting
        if done:
            say(done=perf_counter())

    def missing(self) -> int:
        return sum(sink.last - sink.next for sink in self.each)


class Spans:
    """How long each of many things took."""

    def __init__(self) -> None:
        self.took: list[float] = []

    def say(self, started: float, ended: float) -> None:
        say(started=started, ended=ended, count=len(self.took))
        took = sorted(self.took)
        say(p50=took[len(took) // 2], p99=took[len(took) * 99 // 100])


# Asynchronous peers


async def serve_async(adapter: Any, address: str) -> None:
    lines = stdin_lines()
    sinks = Sinks(1)
    server = adapter.Server(address, sinks.each[0])
    await server.start()
    say(ready=True, pids=getattr(server, "pids", []))
    while words := await lines.get():
        if words[0] == "sink":
            sinks.expect(int(words[1]))
            say(ok=True)
        elif words[0] == "publish":
            started = perf_counter()
            await server.publish(int(words[1]))
            say(started=started, ended=perf_counter())


async def drive_async(adapter: Any, address: str) -> None:
    lines = stdin_lines()
    clients: list[Any] = []
    sinks = Sinks(0)
    say(ready=True)

    async def open_one() -> Any:
        client = adapter.Client(address)
        await client.connect()
        return client

    async def requests(seconds: float, at_once: int, ask: str) -> None:
        spans = Spans()
        ask_one, took = getattr(clients[0], ask), spans.took
        deadline = (started := perf_counter()) + seconds

        async def worker(number: int) -> None:
            now = started
            while now < deadline or not took:
                answer = await ask_one(item(number))
                if answer["id"] != number:
                    say(error=f"the answer to {number} was {answer}")
                number += 1
                before, now = now, perf_counter()
                took.append(now - before)

        if at_once == 1:
            await worker(0)
        else:
            await asyncio.gather(*(worker(number << 32) for number in range(at_once)))
        spans.say(started, perf_counter())

    async def connects(count: int, at_once: int) -> None:
        started = perf_counter()

        async def worker() -> None:
            for number in range(count // at_once):
                client = await open_one()
                await client.request(item(number))
                await client.close()

        await asyncio.gather(*(worker() for _ in range(at_once)))
        say(started=started, ended=perf_counter(), count=count // at_once * at_once)

    async def echo(size: int, seconds: float) -> None:
        data, count = os.urandom(size), 0
        deadline = (started := perf_counter()) + seconds
        while not count or perf_counter() < deadline:
            answer = await clients[0].echo(data)
            if len(answer) != size or answer[-64:] != data[-64:]:
                say(error="other bytes came back")
            count += 1
        say(started=started, ended=perf_counter(), count=count)

    while words := await lines.get():
        command, *rest = words
        if command in ("open", "hold"):
            clients += [await open_one() for _ in range(int(rest[0]) if rest else 1)]
            say(ok=True)
        elif command in ("close", "drop"):
            for client in clients:
                await client.close()
            clients.clear()
            say(ok=True)
        elif command in ("requests", "calls", "typed"):
            ask = {"requests": "request", "calls": "call", "typed": "typed"}[command]
            await requests(float(rest[0]), int(rest[1]), ask)
        elif command == "send":
            started = perf_counter()
            await clients[0].send(int(rest[0]))
            say(started=started, ended=perf_counter())
        elif command == "echo":
            await echo(int(rest[0]), float(rest[1]))
        elif command == "connects":
            await connects(int(rest[0]), int(rest[1]))
        elif command == "subscribe":
            sinks = Sinks(int(rest[0]))
            for sink in sinks.each:
                clients.append(await open_one())
                await clients[-1].subscribe(sink)
            say(ok=True)
        elif command == "hear":
            sinks.expect(int(rest[0]))
            say(ok=True)
        elif command == "missing":
            say(missing=sinks.missing())
        elif command == "busy":
            await clients[0].busy(rest[0] == "on")
            say(ok=True)


def stdin_lines() -> asyncio.Queue[list[str]]:
    """The commands, as words; an empty list at the end."""
    lines: asyncio.Queue[list[str]] = asyncio.Queue()
    rest = b""

    def readable() -> None:
        nonlocal rest
        data = os.read(0, 4096)
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            lines.put_nowait(line.decode().split())
        if not data:
            asyncio.get_running_loop().remove_reader(0)
            lines.put_nowait([])

    asyncio.get_running_loop().add_reader(0, readable)
    return lines


# Blocking peers


def serve_blocking(adapter: Any, address: str) -> None:
    sinks = Sinks(1)
    server = adapter.Server(address, sinks.each[0])
    server.start()
    say(ready=True, pids=getattr(server, "pids", []))
    for line in sys.stdin:
        command, number = line.split()
        if command == "sink":
            sinks.expect(int(number))
            say(ok=True)
        elif command == "publish":
            started = perf_counter()
            server.publish(int(number))
            say(started=started, ended=perf_counter())


def drive_blocking(adapter: Any, address: str) -> None:
    clients: list[Any] = []
    sinks = Sinks(0)
    say(ready=True)
    for line in sys.stdin:
        command, *rest = line.split()
        if command in ("open", "hold"):
            for _ in range(int(rest[0]) if rest else 1):
                clients.append(adapter.Client(address))
                clients[-1].connect()
            say(ok=True)
        elif command in ("close", "drop"):
            for client in clients:
                client.close()
            clients.clear()
            say(ok=True)
        elif command in ("requests", "typed"):
            ask_blocking(clients[0], command, float(rest[0]), int(rest[1]))
        elif command == "send":
            started = perf_counter()
            clients[0].send(int(rest[0]))
            say(started=started, ended=perf_counter())
        elif command == "echo":
            echo_blocking(clients[0], int(rest[0]), float(rest[1]))
        elif command == "connects":
            started = perf_counter()
            for number in range(int(rest[0])):
                client = adapter.Client(address)
                client.connect()
                client.request(item(number))
                client.close()
            say(started=started, ended=perf_counter(), count=int(rest[0]))
        elif command == "subscribe":
            sinks = Sinks(int(rest[0]))
            clients.append(adapter.Subscribers(address, sinks.each))
            say(ok=True)
        elif command == "hear":
            sinks.expect(int(rest[0]))
            say(ok=True)
        elif command == "missing":
            say(missing=sinks.missing())


def ask_blocking(client: Any, verb: str, seconds: float, at_once: int) -> None:
    """Requests one at a time, or with a window of them under way, which `take` gives in order."""
    spans = Spans()
    took, asked, number = spans.took, [], 0
    now = started = perf_counter()
    deadline = started + seconds
    if at_once == 1:
        request = client.typed if verb == "typed" else client.request
        while now < deadline or not took:
            if request(item(number))["id"] != number:
                say(error=f"another answer than that to {number}")
            number += 1
            before, now = now, perf_counter()
            took.append(now - before)
    else:
        post, take, asked = client.post, client.take, [now] * at_once
        for number in range(at_once):
            post(item(number))
        first, number = 0, at_once
        while now < deadline or not took:
            if take()["id"] != first:
                say(error=f"another answer than that to {first}")
            now = perf_counter()
            took.append(now - asked[first % at_once])
            asked[first % at_once] = now
            first += 1
            post(item(number))
            number += 1
        while first < number:
            take()
            first += 1
    spans.say(started, perf_counter())


def echo_blocking(client: Any, size: int, seconds: float) -> None:
    data, count = os.urandom(size), 0
    deadline = (started := perf_counter()) + seconds
    while not count or perf_counter() < deadline:
        answer = client.echo(data)
        if len(answer) != size or bytes(answer[-64:]) != data[-64:]:
            say(error="other bytes came back")
        count += 1
    say(started=started, ended=perf_counter(), count=count)


# Starting


def main(peer: str, role: str, address: str) -> None:
    sys.modules["worker"] = sys.modules["__main__"]  # adapters import `item` from here
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    name, _, variant = peer.partition(":")
    adapter = import_module(f"adapters.{name}")
    if hasattr(adapter, "choose"):
        adapter = adapter.choose(variant, role)
    if adapter.BLOCKING:
        (serve_blocking if role == "server" else drive_blocking)(adapter, address)
        os._exit(0)  # without waiting for threads that serve
    with asyncio.Runner(loop_factory=loop_factory(adapter)) as runner:
        runner.run((serve_async if role == "server" else drive_async)(adapter, address))


def loop_factory(adapter: Any) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if getattr(adapter, "LOOP", "uvloop") == "asyncio":
        return None
    import uvloop

    return uvloop.new_event_loop


if __name__ == "__main__":
    main(*sys.argv[1:])
