from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from typing import Any

import pytest

from interphone import (
    Backoff,
    Client,
    ConnectError,
    ConnectionClosed,
    ConnectionLost,
    HandshakeError,
    Limits,
    LocalProtocolError,
    Overloaded,
    PayloadError,
    Peer,
    Refuse,
    Refused,
    RequestTimeout,
    Server,
    Status,
)
from support.ends import Raw, meeting, raised_by, until

SOON = Backoff(initial=0.001, cap=0.01)

# Connecting


def test_statuses_of_a_life(run, address):
    async def main() -> None:
        client, statuses = Client(address, backoff=SOON), []
        client.on_status(lambda status: statuses.append(status.name))
        async with Server(address) as server:
            assert await client.connect() is client
            await server.close(allow_reconnect=True)
            await until(lambda: client.status is Status.RECONNECTING)
        async with Server(address):
            await until(lambda: client.status is Status.READY)
            await client.close()
        once = list(dict.fromkeys(statuses))
        assert once == ["CONNECTING", "CONNECTED", "READY", "DISCONNECTED", "RECONNECTING", "IDLE"]
        assert statuses[-2:] == ["DISCONNECTED", "IDLE"]
        assert [int(status) for status in Status] == [0, 1, 2, 3, 4, 5]

    run(main())


def test_nobody_there_is_a_connect_error_within_the_timeout(run, address):
    async def main() -> None:
        client = Client(address, connect_timeout=0.05)
        error = await raised_by(client.connect())
        assert isinstance(error, ConnectError)
        assert "within 0.05 s" in str(error)
        assert "nobody listens there" in str(error)
        assert client.status is Status.IDLE

    run(main())


def test_connect_waits_for_a_server_that_comes_later(run, address):
    async def main() -> None:
        client = Client(address, connect_timeout=None, backoff=SOON)
        connecting = asyncio.ensure_future(client.connect())
        await until(lambda: client.outage and client.outage.attempts > 2)
        assert isinstance(client.outage.error, ConnectError)
        async with Server(address):
            await connecting
            assert client.outage is None
            await client.close()

    run(main())


def test_one_attempt_without_backoff(run, address):
    async def main() -> None:
        error = await raised_by(Client(address, backoff=None).connect())
        assert isinstance(error, ConnectError)
        assert error.transient

    run(main())


def test_node_schedule_gives_up_after_four_attempts():
    schedule = Backoff.node()

    waits = [schedule.wait(retry) for retry in (1, 2, 3)]

    assert schedule.attempts == 4
    assert waits == [0.5, 1.0, 1.5]


def test_default_schedule_grows_with_full_jitter_up_to_the_cap():
    schedule = Backoff()

    waits = {retry: [schedule.wait(retry) for _ in range(500)] for retry in (1, 4, 50)}

    assert schedule.attempts is None
    assert 0.04 < max(waits[1]) <= 0.05
    assert 0.15 < max(waits[4]) <= 0.05 * 1.6**3
    assert 4 < max(waits[50]) <= 5
    assert min(waits[50]) < 1


@pytest.mark.parametrize("wrong", [{"initial": 0}, {"factor": 0.5}, {"cap": 0}, {"attempts": 0}])
def test_schedule_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        Backoff(**wrong)


def test_giving_up_counts_attempts(run, address):
    async def main() -> None:
        client = Client(address, backoff=Backoff(initial=0.001, cap=0.001, attempts=3))
        attempts = []
        client.on_status(lambda s: attempts.append(s) if s is Status.CONNECTING else None)
        assert isinstance(await raised_by(client.connect()), ConnectError)
        assert len(attempts) == 3

    run(main())


def test_silent_server_is_given_up_on(run, address):
    async def main() -> None:
        async with Raw.serve(address):
            error = await raised_by(Client(address, connect_timeout=0.05).connect())
            assert isinstance(error, ConnectError)
            limits = Limits(handshake_timeout=0.02)
            error = await raised_by(Client(address, limits=limits, backoff=None).connect())
            assert isinstance(error, ConnectError)
            assert "0.02" in str(error)

    run(main())


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"HTTP/1.1 404 Not Found", HandshakeError),
        (b"\x00\x00\x00\x00\x00\x00", HandshakeError),
        ({"t": 6, "d": {"m": "go away", "a": False}}, HandshakeError),
        ({"t": 6, "d": {"m": "no", "a": False}, "e": {"code": "refused"}}, Refused),
        ({"t": 1, "d": "too early"}, HandshakeError),
    ],
    ids=str,
)
def test_server_that_says_anything_else_settles_connect(run, address, said, error):
    async def main() -> None:
        async with Raw.serve(address) as comers:
            client = Client(address, backoff=None)
            connecting = asyncio.ensure_future(raised_by(client.connect()))
            raw = await comers.get()
            raw.write(said)
            if isinstance(said, bytes):
                raw.end()
            assert type(await connecting) is error
            assert client.status is Status.IDLE

    run(main())


