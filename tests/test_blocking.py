"""Servers and clients without an event loop, on the portal."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from interphone import (
    PASS,
    AddressInUse,
    Backoff,
    ConnectError,
    ConnectionClosed,
    Gap,
    InvalidParams,
    LocalProtocolError,
    MemoryAddress,
    MethodNotFound,
    Poll,
    Publication,
    Refuse,
    Refused,
    RemoteError,
    RequestTimeout,
    Status,
    StreamClosed,
    Unhandled,
    WrongThread,
    contract,
    tcp_address,
)
from interphone.blocking import Call, Client, Peer, Server, Stream
from interphone.blocking.portal import Mailbox, Portal, enter, leave
from support.threads import WAIT, Gate, Inbox, Worker, no_thread_left

SOON = Backoff(initial=0.001, cap=0.01)


@pytest.fixture(autouse=True)
def tidy() -> Iterator[None]:
    with no_thread_left():
        yield


@pytest.fixture
def server(address: str) -> Iterator[Server]:
    server = Server(address)
    yield server
    server.close(grace=0)


def far(client: Client) -> Client:
    """A client that has moved to the portal, connected or not."""
    client.on_status(lambda status: None)
    return client


# Asking


def test_call_and_request_and_message(server, address):
    got = Inbox()
    server.on_message(got.put)

    @server.method
    def add(a: int, b: int = 1) -> int:
        return a + b

    @server.on_request
    def shout(peer: Peer, data: str) -> str:
        return data.upper()

    with server, far(Client(address)) as client:
        assert client.call("add", 1, 2, returns=int) == 3
        assert client.call("add", named={"a": 5}) == 6
        assert client.within(5).call("add", 1) == 2
        assert client.request("quiet") == "QUIET"
        assert client.ping() > 0
        client.send({"n": 1})
        peer, data = got.next()
        assert isinstance(peer, Peer)
        assert (peer.id, data) == (client.id, {"n": 1})


def test_errors_are_those_of_the_async_api(server, address):
    class Short(Exception):
        pass

    server.error(Short)

    @server.method
    def broken(kind: str) -> None:
        raise Short("funds") if kind == "declared" else ValueError("no")

    with server, far(Client(address)) as client:
        client.error(Short)
        with pytest.raises(Unhandled):
            client.request(1)
        with pytest.raises(MethodNotFound):
            client.call("brokn")
        with pytest.raises(InvalidParams):
            client.call("broken", 1)
        with pytest.raises(RemoteError, match="no"):
            client.call("broken", "other")
        with pytest.raises(Short, match="funds"):
            client.call("broken", "declared")


def test_a_server_asks_its_clients(server, address):
    with server:
        client = Client(address)
        client.on_request(lambda data: data + 1)
        client.method("name")(lambda: "the client")
        with client:
            peer = server.peers[client.id]
            assert peer.request(1) == 2
            assert peer.call("name") == "the client"
            assert peer.ping() > 0
            outcomes = server.survey(5, returns=int)
            assert [(one.peer, one.value, one.ok) for one in outcomes] == [(peer, 6, True)]
            assert server.ping()[0].ok


def test_handlers_may_ask_the_peer_that_called(server, address):
    @server.method
    def twice(call: Call, n: int) -> int:
        return call.peer.call("half", 4 * n, returns=int)

    with server:
        client = Client(address)
        client.method("half")(lambda n: n // 2)
        with client:
            assert client.call("twice", 21) == 42


def test_a_chain_asks_in_turn(server, address):
    server.on_request(lambda peer, data: PASS if data else "first")
    last = server.on_request(on="inline")(lambda peer, data: "second")
    assert bool(server.on_request)
    with server, far(Client(address)) as client:
        assert (client.request(0), client.request(1)) == ("first", "second")
        server.on_request.remove(last)
        with pytest.raises(Unhandled):
            client.request(1)
        with pytest.raises(ValueError):
            server.on_request.remove(last)


def test_progress_is_heard_in_the_thread_that_waits(server, address):
    @server.method
    def work(call: Call) -> str:
        for n in range(3):
            call.progress(n)
        return "done"

    heard = []
    with server, far(Client(address)) as client:
        result = client.call(
            "work", on_progress=lambda value: heard.append((value, threading.get_ident()))
        )
    assert result == "done"
    assert heard == [(n, threading.get_ident()) for n in range(3)]


def test_who_raises_on_progress_cancels_the_call(server, address):
    gate = Gate()

    @server.method
    def work(call: Call) -> None:
        call.progress(1)
        gate.wait()

    with server, far(Client(address)) as client:
        with pytest.raises(ZeroDivisionError):
            client.call("work", on_progress=lambda value: 1 / 0, timeout=None)
        while server.peers[client.id].inflight:  # it has been told, or is just being told
            client.ping()
        gate.open()


def test_a_deadline_shrinks_through_nested_calls_of_blocking_ends(server, address):
    @server.method
    def outer(call: Call) -> float:
        assert call.deadline is not None
        return call.peer.call("inner", timeout=1000)

    with server:
        client = Client(address)

        @client.method
        def inner(call: Call) -> float:
            assert call.deadline is not None
            return call.deadline

        with client:
            deadline = client.call("outer", timeout=20)
            assert deadline < time.monotonic() + 20


def test_a_contract_is_called_and_streamed(server, address):
    @contract("scale")
    def scale(by: int, numbers: Iterator[int]) -> Iterator[int]:
        raise NotImplementedError

    @contract("total")
    def total(numbers: Iterator[int]) -> int:
        raise NotImplementedError

    @server.method(scale)
    def _scale(by: int, numbers: Iterator[int]) -> Iterator[int]:
        for number in numbers:
            yield by * number

    @server.method(total)
    def _total(numbers: Iterator[int]) -> int:
        return sum(numbers)

    with server, far(Client(address)) as client:
        with client.stream(scale, 3, (n for n in range(4))) as scaled:
            assert list(scaled) == [0, 3, 6, 9]
        with client.within(10).stream(scale, 2, numbers=[1, 2]) as scaled:
            assert list(scaled) == [2, 4]
        assert client.call(total, [1, 2, 3]) == 6
        assert client.within(10).call(total, iter([4, 5])) == 9


# Streams


def test_a_stream_is_iterated_and_left_early(server, address):
    left = Gate()

    @server.method
    def count(many: int) -> Iterator[int]:
        try:
            yield from range(many)
        finally:
            left.open()

    with server, far(Client(address)) as client:
        with client.stream("count", 5, of=int) as numbers:
            assert list(numbers) == list(range(5))
        with client.stream("count", 10**9) as numbers:
            assert next(numbers) == 0
            assert numbers.buffered <= numbers.window
        left.wait()
        peer_stream = client.peer.stream("count", 2)
        with peer_stream as numbers:
            assert list(numbers) == [0, 1]


def test_a_method_reads_what_is_sent_to_it(server, address):
    @server.method
    def total(numbers: Iterator[int]) -> int:
        return sum(numbers)

    with server, far(Client(address)) as client:
        with client.stream("total") as stream:
            for n in range(100):
                stream.send(n)
            stream.finish()
            assert stream.result(returns=int) == 4950
            with pytest.raises(StreamClosed):
                stream.send(1)
        assert client.call("total", items=[1, 2]) == 3
        assert client.peer.call("total", items=(n for n in range(4))) == 6


def test_items_are_pulled_in_a_thread_of_their_own(server, address):
    @server.method
    def total(numbers: Iterator[int]) -> int:
        return sum(numbers)

    threads, closed = set(), Gate()

    def items() -> Iterator[int]:
        try:
            for n in range(3):
                threads.add(threading.current_thread().name)
                yield n
        finally:
            closed.open()

    with server, far(Client(address)) as client:
        assert client.call("total", items=items()) == 3
        closed.wait()
    assert all("handler" in name for name in threads)


def test_async_items_are_refused(server, address):
    async def items() -> Any:
        yield 1

    with server, far(Client(address)) as client:
        with pytest.raises(TypeError, match="plain iterables"):
            client.call("total", items=items())
        with pytest.raises(TypeError, match="plain iterables"):
            client.stream("total", items=items())


def test_what_a_stream_raises_is_raised(server, address):
    @server.method
    def broken() -> Iterator[int]:
        yield 1
        raise LookupError("gone")

    with server, far(Client(address)) as client, client.stream("broken") as stream:
        assert next(stream) == 1
        with pytest.raises(RemoteError, match="gone"):
            next(stream)
        assert "Stream" in repr(stream)


# Publish and subscribe


def test_publications_are_iterated(server, address):
    with server, Client(address) as client:
        with client.subscribe("news.*", of=int) as news:
            receipt = server.publish("news.a", 1)
            assert (receipt.matched, receipt.queued) == (1, 1)
            client.publish("news.b", 2)
            assert next(news) == Publication("news.a", 1)
            assert next(news) == Publication("news.b", 2)
            assert (news.topics, news.group, news.dropped, news.gaps) == (("news.*",), None, 0, 0)
            news.unsubscribe("news.*")
            assert news.ended
            assert list(news) == []
        server.publish("last", 3, retain=True)
        with client.subscribe("last") as last:
            assert next(last).retained
        assert client.forget("last")
        assert not server.forget("last")


class Interrupted(BaseException):
    pass


posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no alarm signal")


@pytest.fixture
def interrupt_soon() -> Iterator[Callable[[], None]]:
    """Has the main thread raise `Interrupted` when it has waited for a moment."""

    def interrupt(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    yield lambda: signal.setitimer(signal.ITIMER_REAL, 0.002) and None
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@posix
def test_an_interrupted_iteration_goes_on_where_it_was(server, address, interrupt_soon):
    with server, Client(address) as client, client.subscribe("t", of=int) as items:
        for n in range(20):
            with pytest.raises(Interrupted):
                interrupt_soon()
                next(items)
            server.publish("t", n)
            assert next(items).value == n


@posix
@pytest.mark.usefixtures("interrupt_soon")
def test_what_came_although_the_waiting_was_interrupted_is_kept():
    class Anybody:
        async def abandon(self) -> None:
            pass

    async def stubborn() -> int:
        os.kill(os.getpid(), signal.SIGALRM)  # not before it has begun
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return 7
        return 0

    user, kept = Anybody(), []
    portal = enter(user)
    try:
        with pytest.raises(Interrupted):
            portal.run(stubborn, late=kept.append)
    finally:
        leave(user)
    assert kept == [7]


def test_an_item_whose_thread_was_interrupted_goes_to_another_one_that_waits(
    server, address, monkeypatch
):
    with server, Client(address) as client, client.subscribe("t", of=int) as items:
        wait, take, taking = Portal._wait, items._items._take, Gate()
        reading: list[Worker] = []

        async def seen_take() -> Publication[int]:
            taking.open()
            return await take()

        def interrupted_wait(portal: Portal, mailbox: Mailbox, host: Poll | None) -> None:
            wait(portal, mailbox, host)
            if not reading:  # the first item has come; now the other one waits for the next
                monkeypatch.setattr(items._items, "_take", seen_take)
                reading.append(Worker(next, items))
                taking.wait()
                raise Interrupted

        server.publish("t", 1)
        client.call("$info")  # it has come
        monkeypatch.setattr(Portal, "_wait", interrupted_wait)
        with pytest.raises(Interrupted):
            next(items)
        assert reading[0].result().value == 1
        server.publish("t", 2)
        assert next(items).value == 2


def test_an_item_of_an_interrupted_thread_is_there_when_the_client_is_closed(
    server, address, monkeypatch
):
    wait = Portal._wait
    with server, Client(address) as client, client.subscribe("t", of=int) as items:

        def interrupted_wait(portal: Portal, mailbox: Mailbox, host: Poll | None) -> None:
            wait(portal, mailbox, host)
            monkeypatch.undo()
            client.close()
            raise Interrupted

        server.publish("t", 1)
        client.call("$info")
        monkeypatch.setattr(Portal, "_wait", interrupted_wait)
        with pytest.raises(Interrupted):
            next(items)
        assert [item.value for item in items] == [1]


def test_threads_that_iterate_over_one_subscription_share_its_items(server, address):
    with server, Client(address) as client, client.subscribe("t", of=int) as items:
        reading = [Worker(list, items) for _ in range(3)]
        for n in range(300):
            server.publish("t", n)
        client.call("$info")  # all of it has come
        items.close()
        shares = [[item.value for item in each.result()] for each in reading]
    assert sorted(item for share in shares for item in share) == [*range(300)]
    assert all(share == sorted(share) for share in shares)


def test_threads_that_iterate_over_one_stream_share_its_items(server, address):
    together = threading.Barrier(3)

    @server.method
    def count() -> Iterator[int]:
        together.wait(WAIT)  # with who waits for the first item
        yield from range(300)

    def read(stream: Stream[int]) -> list[int]:
        together.wait(WAIT)
        return list(stream)

    with server, Client(address) as client, client.stream("count", of=int) as stream:
        shares = [each.result() for each in [Worker(read, stream) for _ in range(2)]]
        assert stream.result() is None
    assert sorted(item for share in shares for item in share) == [*range(300)]
    assert all(share == sorted(share) for share in shares)


def test_another_thread_may_end_an_iteration(server, address):
    with server, Client(address) as client, client.subscribe("t") as items:
        reading = Worker(list, items)
        server.publish("t", 1)
        server.publish("t", 2)
        items.close()
        assert [item.value for item in reading.result()] in ([], [1], [1, 2])


def test_iterations_end_when_the_client_closes(server, address):
    with server:
        client = Client(address).connect()
        with client.subscribe("t") as items:
            reading = Worker(list, items)
            client.close()
            assert reading.result() == []


def test_a_topic_handler_runs_in_order(server, address):
    got = Inbox()
    with server, Client(address) as client:
        client.on_topic("t", of=int)(lambda publication: got.put(publication.value))
        server.on_topic("t")(lambda publication: got.put(-1))
        client.ping()
        for n in range(50):
            assert server.publish("t", n).queued == 2
        values = [got.next() for _ in range(100)]
        assert [value for value in values if value >= 0] == list(range(50))
        client.unsubscribe("t")
        assert server.publish("t", 1).matched == 1


def test_a_server_subscribes(server, address):
    with server, Client(address) as client, server.subscribe("a") as items:
        client.publish("a", 1)
        assert next(items).value == 1


def test_gaps_are_seen_after_a_restart(server, address):
    ready = Inbox()
    client = Client(address, backoff=SOON)
    client.on_ready(ready.put)
    with server:
        client.connect()
        ready.next()
        items = client.subscribe("t", gaps=True)
        with items:
            server.close(allow_reconnect=True)
            server.start()
            ready.next()
            assert next(items) == Gap()
            server.publish("t", 1)
            assert next(items) == Publication("t", 1)
    client.close()


def test_broadcast_reaches_everybody(server, address):
    got = Inbox()
    with server:
        clients = [Client(address) for _ in range(3)]
        for client in clients:
            client.on_message(got.put)
            client.connect()
        assert server.broadcast("hello").queued == 3
        assert [got.next() for _ in range(3)] == ["hello"] * 3
        for client in clients:
            client.close()


# Hooks


def test_hooks_are_told_with_blocking_peers_in_order(server, address):
    told = Inbox()
    server.on_ready(lambda address: told.put("ready"))
    server.on_connect(lambda peer, payload: told.put("connect", peer, payload))
    server.on_disconnect(lambda peer, reason: told.put("disconnect", peer, reason))
    server.on_close(lambda: told.put("close"))
    with server:
        assert told.next() == "ready"
        client = far(Client(address)).connect({"who": "me"})
        _, peer, payload = told.next()
        assert isinstance(peer, Peer)
        assert peer is server.peers[client.id]
        assert payload == peer.payload == {"who": "me"}
        client.close("enough")
        assert told.next() == ("disconnect", peer, "enough")
        assert not peer.open
    assert told.next() == "close"


def test_hooks_of_a_client_are_told(server, address):
    told = Inbox()
    client = Client(address)
    client.on_status(lambda status: told.put(status.name))
    client.on_close(told.put)
    client.on_ready(lambda peer: told.put(isinstance(peer, Peer)))
    with server, client:
        names = [told.next() for _ in range(4)]
        assert sorted(names, key=str) == ["CONNECTED", "CONNECTING", "READY", True]
        assert [name for name in names if name is not True] == ["CONNECTING", "CONNECTED", "READY"]
        client.close("bye")
        assert {told.next() for _ in range(3)} == {"DISCONNECTED", "IDLE", "bye"}


def test_a_handler_that_raises_is_reported(server, address):
    errors = Inbox()
    server.on_error(errors.put)
    server.on_message(lambda peer, data: 1 / 0)
    with server, far(Client(address)) as client:
        client.send(1)
        error, peer = errors.next()
        assert isinstance(error, ZeroDivisionError)
        assert peer is server.peers[client.id]


def test_a_hook_can_be_taken_off(server, address):
    got = Inbox()
    handler = server.on_message(got.put)
    server.on_message(lambda peer, data: got.put("kept"))
    assert bool(server.on_message)
    server.on_message.remove(handler)
    with pytest.raises(ValueError):
        server.on_message.remove(handler)
    with server, far(Client(address)) as client:
        client.send(1)
        assert got.next() == "kept"


def test_messages_of_a_peer_are_handled_one_at_a_time_in_order(server, address):
    got, running = Inbox(), []

    def handle(peer: Peer, data: int) -> None:
        running.append(data)
        got.put(data, len(running))
        running.remove(data)

    server.on_message(handle)
    with server, far(Client(address)) as client:
        for n in range(100):
            client.send(n)
        assert [got.next() for n in range(100)] == [(n, 1) for n in range(100)]


def test_coroutines_are_refused_as_handlers(address):
    async def handler(*args: Any) -> None:
        pass

    async def generator() -> Any:
        yield 1

    for end in (Server(address), Client(address)):
        for register in (end.on_message, end.on_request, end.method, end.on_topic("t")):
            with pytest.raises(ValueError, match="coroutine"):
                register(handler)
        with pytest.raises(ValueError, match="coroutine"):
            end.method(generator)
    with pytest.raises(ValueError, match="coroutine"):
        Server(address).authorize(handler)


def test_authorize_may_block_and_refuse(server, address):
    @server.authorize
    def decide(peer: Peer, payload: Any) -> str:
        if payload != "secret":
            raise Refuse("no")
        return "a session"

    with server:
        with pytest.raises(Refused, match="no"):
            Client(address).connect("wrong")
        with far(Client(address, payload="secret")) as client:
            peer = server.peers[client.id]
            assert peer.session == "a session"
            peer.session = "another"
            assert server.peers[client.id].session == "another"


# Peers


def test_a_peer_tells_what_the_async_one_tells(server, address):
    with server, far(Client(address)) as client:
        peer = server.peers[client.id]
        assert peer.open
        assert peer.interphone
        assert peer.credentials.pid is not None
        assert peer.counts.late == peer.pending == peer.unheard == peer.inflight == 0
        assert peer.backlog == 0
        assert repr(peer).startswith("<Peer")
        peer.pause()
        assert peer.paused
        peer.resume()
        assert not peer.paused
        peer.send("hello")
        assert peer.within(5).call
        peer.close("go", grace=0)
        assert client.wait_closed() == "go"
        with pytest.raises(ConnectionClosed):
            client.peer.ping()


def test_what_is_queued_may_be_read_after_the_end(server, address):
    with server:
        client = far(Client(address)).connect()
        with client.subscribe("t", of=int) as items:
            for n in range(3):
                server.publish("t", n)
            assert next(items).value == 0
            client.ping()  # the others have come
            client.close("bye")
            assert [each.value for each in items] == [1, 2]
        assert client.wait_closed() == "bye"


def test_two_threads_start_a_server_once(address):
    server = Server(address)
    for _ in range(10):
        starting = [Worker(server.start) for _ in range(2)]
        errors = [error for each in starting if (error := each.error()) is not None]
        assert server.ready
        assert [type(error) for error in errors] == [LocalProtocolError]
        server.close()


def test_abort_of_a_peer_is_seen_by_its_client(server, address):
    with server:
        client = far(Client(address, backoff=None)).connect()
        server.peers[client.id].abort("bye")
        client.wait_closed()
        client.close()
        assert client.status is Status.IDLE


def test_pause_and_resume(server, address):
    server.on_request(lambda peer, data: data)
    with server, far(Client(address)) as client:
        server.pause()
        asking = Worker(client.request, 1)
        client.ping()
        server.resume()
        assert asking.result() == 1
        client.pause()
        client.resume()


# Life


def test_a_server_serves_until_another_thread_closes_it(server, address):
    ready = Gate()
    server.on_ready(ready.open)
    serving = Worker(server.serve_forever)
    ready.wait()
    with far(Client(address)) as client:
        client.ping()
        server.close()
        assert serving.result() is None
    assert not server.ready


def test_a_server_starts_again(server, address):
    server.method("n")(lambda: 1)
    for _ in range(2):
        with server, far(Client(address)) as client:
            assert client.call("n") == 1
        assert repr(server) == f"<Server {address} closed, 0 peers>"


def test_a_taken_address_is_an_error_and_leaves_nothing(server, address):
    with server:
        with pytest.raises(AddressInUse):
            Server(address).start()
        with pytest.raises(LocalProtocolError):
            server.start()
        assert server.ready


def test_a_client_connects_again(server, address):
    server.method("n")(lambda: 1)
    client = far(Client(address))
    with server:
        for _ in range(2):
            with client:
                assert client.call("n") == 1
            assert client.status is Status.IDLE
            with pytest.raises(ConnectionClosed):
                client.call("n")
        assert client.close() is False


def test_what_is_not_started_says_so(address):
    server, client = Server(address), far(Client(address))
    with pytest.raises(LocalProtocolError, match="start"):
        server.publish("t", 1)
    with pytest.raises(LocalProtocolError, match="connect"):
        client.call("n")
    with pytest.raises(LocalProtocolError, match="connect"), client.subscribe("t"):
        pass
    server.close()
    client.abort()


def test_nobody_there_is_a_connect_error(address):
    client = far(Client(address, connect_timeout=0.05))
    with pytest.raises(ConnectError, match="nobody listens"):
        client.connect()
    assert client.status is Status.IDLE
    assert client.outage is None


def test_one_loop_serves_everybody_and_ends_with_the_last(address):
    def portals() -> int:
        return sum(thread.name == "interphone portal" for thread in threading.enumerate())

    assert portals() == 0
    with Server(address), far(Client(address)), far(Client(address)):
        assert portals() == 1
        with Server(f"{address}2"):
            assert portals() == 1
        assert portals() == 1
    assert portals() == 0


@pytest.mark.usefixtures("may_block")
def test_it_works_where_a_loop_runs(server, address):
    server.method("n")(lambda: 1)

    async def main() -> int:
        with server, far(Client(address)) as client:
            return client.call("n")

    assert asyncio.run(main()) == 1


def test_eight_threads_at_once(server, address):
    server.method("add")(lambda a, b: a + b)
    with server, far(Client(address)) as client:

        def ask(me: int) -> list[int]:
            return [client.call("add", me, n) for n in range(50)]

        workers = [Worker(ask, me) for me in range(8)]
        for me, worker in enumerate(workers):
            assert worker.result() == [me + n for n in range(50)]


def test_on_the_loops_thread_it_cannot_wait(server, address):
    @server.method(on="inline")
    def wait(call: Call) -> float:
        return call.peer.ping()

    with server, far(Client(address)) as client, pytest.raises(RemoteError) as caught:
        client.call("wait")
    assert caught.value.kind == WrongThread.__name__


def test_timeouts_are_kept(server, address):
    gate = Gate()
    server.method("slow")(gate.wait)
    with server, far(Client(address)) as client:
        with pytest.raises(RequestTimeout):
            client.call("slow", timeout=0.05)
        gate.open()


@pytest.mark.parametrize("kind", ["memory", "tcp"])
def test_other_transports_go_by_the_portal(kind):
    server = Server(MemoryAddress() if kind == "memory" else tcp_address(port=0))
    server.method("n")(lambda: 1)
    with server, Client(server.address) as client:
        assert client.call("n") == 1


# The host's thread


def test_handlers_run_in_the_hosts_thread(address):
    host, here = Poll(), threading.get_ident()
    server = Server(address, host=host)
    server.method("where")(lambda: threading.get_ident())
    server.on_request(lambda peer, data: (peer.id, threading.get_ident()))
    told: list[Any] = []
    server.on_connect(lambda peer, payload: told.append((type(peer), threading.get_ident())))
    with server, Client(address) as client:

        def ask() -> Any:
            return client.call("where"), client.request(1)

        asking = Worker(ask)
        while asking.running:
            host.run_pending()
        assert asking.result() == (here, [client.id, here])
        assert told == [(Peer, here)]


def test_closing_in_the_hosts_thread_runs_what_waits_for_it(address):
    host = Poll()
    server = Server(address, host=host)
    server.method("late")(lambda: "answered")
    host.run_pending()
    with server:
        client = Client(address).connect()
        asking = Worker(client.call, "late")
        while not host.pending:
            assert asking.running
        server.close()
        assert asking.result() == "answered"
        client.close()
