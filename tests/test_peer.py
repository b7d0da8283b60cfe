from __future__ import annotations

import asyncio
import contextlib
import functools
import sys
import threading
from typing import Any

import msgspec
import pytest

from interphone import (
    PASS,
    Client,
    ConnectionClosed,
    ConnectionLost,
    InterphoneError,
    Limits,
    LocalProtocolError,
    MemoryAddress,
    MessageTooBig,
    Overloaded,
    PayloadError,
    Peer,
    Receipt,
    RemoteError,
    RequestTimeout,
    Server,
    Unhandled,
    WrongThread,
)
from support.ends import Raw, meeting, raised_by, until

VALUES = [
    0,
    "",
    False,
    None,
    [],
    {},
    "text",
    "what time is it?",
    {"sub": "x"},
    {"pub": "x", "message": 1},
    {"unsub": ["x"]},
    {"jsonrpc": "2.0", "method": "m"},
    {"interphone": 1},
    -1.5,
    2**53 + 1,
    2**64 - 1,
    "ü€😀\0\u2028",
    [[[{"a": [None]}]]],
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_client_request_is_answered_with_any_value(run, address, value):
    async def main() -> None:
        server = Server(address)

        @server.on_request
        async def echo(peer: Peer, data: Any) -> Any:
            return data

        async with meeting(server) as client:
            assert await client.request(value) == value

    run(main())


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_server_request_is_answered_with_any_value(run, address, value):
    async def main() -> None:
        server = Server(address)
        async with meeting(server) as client:
            client.on_request(lambda data: data)
            (peer,) = server.peers.values()
            assert await peer.request(value) == value

    run(main())


@pytest.mark.parametrize("role", ["client", "server"])
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_message_arrives_as_it_was_sent(run, address, role, value):
    async def main() -> None:
        server, got = Server(address), []
        server.on_message(lambda peer, data: got.append(data))
        async with meeting(server) as client:
            client.on_message(got.append)
            (peer,) = server.peers.values()
            await (client if role == "client" else peer).send(value)
            await until(lambda: got)
        assert got == [value]

    run(main())


# Handlers


def test_request_answers_come_concurrently(run, address):
    async def main() -> None:
        server, gate = Server(address), asyncio.Event()

        @server.on_request
        async def answer(peer: Peer, data: str) -> str:
            if data == "wait":
                await gate.wait()
            return data

        async with meeting(server) as client:
            waiting = asyncio.ensure_future(client.request("wait"))
            assert await client.request("now") == "now"
            assert not waiting.done()
            gate.set()
            assert await waiting == "wait"

    run(main())


def test_chain_asks_until_a_handler_does_not_pass(run, address):
    async def main() -> None:
        server, asked = Server(address), []

        @server.on_request(on="inline")
        def first(peer: Peer, data: Any) -> Any:
            asked.append("inline")
            return PASS if data != 1 else None

        @server.on_request
        def second(peer: Peer, data: Any) -> Any:
            asked.append("thread")
            return PASS if data != 2 else "thread"

        @server.on_request
        async def third(peer: Peer, data: Any) -> Any:
            asked.append("loop")
            return "loop"

        async with meeting(server) as client:
            assert await client.request(1) is None
            assert await client.request(2) == "thread"
            assert await client.request(3) == "loop"
        assert asked == ["inline", "inline", "thread", "inline", "thread", "loop"]

    run(main())


def test_plain_handler_runs_in_a_thread_and_inline_handler_on_the_loop(run, address):
    async def main() -> None:
        server = Server(address)
        server.on_request(lambda peer, data: PASS if data else threading.get_ident())
        server.on_request(on="inline")(lambda peer, data: threading.get_ident())
        async with meeting(server) as client:
            assert await client.request(0) != threading.get_ident()
            assert await client.request(1) == threading.get_ident()

    run(main())


def test_where_a_handler_cannot_run_is_refused():
    server = Server("x")

    async def waits(peer: Peer, data: object) -> None: ...

    def blocks(peer: Peer, data: object) -> None: ...

    with pytest.raises(ValueError, match="coroutine"):
        server.on_request(on="thread")(waits)
    with pytest.raises(ValueError, match="coroutine"):
        server.on_request(on="inline")(functools.partial(waits))
    with pytest.raises(ValueError, match="plain function"):
        server.on_request(on="loop")(blocks)


def test_removed_handler_is_not_asked(run, address):
    async def main() -> None:
        server = Server(address)
        handler = server.on_request(lambda peer, data: 1)
        async with meeting(server) as client:
            assert await client.request(0) == 1
            server.on_request.remove(handler)
            with pytest.raises(Unhandled):
                await client.request(0)
            with pytest.raises(ValueError, match="not registered"):
                server.on_request.remove(handler)

    run(main())


# Four failures that differ


def test_handler_that_raises_is_a_remote_error_at_once(run, address, caplog):
    async def main() -> None:
        server, seen = Server(address), []
        server.on_error(lambda error, peer: seen.append((type(error), peer)))

        @server.on_request
        async def fail(peer: Peer, data: str) -> None:
            if data == "on purpose":
                raise RemoteError("no stock", kind="Stock", data={"left": 0})
            raise KeyError("lost")

        async with meeting(server) as client:
            error = await raised_by(client.request("x"))
            assert isinstance(error, RemoteError)
            assert (error.kind, error.message, error.data) == ("KeyError", "'lost'", None)
            error = await raised_by(client.request("on purpose"))
            assert isinstance(error, RemoteError)
            assert (error.kind, error.message, error.data) == ("Stock", "no stock", {"left": 0})
            assert seen == [(KeyError, *server.peers.values())]

    run(main())
    assert caplog.text.count("Traceback") == 1


@pytest.mark.parametrize("handlers", ["none", "passing"])
def test_request_nobody_handles_is_unhandled_at_once(run, address, handlers):
    async def main() -> None:
        server = Server(address)
        if handlers == "passing":
            server.on_request(lambda peer, data: PASS)
        async with meeting(server) as client:
            with pytest.raises(Unhandled):
                await client.request("x")
            with pytest.raises(Unhandled):
                await next(iter(server.peers.values())).request("x")

    run(main())


@pytest.mark.parametrize("role", ["client", "server"])
def test_lost_connection_fails_what_is_pending_at_once(run, address, role):
    async def main() -> None:
        server = Server(address)

        async def never(*args: object) -> None:
            await asyncio.Event().wait()

        server.on_request(never)
        async with meeting(server, backoff=None) as client:
            client.on_request(never)
            (peer,) = server.peers.values()
            asker = client if role == "client" else peer
            pending = asyncio.ensure_future(asker.request("x", timeout=None))
            await until(lambda: (peer if role == "client" else client.peer).inflight)
            (peer if role == "client" else client).abort("gone")
            error = await raised_by(pending)
            assert isinstance(error, ConnectionLost)
            assert error.delivery == "maybe_sent"

    run(main())


def test_answer_reaches_nobody_who_has_the_id_of_the_asker_now(run, address):
    async def main() -> None:
        server, gate = Server(address), asyncio.Event()

        @server.on_request(on="inline")
        def answer(peer: Peer, data: str) -> Any:
            return secret(peer) if data == "secret" else data

        async def secret(peer: Peer) -> str:
            try:
                await gate.wait()
            except asyncio.CancelledError:  # it insists
                await gate.wait()
            answered.set()
            return f"for {peer.id} alone"

        answered = asyncio.Event()
        async with server:
            async with Raw.connect(address) as victim:
                taken = (await victim.open())["d"]["id"]
                victim.write({"t": 2, "d": "secret", "n": "1"})
                await until(lambda: server.peers[taken].inflight)
            await until(lambda: not server.peers)
            async with Raw.connect(address) as thief:
                assert (await thief.open(id=taken))["d"]["id"] == taken
                gate.set()
                await answered.wait()
                thief.write({"t": 2, "d": "mine", "n": "1"})
                assert await thief.packet() == {"t": 3, "d": "mine", "n": "1"}

    run(main())


@pytest.mark.parametrize("dialect", ["native", "classic"])
def test_request_without_an_answer_times_out_and_its_handler_is_cancelled(run, address, dialect):
    async def main() -> None:
        server, cancelled = Server(address), asyncio.Event()

        @server.on_request
        async def slow(peer: Peer, data: object) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        async with meeting(server, dialect=dialect) as client:
            error = await raised_by(client.request("x", timeout=0.02))
            assert isinstance(error, RequestTimeout)
            assert (error.timeout, error.delivery) == (0.02, "maybe_sent")
            await cancelled.wait()
            assert client.peer.pending == 0

    run(main())


def test_late_answer_of_a_node_server_is_dropped_and_counted(run, address):
    async def main() -> None:
        async with Raw.serve(address) as comers:
            client = Client(address, backoff=None)
            connecting = asyncio.ensure_future(client.connect())
            raw = await comers.get()
            await raw.let_in()
            await connecting
            assert isinstance(await raised_by(client.request("x", timeout=0.02)), RequestTimeout)
            request = await raw.packet()
            raw.write({"t": 3, "d": "late", "n": request["n"]})
            await until(lambda: client.peer.counts.late == 1)
            await client.send("nothing before this")  # no word of the timeout
            assert (await raw.packet())["d"] == "nothing before this"
            client.abort()

    run(main())


@pytest.mark.parametrize("dialect", ["native", "classic"])
def test_cancelled_request_cancels_its_handler_and_leaves_the_connection_usable(
    run, address, dialect
):
    async def main() -> None:
        server, cancelled = Server(address), []

        @server.on_request
        async def answer(peer: Peer, data: int) -> int:
            try:
                if data == 1:
                    await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(data)
                raise
            return data

        async with meeting(server, dialect=dialect) as client:
            waiting = asyncio.ensure_future(client.request(1))
            await until(lambda: next(iter(server.peers.values())).inflight)
            waiting.cancel()
            assert await client.request(2) == 2
            await until(lambda: cancelled == [1])
            assert (client.peer.pending, client.peer.counts.late) == (0, 0)

    run(main())


@pytest.mark.parametrize("dialect", ["native", "classic"])
@pytest.mark.parametrize("how", ["cancel", "timeout", "lost"])
def test_handler_in_a_thread_runs_to_its_end_and_its_answer_is_dropped(run, address, dialect, how):
    async def main() -> None:
        server, started, gate, ended = Server(address), asyncio.Event(), threading.Event(), []
        loop = asyncio.get_running_loop()

        @server.on_request
        def work(peer: Peer, data: object) -> str:
            loop.call_soon_threadsafe(started.set)
            ended.append(gate.wait(30))
            return "late"

        async with meeting(server, dialect=dialect, backoff=None) as client:
            (peer,) = server.peers.values()
            asking = asyncio.ensure_future(
                client.request("x", timeout=0.05 if how == "timeout" else None)
            )
            await started.wait()
            if how == "cancel":
                asking.cancel()
            elif how == "lost":
                client.abort()
            (failed,) = await asyncio.gather(asking, return_exceptions=True)
            expected = {"cancel": asyncio.CancelledError, "timeout": RequestTimeout}
            assert isinstance(failed, expected.get(how, ConnectionLost))
            await until(lambda: peer.inflight == 0)  # nobody waits for the thread
            assert ended == []
            gate.set()
            await until(lambda: ended == [True])
            if how != "lost":
                await client.ping()
                assert (client.peer.pending, client.peer.counts.late) == (0, 0)

    run(main())


def test_handler_that_is_cancelled_by_something_else_is_answered(run, address):
    async def main() -> None:
        server = Server(address)

        @server.on_request
        async def cancelled(peer: Peer, data: object) -> None:
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future

        async with meeting(server) as client:
            error = await raised_by(client.request("x"))
            assert isinstance(error, RemoteError)
            assert error.kind == "CancelledError"

    run(main())


def test_result_that_cannot_be_encoded_is_answered(run, address):
    async def main() -> None:
        server = Server(address, limits=Limits(max_frame=1000))
        server.on_error(lambda error, peer: None)
        server.on_request(lambda peer, data: object() if data == 1 else "x" * 2000)
        async with meeting(server) as client:
            assert "PayloadError" in str(await raised_by(client.request(1)))
            assert "MessageTooBig" in str(await raised_by(client.request(2)))

    run(main())


def test_error_whose_data_cannot_be_encoded_is_answered(run, address):
    async def main() -> None:
        server = Server(address)

        @server.on_request
        async def fail(peer: Peer, data: object) -> None:
            raise RemoteError("x", kind="Mine", data=object())

        async with meeting(server) as client:
            error = await raised_by(client.request(1))
            assert isinstance(error, RemoteError)
            assert error.kind == "Mine"

    run(main())


def test_answer_is_decoded_as_the_asked_type(run, address):
    async def main() -> None:
        server = Server(address)
        server.on_request(lambda peer, data: data)
        async with meeting(server) as client:
            assert await client.request([1, 2], returns=list[int]) == [1, 2]
            assert await client.request("1f", returns=str) == "1f"
            with pytest.raises(PayloadError, match="int"):
                await client.request("x", returns=int)

    run(main())


@pytest.mark.parametrize("value", [object(), {1: object()}, "\ud800", float, [set(), object()]])
def test_value_with_no_form_on_the_wire_is_not_sent(run, address, value):
    async def main() -> None:
        server = Server(address)
        async with meeting(server) as client:
            for verb in (client.send, client.request):
                error = await raised_by(verb(value))
                assert isinstance(error, PayloadError)
                assert error.delivery == "not_sent"

    run(main())


def test_value_that_contains_itself_is_not_sent(run, address):
    async def main() -> None:
        server, loop = Server(address), []
        loop.append(loop)
        async with meeting(server) as client:
            with pytest.raises(PayloadError):
                await client.send(loop)
            assert await client.ping() > 0

    run(main())


# Limits


@pytest.mark.parametrize(("extra", "fits"), [(-1, True), (0, True), (1, False)])
def test_frame_limit_counts_for_what_is_sent(run, address, extra, fits):
    async def main() -> None:
        server, got = Server(address, limits=Limits(max_frame=1000)), []
        server.on_message(lambda peer, data: got.append(len(data)))
        limits = Limits(max_frame=1000)
        async with meeting(server, limits=limits, dialect="classic") as client:
            text = "x" * (1000 + extra - len('{"t":1,"d":""}'))
            error = await raised_by(client.send(text))
            assert isinstance(error, MessageTooBig) is not fits
            if error is not None:
                assert (error.size, error.limit, error.delivery) == (1001, 1000, "not_sent")
            assert await client.ping() > 0
            assert got == [len(text)] * fits

    run(main())


def test_too_big_a_frame_ends_the_connection_of_who_sent_it_only(run, address):
    async def main() -> None:
        server = Server(address, limits=Limits(max_frame=1000))
        reasons, errors = [], []
        server.on_disconnect(lambda peer, reason: reasons.append(reason))
        server.on_error(lambda error, peer: errors.append(type(error)))
        server.on_request(lambda peer, data: data)
        async with meeting(server) as bystander, Client(address, backoff=None) as sinner:
            pending = raised_by(sinner.request("x" * 2000))
            assert isinstance(await pending, ConnectionLost)
            assert await bystander.request("x") == "x"
        assert isinstance(reasons[0], MessageTooBig)
        assert errors == [MessageTooBig]

    run(main())


@pytest.mark.parametrize(("pending", "fits"), [(2, True), (3, True), (4, False)])
def test_pending_requests_are_limited(run, address, pending, fits):
    async def main() -> None:
        server = Server(address)

        @server.on_request
        async def never(peer: Peer, data: object) -> None:
            await asyncio.Event().wait()

        async with meeting(server, limits=Limits(max_pending=3)) as client:
            asked = [asyncio.ensure_future(client.request(n)) for n in range(pending)]
            await until(lambda: client.peer.pending == min(pending, 3))
            await asyncio.sleep(0)
            errors = [await raised_by(task) for task in asked if task.done()]
            assert [type(error) for error in errors] == ([] if fits else [Overloaded])
            assert all(error.delivery == "not_sent" for error in errors)
            client.abort()
            await asyncio.gather(*asked, return_exceptions=True)

    run(main())


@pytest.mark.parametrize(("requests", "reading"), [(2, True), (3, False), (4, False)])
def test_reading_stops_when_enough_requests_of_node_are_under_way(run, address, requests, reading):
    async def main() -> None:
        server, gate, started = Server(address, limits=Limits(max_inflight=3)), asyncio.Event(), []

        @server.on_request
        async def wait(peer: Peer, data: int) -> int:
            started.append(data)
            await gate.wait()
            return data

        async with server, Raw.connect(address) as raw:
            await raw.open()
            (peer,) = server.peers.values()
            raw.write(*({"t": 2, "d": n, "n": str(n + 1)} for n in range(requests)))
            await until(lambda: len(started) == min(requests, 3))
            raw.write({"t": 4, "n": "ping"})
            if reading:
                assert (await raw.packet())["t"] == 5
            assert bool(peer.connection.stopped) is not reading
            gate.set()
            rest = [await raw.packet() for _ in range(requests + (not reading))]
            assert sorted(each["d"] for each in rest if each["t"] == 3) == [*range(requests)]
            assert not peer.connection.stopped

    run(main())


@pytest.mark.parametrize("dialect", ["native", "classic"])
def test_one_of_us_keeps_the_requests_there_is_no_room_for_and_is_read_on(run, address, dialect):
    async def main() -> None:
        server, gate, started = Server(address, limits=Limits(max_inflight=3)), asyncio.Event(), []

        @server.on_request
        async def wait(peer: Peer, data: int) -> int:
            started.append(data)
            await gate.wait()
            return data

        async with meeting(server, dialect=dialect) as client:
            asked = [asyncio.ensure_future(client.request(n)) for n in range(6)]
            await until(lambda: len(started) == 3)
            late = await raised_by(client.request("late", timeout=0.05))
            gone = asyncio.ensure_future(client.request("gone"))
            await client.ping()
            gone.cancel()
            await asyncio.wait([gone])
            (peer,) = server.peers.values()
            assert (started, peer.inflight, client.peer.pending) == ([0, 1, 2], 3, 6)
            assert isinstance(late, RequestTimeout)
            assert late.delivery == "not_sent"
            assert not peer.connection.stopped
            gate.set()
            assert await asyncio.gather(*asked) == [0, 1, 2, 3, 4, 5]
            assert started == [0, 1, 2, 3, 4, 5]
            assert await client.request(7) == 7

    run(main())


def test_requests_that_were_held_fail_unsent(run, address):
    async def main() -> None:
        server = Server(address, limits=Limits(max_inflight=1))

        @server.on_request
        async def wait(peer: Peer, data: int) -> None:
            await asyncio.get_running_loop().create_future()

        async with meeting(server) as client:
            asked = [asyncio.ensure_future(client.request(n, timeout=None)) for n in range(3)]
            (peer,) = server.peers.values()
            await until(lambda: peer.inflight)
            client.peer.abort()
            errors = await asyncio.gather(*asked, return_exceptions=True)
            assert [type(error) for error in errors] == [ConnectionClosed] * 3
            deliveries = [getattr(error, "delivery", None) for error in errors]
            assert deliveries == ["maybe_sent", "not_sent", "not_sent"]

    run(main())


def test_requests_are_held_by_their_bytes_too(run, address):
    async def main() -> None:
        server = Server(address, limits=Limits(max_held=10_000))
        gate, started = asyncio.Event(), []

        @server.on_request
        async def wait(peer: Peer, data: str) -> int:
            started.append(len(data))
            await gate.wait()
            return len(data)

        async with meeting(server) as client:
            sizes = [50_000, 9_000, 900, 900]  # the first one is more than there is room for
            asked = [asyncio.ensure_future(client.request("x" * size)) for size in sizes]
            await until(lambda: started)
            await client.ping()
            assert started == [50_000]
            gate.set()
            assert await asyncio.gather(*asked) == sizes

    run(main())


def test_cancelled_request_gives_its_room_back(run, address):
    async def main() -> None:
        server = Server(address, limits=Limits(max_inflight=1))

        @server.on_request
        async def answer(peer: Peer, data: object) -> object:
            if data == "wait":
                await asyncio.get_running_loop().create_future()
            return data

        async with meeting(server) as client:
            for _ in range(3):
                assert await raised_by(client.request("wait", timeout=0.02))
            assert await client.request(1) == 1
            assert client.peer.counts.late == 0

    run(main())


def test_bytes_under_way_are_limited(run, address):
    async def main() -> None:
        server, gate = Server(address, limits=Limits(max_held=1000)), asyncio.Event()

        @server.on_message
        async def wait(peer: Peer, data: str) -> None:
            await gate.wait()

        async with meeting(server) as client:
            (peer,) = server.peers.values()
            await client.send("x" * 600)
            await until(lambda: peer.inflight == 1)
            assert not peer.connection.stopped
            await client.send("x" * 600)
            await until(lambda: peer.connection.stopped)
            gate.set()
            await until(lambda: not peer.connection.stopped)

    run(main())


@pytest.mark.parametrize("ours", [True, False], ids=["interphone", "node"])
@pytest.mark.parametrize(("messages", "reading"), [(2, True), (3, False), (4, False)])
def test_reading_stops_when_enough_messages_are_under_way(run, address, messages, reading, ours):
    async def main() -> None:
        server, gate, got = Server(address, limits=Limits(max_inflight=3)), asyncio.Event(), []

        @server.on_message
        async def wait(peer: Peer, data: int) -> None:
            await gate.wait()
            got.append(data)

        async with server, Raw.connect(address) as raw:
            await raw.open(**({"interphone": {"version": 1}} if ours else {}))
            (peer,) = server.peers.values()
            raw.write(*({"t": 1, "d": n} for n in range(messages)))
            await until(lambda: peer.inflight == min(messages, 3))
            assert bool(peer.connection.stopped) is not reading
            gate.set()
            await until(lambda: got == [*range(messages)])
            await until(lambda: not peer.connection.stopped)

    run(main())


@pytest.mark.parametrize(("depth", "fits"), [(63, True), (64, True), (65, False)])
def test_depth_is_limited_on_both_sides(run, address, depth, fits):
    async def main() -> None:
        server = Server(address)
        server.on_request(lambda peer, data: data)
        nested: Any = []
        for _ in range(depth - 1):
            nested = [nested]
        async with meeting(server) as client:
            error = await raised_by(client.request(nested))
            assert isinstance(error, PayloadError) is not fits
        async with meeting(server, limits=Limits(max_depth=100)) as client:
            client.on_error(lambda error: None)
            server.on_error(lambda error, peer: None)
            error = await raised_by(client.request(nested, timeout=0.1 if not fits else 10))
            assert (error is None) is fits

    run(main())


# Order and backpressure


@pytest.mark.parametrize("role", ["client", "server"])
def test_messages_are_handled_in_order_one_at_a_time(run, address, role):
    async def main() -> None:
        server, got, running = Server(address), [], []

        async def handle(*args: Any) -> None:
            running.append(1)
            assert len(running) == 1
            await asyncio.sleep(0)
            got.append(args[-1])
            running.clear()

        server.on_message(handle)
        async with meeting(server) as client:
            client.on_message(handle)
            (peer,) = server.peers.values()
            sender = client if role == "client" else peer
            await asyncio.gather(*(sender.send(n) for n in range(3000)))
            await until(lambda: len(got) == 3000)
        assert got == list(range(3000))

    run(main())


def test_requests_and_pings_do_not_wait_for_a_busy_message_handler(run, address):
    async def main() -> None:
        server, gate = Server(address), asyncio.Event()

        @server.on_message
        async def busy(peer: Peer, data: object) -> None:
            await gate.wait()

        server.on_request(lambda peer, data: data)
        async with meeting(server) as client:
            await client.send("x")
            await client.send("y")
            client.on_request(lambda data: data)
            (peer,) = server.peers.values()
            assert await client.request("z") == "z"
            assert await client.ping() > 0
            assert await peer.request("an answer") == "an answer"
            assert peer.inflight == 2
            gate.set()

    run(main())


@pytest.mark.parametrize("role", ["client", "server"])
def test_ping_returns_behind_what_both_ends_sent_before_it_was_answered(run, address, role):
    async def main() -> None:
        server, got = Server(address), []
        server.on_message(lambda peer, data: got.append(data))
        async with meeting(server) as client:
            client.on_message(got.append)
            (peer,) = server.peers.values()
            for number in range(100):
                await client.send(number)
                await peer.send(number)
            await (client if role == "client" else peer).ping()
            assert sorted(got) == sorted([*range(100), *range(100)])

    run(main())


@pytest.mark.parametrize("role", ["client", "server"])
def test_messages_requests_and_publications_go_in_the_order_they_were_sent(run, address, role):
    async def main() -> None:
        server = Server(address)
        async with contextlib.AsyncExitStack() as stack:
            if role == "client":
                comers = await stack.enter_async_context(Raw.serve(address))
                client = Client(address, backoff=None)
                connecting = asyncio.ensure_future(client.connect())
                raw = await comers.get()
                await raw.let_in(interphone={"version": 1})
                await connecting
                sender, publish, end = client, client.publish, client.abort
            else:
                await stack.enter_async_context(server)
                raw = await stack.enter_async_context(Raw.connect(address))
                await raw.open(interphone={"version": 1})
                raw.write({"t": 2, "d": {"sub": "a"}, "n": "s", "k": "sub"})
                assert (await raw.packet())["d"] == {"result": True}
                (sender,) = server.peers.values()
                publish, end = server.publish, sender.abort
            verbs = [sender.send, sender.request, functools.partial(publish, "a")]
            doing = [asyncio.ensure_future(verbs[n % 3](n)) for n in range(300)]
            heard = [(await raw.packet())["d"] for _ in range(300)]
            assert [d["message"] if isinstance(d, dict) else d for d in heard] == [*range(300)]
            end()
            await asyncio.gather(*doing, return_exceptions=True)

    run(main())


def test_sent_means_queued_and_what_is_lost_later_is_told_to_nobody(run, address):
    async def main() -> None:
        async with Raw.serve(address) as comers:
            client, errors = Client(address, backoff=None), []
            client.on_error(errors.append)
            connecting = asyncio.ensure_future(client.connect())
            raw = await comers.get()
            await raw.let_in()
            await connecting
            raw.writer.transport.pause_reading()
            while not client.peer.connection.crowded():
                await client.send("x" * 10_000)
            assert client.peer.backlog
            raw.writer.transport.abort()
            await client.wait_closed()
            assert errors == []

    run(main())


@pytest.mark.parametrize("dialect", ["native", "classic"])
def test_what_was_not_sent_never_arrives_and_what_abort_finds_is_lost(run, address, dialect):
    async def main() -> None:
        server, got = Server(address, limits=Limits(max_inflight=5)), set()
        server.on_message(lambda peer, data: got.add(data[0]))

        @server.on_request(on="inline")
        def wait(peer: Peer, data: Any) -> Any:
            got.add(data[0])
            return asyncio.get_running_loop().create_future() if data[0] < 10 else None

        async def ask(number: int) -> InterphoneError | None:
            verb = client.request if number % 2 else client.send
            try:
                await verb([number, "x" * 10_000], timeout=None)
            except InterphoneError as exc:
                return exc
            return None

        async with server:
            client = await Client(address, dialect=dialect, backoff=None).connect()
            (peer,) = server.peers.values()
            first = [asyncio.ensure_future(ask(number)) for number in range(10)]
            await until(lambda: len(got) == 10)
            peer.connection.stop_reading("test")
            asked = [asyncio.ensure_future(ask(number)) for number in range(10, 200)]
            await until(lambda: client.peer.connection.blocked)
            lost = client.peer.backlog
            assert lost
            client.abort()
            errors = await asyncio.gather(*first, *asked)
            peer.connection.go_on_reading("test")
            await until(lambda: not server.peers)
            unsent = {
                n for n, error in enumerate(errors) if getattr(error, "delivery", 0) == "not_sent"
            }
            maybe = {
                n for n, error in enumerate(errors) if getattr(error, "delivery", 0) == "maybe_sent"
            }
            assert unsent
            assert maybe >= {1, 3, 5, 7, 9}
            assert not unsent & got
            assert {*range(200)} - got - unsent  # queued, and lost

    run(main())


def test_cancelled_send_was_sent_whole_or_not_at_all(run, address):
    async def main() -> None:
        server, got = Server(address), []
        server.on_message(lambda peer, data: got.append(data))
        async with meeting(server) as client:
            for turns in range(8):
                values = [f"{turns} {number} " + "x" * 100_000 for number in range(8)]
                sends = [asyncio.ensure_future(client.send(value)) for value in values]
                for _ in range(turns):
                    await asyncio.sleep(0)
                done = [value for value, send in zip(values, sends, strict=True) if send.done()]
                for send in sends:
                    send.cancel()
                await asyncio.wait(sends)
                await client.ping()
                assert {*done} <= {*got} <= {*values}
                got.clear()

    run(main())


def test_sends_without_awaiting_each_keep_their_order_behind_a_slow_reader(run, address):
    async def main() -> None:
        server, got = Server(address), []
        server.on_message(lambda peer, data: got.append(data["n"]))
        async with meeting(server) as client:
            server.pause()
            sends = [
                asyncio.ensure_future(client.send({"n": n, "pad": "x" * 500})) for n in range(4000)
            ]
            await until(lambda: client.peer.connection.blocked)
            assert client.peer.backlog < 2 * client.limits.high_water
            server.resume()
            await asyncio.gather(*sends)
            await until(lambda: len(got) == 4000)
        assert got == list(range(4000))

    run(main())


def test_send_waits_for_a_slow_reader_and_fails_unsent_when_it_goes(run, address):
    async def main() -> None:
        server = Server(address)
        async with meeting(server, backoff=None) as client:
            server.pause()
            sends = []
            while not client.peer.connection.crowded():
                await client.send("x" * 10_000)
            sends = [asyncio.ensure_future(client.send("x")) for _ in range(10)]
            await asyncio.sleep(0)
            next(iter(server.peers.values())).abort()
            for send in sends:
                error = await raised_by(send)
                assert isinstance(error, ConnectionLost)
                assert error.delivery == "not_sent"

    run(main())


def test_cancelled_send_lets_the_next_one_go(run, address):
    async def main() -> None:
        server, got = Server(address), []
        server.on_message(lambda peer, data: got.append(data) if data != "pad" * 5000 else None)
        async with meeting(server) as client:
            server.pause()
            while not client.peer.connection.crowded():
                await client.send("pad" * 5000)
            first, second = (asyncio.ensure_future(client.send(n)) for n in (1, 2))
            await asyncio.sleep(0)
            first.cancel()
            server.resume()
            await second
            await until(lambda: got)
        assert got == [2]

    run(main())


def test_request_that_waits_for_room_times_out_unsent(run, address):
    async def main() -> None:
        server = Server(address)
        async with meeting(server) as client:
            (peer,) = server.peers.values()
            peer.connection.stop_reading("test")
            while not client.peer.connection.crowded():
                await client.send("x" * 10_000)
            error = await raised_by(client.request("x", timeout=0.02))
            assert isinstance(error, RequestTimeout)
            assert error.delivery == "not_sent"
            peer.connection.go_on_reading("test")

    run(main())


# Pausing


@pytest.mark.parametrize("who", ["peer", "server", "client"])
def test_nothing_is_handled_while_paused_and_everything_after(run, address, who):
    async def main() -> None:
        server, got = Server(address), []
        server.on_message(lambda peer, data: got.append(data))
        async with meeting(server) as client:
            client.on_message(got.append)
            (peer,) = server.peers.values()
            paused = {"peer": peer, "server": server, "client": client}[who]
            sender = peer if who == "client" else client
            paused.pause()
            assert (client.peer if who == "client" else peer).paused
            await asyncio.gather(*(sender.send(n) for n in range(10)))
            with pytest.raises(RequestTimeout):
                await sender.request(1, timeout=0.05)
            await sender.ping()
            assert got == []
            paused.resume()
            await sender.ping()
            assert got == list(range(10))

    run(main())


def test_node_peer_that_is_paused_is_not_read(run, address):
    async def main() -> None:
        server, got = Server(address), []
        server.on_message(lambda peer, data: got.append(data))
        async with server, Raw.connect(address) as raw:
            await raw.open()
            (peer,) = server.peers.values()
            peer.pause()
            raw.write(*({"t": 1, "d": n} for n in range(10)), {"t": 4, "n": "ping"})
            answer = asyncio.ensure_future(raw.packet())
            async with Client(address) as bystander:
                for _ in range(3):
                    await bystander.ping()
            assert peer.connection.stopped == {"paused"}
            assert not answer.done()
            peer.resume()
            assert (await answer)["t"] == 5
            assert got == list(range(10))

    run(main())


def test_what_came_during_a_pause_is_turned_away_at_the_end(run, address):
    async def main() -> None:
        server = Server(address)
        server.on_message(lambda peer, data: None)
        async with meeting(server) as client:
            (peer,) = server.peers.values()
            peer.pause()
            asked = asyncio.ensure_future(client.request(1))
            await client.send(2)
            await until(lambda: peer.inflight == 2)
            await server.close()
            error = await raised_by(asked)
            assert isinstance(error, ConnectionClosed)
            assert error.delivery == "not_sent"
            assert (peer.unheard, peer.inflight) == (1, 0)

    run(main())


def test_request_that_is_cancelled_during_a_pause_is_never_handled(run, address):
    async def main() -> None:
        server, got = Server(address), []
        server.on_request(lambda peer, data: got.append(data) or data)
        async with meeting(server) as client:
            (peer,) = server.peers.values()
            peer.pause()
            assert isinstance(await raised_by(client.request(1, timeout=0.02)), RequestTimeout)
            await client.ping()
            peer.resume()
            await client.request(2)
            assert got == [2]

    run(main())


def test_pause_in_a_handler_stops_frames_of_the_same_chunk(run, address):
    async def main() -> None:
        server, got = Server(address), []

        @server.on_message
        def stop(peer: Peer, data: int) -> None:
            got.append(data)
            peer.pause()

        async with server, Raw.connect(address) as raw:
            await raw.open()
            raw.write({"t": 1, "d": 1}, {"t": 1, "d": 2}, {"t": 1, "d": 3})
            await until(lambda: got)
            (peer,) = server.peers.values()
            for expected in ([1], [1, 2], [1, 2, 3]):
                await asyncio.sleep(0)
                assert got == expected
                peer.resume()
                await until(lambda seen=expected: got != seen or seen == [1, 2, 3])

    run(main())


# Closing


@pytest.mark.parametrize("role", ["client", "server"])
@pytest.mark.parametrize("reason", ["bye", 0, "", False, None, {"code": 7}], ids=repr)
def test_reason_of_a_goodbye_reaches_the_other_end(run, address, role, reason):
    async def main() -> None:
        server, reasons = Server(address), []
        async with meeting(server) as client:
            (peer,) = server.peers.values()
            server.on_disconnect(lambda peer, reason: reasons.append(reason))
            client.on_close(lambda reason: reasons.append(reason))
            assert await (client if role == "client" else peer).close(reason) is True
            await until(lambda: len(reasons) == 2)
            assert await (client if role == "client" else peer).close(reason) is False
        assert reasons == [reason, reason]

    run(main())


def test_close_lets_running_handlers_answer_and_refuses_new_requests(run, address):
    async def main() -> None:
        server, gate, started = Server(address), asyncio.Event(), asyncio.Event()

        @server.on_request
        async def slow(peer: Peer, data: object) -> str:
            started.set()
            await gate.wait()
            return "done"

        async with meeting(server) as client:
            (peer,) = server.peers.values()
            running = asyncio.ensure_future(client.request("x"))
            await started.wait()
            closing = asyncio.ensure_future(peer.close("bye"))
            await asyncio.sleep(0)
            error = await raised_by(client.request("new"))
            assert isinstance(error, ConnectionClosed)
            assert error.delivery == "not_sent"
            error = await raised_by(peer.send("x"))
            assert isinstance(error, ConnectionClosed)
            assert error.delivery == "not_sent"
            gate.set()
            assert await running == "done"
            assert await closing is True

    run(main())


def test_close_without_grace_cancels_running_handlers(run, address):
    async def main() -> None:
        server, cancelled = Server(address), []

        @server.on_request
        async def stuck(peer: Peer, data: object) -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(data)
                raise

        async with meeting(server) as client:
            (peer,) = server.peers.values()
            pending = asyncio.ensure_future(client.request("x"))
            await until(lambda: peer.inflight)
            await peer.close("bye", grace=0)
            error = await raised_by(pending)
            assert isinstance(error, ConnectionClosed)
            assert (error.reason, error.by_peer) == ("bye", True)
        assert cancelled == ["x"]

    run(main())


def test_handler_may_close_its_own_peer(run, address):
    async def main() -> None:
        server = Server(address)
        server.on_message(lambda peer, data: peer.close("enough"))

        @server.on_request
        async def close(peer: Peer, data: object) -> None:
            await peer.close("enough")

        for verb in ("send", "request"):
            async with meeting(server) as client:
                async with asyncio.timeout(3):
                    await raised_by(getattr(client, verb)("x"))
                    assert await client.wait_closed() == "enough"

    run(main())


def test_cancelled_close_ends_the_connection_at_once(run, address):
    async def main() -> None:
        server = Server(address)

        @server.on_request
        async def stuck(peer: Peer, data: object) -> None:
            await asyncio.Event().wait()

        async with meeting(server) as client:
            (peer,) = server.peers.values()
            pending = asyncio.ensure_future(client.request("x"))
            await until(lambda: peer.inflight)
            closing = asyncio.ensure_future(peer.close("bye"))
            await asyncio.sleep(0)
            closing.cancel()
            assert isinstance(await raised_by(pending), ConnectionLost)

    run(main())


def test_message_sent_right_before_a_goodbye_is_handled_before_the_disconnect(run, address):
    async def main() -> None:
        server, log = Server(address), []

        @server.on_message
        async def handle(peer: Peer, data: object) -> None:
            await asyncio.sleep(0.001)
            log.append(data)

        server.on_disconnect(lambda peer, reason: log.append(reason))
        async with server:
            async with Client(address) as client:
                for n in range(5):
                    await client.send(n)
                await client.close("bye")
            await until(lambda: "bye" in log)
        assert log == [0, 1, 2, 3, 4, "bye"]

    run(main())


def test_verbs_of_a_closed_peer_say_why(run, address):
    async def main() -> None:
        server = Server(address)
        async with meeting(server, backoff=None) as client:
            (peer,) = server.peers.values()
            await client.close("tired")
            await until(lambda: not server.peers)
            for verb in (peer.send("x"), peer.request("x"), peer.ping()):
                error = await raised_by(verb)
                assert isinstance(error, ConnectionClosed)
                assert (error.reason, error.by_peer, error.delivery) == ("tired", True, "not_sent")
            assert repr(peer) == f"<Peer {peer.id} closed, pending 0>"

    run(main())


def test_another_thread_or_loop_is_told_so(run, address):
    async def main() -> None:
        server = Server(address)
        async with meeting(server) as client:
            (peer,) = server.peers.values()
            for end in (client, peer):
                with pytest.raises(WrongThread):
                    await asyncio.to_thread(asyncio.run, end.send("x"))
                with pytest.raises(WrongThread):
                    await asyncio.to_thread(asyncio.run, end.ping())

    run(main())


def test_ping_measures_seconds_both_ways(run, address):
    async def main() -> None:
        server = Server(address)
        async with meeting(server) as client:
            (peer,) = server.peers.values()
            for seconds in (await client.ping(), await peer.ping()):
                assert isinstance(seconds, float)
                assert 0 < seconds < 5

    run(main())


def test_messages_nobody_listens_to_are_counted(run, address):
    async def main() -> None:
        server = Server(address)
        async with meeting(server) as client:
            await client.send("x")
            await client.ping()
            assert next(iter(server.peers.values())).unheard == 1

    run(main())


def test_ten_thousand_requests_at_once_and_then_close_leave_nothing(run, address):
    async def main() -> None:
        server = Server(address)
        server.on_request(on="inline")(lambda peer, data: data)

        @server.on_request
        async def never(peer: Peer, data: object) -> None:
            await asyncio.Event().wait()

        async with server:
            client = await Client(address, backoff=None).connect()
            answers = await asyncio.gather(*(client.request(n) for n in range(10_000)))
            assert answers == list(range(10_000))
            server.on_request.remove(server.on_request.handlers[0].function)
            asked = [asyncio.ensure_future(client.request(n)) for n in range(10_000)]
            await until(lambda: client.peer.pending == 10_000 or client.peer.connection.blocked)
            await client.close("enough", grace=0)
            errors = await asyncio.gather(*asked, return_exceptions=True)
            assert {type(error) for error in errors} == {ConnectionClosed}
            await until(lambda: not server.peers)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main())


