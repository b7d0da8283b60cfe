"""Clients that ask without an event loop: the thread that waits drives the connection."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from time import monotonic
from typing import Any

import pytest

from interphone import (
    Backoff,
    ConnectError,
    ConnectionClosed,
    ConnectionLost,
    HandshakeError,
    Limits,
    LocalProtocolError,
    MethodNotFound,
    Overloaded,
    PayloadError,
    Poll,
    Refuse,
    Refused,
    RemoteError,
    RequestTimeout,
    Status,
    Unhandled,
)
from interphone.blocking import Call, Client, Peer, Server
from interphone.blocking.direct import Direct
from interphone.blocking.link import Link
from interphone.protocol.session import Session
from interphone.transports import Credentials
from interphone.transports.plain import UnixSocket
from support.sessions import Recorder, frame
from support.threads import WAIT, Gate, Inbox, Worker, no_thread_left

SOON = Backoff(initial=0.001, cap=0.01)


@pytest.fixture(autouse=True)
def tidy() -> Iterator[None]:
    before = open_sockets()
    with no_thread_left():
        yield
    assert open_sockets() == before


def open_sockets() -> int:
    """How many sockets this process has open; where nobody tells, none."""
    if not sys.platform.startswith("linux"):
        return 0
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            count += os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
    return count


@pytest.fixture
def server(address: str) -> Iterator[Server]:
    server = Server(address)

    @server.method
    def add(a: int, b: int) -> int:
        return a + b

    server.on_request(on="inline")(lambda peer, data: data)
    with server:
        yield server


def direct(client: Client) -> bool:
    return isinstance(client._driver, Direct)


# Asking


def test_asking_and_sending_need_no_thread(server, address):
    got = Inbox()
    server.on_message(got.put)
    before = threading.active_count()
    with Client(address) as client:
        assert direct(client)
        assert threading.active_count() == before
        assert client.status is Status.READY
        assert client.outage is None
        assert client.call("add", 1, 2, returns=int) == 3
        assert client.within(5).call("add", 1, named={"b": 2}) == 3
        assert client.request({"n": [1, b"2"]}) == {"n": [1, b"2"]}
        assert 0 < client.ping() < 10
        client.send("hello")
        assert got.next() == (server.peers[client.id], "hello")
        assert direct(client)
    assert client.status is Status.IDLE


def test_the_classic_dialect_is_spoken_too(server, address):
    with Client(address, dialect="classic") as client:
        assert client.request([1, None]) == [1, None]
        assert client.call("add", 1, 2) == 3
        assert not server.peers[client.id]._peer.protocol.native


def test_errors_are_those_of_the_async_api(server, address):
    class Short(Exception):
        pass

    server.error(Short)

    @server.method
    def broken(declared: bool) -> None:
        raise Short("funds") if declared else ValueError("no")

    with Client(address) as client:
        client.error(Short)
        with pytest.raises(MethodNotFound):
            client.call("ad")
        with pytest.raises(RemoteError, match="no"):
            client.call("broken", False)
        with pytest.raises(Short, match="funds"):
            client.call("broken", True)
        with pytest.raises(PayloadError):
            client.request(object())
        with pytest.raises(PayloadError) as caught:
            client.call("add", 1, 2, returns=str)
        assert caught.value.delivery == "maybe_sent"
        assert client.call("add", 1, 2) == 3
        assert direct(client)


def test_progress_is_heard_in_the_thread_that_waits(server, address):
    @server.method
    def work(call: Call) -> str:
        for n in range(5):
            call.progress(n)
        return "done"

    heard: list[Any] = []
    with Client(address) as client:
        result = client.call(
            "work", on_progress=lambda value: heard.append((value, threading.get_ident()))
        )
        assert direct(client)
    assert result == "done"
    assert heard == [(n, threading.get_ident()) for n in range(5)]


def test_who_hears_of_progress_may_ask(server, address):
    @server.method
    def steps(call: Call) -> None:
        call.progress(1)

    with Client(address) as client:
        heard = []
        client.call("steps", on_progress=lambda n: heard.append(client.call("add", n, 1)))
        assert heard == [2]
        assert direct(client)


def test_who_raises_on_progress_cancels_the_call(server, address):
    gate = Gate()

    @server.method
    def work(call: Call) -> None:
        call.progress(1)
        gate.wait()

    with Client(address) as client:
        with pytest.raises(ZeroDivisionError):
            client.call("work", on_progress=lambda value: 1 / 0, timeout=None)
        while server.peers[client.id].inflight:
            client.ping()
        gate.open()


VERBS = {
    "send": lambda client, value: client.send(value),
    "request": lambda client, value: client.request(value),
    "call": lambda client, value: client.call("add", value, 1),
    "named": lambda client, value: client.call("add", named={"a": value}),
    "connect": lambda client, value: Client(client.address, payload=value).connect(),
}


@pytest.mark.parametrize("dialect", ["native", "classic"])
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("depth", [65, 1_000, 100_000])
def test_a_value_that_nests_too_deeply_is_an_error(server, address, verb, depth, dialect):
    value: Any = []
    for _ in range(depth):
        value = [value]
    with Client(address, dialect=dialect) as client:
        with pytest.raises(PayloadError, match="the value nests") as caught:
            VERBS[verb](client, value)
        assert caught.value.delivery == "not_sent"
        assert client.call("add", 1, 2) == 3
        client.on_message(print)
        with pytest.raises(PayloadError, match="the value nests"):
            VERBS[verb](client, value)


def test_a_timeout_cancels_the_handler(server, address):
    gate = Gate()
    server.method("slow")(gate.wait)
    with Client(address) as client:
        with pytest.raises(RequestTimeout) as caught:
            client.call("slow", timeout=0.05)
        assert str(caught.value) == "no answer within 0.05 s"
        assert caught.value.delivery == "maybe_sent"
        while server.peers[client.id].inflight:
            client.ping()
        gate.open()
        assert client.call("add", 1, 2) == 3


def test_a_deadline_travels(server, address):
    @server.method
    def left(call: Call) -> bool:
        return call.deadline is not None

    with Client(address) as client:
        assert client.call("left") is True
        assert client.call("left", timeout=None) is False


def test_what_a_handler_asks_waits_no_longer_than_its_own_asker(server, address):
    gate, seen = Gate(), Inbox()
    server.method("slow")(gate.wait)
    with Client(address) as inner:

        @server.method
        def outer() -> None:
            try:
                inner.call("slow", timeout=1000)
            except RequestTimeout as exc:
                seen.put(exc.timeout)
                gate.wait()  # its own asker is told by its own clock

        with Client(address) as client, pytest.raises(RequestTimeout):
            client.call("outer", timeout=0.1)
        assert seen.next() <= 0.1
        assert direct(inner)
        gate.open()


def test_large_values_cross_both_ways(server, address):
    value = os.urandom(5_000_000)
    with Client(address) as client:
        assert client.request(value) == value
        workers = [Worker(client.request, value) for _ in range(4)]
        assert all(worker.result() == value for worker in workers)


def test_both_ends_may_flood_each_other(server, address):
    chunk = bytes(100_000)

    @server.on_message
    def send_back(peer: Peer, data: bytes) -> None:
        peer.send(data)

    with Client(address) as client:
        for _ in range(200):
            client.send(chunk)
        assert client.call("add", 1, 2, timeout=60) == 3
        assert direct(client)


def test_many_requests_at_once_wait_for_credit(address):
    server = Server(address, limits=Limits(max_inflight=2))
    server.method("n")(lambda n: n)
    with server, Client(address) as client:
        workers = [Worker(client.call, "n", n) for n in range(20)]
        assert [worker.result() for worker in workers] == list(range(20))


def test_more_than_may_wait_is_overloaded(address):
    gate = Gate()
    server = Server(address)
    server.method("slow")(gate.wait)
    with server, Client(address, limits=Limits(max_pending=1)) as client:
        waiting = Worker(client.call, "slow")
        while not server.peers[client.id].inflight:
            assert waiting.running
        with pytest.raises(Overloaded):
            client.ping()
        gate.open()
        waiting.result()


# What the server says


def test_what_a_server_asks_is_refused_when_somebody_looks(server, address):
    @server.method
    def ask(call: Call) -> list[str]:
        kinds = []
        for verb in (lambda: call.peer.request(1), lambda: call.peer.call("no")):
            try:
                verb()
            except Exception as exc:
                kinds.append(type(exc).__name__)
        return kinds

    with Client(address) as client:
        assert client.call("ask") == [Unhandled.__name__, MethodNotFound.__name__]


def test_what_a_server_sends_is_passed_over(server, address):
    with Client(address) as client:
        server.broadcast("to whom?")
        server.peers[client.id].send("to nobody")
        assert client.call("add", 1, 2) == 3


def test_an_idle_client_is_not_given_up(address):
    server = Server(address, heartbeat=0.01)
    lost = Inbox()
    server.on_disconnect(lambda peer, reason: lost.put(peer.id))
    server.on_request(lambda peer, data: data)
    with server, Client(address, backoff=None) as client, silent(address):
        assert lost.next() != client.id  # the other one was asked, and did not answer
        assert client.request(1) == 1
        assert list(server.peers) == [client.id]


def test_a_server_hangs_up_without_waiting_for_idle_clients(address):
    server = Server(address, limits=Limits(close_timeout=1000))
    with server:
        clients = [Client(address).connect() for _ in range(3)]
    for client in clients:
        with pytest.raises(ConnectionClosed, match="Server was shut down"):
            client.ping()
        client.close()


@contextlib.contextmanager
def silent(address: str) -> Iterator[None]:
    """A client of ours that never answers, and does not say that it is idle."""
    session = Session("client", dialects=("native",))
    session.open()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(address)
        sock.sendall(session.data_to_send())
        yield


# Connecting


def test_nobody_there_is_a_connect_error_within_the_timeout(address):
    client = Client(address, connect_timeout=0.05)
    with pytest.raises(ConnectError, match=r"within 0.05 s: .*nobody listens"):
        client.connect()
    assert client.status is Status.IDLE
    assert client.outage is None
    with pytest.raises(ConnectError):
        Client(address, backoff=None).connect()


def test_connect_waits_for_a_server_that_comes_later(address):
    client = Client(address, connect_timeout=None, backoff=SOON)
    connecting = Worker(client.connect)
    while client.outage is None or client.outage.attempts < 3:
        assert connecting.running
    with Server(address):
        assert connecting.result() is client
        client.close()


def test_close_ends_an_attempt_to_connect(address):
    client = Client(address, connect_timeout=None, backoff=Backoff(initial=60, jitter=False))
    connecting = Worker(client.connect)
    while client.outage is None:
        assert connecting.running
    client.close()
    assert isinstance(connecting.error(), ConnectionClosed)


def test_a_refusal_is_raised(address):
    server = Server(address)

    @server.authorize
    def decide(peer: Peer, payload: Any) -> None:
        raise Refuse({"why": payload})

    with server, pytest.raises(Refused) as caught:
        Client(address).connect("me")
    assert caught.value.reason == {"why": "me"}


def test_a_stranger_is_no_server(address):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        client = Client(address, backoff=None)
        connecting = Worker(client.connect)
        stranger, _ = listener.accept()
        with stranger:
            stranger.recv(10)
            stranger.sendall(b"\x00\x00\x00\x00\x00\x00")
        assert isinstance(connecting.error(), HandshakeError | ConnectError)


def test_a_server_that_hangs_up_is_tried_again(address):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        client = Client(address, backoff=SOON, connect_timeout=None)
        connecting = Worker(client.connect)
        for _ in range(3):
            listener.accept()[0].close()
        client.close()
        assert isinstance(connecting.error(), ConnectionClosed | ConnectError)


def test_a_server_of_another_user_is_not_talked_to(server, address):
    client = Client(address, allowed_uids=[os.geteuid() + 1])
    with pytest.raises(ConnectError, match="not allowed"):
        client.connect()


def test_a_silent_server_is_given_up(address):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        client = Client(address, backoff=None, limits=Limits(handshake_timeout=0.05))
        with pytest.raises(ConnectError, match="did not answer"):
            client.connect()


@pytest.mark.parametrize("patience", [None, 30.0])
def test_close_ends_connecting_to_a_server_that_says_nothing(address, patience):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        client = Client(address, connect_timeout=patience)
        connecting = Worker(client.connect)
        mute, _ = listener.accept()
        with mute:
            assert mute.recv(3) == b"IPC"
            client.close()
            assert isinstance(connecting.error(), ConnectionClosed)
        assert client.status is Status.IDLE


@pytest.mark.parametrize("backoff", [SOON, None])
def test_it_does_not_come_back_from_a_goodbye_for_good_when_it_moves(server, address, backoff):
    client = Client(address, backoff=backoff).connect()
    server.close("gone for good")
    with Server(address):
        assert client.wait_closed() == "gone for good"
        assert client.status is Status.IDLE
        with pytest.raises(ConnectionClosed):
            client.call("add", 1, 2)


def test_the_reason_is_known_after_the_end(server, address):
    client = Client(address).connect()
    client.close("bye")
    assert client.wait_closed() == "bye"


@pytest.mark.parametrize("timeout", [float("inf"), 1e300])
def test_a_timeout_no_clock_can_hold_is_none(server, address, timeout):
    with Client(address, backoff=SOON) as client:
        server.close(allow_reconnect=True)
        server.start()
        assert client.call("add", 1, 2, timeout=timeout) == 3


def test_what_the_system_did_not_take_before_the_end_is_not_sent(address):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        client = Client(address, backoff=None)
        connecting = Worker(client.connect)
        deaf, _ = listener.accept()
        with deaf:
            deaf.recv(65536)
            deaf.sendall(frame({"t": 0, "d": {"id": "x", "compress": False, "messagepack": False}}))
            connecting.result()
            sending = Worker(client.send, "x" * 10_000_000)
            deaf.recv(1)
        error = sending.error()
        assert isinstance(error, ConnectionLost)
        assert error.delivery == "maybe_sent"


def test_close_wins_over_a_move_in_another_thread(server, address):
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(30):
            client = Client(address, backoff=SOON).connect()
            moving = Worker(client.on_message, print)
            client.close()
            moving.error()
            assert client.status is Status.IDLE
    finally:
        sys.setswitchinterval(before)


def test_connecting_twice_is_an_error(server, address):
    with Client(address) as client, pytest.raises(LocalProtocolError):
        client.connect()


def test_a_client_must_be_connected(address):
    with pytest.raises(LocalProtocolError, match="connect"):
        Client(address).request(1)


# Losing the connection, and coming back


def test_it_comes_back_to_a_server_that_was_restarted(server, address):
    client = Client(address, backoff=SOON, payload="me").connect()
    first = client.id
    assert client.call("add", 1, 2) == 3
    for _ in range(3):
        server.close(allow_reconnect=True)
        server.start()
        assert client.call("add", 1, 2) == 3
        assert client.id == first
        assert server.peers[first].payload == "me"
    assert direct(client)
    client.close()


def test_a_goodbye_for_good_ends_its_life(server, address):
    with Client(address) as client:
        server.close("enough")
        with pytest.raises(ConnectionClosed, match="enough") as caught:
            client.call("add", 1, 2)
        assert caught.value.by_peer
        assert caught.value.delivery == "not_sent"
        assert client.status is Status.IDLE


def test_without_backoff_it_does_not_come_back(server, address):
    with Client(address, backoff=None) as client:
        server.close(allow_reconnect=True)
        server.start()
        with pytest.raises(ConnectionLost):
            client.call("add", 1, 2)


def test_it_gives_up_after_so_many_attempts(server, address):
    backoff = Backoff(initial=0.001, cap=0.001, attempts=3)
    with Client(address, backoff=backoff) as client:
        server.close(allow_reconnect=True)
        with pytest.raises(ConnectionLost):
            client.call("add", 1, 2)
        assert client.status is Status.IDLE


def test_while_it_is_away_a_request_waits_for_its_timeout(server, address):
    with Client(address, backoff=SOON) as client:
        server.close(allow_reconnect=True)
        with pytest.raises(RequestTimeout) as caught:
            client.call("add", 1, 2, timeout=0.05)
        assert caught.value.delivery == "not_sent"
        assert client.status is Status.RECONNECTING
        assert client.outage is not None
        waiting = Worker(client.call, "add", 1, 2)
        server.start()
        assert waiting.result() == 3
        assert client.outage is None


def test_who_waits_is_told_that_the_connection_was_lost(address):
    gate = Gate()
    server = Server(address)
    server.method("slow")(gate.wait)
    with server, Client(address, backoff=SOON) as client:
        waiting = [Worker(client.call, "slow") for _ in range(3)]
        peer = server.peers[client.id]
        while peer.inflight < 3:
            assert waiting[0].running
        peer.abort()
        for each in waiting:
            error = each.error()
            assert isinstance(error, ConnectionLost)
            assert error.delivery == "maybe_sent"
        gate.open()
        assert client.ping() > 0


def test_close_tells_who_waits_and_the_server(address):
    gate, left = Gate(), Inbox()
    server = Server(address)
    server.method("slow")(gate.wait)
    server.on_disconnect(left.put)
    with server:
        client = Client(address).connect()
        waiting = [Worker(client.call, "slow") for _ in range(3)]
        peer = server.peers[client.id]
        while peer.inflight < 3:
            assert waiting[0].running
        assert client.close({"why": "tired"}) is True
        assert client.close() is False
        assert left.next() == (peer, {"why": "tired"})
        for each in waiting:
            assert isinstance(each.error(), ConnectionClosed)
        with pytest.raises(ConnectionClosed):
            client.ping()
        gate.open()


class Watched:
    """Sockets of clients, watched: the first that waits goes on only when the gate is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.waits, self.gate = Gate(), Gate()
        self.told: list[str] = []
        wait, close = getattr(UnixSocket, name), UnixSocket.close

        def waits(sock: UnixSocket, *args: Any, **kwargs: Any) -> Any:
            if self.waits.is_open:
                return wait(sock, *args, **kwargs)
            self.waits.open()
            result = wait(sock, *args, **kwargs)
            self.gate.wait()
            self.told.append("waited")
            return result

        def closes(sock: UnixSocket) -> None:
            self.told.append("closed")
            close(sock)

        monkeypatch.setattr(UnixSocket, name, waits)
        monkeypatch.setattr(UnixSocket, "close", closes)


