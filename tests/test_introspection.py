"""What a Server or Client tells of itself: `$info`, `$describe` and `$stats`."""

from __future__ import annotations

import asyncio
import os
import platform
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

import interphone
from interphone import (
    Call,
    Client,
    Description,
    Info,
    InvalidParams,
    Limits,
    MemoryAddress,
    MethodDescription,
    MethodNotFound,
    MethodStats,
    ParamDescription,
    Peer,
    RemoteError,
    Server,
    Stats,
    Unsupported,
    tcp_address,
)
from interphone.protocol.messages import CAPABILITIES, VERSION
from interphone.transports import Credentials, own_credentials, same_owner
from support.ends import Raw, meeting, raised_by, until

both = pytest.mark.parametrize("dialect", ["native", "classic"])
NAMES = ["$info", "$describe", "$stats"]


@dataclass
class Book:
    title: str
    pages: int = 0


class Opaque:
    pass


# $info


@both
def test_info_says_who_answers(run, address, dialect):
    async def main() -> None:
        limits, before = Limits(max_frame=100_000), datetime.now(UTC)
        server = Server(address, limits=limits)
        async with meeting(server, dialect=dialect) as client:
            info = await client.call("$info", returns=Info)
            assert info.role == "server"
            assert info.address == str(server.address)
            assert (info.interphone, info.wire) == (interphone.__version__, VERSION)
            assert info.capabilities[: len(CAPABILITIES)] == CAPABILITIES
            assert ("pool" in info.capabilities) == (sys.platform in ("linux", "win32"))
            assert (info.pid, info.python) == (os.getpid(), platform.python_version())
            assert info.dialect == dialect
            assert info.limits == limits
            assert before <= info.started <= datetime.now(UTC)
            assert 0 <= info.uptime < 60

    run(main())


def test_client_is_asked_the_same_by_its_server(run, address):
    async def main() -> None:
        server = Server(address)
        async with meeting(server) as client:
            client.method("title")(lambda: "x")
            (peer,) = server.peers.values()
            info = await peer.call("$info", returns=Info)
            assert (info.role, info.address) == ("client", str(client.address))
            described = await peer.call("$describe", returns=Description)
            assert [method.name for method in described.methods] == ["title"]
            stats = await peer.call("$stats", returns=Stats)
            assert (stats.peers, stats.inflight) == (1, 0)

    run(main())


# $describe


@both
def test_description_tells_what_may_be_called(run, address, dialect):
    async def main() -> None:
        server = Server(address)

        @server.method(limit=3)
        async def lend(call: Call, book: Book, /, *more: Any, days: int = 14) -> list[Book]:
            """Lend a book."""
            return [book]

        @server.method("text.upper")
        def upper(text: str) -> str:
            return text.upper()

        @server.method("odd", on="inline")
        def odd(value: object = None) -> Opaque:
            return Opaque()

        @server.method
        async def sums(numbers: AsyncIterator[float]) -> AsyncIterator[int]:
            async for number in numbers:
                yield int(number)

        @server.error
        class Lent(Exception):
            pass

        async with (
            meeting(server, dialect=dialect) as client,
            client.subscribe("b", "a"),
            server.subscribe("c"),
        ):
            described = await client.call("$describe", returns=Description)
        assert described.errors == ("Lent",)
        assert described.topics == ("a", "b", "c")
        lending, oddly, summing, uppering = described.methods
        assert (summing.stream, summing.returns, summing.reads) == (True, "int", "float")
        assert (summing.returns_schema, summing.params) == ({"type": "integer"}, ())
        assert (lending.name, lending.doc, lending.limit) == ("lend", "Lend a book.", 3)
        assert (lending.place, lending.stream) == ("loop", False)
        assert [(p.name, p.required, p.kind) for p in lending.params] == [
            ("book", True, "positional"),
            ("more", False, "extra"),
            ("days", False, "named"),
        ]
        book, more, days = lending.params
        assert book.type.endswith("Book")
        assert book.schema is not None
        assert book.schema["$defs"]["Book"]["properties"]["title"] == {"type": "string"}
        assert (more.type, more.schema) == ("Any", {})
        assert (days.type, days.schema) == ("int", {"type": "integer"})
        assert lending.returns.startswith("list[")
        assert lending.returns_schema is not None
        assert (oddly.place, oddly.returns_schema) == ("inline", None)
        assert uppering == MethodDescription(
            name="text.upper",
            doc="",
            params=(
                ParamDescription(
                    name="text",
                    type="str",
                    required=True,
                    kind="either",
                    schema={"type": "string"},
                ),
            ),
            returns="str",
            returns_schema={"type": "string"},
            place="thread",
        )

    run(main())


# $stats