no_numbers = pytest.mark.skipif(sys.platform == "win32", reason="users have no number")


@pytest.mark.parametrize(
    "why", ["refused", pytest.param("another user", marks=no_numbers), "another protocol"]
)
def test_connect_stops_at_once_where_trying_again_cannot_help(run, address, why):
    async def main() -> None:
        server, attempts = Server(address), []
        server.authorize(lambda peer, payload: (_ for _ in ()).throw(Refuse("no")))

        async def say_something_else(comers: asyncio.Queue[Raw]) -> None:
            raw = await comers.get()
            raw.write(b"\x00" * 10)
            await raw.rest()

        async with contextlib.AsyncExitStack() as stack:
            uids = {"allowed_uids": [os.geteuid() + 1]} if why == "another user" else {}
            client = Client(address, connect_timeout=None, backoff=SOON, **uids)
            client.on_status(lambda s: attempts.append(s) if s is Status.CONNECTING else None)
            connecting = raised_by(client.connect())
            if why == "another protocol":
                comers = await stack.enter_async_context(Raw.serve(address))
                error, _ = await asyncio.gather(connecting, say_something_else(comers))
            else:
                await stack.enter_async_context(server)
                error = await connecting
            assert isinstance(error, ConnectError)
            assert not error.transient
            assert len(attempts) == 1

    run(main())


def test_second_connect_is_an_error(run, address):
    async def main() -> None:
        async with Server(address), Client(address) as client:
            with pytest.raises(LocalProtocolError, match="READY"):
                await client.connect()

    run(main())


def test_cancelled_connect_leaves_nothing(run, address):
    async def main() -> None:
        async with Raw.serve(address) as comers:
            client = Client(address)
            connecting = asyncio.ensure_future(client.connect())
            raw = await comers.get()
            connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await connecting
            assert (await raw.rest()).startswith(b"IPC")
            assert client.status is Status.IDLE

    run(main())


@pytest.mark.parametrize("verb", ["close", "abort"])
@pytest.mark.parametrize("there", ["silent", "nobody"])
def test_close_while_connecting_settles_connect(run, address, verb, there):
    async def main() -> None:
        async with Raw.serve(address if there == "silent" else address + "2"):
            client = Client(address, connect_timeout=None)
            connecting = asyncio.ensure_future(raised_by(client.connect()))
            await until(lambda: client.status is not Status.IDLE)
            result = getattr(client, verb)("changed my mind")
            if verb == "close":
                await result
            assert isinstance(await connecting, ConnectionClosed)
            assert client.status is Status.IDLE

    run(main())


def test_payload_without_a_form_on_the_wire_is_refused(run, address):
    async def main() -> None:
        async with Server(address):
            client = Client(address)
            with pytest.raises(PayloadError):
                await client.connect(object())
            await client.connect()
            await client.close()

    run(main())


def test_verbs_before_connect_say_so(run, address):
    async def main() -> None:
        client = Client(address)
        for verb in (client.send(1), client.request(1), client.ping(), client.publish("a", 1)):
            with pytest.raises(LocalProtocolError, match="connect"):
                await verb
        with pytest.raises(LocalProtocolError):
            _ = client.peer
        with pytest.raises(LocalProtocolError):
            async with client.subscribe("a"):
                pass
        assert await client.close() is False
        client.abort()

    run(main())


