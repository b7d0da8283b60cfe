"""The main job: a daemon that is slow to start and quick to answer, and stays warm.

    make demo        (or: python examples/demo.py)

It starts `daemon/server.py` as a process of its own, watches it read every docstring of the
standard library, and asks it things: from this process, and from Node by way of the package
net-ipc, if they are there. Then it stops the daemon. It exits with 0 only if all of that
happened, and leaves nothing behind, also after Ctrl-C.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import interphone
from interphone import Address, Backoff, Client, Publication, RemoteError, Subscription

HERE = Path(__file__).resolve().parent
SERVER = HERE / "daemon" / "server.py"
NODE_CLIENT = HERE / "daemon" / "client.js"
NODE_MODULES = HERE.parent / ".cache" / "node" / "node_modules"

QUESTIONS = [
    "wait for a task with a timeout",
    "secure random token",
    "wrap a paragraph",
    "median of data",
]
SEQUENTIAL = 1_000
CONCURRENT = 64
IDLE = 5  # seconds after which the daemon ends by itself, should this process be killed
TTY = sys.stdout.isatty()


# What goes over the wire, as this side wants to see it: fields it does not name are left out.


@dataclass(frozen=True)
class Hit:
    name: str
    summary: str


@dataclass(frozen=True)
class Progress:
    done: int
    total: int
    docs: int


async def main() -> None:
    name = f"interphone-demo-{os.getpid()}"  # two demos may run at once
    started = time.perf_counter()
    with daemon(name) as process:
        # The daemon is only just starting: the client knocks every 50 ms until it is there.
        async with Client(name, backoff=Backoff(cap=0.05)) as client:
            say(f"Daemon {process.pid} listens on {client.address}")
            cold = await first_search(client, started)
            warm = await more_searches(client)
            one_by_one, at_once = await many_searches(client)
            refused = await bad_request(client)
            node = await ask_from_node(str(client.address))
            stats = await client.request({"stats": True})
            await stop(client, process)

    median = statistics.median(one_by_one)
    rows = [
        ("cold: start, read, answer", seconds(cold), f"{stats['docs']:,} docstrings"),
        ("warm: the next searches", seconds(warm), f"{cold / warm:,.0f} times faster"),
        (f"{SEQUENTIAL:,} one after another", seconds(median), rate(SEQUENTIAL, sum(one_by_one))),
        (f"{CONCURRENT} at once", seconds(at_once / CONCURRENT), rate(CONCURRENT, at_once)),
        ("a bad request", seconds(refused), "refused, not left waiting"),
    ]
    if node:
        times = node["times"]
        median = statistics.median(times)
        rows += [
            (f"{len(times):,} from Node", seconds(median), rate(len(times), sum(times))),
            ("a bad request from Node", seconds(node["refusedIn"]), "refused, too"),
        ]
    summary(rows)


@contextmanager
def daemon(name: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run the daemon; whatever happens, it is gone afterwards."""
    command = [sys.executable, str(SERVER), name, str(IDLE)]
    # In a session of its own, so that Ctrl-C reaches us and not the daemon as well.
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            yield process
        finally:
            process.terminate()


async def first_search(client: Client, started: float) -> float:
    """Ask before there is an answer, and watch the daemon read meanwhile."""
    async with (
        client.subscribe("progress", of=Progress) as progress,
        asyncio.TaskGroup() as tasks,
    ):
        watching = tasks.create_task(watch(progress))
        hits = await client.request(QUESTIONS[0], returns=list[Hit], timeout=60)
        cold = time.perf_counter() - started
        watching.cancel()
    show(QUESTIONS[0], hits, cold)
    return cold


