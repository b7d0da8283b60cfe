from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from interphone import (
    Call,
    Client,
    ForkedError,
    Overloaded,
    Poll,
    RemoteError,
    RequestTimeout,
    Server,
    WrongThread,
)
from interphone.host import HostBusy
from support.ends import meeting, raised_by, until

HERE = threading.get_ident


@asynccontextmanager
async def polling(host: Poll, budget: float | None = 0.01) -> AsyncIterator[int]:
    """A host's thread: it polls until the block is left; gives its ident."""
    over, wanted = threading.Event(), threading.Event()
    host._wake = wanted.set
    idents = []

    def main() -> None:
        idents.append(HERE())
        while not over.is_set():
            wanted.wait()
            wanted.clear()
            while host.pending:
                host.run_pending(budget)

    thread = threading.Thread(target=main)
    thread.start()
    await until(lambda: idents)
    try:
        yield idents[0]
    finally:
        over.set()
        wanted.set()
        await asyncio.to_thread(thread.join)


def jobs(host: Poll, function: Any, *args: Any) -> asyncio.Task[Any]:
    return asyncio.ensure_future(host.call(function, *args))


async def queued(host: Poll, count: int) -> None:
    await until(lambda: host.pending == count)


# The queue


def test_what_waits_runs_in_order_in_the_polling_thread(run):
    async def main() -> None:
        host, ran = Poll(), []
        waiting = [jobs(host, lambda n=n: ran.append((n, HERE())) or n) for n in range(5)]
        await queued(host, 5)
        assert repr(host) == "<Poll 5 pending>"
        assert ran == []

        assert host.run_pending() == 5

        assert await asyncio.gather(*waiting) == [0, 1, 2, 3, 4]
        assert ran == [(n, HERE()) for n in range(5)]
        assert host.pending == host.run_pending() == 0

    run(main())


def test_budget_ends_a_poll_between_two_handlers(run):
    async def main() -> None:
        host = Poll()
        waiting = [jobs(host, int) for _ in range(3)]
        await queued(host, 3)

        assert [host.run_pending(budget=0) for _ in range(4)] == [1, 1, 1, 0]
        await asyncio.gather(*waiting)

    run(main())


def test_without_budget_what_comes_meanwhile_waits_for_the_next_poll(run):
    async def main() -> None:
        host, ran = Poll(), []

        def first() -> None:
            ran.append("first")
            host.post(ran.append, "later", report=ran.append)

        waiting = jobs(host, first)
        await queued(host, 1)

        assert host.run_pending(None) == 1
        assert (ran, host.pending) == (["first"], 1)
        assert host.run_pending(None) == 1
        assert ran == ["first", "later"]
        await waiting

    run(main())


def test_one_more_than_the_limit_is_refused_and_counted(run):
    async def main() -> None:
        host = Poll(limit=2)
        waiting = [jobs(host, int) for _ in range(2)]
        await queued(host, 2)

        with pytest.raises(HostBusy):
            await host.call(int)

        assert (host.pending, host.refused) == (2, 1)
        host.run_pending()
        await asyncio.gather(*waiting)
        await_one = jobs(host, int)
        await queued(host, 1)
        host.run_pending()
        assert await await_one == 0

    run(main())


def test_limit_must_leave_room():
    with pytest.raises(ValueError):
        Poll(limit=0)


def test_cancelling_takes_it_out_of_the_queue(run):
    async def main() -> None:
        host, ran = Poll(), []
        first, second = jobs(host, ran.append, 1), jobs(host, ran.append, 2)
        await queued(host, 2)
        first.cancel()
        await asyncio.wait([first])

        assert host.pending == 1
        assert host.run_pending() == 1
        assert ran == [2]
        await second

    run(main())


def test_cancelling_one_that_runs_lets_it_finish(run):
    async def main() -> None:
        host, entered, go_on, ran = Poll(), threading.Event(), threading.Event(), []

        def slow() -> None:
            entered.set()
            go_on.wait()
            ran.append(1)

        async with polling(host):
            task = jobs(host, slow)
            await until(entered.is_set)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            go_on.set()
            await until(lambda: ran)

    run(main())


def test_wake_is_called_when_the_first_comes(run):
    async def main() -> None:
        wakes: list[int] = []
        host = Poll(wake=lambda: wakes.append(1))
        waiting = [jobs(host, int) for _ in range(3)]
        await queued(host, 3)
        assert len(wakes) == 1
        host.run_pending()
        waiting.append(jobs(host, int))
        await queued(host, 1)
        assert len(wakes) == 2
        host.run_pending()
        await asyncio.gather(*waiting)

    run(main())