def test_handlers_registered_right_after_connect_hear_the_first_messages(run, address):
    async def main() -> None:
        async with Raw.serve(address) as comers:
            client, got = Client(address), []
            connecting = asyncio.ensure_future(connect_and_listen(client, got))
            raw = await comers.get()
            assert await raw.reader.readexactly(3) == b"IPC"
            await raw.packet()
            raw.write(
                {"t": 0, "d": {"id": "x", "compress": False, "messagepack": False}},
                {"t": 1, "d": "early"},
                {"t": 2, "d": "ask", "n": "7"},
            )
            await connecting
            await until(lambda: len(got) == 2)
            assert got == ["early", "ask"]
            assert (await raw.packet())["t"] == 3
            await client.close()

    async def connect_and_listen(client: Client, got: list[Any]) -> None:
        await client.connect()
        client.on_message(got.append)
        client.on_request(on="inline")(got.append)

    run(main())


# Coming back


def test_client_comes_back_with_payload_id_and_subscriptions(run, address):
    async def main() -> None:
        log, got = [], []
        client = Client(address, backoff=SOON)
        client.on_topic("news")(lambda publication: got.append(publication.value))
        client.on_ready(lambda peer: log.append(("ready", peer.id)))
        for round_ in range(3):
            server = Server(address)
            server.on_connect(lambda peer, payload: log.append((payload, peer.id)))
            async with server:
                if not round_:
                    await client.connect({"me": 1})
                await until(lambda n=round_: len(log) == 2 * n + 2)
                receipt = await server.publish("news", round_)
                assert receipt.matched == 1
                await until(lambda n=round_: len(got) == n + 1)
                await server.close(allow_reconnect=True)
        await client.close()
        assert got == [0, 1, 2]
        assert log == [({"me": 1}, client.id), ("ready", client.id)] * 3

    run(main())


def test_client_is_ready_when_its_subscriptions_are_restored_and_no_sooner(run, address):
    async def main() -> None:
        async with Raw.serve(address) as comers:
            client, ready = Client(address, backoff=SOON), []
            client.on_ready(lambda peer: ready.append(client.status))
            client.on_topic("a")(print)
            for round_ in range(2):  # a first time, and one of coming back
                if not round_:
                    connecting = asyncio.ensure_future(client.connect())
                raw = await comers.get()
                await raw.let_in()
                sub = await raw.packet()
                assert sub["d"] == {"sub": "a"}
                raw.write({"t": 4, "n": "p"})
                assert (await raw.packet())["t"] == 5  # it had every chance
                assert client.status is not Status.READY
                assert len(ready) == round_
                raw.write({"t": 3, "d": {"result": True}, "n": sub["n"]})
                await until(lambda n=round_: len(ready) == n + 1)
                raw.writer.transport.abort()
                await until(lambda: client.status is not Status.READY)
            await connecting
            assert ready == [Status.READY] * 2
            client.abort()

    run(main())


def test_request_made_while_away_is_sent_when_it_is_back(run, address):
    async def main() -> None:
        client = Client(address, backoff=SOON)
        async with Server(address) as server:
            await client.connect()
            await server.close(allow_reconnect=True)
        asking = asyncio.ensure_future(client.request("x"))
        sending = asyncio.ensure_future(client.send("y"))
        await asyncio.sleep(0)
        got: list[Any] = []
        async with Server(address) as server:
            server.on_request(lambda peer, data: data)
            server.on_message(lambda peer, data: got.append(data))
            assert await asking == "x"
            await sending
            await until(lambda: got)
            await client.close()

    run(main())


def test_request_made_while_away_waits_its_own_timeout_and_was_not_sent(run, address):
    async def main() -> None:
        client = Client(address, backoff=SOON)
        async with Server(address) as server:
            await client.connect()
            await server.close(allow_reconnect=True)
        for verb in (client.request, client.send):
            error = await raised_by(verb("x", timeout=0.02))
            assert isinstance(error, RequestTimeout)
            assert error.delivery == "not_sent"
        await client.close()

    run(main())


def test_pending_request_is_not_sent_again(run, address):
    async def main() -> None:
        client, asked = Client(address, backoff=SOON), []
        server = Server(address)

        @server.on_request
        async def hang_up(peer: Any, data: object) -> None:
            asked.append(data)
            peer.abort()

        async with server:
            await client.connect()
            error = await raised_by(client.request("x"))
            assert isinstance(error, ConnectionLost)
            assert error.delivery == "maybe_sent"
            await until(lambda: client.status is Status.READY)
            assert await client.ping() > 0
            assert asked == ["x"]
            await client.close()

    run(main())