def test_nothing_can_be_said_before_it_is_open(run, address):
    async def main() -> None:
        server, errors = Server(address), []

        @server.authorize
        async def ask_too_early(peer: Peer, payload: object) -> None:
            errors.extend([await raised_by(peer.send(1)), await raised_by(peer.request(1))])

        async with meeting(server):
            assert [type(error) for error in errors] == [LocalProtocolError] * 2

    run(main())


@pytest.mark.parametrize("kind", ["unix", "memory"])
def test_messages_sent_before_close_all_arrive_at_a_slow_reader(run, address, kind):
    async def main() -> None:
        server, got = Server(MemoryAddress() if kind == "memory" else address), []

        @server.on_message
        async def slow(peer: Peer, data: int) -> None:
            await asyncio.sleep(0)
            got.append(data)

        # On Windows the clock ticks every 16 ms, and Wine is slow.
        limits = Limits(close_timeout=0.3 if sys.platform != "win32" else 1.0)
        async with server:
            client = await Client(server.address, limits=limits).connect()
            for n in range(3000):
                await client.send([n, "x" * 100])
            await client.close()
            await until(lambda: len(got) == 3000)

    run(main())


@pytest.mark.parametrize(
    ("taking", "limits", "whole"),
    [
        ("nothing", Limits(close_timeout=0.05), False),
        ("all", Limits(close_timeout=0.05), True),  # which takes longer than that
        ("crumbs", Limits(close_timeout=0.05, stalled_after=0.05), False),
    ],
)
def test_close_waits_for_who_goes_on_taking_but_not_for_ever(run, address, taking, limits, whole):
    size = 16_000_000

    async def take(raw: Raw, piece: int) -> int:
        """Read to the end in pieces; how much it was."""
        taken = 0
        with contextlib.suppress(ConnectionError):
            while data := await raw.reader.read(piece):
                taken += len(data)
                await asyncio.sleep(0.001 if piece > 100 else 0)
        return taken

    async def main() -> None:
        async with Raw.serve(address) as comers:
            client, errors = Client(address, limits=limits, backoff=None), []
            client.on_error(errors.append)
            connecting = asyncio.ensure_future(client.connect())
            raw = await comers.get()
            await raw.let_in()
            await connecting
            await client.send("x" * size)
            assert client.peer.backlog > size // 2
            if taking == "nothing":
                assert await client.close("bye") is True
                taken = await take(raw, 1 << 20)
            else:
                piece = 100 if taking == "crumbs" else 1 << 20
                reading = asyncio.ensure_future(take(raw, piece))
                assert await client.close("bye") is True
                raw.writer.transport.abort() if taking == "crumbs" else None
                taken = await reading
            assert (taken > size) is whole
            assert errors == []

    run(main())


