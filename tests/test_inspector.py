"""Looking on: `$tap`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from interphone import (
    Call,
    Client,
    InvalidParams,
    MethodNotFound,
    Server,
    Sighting,
    Unsupported,
    tcp_address,
)
from interphone.inspector import MAX_QUEUE
from support.ends import Raw, meeting, raised_by, until

both = pytest.mark.parametrize("dialect", ["native", "classic"])


class Sight:
    """What is seen from one more connection."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def next(self) -> Sighting:
        async with asyncio.timeout(10):
            return await anext(self._stream)

    async def of(self, *kinds: str) -> list[Sighting]:
        """The next of each of these kinds, in this order; others are passed over."""
        found = []
        for kind in kinds:
            while (seen := await self.next()).kind != kind:
                pass
            found.append(seen)
        return found


@asynccontextmanager
async def looking_on(
    server: Server, dialect: str = "native", window: int = 256, **named: Any
) -> AsyncIterator[Sight]:
    async with Client(server.address, dialect=dialect) as looker:
        stream = looker.stream("$tap", named=named, of=Sighting, window=window)
        async with stream:
            sight = Sight(stream)
            assert (await sight.next()).kind == "tap"
            yield sight


def library(address: Any) -> Server:
    server = Server(address)

    @server.method
    async def login(
        user: str, password: str, *, api_key: str = "", days: int = 1
    ) -> dict[str, Any]:
        return {"user": user, "access_token": "xyzzy", "tokens": 3}

    @server.method
    async def count(last: int) -> AsyncIterator[int]:
        for number in range(last):
            yield number

    @server.method
    async def fail() -> None:
        raise ValueError("no such book")

    @server.method
    async def slow(call: Call) -> None:
        await call.progress(0.5)
        await asyncio.Event().wait()

    return server


@both
def test_call_and_its_answer_are_seen_with_the_time_between(run, address, dialect):
    async def main() -> None:
        server = library(address)
        async with meeting(server, dialect=dialect) as client, looking_on(server, dialect) as sight:
            await client.call("login", "ada", "x")
            call, answer = await sight.of("call", "answer")
        assert (call.name, call.way, answer.name, answer.way) == ("login", "in", "login", "out")
        assert call.nonce == answer.nonce is not None
        assert call.peer == answer.peer == client.id
        assert call.pid is not None
        assert call.took is None
        assert 0 <= answer.took < 10
        assert 0 <= answer.time - call.time < 10
        assert call.size > 10

    run(main())


def test_every_kind_of_packet_is_seen_by_its_name(run, address):
    async def main() -> None:
        server = library(address)
        server.on_request(lambda peer, data: data)
        async with meeting(server) as client, looking_on(server) as sight:
            await client.send("hi")
            await client.request({"q": 1})
            async with client.subscribe("news.*"):
                await client.publish("news.now", [1, 2])
            await client.ping()
            async with client.stream("count", 2) as numbers:
                assert [number async for number in numbers] == [0, 1]
            heard: list[Any] = []
            call = asyncio.create_task(client.call("slow", on_progress=heard.append))
            await until(lambda: heard)
            call.cancel()
            await asyncio.wait([call])
            await raised_by(client.call("fail"))
            seen = await sight.of("message", "request", "answer", "sub", "answer", "pub")
            seen += await sight.of("publication", "unsub", "answer", "ping", "pong")
            seen += await sight.of("stream", "item", "item", "answer")
            seen += await sight.of("call", "progress", "cancel", "failure", "call", "failure")
        assert [(each.name, each.value) for each in seen] == [
            (None, '"hi"'),
            (None, '{"q":1}'),
            (None, '{"q":1}'),
            ("news.*", None),
            ("news.*", '{"result":true}'),
            ("news.now", "[1,2]"),
            ("news.now", "[1,2]"),
            ("news.*", None),
            ("news.*", '{"result":true}'),
            (None, None),
            (None, None),
            ("count", "2"),
            ("count", "0"),
            ("count", "1"),
            ("count", "null"),
            ("slow", None),
            ("slow", "0.5"),
            ("slow", None),
            ("slow", "the request was cancelled"),
            ("fail", None),
            ("fail", "ValueError: no such book"),
        ]
        assert [each.code for each in seen if each.kind == "failure"] == ["cancelled", "failed"]
        assert all(each.took is not None for each in seen if each.kind in ("answer", "pong"))

    run(main())