def test_giving_up_tells_every_waiter_and_iterator(run, address):
    async def main() -> None:
        client = Client(address, backoff=Backoff(initial=0.01, cap=0.01, attempts=3))
        closed, errors = [], []
        client.on_close(closed.append)
        client.on_error(errors.append)
        async with Server(address) as server:
            await client.connect()
            items = client.subscribe("a")
            await items.__aenter__()
            reading = asyncio.ensure_future(raised_by(anext(items)))
            await server.close(allow_reconnect=True)
        asking = asyncio.ensure_future(raised_by(client.request("x", timeout=None)))
        for error in (await reading, await asking):
            assert isinstance(error, ConnectionLost)
        assert len(closed) == 1
        assert errors
        assert client.status is Status.IDLE
        assert isinstance(await raised_by(client.send("x")), ConnectionLost)
        await items.close()

    run(main())


@pytest.mark.parametrize("verb", ["close", "abort"])
def test_close_stops_a_client_that_is_coming_back(run, address, verb):
    async def main() -> None:
        client, closed = Client(address, backoff=Backoff(initial=60, jitter=False, cap=60)), []
        client.on_close(closed.append)
        async with Server(address) as server:
            await client.connect()
            subscription = client.subscribe("a")
            await subscription.__aenter__()
            reading = asyncio.ensure_future(raised_by(anext(subscription)))
            await server.close(allow_reconnect=True)
        await until(lambda: client.outage)
        assert (client.outage.wait, client.outage.attempts) == (60, 1)
        asking = asyncio.ensure_future(raised_by(client.request("x", timeout=None)))
        await asyncio.sleep(0)
        if verb == "close":
            assert await client.close("bye") is True
        else:
            client.abort("bye")
        assert isinstance(await asking, ConnectionLost)
        assert isinstance(await reading, StopAsyncIteration | None)
        assert closed == ["bye"]
        await client.close()

    run(main())


def test_refusal_on_the_way_back_is_final(run, address):
    async def main() -> None:
        client = Client(address, backoff=SOON)
        client.on_error(lambda error: None)
        async with Server(address) as server:
            await client.connect()
            await server.close(allow_reconnect=True)
        strict = Server(address)

        @strict.authorize
        def refuse(peer: Any, payload: object) -> None:
            raise Refuse("not any more")

        async with strict:
            reason = await client.wait_closed()
            assert isinstance(reason, Refused)
            assert reason.reason == "not any more"
            await client.close()

    run(main())


def test_goodbye_of_the_server_ends_the_client(run, address):
    async def main() -> None:
        async with Server(address) as server:
            client = await Client(address).connect()
            await next(iter(server.peers.values())).close("enough")
            assert await client.wait_closed() == "enough"
            error = await raised_by(client.request("x"))
            assert isinstance(error, ConnectionClosed)
            assert (error.reason, error.by_peer, error.delivery) == ("enough", True, "not_sent")
            await client.connect()
            assert await client.ping() > 0
            await client.close()

    run(main())


def test_killed_server_fails_what_is_pending_and_its_client_comes_back(run, address):
    program = f"""
import asyncio, interphone
server = interphone.Server({address!r})
@server.on_request
async def never(peer, data):
    print("asked", flush=True)
    await asyncio.Event().wait()
interphone.run(server.serve_forever())
"""

    async def main() -> None:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
        )
        assert child.stdout is not None
        client = Client(address, backoff=SOON)
        await client.connect()
        pending = [
            asyncio.ensure_future(raised_by(client.request(n, timeout=None))) for n in (1, 2)
        ]
        await child.stdout.readline()
        child.kill()
        for error in await asyncio.gather(*pending):
            assert isinstance(error, ConnectionLost)
            assert error.delivery == "maybe_sent"
        await child.wait()
        async with Server(address):
            assert await client.ping() > 0
            await client.close()
        child._transport.close()  # type: ignore[attr-defined]  # asyncio leaves it to the collector

    run(main())


def test_gap_is_counted_and_yielded_to_who_asked(run, address):
    async def main() -> None:
        client = Client(address, backoff=SOON)
        async with Server(address) as server:
            await client.connect()
            asked, unasked = client.subscribe("a", gaps=True), client.subscribe("a")
            async with asked, unasked:
                await server.publish("a", 1)
                assert (await anext(asked)).value == 1
                await server.close(allow_reconnect=True)
                async with Server(address) as server2:
                    await until(lambda: client.status is Status.READY)
                    await server2.publish("a", 2)
                    assert repr(await anext(asked)) == "Gap(resumed=False)"
                    assert (await anext(asked)).value == 2
                    assert [(await anext(unasked)).value for _ in range(2)] == [1, 2]
                    assert (asked.gaps, unasked.gaps) == (1, 1)
                    await client.close()

    run(main())