def test_who_does_not_hang_up_after_a_goodbye_is_hung_up_on(run, address):
    async def main() -> None:
        server = Server(address, limits=Limits(close_timeout=0.02))
        async with server, Raw.connect(address) as raw:
            await raw.open()
            (peer,) = server.peers.values()
            closing = asyncio.ensure_future(peer.close("bye"))
            assert await raw.packet() == {"t": 6, "d": {"m": "bye", "a": False}}
            assert await raw.packet() is None
            assert await closing is True  # and raw has not ended its side
            assert not raw.writer.is_closing()
            assert server.peers == {}

    run(main())


@pytest.mark.parametrize("role", ["client", "server"])
def test_close_fails_own_requests_at_once(run, address, role):
    async def main() -> None:
        server, gate = Server(address), asyncio.Event()

        async def wait(*args: object) -> None:
            await gate.wait()

        server.on_request(wait)
        async with meeting(server) as client:
            client.on_request(wait)
            (peer,) = server.peers.values()
            one, other = (client, peer) if role == "client" else (peer, client)
            own = asyncio.ensure_future(raised_by(one.request("x", timeout=None)))
            theirs = asyncio.ensure_future(other.request("y", timeout=None))
            await until(lambda: client.peer.inflight and peer.inflight)
            closing = asyncio.ensure_future(one.close("bye"))
            error = await own
            assert isinstance(error, ConnectionClosed)
            assert (error.reason, error.by_peer, error.delivery) == ("bye", False, "maybe_sent")
            assert not closing.done()
            gate.set()
            assert await theirs is None
            assert await closing is True

    run(main())