def test_wake_that_raises_is_logged_and_harms_nobody(run, caplog):
    async def main() -> None:
        host = Poll(wake=lambda: 1 / 0)
        task = jobs(host, int)
        await queued(host, 1)
        assert "its wake raised" in caplog.text
        host.run_pending()
        await task

    run(main())


def test_another_thread_may_not_poll():
    host, errors = Poll(), []
    assert not host.here
    host.run_pending()
    assert host.here

    def other() -> None:
        try:
            host.run_pending()
        except WrongThread as exc:
            errors.append(exc)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert len(errors) == 1


def test_poll_from_within_a_handler_does_nothing(run):
    async def main() -> None:
        host = Poll()
        tasks = [jobs(host, host.run_pending), jobs(host, int)]
        await queued(host, 2)
        assert host.run_pending() == 2
        assert await asyncio.gather(*tasks) == [0, 0]

    run(main())


def test_what_a_handler_raises_goes_to_its_asker(run):
    async def main() -> None:
        host = Poll()
        tasks = [jobs(host, lambda: 1 / 0), jobs(host, next, iter(())), jobs(host, int)]
        await queued(host, 3)
        assert host.run_pending() == 3
        first, second, third = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(first, ZeroDivisionError)
        assert str(second) == "the handler raised StopIteration"
        assert third == 0

    run(main())


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_the_hosts_and_its_asker_is_told(run, kind):
    async def main() -> None:
        host = Poll()

        def interrupted() -> None:
            raise kind

        tasks = [jobs(host, interrupted), jobs(host, int)]
        await queued(host, 2)
        with pytest.raises(kind):
            host.run_pending()
        error = await raised_by(tasks[0])
        assert str(error) == f"the handler was ended by {kind.__name__}"
        assert host.run_pending() == 1  # the host goes on
        await tasks[1]

    run(main())


def test_a_handler_runs_in_a_copy_of_the_callers_context(run):
    async def main() -> None:
        host, var = Poll(), contextvars.ContextVar("var", default="")
        var.set("the caller's")
        task = jobs(host, var.get)
        await queued(host, 1)
        host.run_pending()
        assert await task == "the caller's"

    run(main())


def test_a_forked_child_may_not_poll():
    host = Poll()
    host._pid = os.getpid() + 1  # as fork would leave it
    with pytest.raises(ForkedError):
        host.run_pending()


# Servers and clients


def test_plain_handlers_run_in_the_hosts_thread_and_coroutines_on_the_loop(run, address):
    async def main() -> None:
        host = Poll()
        server, where = Server(address, host=host), {}

        def note(name: str) -> int:
            where[name] = HERE()
            return 1

        server.on_connect(lambda peer, payload: note("on_connect"))
        server.on_message(lambda peer, data: note("on_message"))
        server.on_request(lambda peer, data: note("on_request"))
        server.on_topic("t")(lambda publication: note("on_topic"))
        server.method("plain")(lambda: note("method"))
        server.method("thread", on="thread")(lambda: note("thread"))
        server.method("inline", on="inline")(lambda: note("inline"))

        @server.on_disconnect
        async def left(peer: Any, reason: Any) -> None:
            note("coroutine")

        async with polling(host) as thread, meeting(server) as client:
            await client.send(1)
            await client.publish("t", 1)
            assert await client.request(1) == 1
            for name in ("plain", "thread", "inline"):
                assert await client.call(name) == 1
            await client.close()
            await until(lambda: len(where) == 8)
        on_host = {name for name, ident in where.items() if ident == thread}
        assert on_host == {"on_connect", "on_message", "on_request", "on_topic", "method"}
        assert where["thread"] not in (thread, HERE())
        assert where["inline"] == where["coroutine"] == HERE()

    run(main())


def test_a_clients_handlers_run_in_the_hosts_thread(run, address):
    async def main() -> None:
        host, seen = Poll(), []
        async with Server(address) as server:
            client = Client(address, host=host)
            client.on_request(lambda data: (data, HERE()))
            client.on_status(lambda status: seen.append(HERE()))
            client.on_close(lambda reason: seen.append(reason))
            async with polling(host) as thread:
                await client.connect()
                peer = next(iter(server.peers.values()))
                assert await peer.request("who") == ["who", thread]
                await client.close("enough")
                await until(lambda: "enough" in seen)
            assert {*seen} == {thread, "enough"}

    run(main())


@pytest.mark.parametrize("register", ["method", "on_request"])
def test_on_host_without_a_host_is_refused_at_registration(address, register):
    for end in (Server(address), Client(address)):
        with pytest.raises(ValueError, match=r"host=Poll\(\)"):
            getattr(end, register)(on="host")(lambda *_: None)