def test_pause_outlives_the_connection(run, address):
    async def main() -> None:
        server, got = Server(address), []
        async with meeting(server, backoff=SOON) as client:
            client.on_message(got.append)
            client.pause()
            before = client.peer
            before.abort()
            await until(lambda: client._peer not in (None, before))
            await server.broadcast(1)
            assert client.peer.paused
            client.resume()
            await until(lambda: got)

    run(main())


# Publish and subscribe


@pytest.mark.parametrize("value", [0, "", False, None, [], {}, "x", {"pub": "a"}], ids=repr)
def test_any_value_is_published_both_ways(run, address, value):
    async def main() -> None:
        server = Server(address)
        async with meeting(server) as client, Client(address) as other:
            async with client.subscribe("a", "b") as items, server.subscribe("a") as heard:
                receipts = [await other.publish("a", value), await server.publish("b", value)]
                got = [await anext(items), await anext(items)]
                assert [(item.topic, item.value) for item in got] == [("a", value), ("b", value)]
                assert (await anext(heard)).value == value
                assert [(r.matched, r.queued, r.dropped) for r in receipts] == [
                    (2, 2, 0),
                    (1, 1, 0),
                ]
            receipt = await other.publish("a", value)
            assert receipt
            assert receipt.matched == 0

    run(main())


def test_publisher_that_subscribed_gets_its_delivery_before_the_answer(run, address):
    async def main() -> None:
        server = Server(address)
        async with meeting(server) as client, client.subscribe("a") as items:
            await client.publish("a", 1)
            assert repr(items).endswith("queued 1>")

    run(main())


def test_lifecycle_names_are_ordinary_topics(run, address):
    async def main() -> None:
        server, raised = Server(address), []
        async with meeting(server) as client:
            for hook in (client.on_close, client.on_error, client.on_ready, client.on_message):
                hook(raised.append)
            names = (
                "close",
                "error",
                "ready",
                "status",
                "message",
                "__proto__",
                "constructor",
                "/x/",
            )
            async with client.subscribe(*names) as items:
                for name in names:
                    await server.publish(name, 1)
                    assert (await anext(items)).topic == name
            assert raised == []

    run(main())


def test_unsubscribed_topic_is_not_delivered(run, address):
    async def main() -> None:
        server, got = Server(address), []
        async with meeting(server) as client:

            @client.on_topic("a", "b")
            def read(publication: Any) -> None:
                got.append(publication.topic)

            async with client.subscribe("a", "b") as items, client.subscribe("a") as others:
                await items.unsubscribe("a")
                assert items.topics == ("b",)
                assert (await server.publish("a", 1)).matched == 2  # the handler, and others
                await client.ping()
                await client.unsubscribe("a")
                assert (await server.publish("a", 1)).matched == 0
                assert await anext(others) is not None
                with pytest.raises(StopAsyncIteration):
                    await anext(others)
                await server.publish("b", 1)
                assert (await anext(items)).topic == "b"
            await until(lambda: got == ["a", "b"])

    run(main())


def test_subscription_ends_with_its_client(run, address):
    async def main() -> None:
        server = Server(address)
        async with meeting(server) as client, client.subscribe("a") as items:
            await server.publish("a", 1)
            reading = asyncio.ensure_future(collect(items))
            await client.ping()
            await client.close()
            assert await reading == [1]

    async def collect(items: Any) -> list[Any]:
        return [item.value async for item in items]

    run(main())


@pytest.mark.parametrize("by", ["server", "peer"])
def test_subscription_ends_normally_when_the_other_side_closes(run, address, by):
    async def main() -> None:
        server = Server(address)
        async with server, server.subscribe("a") as ours:
            client = await Client(address).connect()
            async with client.subscribe("a") as theirs:
                await server.publish("a", 1)
                if by == "server":
                    await server.close("bye")
                    assert [item.value async for item in ours] == [1]
                else:
                    await next(iter(server.peers.values())).close("bye")
                assert [item.value async for item in theirs] == [1]
            await client.close()

    run(main())