def test_thread_handler_that_raises_stop_iteration_is_answered(run, address):
    async def main() -> None:
        server = Server(address)
        server.on_error(lambda error, peer: None)
        server.on_request(lambda peer, data: next(iter(())) if data else sys.exit("enough"))
        async with meeting(server) as client:
            assert "StopIteration" in str(await raised_by(client.request(1)))
            assert "SystemExit: enough" in str(await raised_by(client.request(0)))

    run(main())


def test_message_handler_that_awaits_something_cancelled_disturbs_no_order(run, address):
    async def main() -> None:
        server, got = Server(address), []
        server.on_error(lambda error, peer: None)

        @server.on_message
        async def handle(peer: Peer, data: int) -> None:
            got.append(data)
            if data == 1:
                future = asyncio.get_running_loop().create_future()
                future.cancel()
                await future

        async with meeting(server) as client:
            for n in (1, 2, 3):
                await client.send(n)
            await until(lambda: got == [1, 2, 3])
            (peer,) = server.peers.values()
            await until(lambda: peer.inflight == 0)

    run(main())


def test_reason_that_is_no_unicode_is_told_as_well_as_can_be(run, address):
    async def main() -> None:
        server = Server(address)
        async with meeting(server) as client:
            (peer,) = server.peers.values()
            assert await peer.close("bad \udcff")
            assert await client.wait_closed() == "bad \\udcff"

    run(main())


