"""Servers for the command line to talk with, and ways to run it."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from interphone import Call, Client, Server, tcp_address
from interphone.cli import main
from support.node import NodeProcess, require_node
from support.shell import Done

if sys.platform == "win32":  # there are no terminals that a test could open
    collect_ignore = ["test_screens.py"]
else:
    collect_ignore = ["test_pipes.py"]


class Hosted:
    """A loop in a thread of its own, where servers live.

    Attributes:
        told: Messages that came to any of the servers.
        tcp: Address of the one over TCP.
    """

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.told: list[Any] = []
        self.tcp = ""
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine there to its end."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def close(self) -> None:
        """End the loop."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


def shop(address: Any, told: list[Any], **options: Any) -> Server:
    """A server with something of everything."""
    server = Server(address, **options)

    @server.method
    async def add(a: int, b: int = 1) -> int:
        """Add two numbers.

        Both may be negative.
        """
        return a + b

    @server.method
    async def echo(value: Any, *more: Any, key: Any = None) -> Any:
        return [value, *more, key]

    @server.method
    async def fail(text: str) -> None:
        error = ValueError(text)
        error.add_note("take another")
        raise error

    @server.method("wait.forever", limit=7)
    async def wait(call: Call) -> None:
        told.append("waiting")
        try:
            await call.progress(0.25)
            await asyncio.Event().wait()
        finally:
            told.append("stopped")

    calls = iter(range(1000))

    @server.method
    async def tire() -> None:
        if next(calls) > 10:
            raise RuntimeError("enough")

    @server.method
    async def nasty() -> dict[str, str]:
        return {"\x1b[2J": "\x1b]0;title\x07 \x9b31m \u202e"}

    @server.method
    async def count(last: int) -> AsyncIterator[int]:
        for number in range(last):
            yield number

    @server.method
    async def total(numbers: AsyncIterator[int]) -> int:
        return sum([number async for number in numbers])

    @server.on_request
    async def answer(peer: object, data: Any) -> Any:
        if data == "wait":
            await asyncio.Event().wait()
        return data

    server.on_message(lambda peer, data: told.append(data))
    return server


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A directory of one's own that sockets fit in, and the private directory in it."""
    directory = Path(tempfile.mkdtemp(prefix="ip-", dir=None if os.name == "nt" else "/tmp"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(directory))
        patch.setenv("TMPDIR", str(directory))
        patch.setenv("COLUMNS", "80")
        patch.delenv("FORCE_COLOR", raising=False)
        yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def hosted(home: Path) -> Iterator[Hosted]:
    """Three servers: "shop", "old", which speaks classic only, and one over TCP."""
    hosted = Hosted()

    async def start() -> list[Server]:
        servers = [
            shop("shop", hosted.told),
            shop("old", hosted.told, dialect="classic"),
            shop(tcp_address(port=0), hosted.told),
        ]
        for server in servers:
            await server.start()
        return servers

    async def stop(servers: list[Server]) -> None:
        for server in servers:
            await server.close(grace=0)

    servers = hosted.do(start())
    hosted.tcp = str(servers[2].address)
    yield hosted
    hosted.do(stop(servers))
    hosted.close()


@pytest.fixture(scope="module")
def node(hosted: Hosted) -> Iterator[dict[str, str]]:
    """The paths of a server of net-ipc and one of (what stands in for) @isdk/ipc-server."""
    require_node()
    place = f"\\\\.\\pipe\\{uuid.uuid4().hex}-" if os.name == "nt" else f"{os.environ['TMPDIR']}/"
    paths = {family: place + family for family in ("net", "isdk")}

    async def start() -> NodeProcess:
        process = NodeProcess()
        await process.start()
        for family, path in paths.items():
            await process.ask(
                do="create-server", key=family, kind=family, options={"path": path}, reply="echo"
            )
        return process

    process = hosted.do(start())
    yield paths
    hosted.do(process.stop())


@pytest.fixture
def client(hosted: Hosted) -> Iterator[Client]:
    """A client of "shop" that lives in the thread of the servers."""
    client = hosted.do(Client("shop").connect())
    yield client
    hosted.do(client.close())


@pytest.fixture
def told(hosted: Hosted) -> list[Any]:
    """Messages that come to the servers from now on."""
    hosted.told.clear()
    return hosted.told


Cli = Callable[..., Done]


@pytest.fixture
def cli(hosted: Hosted, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run a command in this process."""

    def run(*args: str) -> Done:
        code = main(args)
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return run