def test_a_coroutine_cannot_run_on_a_host(address):
    server = Server(address, host=Poll())

    async def handler(peer: Any, data: Any) -> None:
        pass

    with pytest.raises(ValueError):
        server.on_request(on="host")(handler)


def test_a_method_of_the_host_may_not_wait_for_a_stream(address):
    server = Server(address, host=Poll())

    def total(numbers: Iterator[int]) -> int:
        return sum(numbers)

    with pytest.raises(ValueError, match="host"):
        server.method(total)
    server.method(on="thread")(total)


def test_messages_of_a_peer_stay_in_order_on_the_host(run, address):
    async def main() -> None:
        host, got = Poll(), []
        server = Server(address, host=host)
        server.on_message(lambda peer, data: got.append(data))
        async with polling(host, budget=0), meeting(server) as client:
            for n in range(100):
                await client.send(n)
            await until(lambda: len(got) == 100)
        assert got == list(range(100))

    run(main())


def test_a_generator_streams_from_the_host_item_by_item(run, address):
    async def main() -> None:
        host, idents, closed = Poll(), set(), []
        server = Server(address, host=host)

        @server.method
        def numbers(many: int) -> Iterator[int]:
            try:
                for n in range(many):
                    idents.add(HERE())
                    yield n
            finally:
                closed.append(HERE())

        async with polling(host) as thread, meeting(server) as client:
            async with client.stream("numbers", 50) as items:
                assert [item async for item in items] == list(range(50))
            async with client.stream("numbers", 10**9) as items:
                await anext(items)
            await until(lambda: len(closed) == 2)
        assert idents == {*closed} == {thread}

    run(main())


def test_an_asker_of_a_host_that_never_polls_times_out_and_leaves_the_queue(run, address):
    async def main() -> None:
        host = Poll()
        server = Server(address, host=host)
        server.method("slow")(lambda: None)
        async with meeting(server) as client:
            assert isinstance(await raised_by(client.call("slow", timeout=0.05)), RequestTimeout)
            await queued(host, 0)
            assert await client.ping() < 10

    run(main())


def test_an_asker_past_the_limit_is_told_overloaded(run, address):
    async def main() -> None:
        host = Poll(limit=1)
        server = Server(address, host=host)
        server.method("slow")(lambda: "done")
        async with meeting(server) as client:
            first = asyncio.ensure_future(client.call("slow"))
            await queued(host, 1)
            error = await raised_by(client.call("slow"))
            assert isinstance(error, Overloaded)
            assert error.delivery == "not_sent"
            host.run_pending()
            assert await first == "done"
            assert host.refused == 1

    run(main())


def test_a_hook_past_the_limit_is_reported(run, address, caplog):
    async def main() -> None:
        host = Poll(limit=1)
        server = Server(address, host=host)
        server.on_message(lambda peer, data: None)
        async with meeting(server) as first, Client(address) as second:
            await first.send(1)
            await queued(host, 1)
            await second.send(2)
            await until(lambda: host.refused)
            await second.ping()
            assert "1 handlers wait for the host's thread" in caplog.text
            host.run_pending()

    run(main())


def test_close_does_not_wait_for_a_host_that_never_polls(run, address):
    async def main() -> None:
        host, closed = Poll(), []
        server = Server(address, host=host)
        server.method("slow")(lambda: None)
        server.on_close(lambda: closed.append(1))
        async with server, Client(address) as client:
            asking = asyncio.ensure_future(client.call("slow"))
            await queued(host, 1)
            await server.close(grace=0)
            assert isinstance(await raised_by(asking), Exception)
        await queued(host, 1)  # only the on_close, which nobody waits for
        host.run_pending()
        assert closed == [1]

    run(main())


def test_what_a_host_method_raises_is_its_callers(run, address):
    async def main() -> None:
        host = Poll()
        server = Server(address, host=host)

        @server.method
        def broken(call: Call) -> None:
            raise LookupError(call.peer.id)

        async with polling(host), meeting(server) as client:
            error = await raised_by(client.call("broken"))
            assert isinstance(error, RemoteError)
            assert (error.kind, error.message) == ("LookupError", client.id)

    run(main())


def test_one_poll_serves_a_server_and_a_client(run, address):
    async def main() -> None:
        host = Poll()
        server = Server(address, host=host)
        server.method("where")(lambda: HERE())
        client = Client(address, host=host)
        client.method("where")(lambda: HERE())
        async with polling(host) as thread, server, client:
            assert await client.call("where") == thread
            peer = next(iter(server.peers.values()))
            assert await peer.call("where") == thread

    run(main())