@pytest.mark.parametrize("end", ["close", "abort"])
def test_the_descriptor_is_kept_as_long_as_a_thread_waits_to_be_let_in(address, monkeypatch, end):
    watched = Watched(monkeypatch, "wait")
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(address)
        mute.listen()
        client = Client(address)
        connecting = Worker(client.connect)
        watched.waits.wait()
        getattr(client, end)()
        watched.gate.open()
        assert isinstance(connecting.error(), ConnectionClosed)
    assert watched.told[:2] == ["waited", "closed"]


def test_the_descriptor_is_kept_as_long_as_a_thread_waits_to_send(server, address, monkeypatch):
    with Client(address) as client:
        server.pause()
        reading = Watched(monkeypatch, "wait")
        asking = Worker(client.call, "add", 1, 2)
        reading.waits.wait()
        sending = Watched(monkeypatch, "wait_to_send")
        flooding = Worker(flood, client)
        sending.waits.wait()
        client.abort()
        reading.gate.open()
        assert isinstance(asking.error(), ConnectionClosed)
        sending.gate.open()
        assert isinstance(flooding.error(), ConnectionLost)
    assert sending.told[:2] == ["waited", "closed"]


def flood(client: Client) -> None:
    while True:
        client.send(bytes(1_000_000))


def test_abort_ends_it_at_once(address):
    gate = Gate()
    server = Server(address)
    server.method("slow")(gate.wait)
    with server:
        client = Client(address).connect()
        waiting = Worker(client.call, "slow")
        peer = server.peers[client.id]
        while not peer.inflight:
            assert waiting.running
        client.abort("stop")
        assert isinstance(waiting.error(), ConnectionLost)
        gate.open()