def test_subscriptions_of_a_peer_end_with_its_connection(run, address):
    async def main() -> None:
        server = Server(address)
        async with server, Client(address) as client:
            await client.subscribe("a").__aenter__()
            assert (await server.publish("a", 1)).matched == 1
            await client.close()
            await until(lambda: not server.peers)
            assert (await server.publish("a", 1)).matched == 0

    run(main())


@pytest.mark.parametrize(("topics", "fits"), [(2, True), (3, True), (4, False)])
def test_subscriptions_of_a_peer_are_limited(run, address, topics, fits):
    async def main() -> None:
        server = Server(address, limits=Limits(max_subscriptions=3))
        async with meeting(server) as client:
            names = [f"t{n}" for n in range(topics)]
            error = await raised_by(client.subscribe(*names).__aenter__())
            assert isinstance(error, Overloaded) is not fits
            assert (await server.publish("t0", 1)).matched == int(fits)

    run(main())


@pytest.mark.parametrize(("topics", "fits"), [(1, True), (2, True), (3, False)])
def test_subscriptions_of_all_peers_are_limited(run, address, topics, fits):
    async def main() -> None:
        server = Server(address, max_subscriptions=3)
        async with meeting(server) as client, Client(address) as other, other.subscribe("mine"):
            names = [f"t{n}" for n in range(topics)]
            error = await raised_by(client.subscribe(*names).__aenter__())
            assert isinstance(error, Overloaded) is not fits

    run(main())


def test_message_that_looks_like_a_publication_is_a_message(run, address):
    async def main() -> None:
        server, got = Server(address), []
        async with meeting(server) as client:
            client.on_message(got.append)
            async with client.subscribe("a"):
                await server.broadcast({"pub": "a", "message": 1})
                await until(lambda: got)
        assert got == [{"pub": "a", "message": 1}]

    run(main())


def test_publication_of_a_node_server_counts_only_where_it_was_asked_for(run, address):
    async def main() -> None:
        async with Raw.serve(address) as comers:
            client, got = Client(address), []
            client.on_message(got.append)
            connecting = asyncio.ensure_future(client.connect())
            raw = await comers.get()
            await raw.let_in()
            await connecting
            entering = asyncio.ensure_future(client.subscribe("a").__aenter__())
            request = await raw.packet()
            assert (request["t"], request["d"]) == (2, {"sub": "a"})
            raw.write({"t": 3, "d": {"result": True}, "n": request["n"]})
            items = await entering
            for topic in ("b", "a"):
                raw.write({"t": 1, "d": {"pub": topic, "message": 0, "extra": 1}})
            assert (await anext(items)).value == 0
            assert got == [{"pub": "b", "message": 0, "extra": 1}]
            client.abort()

    run(main())


# Slow subscribers


def test_stopped_subscriber_delays_nobody_and_is_cut_off(run, address):
    async def main() -> None:
        limits = Limits(hard_queue=300_000)
        server, reasons = Server(address, limits=limits), []
        server.on_disconnect(lambda peer, reason: reasons.append(reason))
        server.on_error(lambda error, peer: None)
        async with meeting(server) as live, Raw.connect(address) as stopped:
            await stopped.open()
            stopped.write({"t": 2, "d": {"sub": "a"}, "n": "1"})
            assert (await stopped.packet())["d"] == {"result": True}
            stopped.writer.transport.pause_reading()
            got: list[int] = []
            live.on_topic("a")(lambda publication: got.append(publication.value[0]))
            await until(lambda: len(server._exchange._topics.matching("a")) == 2)
            receipts = [await server.publish("a", [n, "x" * 5000]) for n in range(300)]
            await until(lambda: len(got) == 300)
            assert got == list(range(300))
            await until(lambda: reasons)
            assert reasons[0].code == "slow-consumer"
            assert receipts[0].queued == 2
            assert receipts[-1].matched == 1

    run(main())


def test_subscriber_that_takes_nothing_is_cut_off_in_time(run, address):
    async def main() -> None:
        limits = Limits(soft_queue=1000, stalled_after=0.05)
        server, reasons = Server(address, limits=limits), []
        server.on_disconnect(lambda peer, reason: reasons.append(reason))
        server.on_error(lambda error, peer: None)
        async with server, Raw.connect(address) as stopped:
            await stopped.open()
            stopped.writer.transport.pause_reading()
            (peer,) = server.peers.values()
            while not peer.connection.blocked:
                await peer.send("x" * 50_000)
            await until(lambda: reasons)
            assert reasons[0].code == "slow-consumer"

    run(main())