# What a review found


@pytest.mark.parametrize("how", ["close", "abort"])
def test_what_waits_for_a_peer_that_is_gone_is_dropped_and_counted(run, address, how):
    async def main() -> None:
        server, log = Server(address), []
        server.on_message(lambda peer, data: log.append(data))
        server.on_disconnect(lambda peer, reason: log.append("gone"))
        async with server, Client(address) as client:
            (peer,) = server.peers.values()
            server.pause()
            for number in range(3):
                await client.send(number)
            subscribing = asyncio.ensure_future(client.subscribe("a").__aenter__())
            await until(lambda: peer.inflight == 4)
            await client.close() if how == "close" else client.abort()
            await until(lambda: log)
            server.resume()
            assert (log, peer.unheard, peer.inflight) == (["gone"], 3, 0)
            assert await server.publish("a", 1) == Receipt(0, 0, 0)
            assert isinstance(await raised_by(subscribing), ConnectionLost)

    run(main())


def test_close_does_not_wait_for_what_comes_while_it_is_paused(run, address):
    async def main() -> None:
        server, gate, begun = Server(address), asyncio.Event(), asyncio.Event()

        @server.on_request
        async def wait(peer: Peer, data: object) -> object:
            begun.set()
            await gate.wait()
            return data

        server.on_message(lambda peer, data: None)
        async with meeting(server) as client:
            (peer,) = server.peers.values()
            asked = asyncio.ensure_future(client.request("last"))
            await begun.wait()
            peer.pause()
            closing = asyncio.ensure_future(peer.close("bye", grace=60))
            await client.send("too late")
            await until(lambda: peer.unheard == 1)
            gate.set()
            assert await asked == "last"
            assert await closing

    run(main())


def test_handler_may_close_its_peer_by_a_task_of_its_own(run, address):
    async def main() -> None:
        server = Server(address)

        @server.on_request
        async def close(peer: Peer, data: object) -> None:
            await asyncio.wait_for(asyncio.gather(peer.close("bye", grace=60)), 30)

        async with meeting(server, backoff=None) as client:
            async with asyncio.timeout(20):
                assert isinstance(await raised_by(client.request(1)), ConnectionClosed)

    run(main())


def test_empty_raw_is_no_value(run, address):
    async def main() -> None:
        server = Server(address)
        server.on_error(lambda error, peer: None)
        server.on_request(on="inline")(lambda peer, data: msgspec.Raw(b""))
        async with server:
            for dialect in ("native", "classic"):
                async with Client(address, dialect=dialect) as client:
                    assert isinstance(await raised_by(client.request(1)), RemoteError)
                    assert isinstance(await raised_by(client.send(msgspec.Raw(b""))), PayloadError)
                    await client.ping()

    run(main())