async def watch(progress: Subscription[Publication[Progress]]) -> None:
    """Draw a bar of what the daemon publishes."""
    async for item in progress:
        done, total, docs = item.value.done, item.value.total, item.value.docs
        if TTY:
            bar = "#" * (30 * done // total)
            print(f"\r  reading [{bar:<30}] {docs:,} docstrings", end="", flush=True)
        if done == total:
            print("\r\x1b[K" if TTY else "", end="")
            print(f"  read {done:,} modules, {docs:,} docstrings")


async def more_searches(client: Client) -> float:
    times = []
    for question in QUESTIONS[1:]:
        start = time.perf_counter()
        hits = await client.request({"search": question, "limit": 3}, returns=list[Hit])
        times.append(time.perf_counter() - start)
        show(question, hits, times[-1])
    return statistics.median(times)


async def many_searches(client: Client) -> tuple[list[float], float]:
    """Ask again and again; return the time of each, and of many asked at once."""
    one_by_one = []
    for number in range(SEQUENTIAL):
        start = time.perf_counter()
        await client.request(QUESTIONS[number % len(QUESTIONS)], returns=list[Hit])
        one_by_one.append(time.perf_counter() - start)
    start = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for number in range(CONCURRENT):
            tasks.create_task(client.request(QUESTIONS[number % len(QUESTIONS)]))
    return one_by_one, time.perf_counter() - start


async def bad_request(client: Client) -> float:
    """Ask something the daemon cannot answer: it says so at once."""
    start = time.perf_counter()
    try:
        await client.request({"search": 42})
    except RemoteError as error:
        took = time.perf_counter() - start
        say("A bad request", f"{error.kind}: {error.message}")
        return took
    raise SystemExit("the daemon took a bad request for a good one")


async def ask_from_node(path: str) -> Any:
    """Ask the same from another language; return None where there is no Node."""
    command = shutil.which("node")
    if command is None:
        say("Node", "not on PATH here, so nothing was asked from it")
        return None
    process = await asyncio.create_subprocess_exec(
        command,
        str(NODE_CLIENT),
        path.removeprefix("\\\\.\\pipe\\"),  # net-ipc adds that on Windows
        str(SEQUENTIAL),
        *QUESTIONS,
        env={"NODE_PATH": str(NODE_MODULES), **os.environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        told, complaints = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if b"Cannot find module 'net-ipc'" in complaints:
        say("Node", "here, but without the package net-ipc (`make setup` gets it)")
        return None
    if process.returncode:
        raise SystemExit(f"the client in Node failed:\n{complaints.decode(errors='replace')}")
    node = json.loads(told)
    say(f"Node {node['node']}", "the same questions, and the same bad request")
    show(QUESTIONS[0], [Hit(hit["name"], hit["summary"]) for hit in node["hits"]], node["times"][0])
    say("A bad request", node["refused"]["error"]["message"])
    return node


async def stop(client: Client, process: subprocess.Popen[bytes]) -> None:
    """Ask the daemon to end, and see that it did, and cleaned up."""
    await client.request({"stop": True})
    reason = await client.wait_closed()
    code = await asyncio.to_thread(process.wait)
    if code != 0 or exists(client.address):
        raise SystemExit(f"the daemon ended badly: exit code {code}")
    say("Stopped", f"the daemon said {reason!r}, exited with 0 and took its socket away")


def exists(address: Address) -> bool:
    return os.path.lexists(str(address))


# Showing it


def say(title: str, text: str = "") -> None:
    title = f"\x1b[1m{title}\x1b[0m" if TTY else title
    print(f"\n{title}{': ' if text else ''}{text}", flush=True)


def show(question: str, hits: Sequence[Hit], took: float) -> None:
    say(f"{question!r} took {seconds(took)}")
    for hit in hits[:3]:
        print(f"  {hit.name:<36} {textwrap.shorten(hit.summary, 60, placeholder=' ...')}")
    if not hits:
        raise SystemExit("nothing found, and that cannot be")


def summary(rows: Sequence[tuple[str, str, str]]) -> None:
    say("Summary")
    for what, took, note in rows:
        print(f"  {what:<28} {took:>9}   {note}")


def seconds(time: float) -> str:
    return f"{time:.2f} s" if time >= 1 else f"{time * 1000:.2f} ms"


def rate(count: int, time: float) -> str:
    return f"{count / time:,.0f} a second"


if __name__ == "__main__":
    try:
        interphone.run(main())
    except KeyboardInterrupt:
        print("\nInterrupted. The daemon is stopped.")
        sys.exit(130)
