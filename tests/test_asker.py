"""Asking without a coroutine in between: the same for clients and peers, by request and call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from interphone import (
    Client,
    Limits,
    MessageTooBig,
    PayloadError,
    Peer,
    RequestTimeout,
    Server,
)
from support.ends import meeting, raised_by, until

Ask = Callable[[Client | Peer, Any], Awaitable[Any]]


ASKS: dict[str, Ask] = {
    "request": lambda end, value: end.request(value),
    "call": lambda end, value: end.call("same", value),
    "call, named": lambda end, value: end.call("same", named={"value": value}),
    "call, the long way": lambda end, value: end.call("same", value, on_progress=print),
}

every_ask = pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)
every_end = pytest.mark.parametrize("of", [lambda c: c, lambda c: c.peer], ids=["client", "peer"])


def echo(address: str, **options: Any) -> Server:
    server = Server(address, **options)
    server.on_error(lambda error, peer: None)

    @server.on_request
    async def answer(peer: Peer, value: Any) -> Any:
        if value == "wait":
            await asyncio.Event().wait()
        return value

    @server.method
    async def same(value: Any) -> Any:
        return await answer(None, value)

    return server


@every_ask
@every_end
def test_whoever_asks_is_answered(run, address, ask, of):
    async def main() -> None:
        async with meeting(echo(address)) as client:
            assert await ask(of(client), {"a": [1]}) == {"a": [1]}

    run(main())


@every_ask
@every_end
def test_who_is_cancelled_does_not_wait_and_the_other_end_is_told(run, address, ask, of):
    async def main() -> None:
        server = echo(address)
        async with meeting(server) as client:
            (peer,) = server.peers.values()
            waiting = asyncio.ensure_future(ask(of(client), "wait"))
            await until(lambda: peer.inflight)
            waiting.cancel()
            await asyncio.wait([waiting])
            assert waiting.cancelled()
            await until(lambda: not peer.inflight)
            assert client.peer.pending == 0
            assert await ask(of(client), 1) == 1

    run(main())


@every_ask
@every_end
def test_what_cannot_be_asked_leaves_nothing_behind(run, address, ask, of):
    async def main() -> None:
        async with meeting(echo(address), limits=Limits(max_frame=1000)) as client:
            assert isinstance(await raised_by(ask(of(client), object())), PayloadError)
            assert isinstance(await raised_by(ask(of(client), "x" * 1000)), MessageTooBig)
            assert client.peer.pending == 0
            assert await ask(of(client), 1) == 1

    run(main())


@every_ask
@every_end
def test_who_asks_a_peer_that_is_slow_waits_for_room(run, address, ask, of):
    async def main() -> None:
        async with meeting(echo(address)) as client:
            connection = client.peer.connection
            connection.pause_writing()
            waiting = asyncio.ensure_future(ask(of(client), 1))
            await until(connection.crowded)
            await asyncio.sleep(0)
            assert client.peer.pending == 0
            connection.resume_writing()
            assert await waiting == 1

    run(main())


@every_end
def test_only_the_long_way_knows_the_other_options(run, address, of):
    async def main() -> None:
        async with meeting(echo(address)) as client:
            end = of(client)
            error = await raised_by(end.call("same", "wait", timeout=0.01))
            assert isinstance(error, RequestTimeout)
            assert await end.call("same", 1, on_progress=lambda value: None) == 1
            assert isinstance(await raised_by(end.call("same", 1, wrong=1)), TypeError)
            assert isinstance(await raised_by(end.call(7)), TypeError)

    run(main())


@pytest.mark.parametrize("returns", [int, float])
@every_end
def test_answer_is_decoded_as_what_was_asked_for(run, address, of, returns):
    async def main() -> None:
        async with meeting(echo(address)) as client:
            end = of(client)
            assert type(await end.call("same", 1, returns=returns)) is returns
            assert type(await end.request(1, returns=returns)) is returns
            error = await raised_by(end.call("same", "text", returns=returns))
            assert isinstance(error, PayloadError)
            assert error.delivery == "maybe_sent"

    run(main())


def test_declared_error_is_raised_as_itself_by_every_way_of_asking(run, address):
    class Gone(Exception):
        pass

    async def main() -> None:
        server = Server(address)
        server.error(Gone)

        @server.method("gone")
        @server.on_request
        async def gone(*_: Any) -> None:
            raise Gone

        async with server:
            client = Client(address)
            client.error(Gone)
            async with client:
                for end in (client, client.peer):
                    for waiting in (end.request(1), end.call("gone")):
                        error = await raised_by(waiting)
                        assert isinstance(error, Gone)
                        assert error.__suppress_context__

    run(main())