def test_what_the_server_asks_is_seen_the_other_way_round(run, address):
    async def main() -> None:
        server = library(address)
        async with meeting(server) as client, looking_on(server) as sight:
            client.method("title")(lambda: "x")
            await server.peers[client.id].call("title")
            call, answer = await sight.of("call", "answer")
        assert (call.way, call.name) == ("out", "title")
        assert (answer.way, answer.name, answer.value) == ("in", "title", '"x"')
        assert answer.took is not None

    run(main())


def test_who_comes_and_goes_is_seen(run, address):
    async def main() -> None:
        server = library(address)
        async with server, looking_on(server) as sight:
            async with Client(address) as client:
                (came,) = await sight.of("connect")
            end, gone = await sight.of("end", "disconnect")
        assert came.peer == end.peer == gone.peer == client.id

    run(main())


def test_node_peers_are_seen_as_what_they_look_like(run, address):
    async def main() -> None:
        server = library(address)
        server.on_request(lambda peer, data: None)
        async with server, Raw.connect(address) as raw, looking_on(server) as sight:
            await raw.open()
            login = {"jsonrpc": "2.0", "id": 7, "method": "login", "params": ["ada", "x"]}
            raw.write(
                {"t": 1, "d": {"\ud800": "\ud800"}},
                {"t": 2, "d": {"sub": ["a", "b"]}, "n": "1"},
                {"t": 2, "d": {"pub": "a", "message": 10**30}, "n": "2"},
                {"t": 2, "d": login, "n": "3"},
                {"t": 2, "d": "plain", "n": ["4"]},
            )
            seen = await sight.of("message", "sub", "pub", "call", "request")
        assert [(each.name, each.value) for each in seen] == [
            (None, '{"?":"?"}'),
            ("a, b", None),
            ("a", str(10**30)),
            ("login", '"ada", "•••"'),
            (None, '"plain"'),
        ]

    run(main())


def test_what_cannot_be_read_is_seen_all_the_same(run, address):
    async def main() -> None:
        server = library(address)
        async with server, Raw.connect(address) as raw, looking_on(server) as sight:
            await raw.open(interphone={"version": 1, "dialects": ["classic"], "can": ["topics"]})
            raw.write(
                {"t": 2, "k": "call", "d": {"no": "method"}, "n": "1"},
                {"t": 2, "k": "call", "d": {"method": "login", "params": 7}, "n": "2"},
                {"t": 2, "k": "forget", "d": "a.b", "n": "3"},
                {"t": 2, "k": "teleport", "d": 1, "n": "4"},
                {"t": 8, "n": "never"},
                {"t": 21, "n": 1, "d": [1, "a"]},
            )
            seen = await sight.of("call", "call", "forget", "request", "cancel", "missed")
        assert [(each.name, each.value) for each in seen] == [
            (None, '{"no":"method"}'),
            ("login", "<unreadable>"),
            ("a.b", None),
            (None, "1"),
            (None, None),
            (None, '[1,"a"]'),
        ]

    run(main())


# What is shown


@both
def test_secrets_do_not_leave_the_server(run, address, dialect):
    async def main() -> None:
        server = library(address)
        async with meeting(server, dialect=dialect) as client, looking_on(server) as sight:
            await client.call("login", "ada", "hunter2", named={"api_key": "k", "days": 3})
            await client.send({"a": [{"Set-Cookie": "c", "passage": "p"}]})
            call, answer, message = await sight.of("call", "answer", "message")
        assert call.value == '"ada", "•••", api_key="•••", days=3'
        assert answer.value == '{"user":"ada","access_token":"•••","tokens":3}'
        assert message.value == '{"a":[{"Set-Cookie":"•••","passage":"p"}]}'

    run(main())


def test_who_asks_for_them_is_shown_secrets(run, address):
    async def main() -> None:
        server = library(address)
        async with meeting(server) as client, looking_on(server, redact=False) as sight:
            await client.call("login", "ada", "hunter2")
            call, answer = await sight.of("call", "answer")
        assert call.value == '"ada", "hunter2"'
        assert "xyzzy" in answer.value

    run(main())


def test_payloads_are_cut(run, address):
    async def main() -> None:
        server = library(address)
        async with (
            meeting(server) as client,
            looking_on(server, cut=5) as short,
            looking_on(server, cut=0) as none,
        ):
            for value in ("abc", "abcd", b"12345", "x" * 100_000):
                await client.send(value)
            values = [(await short.of("message"))[0].value for _ in range(4)]
            assert values == ['"abc"', '"abcd…', '"<5 b…', "<1000…"]
            assert (await none.of("message"))[0].value is None

    run(main())


