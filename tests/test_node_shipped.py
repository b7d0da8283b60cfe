"""net-ipc's own tests, as it ships them: its client with our servers, our client with its servers.

They use the path "net-ipc" in the current directory and the TCP ports 8333 and 8334, so they run
one after the other. The last of their nine rounds uses TLS with a pre-shared key, for which
Python's `ssl` has a server's callback from 3.13 on; on an older Python eight rounds are run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from interphone import Backoff, Client, Peer, Server, net_ipc_path, tcp_address
from support.lacking import lacking
from support.node import (
    FLAVOURS,
    NODE_MODULES,
    node_command,
    node_environment,
    one_loop,
    require_node,
)

pytestmark = [pytest.mark.node, pytest.mark.slow, one_loop]
Run = Callable[[Any], Any]

PSK = sys.version_info >= (3, 13)
ROUNDS = 9 if PSK else 8
PORT, TLS_PORT = 8333, 8334
MESSAGES, REQUESTS = 9999, 1000


@contextlib.asynccontextmanager
async def shipped(name: str, cwd: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """One of net-ipc's own programs, as it is."""
    process = await asyncio.create_subprocess_exec(
        *node_command(),
        str(NODE_MODULES / "net-ipc" / "test" / name),
        cwd=cwd,
        env=node_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        assert process.stdout is not None
        await process.stdout.read()
        await process.wait()


@pytest.fixture(autouse=True)
def _ports() -> None:
    require_node()
    for port in (PORT, TLS_PORT):
        with contextlib.closing(socket.socket()) as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                reason = f"somebody listens at port {port}, which net-ipc's tests need"
                lacking(reason)


def with_key(side: int) -> ssl.SSLContext:
    """TLS by a pre-shared key, as their tests have it."""
    context = ssl.SSLContext(side)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    if side == ssl.PROTOCOL_TLS_SERVER:
        context.set_psk_server_callback(lambda identity: b"test")  # type: ignore[attr-defined,unused-ignore]  # 3.13
    else:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_psk_client_callback(lambda hint: ("test", b"test"))  # type: ignore[attr-defined,unused-ignore]  # 3.13
    context.set_ciphers("PSK")
    return context


def behave_like_their_server(server: Server, finished: asyncio.Event) -> None:
    kept: dict[Peer, list[Any]] = {}

    @server.on_message
    async def message(peer: Peer, data: Any) -> None:
        if data == "finish":
            finished.set()
        elif "test" in data:
            kept[peer] = []
        elif "data" in data:
            kept[peer].append(data["data"])
        elif "done" in data:
            for item in kept.pop(peer):
                await peer.send(item)

    @server.on_request
    async def answer(peer: Peer, data: object) -> object:
        return data


async def their_client_finishes(cwd: str, finished: asyncio.Event) -> list[str]:
    """Run their client until it has found no errors in any of the rounds."""
    lines: list[str] = []
    async with shipped("client.js", cwd) as process, asyncio.timeout(120):
        assert process.stdout is not None
        while line := (await process.stdout.readline()).decode():
            lines.append(line)
            assert "rror:" not in line, line
            if not PSK and lines.count("[CLIENT] no errors found\n") == 2 * ROUNDS:
                return lines  # what follows needs a server with a pre-shared key
        await finished.wait()
    return lines


@pytest.mark.parametrize("rounds", [f"{ROUNDS} of its 9 rounds"])
def test_net_ipcs_own_client_with_our_servers(run: Run, address: str, rounds: str) -> None:
    async def main() -> None:
        cwd, place = their_place(address)
        options = {"compress": True, "messagepack": True}
        servers = [
            Server(place, **options),
            Server(tcp_address("localhost", PORT), **options),
        ]
        if PSK:
            tls = with_key(ssl.PROTOCOL_TLS_SERVER)
            servers.append(Server(tcp_address("localhost", TLS_PORT), tls=tls))
        finished = asyncio.Event()
        async with contextlib.AsyncExitStack() as stack:
            for server in servers:
                behave_like_their_server(server, finished)
                await stack.enter_async_context(server)
            lines = await their_client_finishes(cwd, finished)
        assert lines.count("[CLIENT] no errors found\n") == 2 * ROUNDS

    run(main())


def their_place(address: str) -> tuple[str, str]:
    """Where their programs run, and where they meet then."""
    if sys.platform == "win32":
        return tempfile.gettempdir(), net_ipc_path()
    cwd = os.path.dirname(address)
    return cwd, f"{cwd}/net-ipc"


def random_object() -> dict[str, str]:
    characters = range(2**7)
    return {
        str(random.random()): "".join(map(chr, random.choices(characters, k=10)))
        + chr(random.randint(1, 2**15))
        for _ in range(10)
    }


async def do_what_their_client_does(client: Client) -> None:
    received: list[Any] = []
    complete = asyncio.Event()

    @client.on_message
    def note(data: object) -> None:
        received.append(data)
        if len(received) == MESSAGES:
            complete.set()

    data = [random_object() for _ in range(MESSAGES)]
    await client.send({"test": f"{MESSAGES} random objects"})
    for item in data:
        await client.send({"data": item})
    await client.send({"done": True})
    await complete.wait()
    assert received == data
    for item in data[:REQUESTS]:
        assert await client.request(item) == item


@pytest.mark.parametrize("rounds", [f"{ROUNDS} of its 9 rounds"])
def test_net_ipcs_own_server_with_our_client(run: Run, address: str, rounds: str) -> None:
    async def main() -> None:
        cwd, place = their_place(address)
        again = Backoff(initial=0.1, factor=1.0)
        clients = [
            Client(where, backoff=again, **flavour)
            for where in (place, tcp_address("localhost", PORT))
            for flavour in FLAVOURS.values()
        ]
        if PSK:
            tls = with_key(ssl.PROTOCOL_TLS_CLIENT)
            clients.append(Client(tcp_address("localhost", TLS_PORT), tls=tls, backoff=again))
        assert len(clients) == ROUNDS
        async with shipped("server.js", cwd) as process, asyncio.timeout(120):
            for number, client in enumerate(clients):
                await client.connect(f"test{number}")
                await do_what_their_client_does(client)
            for client in clients[1:]:
                await client.close()
            await clients[0].send("finish")
            assert await process.wait() == 0
            await clients[0].close()

    run(main())