def test_reconnecting_client_survives_a_server_that_comes_and_goes(run, address):
    async def main() -> None:
        client = Client(address, backoff=SOON)
        for n in range(10):
            server = Server(address)
            server.on_request(lambda peer, data: data)
            async with server:
                if not n:
                    await client.connect()
                assert await client.request(n) == n
                if n % 2:
                    before = client.peer
                    server.peers[before.id].abort()
                    await until(lambda peer=before: not peer.open)
                await server.close(allow_reconnect=True)
        await client.close()

    run(main())


@pytest.mark.skipif(sys.platform == "win32", reason="a pipe is no file")
def test_path_that_is_a_file_is_not_touched_by_either_end(run, address):
    async def main() -> None:
        await asyncio.to_thread(_write, address)
        error = await raised_by(Client(address, connect_timeout=0.05).connect())
        assert isinstance(error, ConnectError)
        assert await asyncio.to_thread(os.path.getsize, address) == 4

    run(main())


def _write(path: str) -> None:
    with open(path, "w") as file:
        file.write("mine")


def test_publication_of_a_node_client_that_one_of_us_cannot_take_harms_nobody(run, address):
    async def main() -> None:
        server = Server(address)
        async with meeting(server) as client, client.subscribe("a") as items:
            async with Raw.connect(address) as raw:
                await raw.open()
                raw.write({"t": 2, "d": {"sub": "a"}, "n": "1"})
                assert (await raw.packet())["d"] == {"result": True}
                for value in ("\ud800", "fine"):
                    raw.write({"t": 2, "d": {"pub": "a", "message": value}, "n": "2"})
                    assert (await raw.packet())["d"] == {"pub": "a", "message": value}
                    assert (await raw.packet())["d"] == {"result": True}
            assert (await anext(items)).value == "fine"
            assert client.peer.counts.unreadable == 0

    run(main())


def test_connect_cancelled_in_the_step_where_it_stands_leaves_no_connection(run, address):
    async def main() -> None:
        async with Server(address) as server:
            client = Client(address)
            connecting = asyncio.ensure_future(client.connect())
            client.on_ready(lambda peer: connecting.cancel())
            with pytest.raises(asyncio.CancelledError):
                await connecting
            assert client.status is Status.IDLE
            await until(lambda: not server.peers)

    run(main())


def test_abort_in_a_status_handler_stops_connecting(run, address):
    async def main() -> None:
        async with Server(address) as server:
            client = Client(address)
            client.on_status(lambda status: client.abort() if status is Status.CONNECTING else None)
            assert isinstance(await raised_by(client.connect()), ConnectionClosed)
            assert client.status is Status.IDLE
            await until(lambda: not server.peers)

    run(main())


def test_publish_that_waits_for_room_keeps_its_timeout(run, address):
    async def main() -> None:
        server = Server(address)
        async with meeting(server) as client:
            (peer,) = server.peers.values()
            peer.connection.stop_reading("test")
            first = asyncio.ensure_future(
                raised_by(client.publish("a", "x" * 400_000, timeout=0.1))
            )
            await until(lambda: client.peer.connection.blocked)
            error = await raised_by(client.publish("a", "x", timeout=0.02))
            assert isinstance(error, RequestTimeout)
            assert error.delivery == "not_sent"
            assert isinstance(await first, RequestTimeout)
            peer.connection.go_on_reading("test")

    run(main())


def test_subscription_that_overflowed_is_ended_at_the_server_too(run, address):
    async def main() -> None:
        server = Server(address)
        async with meeting(server) as client:
            async with client.subscribe("a", queue=1) as items:
                for n in range(3):
                    await server.publish("a", n)
                await until(lambda: items.ended)
            assert (await server.publish("a", 1)).matched == 0
            with pytest.raises(LocalProtocolError, match="once"):
                async with items:
                    pass

    run(main())


def test_cancelled_subscribe_leaves_nothing_at_the_server(run, address):
    async def main() -> None:
        server = Server(address)
        async with meeting(server) as client:
            entering = asyncio.ensure_future(client.subscribe("a").__aenter__())
            await asyncio.sleep(0)
            entering.cancel()
            with pytest.raises(asyncio.CancelledError):
                await entering
            await client.ping()
            assert (await server.publish("a", 1)).matched == 0

    run(main())