def test_only_what_is_asked_for_is_shown(run, address):
    async def main() -> None:
        server = library(address)
        async with meeting(server) as client, Client(address) as other:
            filters: list[dict[str, Any]] = [
                {"kinds": ["failure"]},
                {"name": "lo*n"},
                {"peer": other.id, "kinds": ["message"]},
            ]
            firsts = []
            for each in filters:
                async with looking_on(server, **each) as sight:
                    await client.send("no")
                    await raised_by(client.call("fail"))
                    await client.call("login", "a", "b")
                    await other.send("yes")
                    firsts.append(await sight.next())
        assert [each.kind for each in firsts] == ["failure", "call", "message"]
        assert firsts[1].name == "login"
        assert (firsts[2].peer, firsts[2].value) == (other.id, '"yes"')

    run(main())


def test_filters_that_make_no_sense_are_refused(run, address):
    async def main() -> None:
        async with meeting(library(address)) as client:
            for named in ({"kinds": ["nonsense"]}, {"cut": -1}, {"cut": 2**20}, {"colour": 1}):
                async with client.stream("$tap", named=named) as stream:
                    with pytest.raises(InvalidParams):
                        await anext(stream)

    run(main())


# Who looks on


def test_lookers_on_do_not_see_each_other(run, address):
    async def main() -> None:
        server = library(address)
        async with (
            meeting(server) as client,
            looking_on(server) as first,
            looking_on(server) as second,
        ):
            for value in ("1", "2"):
                await client.send(int(value))
                for sight in (first, second):
                    seen = [await sight.next()]
                    while seen[-1].value != value:
                        seen.append(await sight.next())
                    assert "item" not in {each.kind for each in seen}

    run(main())


def test_slow_looker_on_misses_sightings_and_is_told_how_many(run, address):
    async def main() -> None:
        server, many = library(address), MAX_QUEUE + 500
        async with (
            meeting(server) as client,
            looking_on(server, window=1, kinds=["message"]) as sight,
        ):
            for number in range(many):
                await client.send(number)
            await client.ping()
            seen = [await sight.next() for _ in range(MAX_QUEUE)]
            await client.send("last")
            while seen[-1].value != '"last"':
                seen.append(await sight.next())
            missed = sum(sighting.missed for sighting in seen)
            assert missed > 0
            assert len(seen) - 1 + missed == many

    run(main())


def test_nothing_is_watched_when_nobody_looks_on_any_more(run, address):
    async def main() -> None:
        server = library(address)
        async with meeting(server) as client:
            async with looking_on(server) as sight:
                await client.send(1)
                await sight.of("message")
                assert [*server._inspector._watched] == [server.peers[client.id]]
            await until(lambda: not server._inspector._taps)
            assert not server._inspector._watched
            assert await client.call("login", "a", "b")

    run(main())


def test_one_connection_may_look_on_twice_and_is_seen_again_when_it_stops(run, address):
    async def main() -> None:
        server = library(address)
        async with meeting(server) as client, looking_on(server) as sight:
            async with client.stream("$tap") as one, client.stream("$tap") as two:
                await anext(one)
                await anext(two)
            await until(lambda: len(server._inspector._taps) == 1)
            await client.send("back")
            (message,) = await sight.of("message")
        assert message.value == '"back"'

    run(main())


def test_closing_server_ends_it_at_once(run, address):
    async def main() -> None:
        server = library(address)
        await server.start()
        async with Client(address) as looker, looker.stream("$tap", of=Sighting) as stream:
            assert (await anext(stream)).kind == "tap"
            async with asyncio.timeout(4):  # not the five seconds of grace
                await server.close()
            assert [each async for each in stream] == []

    run(main())


def test_who_is_not_of_the_same_user_sees_nothing(run):
    async def main() -> None:
        server = library(tcp_address(port=0))
        async with meeting(server) as client, client.stream("$tap") as stream:
            error = await raised_by(anext(stream))
        assert isinstance(error, Unsupported)
        assert "same user" in str(error)

    run(main())


def test_clients_have_no_tap(run, address):
    async def main() -> None:
        server = library(address)
        async with meeting(server) as client:
            async with server.peers[client.id].stream("$tap") as stream:
                with pytest.raises(MethodNotFound):
                    await anext(stream)
            with pytest.raises(Unsupported):  # it streams
                await client.call("$tap")

    run(main())
