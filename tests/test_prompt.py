"""What is answered where it stands, and what is left to the long way."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from interphone import (
    Client,
    InvalidParams,
    MethodNotFound,
    PayloadError,
    Peer,
    RemoteError,
    Server,
)
from support.ends import meeting, raised_by, until

both = pytest.mark.parametrize("dialect", ["native", "classic"])


class Even(msgspec.Struct):
    number: int

    def __post_init__(self) -> None:
        if self.number % 2:
            raise ValueError("it is odd")


@both
def test_no_task_is_made_for_what_runs_inline(run, address, dialect):
    async def main() -> None:
        server, tasks = Server(address), []
        server.on_request(on="inline")(lambda peer, data: tasks.append(peer.inflight))

        @server.method(on="inline")
        def count() -> None:
            (peer,) = server.peers.values()
            tasks.append(peer.inflight)

        async with meeting(server, dialect=dialect) as client:
            await client.request(1)
            await client.call("count")

        assert tasks == [0, 0]

    run(main())


def test_method_that_returns_a_coroutine_after_all_is_awaited(run, address):
    async def main() -> None:
        server = Server(address)

        async def later(number: int) -> int:
            await asyncio.sleep(0)
            return number

        @server.method(on="inline")
        def soon(number: int) -> Any:
            return later(number)

        async with meeting(server) as client:
            assert await client.call("soon", 7) == 7

    run(main())


def test_what_does_not_fit_an_inline_method_is_refused(run, address):
    async def main() -> None:
        server = Server(address)

        @server.method(on="inline")
        def half(value: Even, by: int = 2) -> int:
            return value.number // by

        async with meeting(server) as client:
            assert await client.call("half", Even(8)) == 4
            assert await client.call("half", {"number": 8}, named={"by": 4}) == 2
            for params in ((), (Even(2), 1, 1), ("text",), ({"number": 3},)):
                assert isinstance(await raised_by(client.call("half", *params)), InvalidParams)
            error = await raised_by(client.call("half", Even(2), named={"to": 1}))
            assert isinstance(error, InvalidParams)
            assert isinstance(await raised_by(client.call("halt")), MethodNotFound)

    run(main())


def test_inline_method_that_raises_is_counted(run, address):
    async def main() -> None:
        server = Server(address)
        server.on_error(lambda error, peer: None)

        @server.method(on="inline", limit=1)
        def fail() -> None:
            raise KeyError("a key")

        async with meeting(server) as client:
            for _ in range(2):
                assert isinstance(await raised_by(client.call("fail")), RemoteError)
            method = server.method.get("fail")
            assert (method.calls, method.failures) == (2, 2)

    run(main())


def test_payload_that_cannot_be_read_is_refused_before_an_inline_handler(run, address):
    async def main() -> None:
        server, asked = Server(address), []
        server.on_error(lambda error, peer: None)
        server.on_request(on="inline")(lambda peer, data: asked.append(data))

        async with meeting(server) as client:
            error = await raised_by(client.request(msgspec.msgpack.Ext(5, b"")))

        assert isinstance(error, PayloadError)
        assert asked == []

    run(main())


def test_inline_handlers_wait_for_the_end_of_a_pause(run, address):
    async def main() -> None:
        server, asked = Server(address), []

        @server.on_request(on="inline")
        def hear(peer: Peer, data: Any) -> Any:
            asked.append(data)
            return data

        @server.method(on="inline")
        def same(data: Any) -> Any:
            asked.append(data)
            return data

        async with meeting(server) as client:
            (peer,) = server.peers.values()
            peer.pause()
            waiting = asyncio.gather(client.request(1), client.call("same", 2))
            await until(lambda: peer.inflight == 2)
            assert asked == []
            peer.resume()
            assert await waiting == [1, 2]

        assert asked == [1, 2]

    run(main())


def test_method_registered_while_connected_is_found(run, address):
    async def main() -> None:
        server = Server(address)
        async with server, Client(address) as client:
            assert isinstance(await raised_by(client.call("late")), MethodNotFound)
            server.method("late", on="inline")(lambda: "there")
            assert await client.call("late") == "there"

    run(main())