def test_handler_registered_while_others_are_restored_is_subscribed_too(run, address):
    async def main() -> None:
        for turns in range(12):
            server, got = Server(address), []
            client = Client(address)
            client.on_topic("a")(lambda publication, got=got: got.append(publication.topic))
            async with server:
                connecting = asyncio.ensure_future(client.connect())
                for _ in range(turns):
                    await asyncio.sleep(0)
                client.on_topic("b")(lambda publication, got=got: got.append(publication.topic))
                await connecting
                await client.ping()
                await server.publish("b", 1)
                await until(lambda got=got: got == ["b"])
                await client.close()

    run(main())


@pytest.mark.parametrize(
    "shown",
    [None, {"version": 1, "dialects": ["classic"], "can": ["topics"]}],
    ids=["node", "interphone"],
)
def test_what_changes_until_the_client_stands_is_told_before_it_does(run, address, shown):
    async def main() -> None:
        async with Raw.serve(address) as comers:
            client = Client(address, backoff=None)

            async def asked(kind: str, topic: str) -> str:
                packet = await raw.packet()
                assert packet["d"] == {kind: topic}
                assert not connecting.done()
                nonce: str = packet["n"]
                return nonce

            def answer(nonce: str) -> None:
                raw.write({"t": 3, "d": {"result": True}, "n": nonce})

            client.on_topic("a")(print)
            connecting = asyncio.ensure_future(client.connect())
            raw = await comers.get()
            await raw.let_in(**({} if shown is None else {"interphone": shown}))
            nonce = await asked("sub", "a")
            await client.unsubscribe("a")
            answer(nonce)
            nonce = await asked("unsub", "a")
            client.on_topic("late")(print)
            answer(nonce)
            nonce = await asked("sub", "late")
            await client.unsubscribe("late")
            answer(nonce)
            answer(await asked("unsub", "late"))
            await connecting
            client.abort()

    run(main())


def test_topic_handler_lives_on_when_the_client_is_connected_again(run, address):
    async def main() -> None:
        server, client, got = Server(address), Client(address), []

        @client.on_topic("a")
        async def slow(publication: Any) -> None:
            got.append(publication.value)
            await asyncio.sleep(0 if publication.value else 60)

        async with server:
            await client.connect()
            await server.publish("a", 0)
            await until(lambda: got)
            await client.close(grace=0)
            await client.connect()
            for n in (1, 2):
                await server.publish("a", n)
            await until(lambda: got == [0, 1, 2])
            await client.close()

    run(main())


def test_topic_handler_survives_what_it_awaits_being_cancelled(run, address):
    async def main() -> None:
        server, got = Server(address), []
        async with meeting(server) as client:
            client.on_error(lambda error: got.append(type(error)))

            @client.on_topic("a")
            async def handle(publication: Any) -> None:
                got.append(publication.value)
                if publication.value == 1:
                    future = asyncio.get_running_loop().create_future()
                    future.cancel()
                    await future

            await client.ping()
            for n in (1, 2):
                await server.publish("a", n)
            await until(lambda: got == [1, RuntimeError, 2])

    run(main())


def test_client_that_is_closed_when_it_hears_of_the_loss_can_connect_again(run, address):
    async def main() -> None:
        server = Server(address)

        @server.on_request
        async def hang_up(peer: Peer, data: object) -> object:
            if data == "hang up":
                peer.connection.abort()
            return data

        async with server:
            client = await Client(address).connect()
            try:
                await client.request("hang up")
            except ConnectionLost:
                await client.close()
            assert isinstance(await raised_by(client.request(1, timeout=None)), ConnectionLost)
            await client.connect()
            assert await client.request(1) == 1
            await client.close()

    run(main())


def test_goodbye_for_good_is_final_also_while_subscriptions_are_restored(run, address):
    async def main() -> None:
        server, connected = Server(address), []

        @server.on_connect
        async def send_away(peer: Peer, payload: object) -> None:
            connected.append(peer)
            await peer.close("for good")

        async with server:
            client = Client(address)
            client.on_topic("a")(lambda item: None)
            error = await raised_by(client.connect())
            assert isinstance(error, ConnectionClosed)
            assert error.reason == "for good"
            assert len(connected) == 1

    run(main())