def test_a_request_that_was_not_sent_is_asked_of_the_next_server(address):
    """The server is gone, and nobody has looked since."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Server(address))
        server.method("n")(lambda: 1)
        client = stack.enter_context(Client(address, backoff=SOON))
        for _ in range(20):
            assert client.call("n") == 1
            server.peers[client.id].abort()
            assert client.call("n") == 1


# Many threads


def test_threads_share_one_connection(server, address):
    @server.method
    def echo(n: int, size: int) -> tuple[int, bytes]:
        return n, bytes(size)

    with Client(address) as client:

        def ask(seed: int) -> int:
            choose = random.Random(seed)
            for n in range(100):
                size = choose.choice((0, 10, 1000, 70_000))
                if choose.random() < 0.1:
                    with contextlib.suppress(RequestTimeout):
                        client.call("echo", n, size, timeout=choose.choice((0.0001, 0.001)))
                elif choose.random() < 0.2:
                    client.send(bytes(size))
                else:
                    assert client.call("echo", n, size) == [n, bytes(size)]
            return seed

        workers = [Worker(ask, seed) for seed in range(8)]
        assert [worker.result() for worker in workers] == list(range(8))
        assert len(server.peers) == 1
        assert direct(client)
        assert client.ping() > 0


def test_a_short_timeout_is_kept_while_another_thread_reads(address):
    gate = Gate()
    server = Server(address)
    server.method("slow")(gate.wait)
    with server, Client(address) as client:
        long = Worker(client.call, "slow")
        peer = server.peers[client.id]
        while not peer.inflight:
            assert long.running
        with pytest.raises(RequestTimeout):
            client.call("slow", timeout=0.05)
        assert long.running
        gate.open()
        long.result()


def test_threads_survive_restarts(server, address):
    over, lost = Gate(), []

    def ask() -> int:
        count = 0
        while not over.is_open:
            try:
                assert client.call("add", count, 1) == count + 1
                count += 1
            except ConnectionLost as exc:
                lost.append(exc.delivery)
        return count

    with Client(address, backoff=SOON) as client:
        workers = [Worker(ask) for _ in range(4)]
        for _ in range(10):
            server.close(allow_reconnect=True, grace=0)
            server.start()
        over.open()
        assert all(worker.result() > 0 for worker in workers)
        assert {*lost} <= {"maybe_sent"}
        assert client.call("add", 1, 2) == 3


# Moving to the portal


@pytest.mark.parametrize(
    "move",
    [
        lambda client: client.on_message(print),
        lambda client: client.on_request(lambda data: data),
        lambda client: client.method("m")(lambda: 1),
        lambda client: client.publish("t", 1),
        lambda client: client.stream("s"),
        lambda client: client.subscribe("t"),
        lambda client: client.peer,
        lambda client: client.pause() or client.resume(),
    ],
    ids=["hook", "chain", "method", "publish", "stream", "subscribe", "peer", "pause"],
)
def test_it_moves_with_its_connection_and_its_id(server, address, move):
    left = Inbox()
    server.on_disconnect(left.put)
    with Client(address) as client:
        id, peer = client.id, server.peers[client.id]
        assert direct(client)
        move(client)
        assert not direct(client)
        assert client.call("add", 1, 2) == 3
        assert (client.id, client.status) == (id, Status.READY)
        assert server.peers[id] is peer
        assert left.empty


def test_what_waits_goes_along(address):
    gate = Gate()
    server = Server(address)

    @server.method
    def slow(call: Call, n: int) -> int:
        call.progress(n)
        gate.wait()
        call.progress(n + 1)
        return n

    heard: list[int] = []
    with server, Client(address) as client:
        waiting = [Worker(client.call, "slow", n) for n in range(4)]

        def listen() -> Any:
            return client.call("slow", 10, on_progress=heard.append)

        waiting.append(Worker(listen))
        peer = server.peers[client.id]
        while peer.inflight < 5 or not heard:
            assert waiting[0].running
        with client.subscribe("t") as items:
            server.publish("t", "moved")
            assert next(items).value == "moved"
        gate.open()
        assert [each.result() for each in waiting] == [0, 1, 2, 3, 10]
        assert heard[0] == 10
        assert not direct(client)


def test_many_threads_may_have_it_move(server, address):
    for _ in range(10):
        with Client(address) as client:
            workers = [Worker(client.call, "add", n, 1) for n in range(4)]
            movers = [Worker(client.publish, "t", n) for n in range(2)]
            workers += [Worker(client.call, "add", n, 1) for n in range(4, 8)]
            assert [worker.result() for worker in workers] == list(range(1, 9))
            assert all(mover.result() for mover in movers)
            assert len(server.peers) == 1


def test_a_client_that_is_away_moves_and_comes_back(server, address):
    with Client(address, backoff=SOON) as client:
        id = client.id
        server.close(allow_reconnect=True)
        got = Inbox()
        client.on_topic("t")(got.put)
        assert client.status in (Status.DISCONNECTED, Status.RECONNECTING, Status.CONNECTING)
        server.start()
        assert client.call("add", 1, 2) == 3
        assert client.id == id
        server.publish("t", 1)
        assert got.next().value == 1


def test_a_moved_client_answers_requests(server, address):
    @server.method
    def ask(call: Call) -> Any:
        return call.peer.request("who?")

    with Client(address) as client:
        client.on_request(lambda data: [data, "me"])
        assert client.call("ask") == ["who?", "me"]


def test_declared_errors_move_along(server, address):
    class Short(Exception):
        pass

    server.error(Short)

    @server.method
    def broken() -> None:
        raise Short

    with Client(address) as client:
        client.error(Short)
        client.on_message(print)
        with pytest.raises(Short):
            client.call("broken")


def test_a_client_with_a_host_is_direct_until_it_has_a_handler(server, address):
    host = Poll()
    with Client(address, host=host) as client:
        assert client.call("add", 1, 2) == 3
        assert direct(client)
        client.method("where")(lambda: threading.get_ident())
        asking = Worker(server.peers[client.id].call, "where")
        while asking.running:
            host.run_pending()
        assert asking.result() == threading.get_ident()


# Interrupts; the processes of test_blocking_process.py do the same from outside


# What an interrupt finds half made, such as a socket, is left to the garbage collector.
@pytest.mark.parametrize("end", ["close", "abort"])
@pytest.mark.parametrize("verb", ["call", "send"])
def test_a_signal_handler_may_end_a_client_that_is_writing(server, address, monkeypatch, verb, end):
    left, send = Inbox(), UnixSocket.send
    server.on_disconnect(left.put)
    ask = {"call": lambda: client.call("add", 1, 2, timeout=None), "send": lambda: client.send(1)}

    def interrupted(sock: UnixSocket, data: bytes) -> int:
        monkeypatch.setattr(UnixSocket, "send", send)
        signal.raise_signal(signal.SIGUSR1)
        return sock.send(data)

    client = Client(address).connect()
    before = signal.signal(signal.SIGUSR1, lambda *_: getattr(client, end)("enough"))
    monkeypatch.setattr(UnixSocket, "send", interrupted)
    try:
        with contextlib.suppress(ConnectionClosed):
            ask[verb]()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert left.next()[1] == "enough"
    assert client.status is Status.IDLE
    with pytest.raises(ConnectionClosed, match="enough"):
        client.ping()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no such timers here")
def test_an_interrupt_at_any_moment_leaves_a_usable_client(server, address):
    class Interrupted(BaseException):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupted

    choose = random.Random(1)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with Client(address, backoff=SOON) as client:
            interrupts = 0
            for n in range(300):
                try:
                    signal.setitimer(signal.ITIMER_REAL, choose.uniform(1e-6, 3e-3))
                    while True:
                        assert client.call("add", n, 1) == n + 1
                except Interrupted:
                    interrupts += 1
                signal.setitimer(signal.ITIMER_REAL, 0)
                assert client.call("add", n, 2) == n + 2
            assert interrupts == 300
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# Moving, with much under way


class HandMade:
    """A server at one end of a pair of sockets, which reads only when it is told to."""

    def __init__(self) -> None:
        mine, theirs = socket.socketpair()
        theirs.setblocking(False)
        self.sock = mine
        self.session = Session("server", dialects=("native", "classic"))
        self.seen = Recorder(self.session)
        credentials = Credentials(os.geteuid(), os.getpid(), os.getegid())
        session = Session("client", dialects=("native", "classic"))
        self.link = Link(UnixSocket(theirs, credentials), session)

    def until(self, name: str) -> Any:
        """Read until it is told of this; return what it is told. What it says is kept."""
        while True:
            for event in self.seen.take():
                if event[0] == name:
                    return event
            self.session.receive(self.sock.recv(65_536), self.seen.reactions)

    def say(self) -> None:
        self.sock.sendall(self.session.data_to_send())


def test_what_others_send_while_a_link_is_handed_over_is_sent_whole():
    there = HandMade()
    link = there.link
    opening = Worker(lambda: link.open(None, id=None, upgrade_to=None, until=monotonic() + WAIT))
    there.until("hello")
    there.session.accept("1")
    there.session.resume(there.seen.reactions)
    there.say()
    opening.result()
    encode = link.session.codec.encode
    asking = Worker(lambda: link.ask(link.session.request, encode("?"), timeout=None))
    nonce = there.until("request")[1]

    moving = Worker(link.hand_over)  # the one who asks reads, and is woken up by a ping
    while not there.session.queued:  # the answer to it
        there.session.receive(there.sock.recv(100), there.seen.reactions)
    sending = Worker(link.send, "x" * 5_000_000)
    there.sock.recv(1, socket.MSG_PEEK)  # it has begun
    with link._lock:
        assert link._out  # and did not get rid of it all
    there.say()
    there.until("message")
    sending.result()
    socket_of_it = moving.result()
    assert link._out == []

    there.session.respond(nonce, there.session.codec.encode("!"))  # which a loop would read
    link.session.receive(there.session.data_to_send(), link._react)
    assert link.session.codec.decode(asking.result()) == "!"
    socket_of_it.close()
    there.sock.close()