@both
def test_stats_count_what_happens(run, address, dialect):
    async def main() -> None:
        server, gate, started = Server(address), asyncio.Event(), asyncio.Event()

        @server.method
        async def work(how: str) -> None:
            if how == "wait":
                started.set()
                await gate.wait()
            elif how == "fail":
                raise RemoteError("no")

        @server.method
        async def pieces() -> AsyncIterator[int]:
            yield 1
            raise RemoteError("no more")

        async with meeting(server, dialect=dialect) as client:
            await client.call("work", "well")
            assert isinstance(await raised_by(client.call("work", "fail")), RemoteError)
            assert isinstance(await raised_by(client.call("work")), InvalidParams)
            waiting = asyncio.ensure_future(client.call("work", "wait"))
            await started.wait()
            await client.send("nobody listens")
            async with client.stream("pieces") as pieces:
                assert await anext(pieces) == 1
                assert isinstance(await raised_by(anext(pieces)), RemoteError)
            stats = await client.call("$stats", returns=Stats)
            assert stats.methods == (
                MethodStats(name="pieces", calls=1, failures=1, running=0),
                MethodStats(name="work", calls=3, failures=1, running=1),
            )
            assert (stats.peers, stats.inflight, stats.pending) == (1, 1, 0)
            assert (stats.unheard, stats.backlog, stats.evicted) == (1, 0, 0)
            assert stats.publications_dropped == 0
            assert 0 <= stats.uptime < 60
            gate.set()
            await waiting
            later = await client.call("$stats", returns=Stats)
            assert [method.running for method in later.methods] == [0, 0]

    run(main())


def test_stats_remember_peers_that_are_gone(run, address):
    async def main() -> None:
        server = Server(address)
        async with server, Client(address) as client:
            async with Raw.connect(address) as raw:
                await raw.open()
                raw.write({"t": 1, "d": "unheard"}, {"t": 7}, {"t": 3, "n": "late"}, {"t": 4})
                await raw.packet()  # the pong: all of it was read
            await until(lambda: len(server.peers) == 1)
            stats = await client.call("$stats", returns=Stats)
            assert stats.unheard == 1
            assert (stats.dropped.unknown, stats.dropped.late) == (1, 1)
            assert stats.peers == 1

    run(main())


def test_stats_tell_what_a_clients_subscriptions_lost(run, address):
    async def main() -> None:
        server = Server(address)
        async with meeting(server) as client:
            (peer,) = server.peers.values()
            async with client.subscribe("a", overflow="drop_oldest", queue=1) as items:
                for number in range(3):
                    await server.publish("a", number)
                await until(lambda: items.dropped == 2)
                stats = await peer.call("$stats", returns=Stats)
                assert stats.publications_dropped == 2

    run(main())


def test_library_methods_are_neither_described_nor_counted(run, address):
    async def main() -> None:
        async with meeting(Server(address)) as client:
            assert (await client.call("$stats", returns=Stats)).methods == ()
            assert (await client.call("$describe", returns=Description)).methods == ()

    run(main())


# Who may ask


def test_parameters_are_refused(run, address):
    async def main() -> None:
        async with meeting(Server(address)) as client:
            for name in NAMES:
                assert isinstance(await raised_by(client.call(name, 1)), InvalidParams)
            assert isinstance(await raised_by(client.call("$other")), MethodNotFound)

    run(main())


@pytest.mark.parametrize("name", NAMES)
def test_over_tcp_nobody_knows_who_asks(run, name):
    async def main() -> None:
        async with meeting(Server(tcp_address(port=0))) as client:
            error = await raised_by(client.call(name))
            assert isinstance(error, Unsupported)
            assert "same user" in str(error)

    run(main())


@pytest.mark.parametrize("name", NAMES)
def test_other_users_are_told_nothing(run, name):
    async def main() -> None:
        server = Server(MemoryAddress())

        @server.on_connect
        def as_if_another(peer: Peer, payload: object) -> None:
            peer.connection.same_owner = False

        async with meeting(server) as client:
            assert isinstance(await raised_by(client.call(name)), Unsupported)

    run(main())


@pytest.mark.parametrize("name", NAMES)
def test_node_is_told_nothing(run, address, name):
    async def main() -> None:
        server = Server(address)
        server.method("a")(lambda: None)
        async with server, Raw.connect(address) as raw:
            await raw.open()
            raw.write({"t": 2, "d": {"jsonrpc": "2.0", "method": name}, "n": "x"})
            assert (await raw.packet())["d"]["error"]["code"] == -32601

    run(main())


def test_users_own_methods_cannot_take_the_names():
    for host in (Server("x"), Client("x")):
        for name in NAMES:
            with pytest.raises(ValueError, match="reserved"):
                host.method(name)(lambda: None)


class Transport(asyncio.BaseTransport):
    pass


def test_same_owner_is_what_the_system_says():
    own = own_credentials()
    other_uid = None if own.uid is None else own.uid + 1

    assert same_owner(Transport({"credentials": own}))
    assert same_owner(Transport({"credentials": None, "same_process": True}))
    assert not same_owner(Transport({"credentials": Credentials(other_uid, own.pid)}))
    assert not same_owner(Transport({"credentials": Credentials(own.uid, own.pid, sid="S-1-1-0")}))
    assert not same_owner(Transport({"credentials": None}))
    assert not same_owner(Transport())
