"""Methods, contracts, cancellation and deadlines, end to end."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from interphone import (
    PASS,
    Call,
    Client,
    InvalidParams,
    Limits,
    MethodNotFound,
    Overloaded,
    Peer,
    RemoteError,
    RequestTimeout,
    Server,
    Unsupported,
    contract,
)
from support.ends import Raw, meeting, raised_by, until


@dataclass
class User:
    id: int
    name: str


@contract("user.get")
def get_user(id: int, *, full: bool = False) -> User:
    """Look a user up."""
    raise NotImplementedError


both = pytest.mark.parametrize("dialect", ["native", "classic"])


def calculator(address: str) -> Server:
    server = Server(address)

    @server.method
    async def add(a: int, b: int = 1) -> int:
        return a + b

    @server.method("text.upper")
    def upper(text: str) -> str:
        return text.upper()

    @server.method(on="inline")
    def echo(value: Any) -> Any:
        return value

    @server.method(get_user)
    async def find(id: int, *, full: bool = False) -> User:
        return User(id, "Ada Lovelace" if full else "Ada")

    return server


@both
def test_methods_answer_by_position_and_by_name(run, address, dialect):
    async def main() -> None:
        async with meeting(calculator(address), dialect=dialect) as client:
            assert await client.call("add", 1, 2, returns=int) == 3
            assert await client.call("add", 1) == 2
            assert await client.call("add", named={"b": 5, "a": 1}) == 6
            assert await client.call("add", 1, named={"b": 5}) == 6
            assert await client.call("text.upper", "hi", returns=str) == "HI"

    run(main())


@both
def test_contract_is_called_with_its_types(run, address, dialect):
    async def main() -> None:
        async with meeting(calculator(address), dialect=dialect) as client:
            assert await client.call(get_user, 7) == User(7, "Ada")
            assert await client.within(2).call(get_user, 7, full=True) == User(7, "Ada Lovelace")
            with pytest.raises(TypeError):
                await client.call(get_user, 7, True)  # type: ignore[call-overload]  # on purpose

    run(main())


@both
def test_parameters_that_do_not_fit_are_named_and_the_handler_does_not_run(run, address, dialect):
    async def main() -> None:
        server, ran = Server(address), []

        @server.method
        async def add(a: int, b: int = 1) -> int:
            ran.append((a, b))
            return a + b

        async with meeting(server, dialect=dialect) as client:
            error = await raised_by(client.call("add", 1, "x"))
            assert isinstance(error, InvalidParams)
            assert (error.method, error.parameter) == ("add", "b")
            assert "int" in error.why
            for params in ((), (1, 2, 3)):
                assert isinstance(await raised_by(client.call("add", *params)), InvalidParams)
            assert await client.call("add", 1) == 2
            assert ran == [(1, 1)]

    run(main())


@both
def test_unknown_method_suggests_the_nearest(run, address, dialect):
    async def main() -> None:
        async with meeting(calculator(address), dialect=dialect) as client:
            error = await raised_by(client.call("ad", 1))
            assert isinstance(error, MethodNotFound)
            assert (error.method, error.nearest) == ("ad", "add")

    run(main())


@both
def test_call_is_no_business_of_the_handlers_of_requests(run, address, dialect):
    async def main() -> None:
        server, asked = calculator(address), []
        server.on_request(lambda peer, data: asked.append(data))
        async with meeting(server, dialect=dialect) as client:
            assert await client.call("add", 1) == 2
            assert isinstance(await raised_by(client.call("ad", 1)), MethodNotFound)
            await client.request("this is one")
            assert asked == ["this is one"]

    run(main())


def test_exceptions_of_a_handler_are_remote_errors_whatever_they_are(run, address):
    async def main() -> None:
        server = Server(address)
        server.on_error(lambda error, peer: None)
        raised: list[Exception] = [MethodNotFound("x"), InvalidParams("x", "y"), KeyError("z")]

        @server.method
        async def fail(which: int) -> None:
            raise raised[which]

        async with meeting(server) as client:
            for which, error in enumerate(raised):
                got = await raised_by(client.call("fail", which))
                assert type(got) is RemoteError
                assert got.kind == type(error).__name__

    run(main())


@both
def test_request_or_call_ends_in_each_way_that_is_promised(run, address, dialect):
    page = (Path(__file__).parents[1] / "docs/topics/semantics.md").read_text("utf-8")
    promise = re.search(r"\| R1 \|([^|]+)\|", page)
    assert promise is not None

    class Mine(Exception):
        pass

    async def main() -> None:
        server, gate = Server(address), asyncio.Event()

        @server.on_request
        async def answer(peer: Peer, data: Any) -> Any:
            if data == "wait":
                await gate.wait()
            if data == "mine":
                raise Mine
            if data == "fail":
                raise RemoteError("no")
            return PASS if data == "pass" else data

        @server.method(limit=1)
        async def alone(wait: bool) -> None:
            if wait:
                await gate.wait()

        @server.method
        async def count() -> AsyncIterator[int]:
            yield 1

        limits = Limits(max_frame=1000)
        async with meeting(server, dialect=dialect, limits=limits, backoff=None) as client:
            server.error(Mine)
            client.error(Mine)
            (peer,) = server.peers.values()
            assert await client.request(1) == 1
            assert type(await raised_by(client.request("mine"))) is Mine
            cancelled = asyncio.ensure_future(client.request("wait"))
            lost = asyncio.ensure_future(raised_by(client.request("wait")))
            running = asyncio.ensure_future(raised_by(client.call("alone", True)))
            await until(lambda: peer.inflight == 3)
            cancelled.cancel()
            await asyncio.wait([cancelled])
            assert cancelled.cancelled()
            errors = [
                await raised_by(asked)
                for asked in (
                    client.request("fail"),
                    client.request("pass"),
                    client.call("nothing"),
                    client.call("alone", "yes"),
                    client.request("wait", timeout=0.02),
                    client.call("alone", False),
                    client.request(object()),
                    client.request("x" * 2000),
                    client.call("count"),
                )
            ]
            peer.abort()
            errors += [await lost, await running]
            assert {type(error).__name__ for error in errors} == {
                *re.findall(r"`(\w+)`", promise[1])
            }

    run(main())


def test_server_calls_its_client(run, address):
    async def main() -> None:
        server = Server(address)
        async with meeting(server) as client:

            @client.method
            async def name() -> str:
                return "I am the client"

            (peer,) = server.peers.values()
            assert await peer.call("name") == "I am the client"

    run(main())


def test_bytes_travel_without_base64_between_two_of_us(run, address):
    async def main() -> None:
        async with meeting(calculator(address)) as client:
            assert await client.call("echo", bytes(range(256))) == bytes(range(256))
            assert client.peer.protocol.native

    run(main())


def test_method_gets_the_call_it_asks_for(run, address):
    async def main() -> None:
        server = Server(address)

        @server.method
        async def who(call: Call, prefix: str) -> str:
            assert call.deadline is not None
            left = call.deadline - asyncio.get_running_loop().time()
            assert 0 < left <= 3
            return prefix + call.peer.id

        async with meeting(server) as client:
            assert await client.call("who", "I am ", timeout=3) == f"I am {client.id}"

    run(main())


@both
def test_cancelled_call_cancels_its_handler(run, address, dialect):
    async def main() -> None:
        server, started, cancelled = Server(address), asyncio.Event(), asyncio.Event()

        @server.method
        async def slow() -> None:
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        async with meeting(server, dialect=dialect) as client:
            calling = asyncio.ensure_future(client.call("slow"))
            await started.wait()
            calling.cancel()
            await cancelled.wait()
            (peer,) = server.peers.values()
            await until(lambda: peer.inflight == 0)
            assert client.peer.counts.late == 0

    run(main())


def test_deadline_shrinks_through_nested_calls(run, address):
    async def main() -> None:
        front, back = Server(address), Server(address + "2")
        seen: list[float | None] = []

        @back.method
        async def inner(call: Call) -> None:
            now = asyncio.get_running_loop().time()
            seen.append(None if call.deadline is None else call.deadline - now)

        async with back, Client(address + "2") as to_back:

            @front.method
            async def outer() -> None:
                await to_back.call("inner")
                await to_back.call("inner", timeout=None)
                await to_back.call("inner", timeout=0.5)

            async with meeting(front) as client:
                await client.call("outer", timeout=2)
                await to_back.call("inner", timeout=None)
        assert seen[0] is not None
        assert seen[1] is not None
        assert seen[2] is not None
        assert 1 < seen[0] <= 2
        assert 1 < seen[1] <= 2
        assert 0 < seen[2] <= 0.5
        assert seen[3] is None

    run(main())


def test_deadline_holds_through_any_number_of_ends(run, address):
    async def main() -> None:
        servers = [Server(f"{address}{number}") for number in range(4)]
        clients = [Client(server.address) for server in servers]
        left: list[float | None] = []

        def hand_on(server: Server, verb: Any) -> None:
            @server.on_request
            async def ask(peer: Peer, data: object) -> object:
                return await verb(data, timeout=None)

        hand_on(servers[0], clients[1].request)
        hand_on(servers[1], clients[2].request)
        hand_on(servers[2], clients[3].call)

        @servers[3].method
        async def tell(call: Call) -> None:
            now = asyncio.get_running_loop().time()
            left.append(None if call.deadline is None else call.deadline - now)

        async with contextlib.AsyncExitStack() as stack:
            for end in (*servers, *clients):
                await stack.enter_async_context(end)
            await clients[0].request("tell", timeout=5)
            await clients[0].request("tell", timeout=None)
        assert left[0] is not None
        assert left[0] <= 5
        assert left[1] is None

    run(main())


def test_deadline_counts_from_the_arrival_of_the_request(run, address):
    async def main() -> None:
        server, deadlines = Server(address), []

        @server.method
        async def tell(call: Call) -> None:
            deadlines.append(call.deadline)

        async with meeting(server) as client:
            (peer,) = server.peers.values()
            now = asyncio.get_running_loop().time
            peer.pause()
            calling = asyncio.ensure_future(client.call("tell", timeout=5))
            await until(lambda: peer.inflight)
            arrived = now()
            await until(lambda: now() > arrived + 0.01)
            peer.resume()
            await calling
            assert deadlines[0] <= arrived + 5

    run(main())


def test_deadline_of_a_handler_ends_with_it(run, address):
    """What a handler opens and starts has a copy of its context for as long as it lives."""

    async def main() -> None:
        front, back = Server(address), Server(address + "2")
        back.on_request(lambda peer, data: data)
        to_back, tasks = Client(address + "2"), []
        gate, over = asyncio.Event(), []

        async def later() -> Any:
            await gate.wait()
            return await to_back.request("later")

        @front.method
        async def begin(call: Call) -> None:
            over.append(call.deadline)
            await to_back.connect()
            tasks.append(asyncio.ensure_future(later()))

        @to_back.method
        async def nested(call: Call) -> Any:
            assert call.deadline is None
            return await to_back.request("nested")

        async with back, meeting(front) as client:
            await client.call("begin", timeout=1)
            now = asyncio.get_running_loop().time
            await until(lambda: now() > over[0])
            gate.set()
            assert await tasks[0] == "later"
            (peer,) = back.peers.values()
            assert await peer.call("nested", timeout=None) == "nested"
            await to_back.close()

    run(main())


def test_inline_handlers_and_requests_of_node_have_no_deadline(run, address):
    async def main() -> None:
        front, back = Server(address), Server(address + "2")
        deadlines: list[float | None] = []

        @back.method
        async def tell(call: Call) -> None:
            deadlines.append(call.deadline)

        async with back, Client(address + "2") as to_back, front:

            @front.on_request(on="inline")
            def ask(peer: Peer, data: object) -> Any:
                return to_back.call("tell", timeout=None) if peer.interphone else PASS

            @front.on_request
            async def ask_for_node(peer: Peer, data: object) -> Any:
                return await to_back.call("tell", timeout=None)

            front.method("tell")(tell)
            async with Client(address) as client:
                await client.request("x", timeout=5)
            async with Raw.connect(address) as raw:
                await raw.open()
                raw.write({"t": 2, "d": "x", "n": "1", "o": {"deadline": 5}})
                assert (await raw.packet())["n"] == "1"
                raw.write({"t": 2, "d": {"jsonrpc": "2.0", "method": "tell"}, "n": "2"})
                assert (await raw.packet())["n"] == "2"
        assert deadlines == [None] * 3

    run(main())


def test_nothing_is_sent_when_the_deadline_has_passed(run, address):
    async def main() -> None:
        server, errors = Server(address), []
        async with meeting(server) as client:

            @client.method
            async def never() -> None: ...

            @server.method
            async def late(call: Call) -> None:
                try:
                    await asyncio.Event().wait()
                finally:  # it is cancelled when its caller's time is over: ours may be later
                    assert call.until is not None
                    over = call.until + 0.01
                    await until(lambda: monotonic() > over)
                    errors.append(await raised_by(call.peer.call("never")))

            assert isinstance(await raised_by(client.call("late", timeout=0.02)), RequestTimeout)
            await until(lambda: errors)
            assert isinstance(errors[0], RequestTimeout)
            assert errors[0].delivery == "not_sent"

    run(main())


def test_method_past_its_own_limit_is_overloaded(run, address):
    async def main() -> None:
        server, gate, running = Server(address), asyncio.Event(), []

        @server.method(limit=2)
        async def slow() -> None:
            running.append(1)
            await gate.wait()

        async with meeting(server) as client:
            calls = [asyncio.ensure_future(client.call("slow")) for _ in range(2)]
            await until(lambda: len(running) == 2)
            error = await raised_by(client.call("slow"))
            assert isinstance(error, Overloaded)
            assert error.delivery == "not_sent"
            gate.set()
            await asyncio.gather(*calls)
            await client.call("slow")

    run(main())


# Node


def test_node_client_calls_by_json_rpc_and_is_answered_in_it(run, address):
    async def main() -> None:
        server = calculator(address)
        server.on_request(lambda peer, data: "plain")
        async with server, Raw.connect(address) as raw:
            await raw.open()
            asked: list[tuple[dict[str, Any], Any]] = [
                ({"method": "add", "params": [1, 2], "id": 9}, {"result": 3, "id": 9}),
                ({"method": "add", "params": {"a": 1, "b": 4}}, {"result": 5}),
                (
                    {"method": "text.upper", "params": ["a"], "id": None},
                    {"result": "A", "id": None},
                ),
            ]
            for envelope, answer in asked:
                raw.write({"t": 2, "d": {"jsonrpc": "2.0", **envelope}, "n": "x"})
                packet = await raw.packet()
                assert packet == {"t": 3, "d": {"jsonrpc": "2.0", **answer}, "n": "x"}
            failing = (({"method": "ad"}, -32601), ({"method": "add", "params": ["x"]}, -32602))
            for envelope, code in failing:
                raw.write({"t": 2, "d": {"jsonrpc": "2.0", "id": 1, **envelope}, "n": "x"})
                answer = (await raw.packet())["d"]
                assert (answer["error"]["code"], answer["id"]) == (code, 1)
            for data in ("text", {"jsonrpc": "1.0", "method": "add"}, {"method": "add"}):
                raw.write({"t": 2, "d": data, "n": "x"})
                assert (await raw.packet())["d"] == "plain"

    run(main())


def test_json_rpc_is_the_users_data_where_there_are_no_methods_and_between_two_of_us(run, address):
    async def main() -> None:
        envelope = {"jsonrpc": "2.0", "method": "add", "params": [1, 2]}
        server = Server(address)
        server.on_request(lambda peer, data: data)
        async with server, Raw.connect(address) as raw:
            await raw.open()
            raw.write({"t": 2, "d": envelope, "n": "x"})
            assert (await raw.packet())["d"] == envelope
        with_methods = calculator(address)
        with_methods.on_request(lambda peer, data: data)
        async with meeting(with_methods) as client:
            assert await client.request(envelope) == envelope

    run(main())


def test_node_server_has_no_methods(run, address):
    async def main() -> None:
        async with Raw.serve(address) as comers:
            client = Client(address, backoff=None)
            connecting = asyncio.ensure_future(client.connect())
            raw = await comers.get()
            await raw.let_in()
            await connecting
            error = await raised_by(client.call("add", 1))
            assert isinstance(error, Unsupported)
            assert error.delivery == "not_sent"
            await client.send("nothing before this")
            assert (await raw.packet())["d"] == "nothing before this"
            client.abort()

    run(main())


def test_node_client_has_no_methods(run, address):
    async def main() -> None:
        server = calculator(address)
        async with server, Raw.connect(address) as raw:
            await raw.open()
            (peer,) = server.peers.values()
            assert isinstance(await raised_by(peer.call("add", 1)), Unsupported)
            await peer.send("nothing before this")
            assert (await raw.packet())["d"] == "nothing before this"

    run(main())


def test_call_in_a_handler_of_the_same_connection_does_not_block_it(run, address):
    async def main() -> None:
        server = Server(address)

        @server.method
        async def ask_back(call: Call, depth: int) -> int:
            return 1 + await call.peer.call("ask_back", depth - 1) if depth else 0

        async with meeting(server) as client:

            @client.method
            async def ask_back_too(call: Call, depth: int) -> int:
                return 0

            client.method("ask_back")(answer_of(client))
            assert await client.call("ask_back", 10, returns=int) == 10

    def answer_of(client: Client) -> Any:
        async def ask_back(depth: int) -> int:
            return 1 + await client.call("ask_back", depth - 1) if depth else 0

        return ask_back

    run(main())


def test_refused_registrations():
    server = Server("x")
    server.method("a")(lambda: None)
    with pytest.raises(ValueError, match="a"):
        server.method("a")(lambda: None)
    with pytest.raises(ValueError, match="reserved"):
        server.method("$info")(lambda: None)
    with pytest.raises(ValueError, match="dialect"):
        Server("x", dialect="latin")  # type: ignore[arg-type]  # on purpose


def test_peer_argument_is_not_given_to_methods(run, address):
    async def main() -> None:
        server = Server(address)

        @server.method
        async def count(*numbers: int) -> int:
            return len(numbers)

        async with meeting(server) as client:
            assert await client.call("count") == 0
            assert await client.call("count", 1, 2, 3) == 3
            assert isinstance(next(iter(server.peers.values())), Peer)

    run(main())


def test_limit_of_a_method_counts_the_calls_of_all_peers(run, address):
    async def main() -> None:
        server, gate, running = Server(address), asyncio.Event(), []

        @server.method(limit=1)
        async def slow() -> None:
            running.append(1)
            await gate.wait()

        async with meeting(server) as client, Client(address) as other:
            first = asyncio.ensure_future(client.call("slow"))
            await until(lambda: running)
            assert isinstance(await raised_by(other.call("slow")), Overloaded)
            gate.set()
            await first

    run(main())


def test_method_in_a_thread_counts_until_its_thread_is_done(run, address):
    async def main() -> None:
        server, gate, running = Server(address), threading.Event(), []

        @server.method(limit=1)
        def slow() -> int:
            running.append(1)
            gate.wait(30)
            return 1

        async with meeting(server) as client:
            assert isinstance(await raised_by(client.call("slow", timeout=0.05)), RequestTimeout)
            assert isinstance(await raised_by(client.call("slow")), Overloaded)
            gate.set()
            await until(lambda: not server._handlers.running["slow"])
            assert await client.call("slow") == 1
            assert len(running) == 2

    run(main())
