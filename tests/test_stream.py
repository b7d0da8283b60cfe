"""Streams: methods that answer, or are asked, piece by piece."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from interphone import (
    Call,
    Client,
    ConnectionClosed,
    ConnectionLost,
    InvalidParams,
    Limits,
    LocalProtocolError,
    MethodNotFound,
    Overloaded,
    PayloadError,
    Peer,
    RemoteError,
    RequestTimeout,
    Server,
    Status,
    StreamClosed,
    Unsupported,
    contract,
)
from interphone.protocol.credit import UNIT
from support.ends import Raw, meeting, raised_by, until

both = pytest.mark.parametrize("dialect", ["native", "classic"])
everywhere = pytest.mark.parametrize("kind", ["async", "thread", "inline"])


@contract("count.to")
def count_to(last: int) -> AsyncIterator[int]:
    """Yield the numbers up to the last."""
    raise NotImplementedError


@contract("sum.of")
def sum_of(label: str, numbers: AsyncIterator[int]) -> int:
    """Add numbers up."""
    raise NotImplementedError


@contract("doubled")
def doubled(numbers: AsyncIterator[int], *, times: int = 2) -> AsyncIterator[int]:
    """Double each number."""
    raise NotImplementedError


class Source:
    """A server whose methods stream, and what has become of them.

    Attributes:
        made: Items that were made.
        ended: How generators ended: the exception that ended them, or None.
    """

    def __init__(self, address: str, **options: Any) -> None:
        self.server = Server(address, **options)
        self.made = 0
        self.ended: list[type[BaseException] | None] = []
        method = self.server.method
        method("async")(self.count)
        method("thread")(self.count_in_thread)
        method("inline", on="inline")(self.count_in_thread)
        method("fails")(self.fail)
        method("big")(self.big)
        method(sum_of)(self.add_up)
        method("sum.thread")(self.add_up_in_thread)
        method(doubled)(self.double)

        @method
        async def plain() -> int:
            return 1

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        try:
            yield
        except BaseException as exc:
            self.ended.append(type(exc))
            raise
        else:
            self.ended.append(None)

    async def count(self, last: int = 10**9) -> AsyncIterator[int]:
        with self.noted():
            for number in range(last):
                self.made += 1
                yield number

    def count_in_thread(self, last: int = 10**9) -> Iterator[int]:
        with self.noted():
            for number in range(last):
                self.made += 1
                yield number

    async def fail(self, after: int) -> AsyncIterator[int]:
        for number in range(after):
            yield number
        raise KeyError("no more")

    async def big(self, size: int, times: int = 10**9) -> AsyncIterator[bytes]:
        for _ in range(times):
            self.made += 1
            yield bytes(size)

    async def add_up(self, label: str, numbers: AsyncIterator[int]) -> int:
        with self.noted():
            total = 0
            async for number in numbers:
                self.made += 1
                if number < 0:
                    break
                total += number
            return total

    def add_up_in_thread(self, label: str, numbers: Iterator[int]) -> int:
        with self.noted():
            return sum(numbers)

    async def double(self, numbers: AsyncIterator[int], *, times: int = 2) -> AsyncIterator[int]:
        with self.noted():
            async for number in numbers:
                yield number * times


async def numbers(*values: Any) -> AsyncIterator[Any]:
    for value in values:
        yield value


# From the method


@both
@everywhere
def test_items_arrive_in_order_and_the_end_does_too(run, address, kind, dialect):
    async def main() -> None:
        source = Source(address)
        async with meeting(source.server, dialect=dialect) as client:
            async with client.stream(kind, 1000, of=int) as stream:
                assert [item async for item in stream] == [*range(1000)]
                assert [item async for item in stream] == []
            assert source.ended == [None]

    run(main())


@both
def test_server_streams_from_its_client(run, address, dialect):
    async def main() -> None:
        server, client = Server(address), Client(address, dialect=dialect)

        @client.method
        async def letters() -> AsyncIterator[str]:
            for letter in "abc":
                yield letter

        async with server, client:
            (peer,) = server.peers.values()
            async with peer.stream("letters", of=str) as stream:
                assert [letter async for letter in stream] == ["a", "b", "c"]

    run(main())


@everywhere
@pytest.mark.parametrize("window", [1, 2, 3, 10, 256])
def test_no_more_than_the_window_is_ever_made_or_kept(run, address, kind, window):
    async def main() -> None:
        source = Source(address)
        async with (
            meeting(source.server) as client,
            client.stream(kind, of=int, window=window) as stream,
        ):
            for taken in range(30):
                await until(lambda: stream.buffered)
                await client.ping()
                await client.call("plain")
                assert stream.buffered <= window
                assert source.made <= taken + window + 1  # one waits for credit
                assert await anext(stream) == taken

    run(main())


def test_big_items_cost_more_and_always_fit(run, address):
    async def main() -> None:
        source = Source(address)
        async with (
            meeting(source.server) as client,
            client.stream("big", 10 * UNIT, 40, of=bytes, window=24) as stream,
        ):
            await until(lambda: stream.buffered == 2)  # 11 units each
            await client.ping()
            assert (stream.buffered, source.made) == (2, 3)
            assert [len(item) async for item in stream] == [10 * UNIT] * 40
        async with meeting(Source(f"{address}2").server) as client:
            for window in (1, 2, 3, 7):
                async with client.stream("big", 100 * UNIT, 5, of=bytes, window=window) as stream:
                    assert [len(item) async for item in stream] == [100 * UNIT] * 5

    run(main())


def test_slow_stream_holds_up_no_call_and_no_other_stream(run, address):
    async def main() -> None:
        source = Source(address)
        async with (
            meeting(source.server) as client,
            client.stream("big", UNIT, window=64) as one,
            client.stream("async", window=64) as other,
        ):
            await until(lambda: one.buffered and other.buffered)
            assert [await client.call("plain") for _ in range(100)] == [1] * 100
            async with client.stream("async", 1000) as third:
                assert [item async for item in third] == [*range(1000)]
            assert one.buffered <= 64
            assert other.buffered <= 64

    run(main())


def test_streams_pings_and_answers_get_through_where_requests_are_held(run, address):
    async def main() -> None:
        source, gate = Source(address, limits=Limits(max_inflight=1)), asyncio.Event()

        @source.server.on_request
        async def wait(peer: Peer, data: int) -> int:
            await gate.wait()
            return data

        async with meeting(source.server) as client:
            client.on_request(lambda data: data)
            (peer,) = source.server.peers.values()
            async with client.stream("async", 1000) as stream, client.stream("sum.of", "a") as sums:
                asked = [asyncio.ensure_future(client.request(n)) for n in range(3)]
                await until(lambda: peer.inflight)
                assert [item async for item in stream] == [*range(1000)]
                for number in range(1000):
                    await sums.send(number)
                assert await sums.result() == 499_500
                assert await client.ping() > 0
                assert await peer.request("back") == "back"
                assert not any(task.done() for task in asked)
                gate.set()
                assert await asyncio.gather(*asked) == [0, 1, 2]

    run(main())


@everywhere
def test_leaving_early_ends_the_generator(run, address, kind):
    async def main() -> None:
        source = Source(address)
        async with meeting(source.server) as client:
            async with client.stream(kind, of=int) as stream:
                async for item in stream:
                    if item == 5:
                        break
            await until(lambda: source.ended)
            assert source.ended[0] in (GeneratorExit, asyncio.CancelledError)
            assert await client.call("plain") == 1
            assert client.peer.pending == 0
            (peer,) = source.server.peers.values()
            await until(lambda: peer.inflight == 0)

    run(main())


def test_cancelling_the_reader_ends_the_generator(run, address):
    async def main() -> None:
        source = Source(address)

        async def read(client: Client) -> None:
            async with client.stream("async") as stream:
                async for _ in stream:
                    pass

        async with meeting(source.server) as client:
            reader = asyncio.ensure_future(read(client))
            await until(lambda: source.made > 1000)
            reader.cancel()
            await until(lambda: source.ended)
            assert reader.cancelled() or await raised_by(reader)

    run(main())


def test_cancelled_wait_for_an_item_loses_none(run, address):
    async def main() -> None:
        server, gate = Server(address), asyncio.Event()

        @server.method
        async def late() -> AsyncIterator[int]:
            await gate.wait()
            yield 1

        async with meeting(server) as client, client.stream("late") as stream:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await anext(stream)
            gate.set()
            assert [item async for item in stream] == [1]

    run(main())


@both
def test_error_comes_behind_the_items(run, address, dialect):
    async def main() -> None:
        async with (
            meeting(Source(address).server, dialect=dialect) as client,
            client.stream("fails", 3) as stream,
        ):
            assert [await anext(stream) for _ in range(3)] == [0, 1, 2]
            with pytest.raises(RemoteError, match="no more") as caught:
                await anext(stream)
            assert caught.value.kind == "KeyError"
            assert [item async for item in stream] == []

    run(main())


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        (("nothing",), MethodNotFound),
        (("async", "x"), InvalidParams),
        (("plain",), Unsupported),
    ],
)
def test_stream_that_cannot_begin_says_why(run, address, asked, error):
    async def main() -> None:
        async with meeting(Source(address).server) as client:
            async with client.stream(*asked) as stream:
                assert isinstance(await raised_by(anext(stream)), error)
            async with client.stream(*asked) as stream:
                assert isinstance(await raised_by(stream.result()), error)

    run(main())


def test_item_of_another_type_is_an_error_and_the_next_may_be_right(run, address):
    async def main() -> None:
        server = Server(address)

        @server.method
        async def mixed() -> AsyncIterator[object]:
            yield 1
            yield "2"
            yield 3

        async with meeting(server) as client, client.stream("mixed", of=int) as stream:
            assert await anext(stream) == 1
            with pytest.raises(PayloadError):
                await anext(stream)
            assert [item async for item in stream] == [3]

    run(main())


@pytest.mark.parametrize(
    ("item", "kind"), [(object(), "PayloadError"), ("x" * 3000, "MessageTooBig")]
)
def test_item_that_cannot_be_sent_ends_the_stream_with_an_error(run, address, item, kind):
    async def main() -> None:
        server = Server(address, limits=Limits(max_frame=2000))

        @server.method
        async def odd() -> AsyncIterator[object]:
            yield 1
            yield item

        async with meeting(server) as client, client.stream("odd") as stream:
            assert await anext(stream) == 1
            with pytest.raises(RemoteError) as caught:
                await anext(stream)
            assert caught.value.kind == kind

    run(main())


def test_generator_in_a_thread_stays_in_one_thread(run, address):
    async def main() -> None:
        server = Server(address)

        @server.method
        def threads() -> Iterator[int]:
            for _ in range(20):
                yield threading.get_ident()

        async with (
            meeting(server) as client,
            client.stream("threads", window=1) as one,
            client.stream("threads", window=1) as other,
        ):
            pairs = [(await anext(one), await anext(other)) for _ in range(20)]
            assert len(set(pairs)) == 1
            assert len({threading.get_ident(), *pairs[0]}) == 3

    run(main())


def test_more_streams_than_workers_do_not_hold_each_other_up(run, address):
    async def main() -> None:
        source = Source(address)
        async with meeting(source.server) as client, contextlib.AsyncExitStack() as stack:
            streams = [
                await stack.enter_async_context(client.stream("thread", window=1))
                for _ in range(40)
            ]
            assert [await anext(stream) for stream in streams] == [0] * 40

    run(main())


def test_timeout_is_for_the_whole_stream_and_stops_the_method(run, address):
    async def main() -> None:
        source, deadlines = Source(address), []

        @source.server.method
        async def wait(call: Call) -> AsyncIterator[int]:
            deadlines.append(call.deadline)
            with source.noted():
                yield 1
                await asyncio.get_running_loop().create_future()

        async with meeting(source.server) as client:
            async with client.stream("wait", timeout=0.05) as stream:
                assert await anext(stream) == 1
                with pytest.raises(RequestTimeout):
                    await anext(stream)
            await until(lambda: source.ended)
            async with client.within(0.05).stream("wait") as stream:
                with pytest.raises(RequestTimeout):
                    assert [item async for item in stream] == []
            assert None not in deadlines

    run(main())


@pytest.mark.parametrize("how", ["close", "abort", "server"])
def test_end_of_the_connection_ends_streams_at_both_ends(run, address, how):
    async def main() -> None:
        source = Source(address)
        async with source.server:
            client = Client(address, backoff=None)
            await client.connect()
            async with client.stream("async", of=int, window=4) as stream:
                assert await anext(stream) == 0
                if how == "close":
                    await client.close()
                elif how == "abort":
                    client.abort()
                else:
                    (peer,) = source.server.peers.values()
                    await peer.close("bye", grace=0)
                with pytest.raises(ConnectionClosed if how != "server" else ConnectionLost):
                    async for _ in stream:
                        pass
                assert isinstance(await raised_by(stream.send(1)), StreamClosed)
            await until(lambda: source.ended)
            await client.close()

    run(main())


def test_a_stream_that_ends_in_time_is_finished_by_close(run, address):
    async def main() -> None:
        source, gate = Source(address), asyncio.Event()

        @source.server.method
        async def slowly() -> AsyncIterator[int]:
            yield 1
            await gate.wait()
            yield 2

        async with meeting(source.server, backoff=None) as client:
            async with client.stream("slowly") as stream:
                assert await anext(stream) == 1
                (peer,) = source.server.peers.values()
                closing = asyncio.ensure_future(peer.close("bye"))
                await asyncio.sleep(0)
                gate.set()
                assert [item async for item in stream] == [2]
            assert await closing

    run(main())


def test_there_are_only_so_many_streams_of_one_peer(run, address):
    async def main() -> None:
        source = Source(address, limits=Limits(max_streams=2))
        async with meeting(source.server) as client, contextlib.AsyncExitStack() as stack:
            enter = stack.enter_async_context
            one, two, three = [await enter(client.stream("async")) for _ in range(3)]
            assert await anext(one) == await anext(two) == 0
            assert isinstance(await raised_by(anext(three)), Overloaded)
            (peer,) = source.server.peers.values()
            await one.aclose()
            await until(lambda: peer.inflight == 1)
            four = await enter(client.stream("async"))
            assert await anext(four) == 0

    run(main())


def test_limit_of_a_method_counts_its_streams(run, address):
    async def main() -> None:
        server = Server(address)

        @server.method(limit=1)
        async def one() -> AsyncIterator[int]:
            yield 1
            await asyncio.get_running_loop().create_future()

        async with meeting(server) as client:
            async with client.stream("one") as first, client.stream("one") as second:
                assert await anext(first) == 1
                assert isinstance(await raised_by(anext(second)), Overloaded)
            (peer,) = server.peers.values()
            await until(lambda: peer.inflight == 0)
            async with client.stream("one") as third:
                assert await anext(third) == 1

    run(main())


# To the method


@both
@pytest.mark.parametrize("name", ["sum.of", "sum.thread"])
def test_method_reads_what_it_is_sent(run, address, name, dialect):
    async def main() -> None:
        async with meeting(Source(address).server, dialect=dialect) as client:
            async with client.stream(name, "a") as stream:
                for number in range(1000):
                    await stream.send(number)
                assert await stream.result(returns=int) == 499_500
                assert await stream.result() == 499_500
            assert await client.call(name, "a", items=range(10)) == 45
            assert await client.call(name, "a", items=numbers(1, 2)) == 3
            assert await client.call(name, "a", items=[]) == 0

    run(main())


def test_contracts_stream_both_ways(run, address):
    async def main() -> None:
        source = Source(address)
        source.server.method(count_to)(source.count)
        async with meeting(source.server) as client:
            async with client.stream(count_to, 3) as counted:
                assert [item async for item in counted] == [0, 1, 2]
            assert await client.call(sum_of, "a", numbers(1, 2, 3)) == 6
            assert await client.within(5).call(sum_of, "a", numbers(4)) == 4
            async with client.stream(doubled, numbers(1, 2)) as twice:
                assert [item async for item in twice] == [2, 4]
            async with client.within(5).stream(doubled, numbers(1, 2), times=3) as thrice:
                assert [item async for item in thrice] == [3, 6]
            with pytest.raises(TypeError, match="call it"):
                client.stream(sum_of, "a", numbers())  # type: ignore[call-overload]
            with pytest.raises(TypeError, match="stream"):
                await client.call(count_to, 3)

    run(main())


def test_both_ways_at_once(run, address):
    async def main() -> None:
        async with (
            meeting(Source(address).server) as client,
            client.stream("doubled", of=int) as stream,
        ):
            for number in range(300):
                await stream.send(number)
                assert await anext(stream) == 2 * number
            await stream.finish()
            await stream.finish()
            assert [item async for item in stream] == []
            assert await stream.result() is None

    run(main())


def test_sender_waits_for_a_method_that_reads_slowly(run, address):
    async def main() -> None:
        server, gate, seen = Server(address), asyncio.Event(), []

        @server.method
        async def slow(items: AsyncIterator[int]) -> int:
            await gate.wait()
            async for item in items:
                seen.append(item)
            return len(seen)

        async with meeting(server) as client:
            sent = 0

            async def produce() -> AsyncIterator[int]:
                nonlocal sent
                for sent in range(1, 5001):
                    yield sent

            working = asyncio.ensure_future(client.call("slow", items=produce()))
            await until(lambda: sent > 256)
            await client.ping()
            await client.ping()
            assert sent == 257
            gate.set()
            assert await working == 5000
            assert seen == [*range(1, 5001)]

    run(main())


def test_method_that_has_enough_ends_the_sending(run, address):
    async def main() -> None:
        source = Source(address)
        async with meeting(source.server) as client:
            endless = itertools.chain([1, 2, -1], itertools.repeat(0))
            assert await client.call("sum.of", "a", items=endless) == 3
            async with client.stream("sum.of", "a") as stream:
                await stream.send(-1)
                with pytest.raises(StreamClosed, match="the method has ended"):
                    while True:
                        await stream.send(0)
                assert await stream.result() == 0

    run(main())


def test_what_fails_while_it_is_sent_fails_the_call_and_stops_the_method(run, address):
    async def main() -> None:
        source = Source(address)

        async def broken() -> AsyncIterator[int]:
            yield 1
            raise ZeroDivisionError("here")

        async with meeting(source.server) as client:
            with pytest.raises(ZeroDivisionError, match="here"):
                await client.call("sum.of", "a", items=broken())
            await until(lambda: source.ended)
            assert source.ended == [asyncio.CancelledError]
            with pytest.raises(PayloadError):
                await client.call("sum.of", "a", items=[object()])
            with pytest.raises(PayloadError):
                async with client.stream("sum.of", "a") as stream:
                    await stream.send(object())

    run(main())


def test_input_of_another_type_is_an_error_in_the_method(run, address):
    async def main() -> None:
        async with meeting(Source(address).server) as client:
            with pytest.raises(RemoteError) as caught:
                await client.call("sum.of", "a", items=["x"])
            assert caught.value.kind == "PayloadError"

    run(main())


def test_cancelled_call_closes_what_it_was_sending(run, address):
    async def main() -> None:
        source, closed = Source(address), asyncio.Event()

        async def slowly() -> AsyncIterator[int]:
            try:
                yield 1
                await asyncio.get_running_loop().create_future()
            finally:
                closed.set()

        async with meeting(source.server) as client:
            asked = asyncio.ensure_future(client.call("sum.of", "a", items=slowly()))
            await until(lambda: source.made)
            asked.cancel()
            await asyncio.wait([asked])
            await closed.wait()
            await until(lambda: source.ended)

    run(main())


@pytest.mark.parametrize("kind", ["sum.of", "sum.thread"])
def test_method_that_reads_learns_that_its_caller_is_gone(run, address, kind):
    async def main() -> None:
        source = Source(address)
        async with meeting(source.server) as client:
            async with client.stream(kind, "a") as stream:
                await stream.send(1)
                await client.ping()
            await until(lambda: source.ended)
            assert source.ended[0] in (asyncio.CancelledError, StreamClosed)

    run(main())


# Rules


def test_stream_is_used_as_it_should_be(run, address):
    async def main() -> None:
        async with meeting(Source(address).server) as client:
            stream = client.stream("async", 3)
            assert repr(stream) == "<Stream new, buffered 0>"
            for verb in (stream.send(1), anext(stream), stream.result(), stream.finish()):
                assert isinstance(await raised_by(verb), LocalProtocolError)
            await stream.aclose()
            async with stream:
                await until(lambda: stream.buffered == 3)
                assert repr(stream) == "<Stream ended, buffered 3>"
                with pytest.raises(LocalProtocolError, match="take them first"):
                    await stream.result()
            await stream.aclose()
            assert [item async for item in stream] == []
            with pytest.raises(LocalProtocolError, match="entered once"):
                await stream.__aenter__()
            async with client.stream("async") as endless:
                await anext(endless)
                await endless.aclose()
                assert isinstance(await raised_by(endless.result()), StreamClosed)
            async with client.stream("sum.of", "a") as both:
                waiting = asyncio.ensure_future(anext(both))
                await asyncio.sleep(0)
                assert isinstance(await raised_by(anext(both)), LocalProtocolError)
                waiting.cancel()
            for window in (0, -1, 1 << 21):
                with pytest.raises(ValueError, match="window"):
                    client.stream("async", window=window)
            with pytest.raises(TypeError):
                client.stream(5)  # type: ignore[call-overload]
            with pytest.raises(TypeError):
                client.stream("async", nothing=1)  # type: ignore[call-overload]

    run(main())


def test_method_that_streams_cannot_be_called_unless_it_collects(run, address):
    async def main() -> None:
        source = Source(address)

        @source.server.method(collect=True)
        async def few(last: int) -> AsyncIterator[int]:
            for number in range(last):
                yield number

        async with meeting(source.server) as client:
            with pytest.raises(Unsupported, match="open it as a stream"):
                await client.call("async", 3)
            with pytest.raises(Unsupported, match="reads a stream"):
                await client.call("sum.of", "a")
            assert await client.call("few", 3, returns=list[int]) == [0, 1, 2]
            async with client.stream("few", 3) as stream:
                assert [item async for item in stream] == [0, 1, 2]

    run(main())


def test_node_is_answered_with_an_error_or_the_list(run, address):
    async def main() -> None:
        source = Source(address)

        @source.server.method(collect=True)
        def few(last: int) -> Iterator[int]:
            yield from range(last)

        def asked(method: str, n: int) -> dict[str, Any]:
            return {"t": 2, "n": str(n), "d": {"jsonrpc": "2.0", "method": method, "params": [3]}}

        async with source.server, Raw.connect(address) as raw:
            await raw.open()
            raw.write(asked("async", 1), asked("few", 2))
            answers = {
                packet["n"]: packet["d"] for packet in [await raw.packet(), await raw.packet()]
            }
            assert answers["1"]["error"]["code"] == -32003
            assert "streams its answer" in answers["1"]["error"]["message"]
            assert answers["2"] == {"jsonrpc": "2.0", "result": [0, 1, 2]}

    run(main())


def test_stream_waits_for_a_connection(run, address):
    async def main() -> None:
        client = Client(address)
        connecting = asyncio.ensure_future(client.connect())
        async with Source(address).server:
            await connecting
            client.peer.connection.abort()
            await until(lambda: client.status is not Status.READY)
            async with client.stream("async", 3) as stream:
                assert [item async for item in stream] == [0, 1, 2]
            await client.close()

    run(main())


def test_towards_an_end_without_streams_it_is_unsupported(run, address):
    async def main() -> None:
        async with Raw.serve(address) as comers:
            client = Client(address, backoff=None)
            connecting = asyncio.ensure_future(client.connect())
            raw = await comers.get()
            await raw.let_in(interphone={"version": 1, "dialects": ["classic"]})
            await connecting
            with pytest.raises(Unsupported, match="without streams"):
                async with client.stream("async"):
                    pass
            assert client.peer.pending == 0
            client.abort()

    run(main())


# Progress


@both
def test_progress_comes_before_the_result(run, address, dialect):
    async def main() -> None:
        server, heard = Server(address), []

        @server.method
        async def build(call: Call, steps: int) -> str:
            for step in range(steps):
                await call.progress({"done": step})
            return "built"

        async with meeting(server, dialect=dialect) as client:
            assert await client.call("build", 3, on_progress=heard.append) == "built"
            assert heard == [{"done": 0}, {"done": 1}, {"done": 2}]
            within = client.within(5, on_progress=heard.append)
            assert await within.call("build", 1) == "built"
            assert len(heard) == 4
            assert await client.call("build", 3) == "built"
            assert len(heard) == 4

    run(main())


@pytest.mark.parametrize("who", ["interphone", "node"])
def test_no_progress_is_sent_to_who_did_not_ask(run, address, who):
    async def main() -> None:
        server = Server(address)

        @server.method
        async def build(call: Call) -> str:
            await call.progress(1)
            return "built"

        async with server, Raw.connect(address) as raw:
            if who == "node":
                await raw.open()
                raw.write({"t": 2, "n": "1", "d": {"jsonrpc": "2.0", "method": "build"}})
                answer = {"jsonrpc": "2.0", "result": "built"}
            else:
                await raw.open(interphone={"version": 1, "dialects": ["classic"]})
                raw.write({"t": 2, "n": "1", "d": {"method": "build"}, "k": "call"})
                answer = "built"
            assert await raw.packet() == {"t": 3, "n": "1", "d": answer}

    run(main())


def test_listener_to_progress_that_raises_is_reported(run, address):
    async def main() -> None:
        server, errors = Server(address), []

        @server.method
        async def build(call: Call) -> int:
            await call.progress(1)
            return 2

        client = Client(address)
        client.on_error(errors.append)
        async with server, client:

            def listener(value: Any) -> None:
                raise KeyError(value)

            assert await client.call("build", on_progress=listener) == 2
            assert [type(error) for error in errors] == [KeyError]

    run(main())


def test_progress_from_a_thread(run, address):
    async def main() -> None:
        server, heard = Server(address), []

        @server.method
        async def build(call: Call, peer: int = 0) -> int:
            assert isinstance(call.peer, Peer)
            await asyncio.gather(*(call.progress(n) for n in range(5)))
            return 1

        async with meeting(server) as client:
            await client.call("build", on_progress=heard.append)
            assert heard == [0, 1, 2, 3, 4]

    run(main())


def test_node_hears_progress_and_may_cancel(run, address):
    async def main() -> None:
        server, ended = Server(address), []

        @server.method
        async def build(call: Call) -> None:
            try:
                await call.progress({"done": 1})
                await asyncio.get_running_loop().create_future()
            finally:
                ended.append(1)

        async with server, Raw.connect(address) as raw:
            await raw.open()
            call = {"jsonrpc": "2.0", "method": "build", "id": "job-1"}
            raw.write({"t": 2, "n": "1", "d": call})
            assert await raw.packet() == {
                "t": 1,
                "d": {
                    "jsonrpc": "2.0",
                    "method": "$/progress",
                    "params": {"token": "job-1", "value": {"done": 1}},
                },
            }
            cancel = {"jsonrpc": "2.0", "method": "$/cancelRequest", "params": {"id": "job-1"}}
            raw.write({"t": 1, "d": cancel})
            answer = await raw.packet()
            assert answer["n"] == "1"
            assert answer["d"]["id"] == "job-1"
            assert answer["d"]["error"]["code"] == -32800
            assert ended == [1]
            raw.write({"t": 1, "d": cancel})  # it is over: harmless
            raw.write({"t": 4, "n": "ping"})
            assert (await raw.packet())["t"] == 5

    run(main())


# What a review found


def test_end_of_the_input_may_come_right_behind_the_call(run, address):
    async def main() -> None:
        source = Source(address)
        async with meeting(source.server) as client:
            await client.send("first")  # so that what follows in this turn leaves in one piece
            assert await client.call("sum.of", "a", items=[]) == 0
            (peer,) = source.server.peers.values()
            peer.pause()
            asked = asyncio.ensure_future(client.call("sum.of", "a", items=[]))
            await until(lambda: peer.inflight)
            peer.resume()
            assert await asked == 0

    run(main())


def test_methods_that_read_in_threads_take_no_worker(run, address):
    async def main() -> None:
        source = Source(address)

        @source.server.method
        def worker() -> int:
            return 1

        async with meeting(source.server) as client, contextlib.AsyncExitStack() as stack:
            streams = [
                await stack.enter_async_context(client.stream("sum.thread", "a")) for _ in range(40)
            ]
            await asyncio.gather(*(stream.send(1) for stream in streams))
            assert await client.call("worker") == 1
            assert [await stream.result() for stream in streams] == [1] * 40

    run(main())


def test_items_that_are_cancelled_by_somebody_else_fail_the_call(run, address):
    async def main() -> None:
        source = Source(address)
        elsewhere = asyncio.ensure_future(asyncio.get_running_loop().create_future())
        elsewhere.cancel()

        async def items() -> AsyncIterator[int]:
            yield 1
            await elsewhere

        async with meeting(source.server) as client:
            with pytest.raises(RuntimeError, match="cancelled by somebody else"):
                await client.call("sum.of", "a", items=items(), timeout=None)
            await until(lambda: source.ended)

    run(main())


def test_what_the_end_of_the_items_raises_is_raised(run, address):
    async def main() -> None:
        async def items() -> AsyncIterator[int]:
            try:
                yield -1
                yield 1
            finally:
                raise ZeroDivisionError("at the end")

        async with meeting(Source(address).server) as client:
            with contextlib.suppress(ZeroDivisionError):  # unless the answer was faster
                assert await client.call("sum.of", "a", items=items()) == 0

    run(main())


def test_progress_of_a_method_that_reads(run, address):
    async def main() -> None:
        server, heard = Server(address), []

        @server.method
        async def total(call: Call, numbers: AsyncIterator[int]) -> int:
            sum_ = 0
            async for number in numbers:
                sum_ += number
                await call.progress(sum_)
            return sum_

        async with meeting(server) as client:
            asked = client.call("total", items=[1, 2, 3], on_progress=heard.append)
            assert await asked == 6
            assert heard == [1, 3, 6]

    run(main())


def test_unread_items_of_many_streams_are_bounded(run, address):
    async def main() -> None:
        limits = Limits(max_frame=20_000, max_held=10_000)
        server = Server(address, limits=limits)

        @server.method
        async def never(items: AsyncIterator[bytes]) -> None:
            await asyncio.get_running_loop().create_future()

        async with meeting(server) as client, contextlib.AsyncExitStack() as stack:
            (peer,) = server.peers.values()
            streams = [await stack.enter_async_context(client.stream("never")) for _ in range(4)]
            for stream in streams[:2]:
                await stream.send(bytes(19_000))
            await client.ping()
            assert not peer.connection.stopped
            await streams[2].send(bytes(19_000))
            await until(lambda: peer.connection.stopped == {"streams"})
            peer.connection.abort()

    run(main())


def test_parameter_of_a_contract_may_be_called_method(run, address):
    async def main() -> None:
        server = Server(address)

        @contract("pick")
        def pick(method: str, *, items: int = 0) -> str:
            raise NotImplementedError

        @server.method(pick)
        async def picked(method: str, *, items: int = 0) -> str:
            return f"{method} {items}"

        async with meeting(server) as client:
            assert await client.call(pick, method="a", items=2) == "a 2"
            (peer,) = server.peers.values()
            assert peer.open
            assert await client.within(5).call(pick, method="b") == "b 0"

    run(main())


def test_nothing_comes_as_an_item_too(run, address):
    async def main() -> None:
        server = Server(address)

        @contract("ticks")
        def ticks(times: int) -> AsyncIterator[None]:
            raise NotImplementedError

        @server.method(ticks)
        async def tick(times: int) -> AsyncIterator[None]:
            for _ in range(times):
                yield None

        async with meeting(server) as client, client.stream(ticks, 3) as stream:
            assert [item async for item in stream] == [None] * 3

    run(main())


def test_node_hears_progress_also_while_the_server_closes(run, address):
    async def main() -> None:
        server, gate, begun = Server(address), asyncio.Event(), asyncio.Event()

        @server.method
        async def build(call: Call) -> str:
            begun.set()
            await gate.wait()
            await call.progress("nearly")
            return "built"

        async with server, Raw.connect(address) as raw:
            await raw.open()
            raw.write({"t": 2, "n": "1", "d": {"jsonrpc": "2.0", "method": "build", "id": 7}})
            await begun.wait()
            (peer,) = server.peers.values()
            closing = asyncio.ensure_future(peer.close("bye", grace=60))
            await asyncio.sleep(0)
            gate.set()
            progress, answer = await raw.packet(), await raw.packet()
            assert progress["d"]["params"] == {"token": 7, "value": "nearly"}
            assert answer["d"] == {"jsonrpc": "2.0", "result": "built", "id": 7}
            assert await closing

    run(main())
