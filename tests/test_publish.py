"""Publish and subscribe between interphone ends: patterns, last values, groups, acks, block."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import chain
from typing import Any

import pytest

from interphone import (
    Backoff,
    Client,
    Limits,
    Overflow,
    Overloaded,
    PayloadError,
    Publication,
    Receipt,
    Server,
    TopicError,
    Unsupported,
    exchange,
    feed,
)
from interphone.transports import Credentials
from support.ends import Raw, meeting, raised_by, until

OURS = {"version": 1, "dialects": ["classic"], "can": ["topics"]}
OLDER = {"version": 1, "dialects": ["classic"]}

both_dialects = pytest.mark.parametrize("dialect", ["native", "classic"])
both_publishers = pytest.mark.parametrize("by", ["server", "client"])


@asynccontextmanager
async def everybody(address: str, dialect: Any, **options: Any) -> AsyncIterator[tuple[Any, Any]]:
    """A server, and a client that speaks this dialect with it."""
    server = Server(address, **options)
    async with meeting(server, dialect=dialect, backoff=Backoff(initial=0.001)) as client:
        yield server, client


async def values(items: Any, count: int) -> list[Any]:
    async with asyncio.timeout(10):
        return [(await anext(items)).value for _ in range(count)]


async def sub(raw: Raw, *topics: str, id: int = 1, **terms: Any) -> Any:
    """Subscribe by hand; return the answer and what came before it."""
    raw.write(
        {"t": 2, "d": {"sub": list(topics)}, "n": f"s{id}", "k": "sub", "o": {"id": id, **terms}}
    )
    before = []
    while (packet := await raw.packet())["t"] != 3:
        before.append(packet)
    return packet, before


def room_taken(server: Server) -> Any:
    """What waits for room anywhere."""
    lanes = server._exchange._topics.subscribers()
    return [parked for lane in lanes for parked in lane.parked]


async def cut(server: Server, client: Client) -> None:
    """Break the client's connection, and wait until it is back."""
    (peer,) = (peer for peer in server.peers.values() if peer.id == client.id)
    gone = client.peer
    peer.abort("cut")
    await until(lambda: client.status == 3 and client.peer is not gone)


# Patterns


@both_dialects
@both_publishers
def test_pattern_hears_what_it_matches(run, address, dialect, by):
    async def main() -> None:
        async with everybody(address, dialect) as (server, client):
            publisher = server if by == "server" else client
            async with (
                client.subscribe("news.*", "log.>") as theirs,
                server.subscribe("news.*", "log.>") as ours,
            ):
                for topic in ("news", "news.a", "news.a.b", "log", "log.a", "log.a.b"):
                    await publisher.publish(topic, topic)
                for items in (theirs, ours):
                    assert await values(items, 3) == ["news.a", "log.a", "log.a.b"]

    run(main())


def test_handlers_take_patterns_and_leave_them(run, address):
    async def main() -> None:
        got: list[Any] = []
        async with everybody(address, "native") as (server, client):

            @client.on_topic("a.*")
            @server.on_topic("a.*")
            def hear(publication: Publication[Any]) -> None:
                got.append(publication.topic)

            await client.publish("a.b", 1)
            await until(lambda: got == ["a.b"] * 2)
            await client.unsubscribe("a.b")  # nobody gave this name
            await client.publish("a.c", 1)
            await until(lambda: got == ["a.b"] * 2 + ["a.c"] * 2)
            await client.unsubscribe("a.*")
            assert (await client.publish("a.d", 1)).matched == 1

    run(main())


def test_one_copy_for_all_subscriptions_of_a_client(run, address):
    async def main() -> None:
        server = Server(address)
        async with server, Raw.connect(address) as raw:
            await raw.open(interphone=OURS)
            await sub(raw, "a.*", "a.b", id=4)
            await sub(raw, "a.>", id=9)
            await sub(raw, "other", id=2)
            assert await server.publish("a.b", 7) == Receipt(2, 2, 0)
            assert await raw.packet() == {
                "t": 1,
                "d": {"pub": "a.b", "message": 7},
                "k": "pub",
                "o": {"to": [4, 9]},
            }
            raw.write({"t": 4, "n": "p"})
            assert (await raw.packet())["t"] == 5

    run(main())


def test_each_subscription_of_a_client_gets_it_once(run, address):
    async def main() -> None:
        async with (
            everybody(address, "native") as (server, client),
            client.subscribe("a.*", "a.b", ">") as first,
            client.subscribe("a.b") as second,
        ):
            await server.publish("a.b", 1)
            await server.publish("a.b", 2)
            assert await values(first, 2) == await values(second, 2) == [1, 2]

    run(main())


@both_publishers
@pytest.mark.parametrize("topic", ["a.*", "*", "a.>", ">", "*.a"])
def test_nothing_is_published_on_a_pattern(run, address, by, topic):
    async def main() -> None:
        async with everybody(address, "native") as (server, client):
            with pytest.raises(TopicError, match="pattern"):
                await (server if by == "server" else client).publish(topic, 1)

    run(main())


def test_pattern_with_a_fault_is_refused_at_both_ends(run, address):
    async def main() -> None:
        server = Server(address)
        with pytest.raises(TopicError, match="before its end"):
            server.subscribe("a.>.b")
        async with server, Raw.connect(address) as raw:
            await raw.open(interphone=OURS)
            answer, _ = await sub(raw, "fine", "a.>.b")
            assert answer["e"]["code"] == "invalid"
            assert (await server.publish("fine", 1)).matched == 0
            raw.write({"t": 2, "d": {"pub": "a.*", "message": 1}, "n": "1", "k": "pub"})
            assert (await raw.packet())["e"]["code"] == "invalid"

    run(main())


def test_node_client_means_stars_as_they_stand(run, address):
    async def main() -> None:
        server = Server(address)
        async with meeting(server) as client, Raw.connect(address) as node:
            await node.open()
            node.write({"t": 2, "d": {"sub": ["a.*", "a.>.b"]}, "n": "1"})
            assert (await node.packet())["d"] == {"result": True}
            async with client.subscribe("a.*") as items:
                assert (await client.publish("a.b", 1)).matched == 1
                node.write({"t": 2, "d": {"pub": "a.*", "message": 2}, "n": "2"})
                assert await node.packet() == {"t": 1, "d": {"pub": "a.*", "message": 2}}
                assert await node.packet() == {"t": 3, "d": {"result": True}, "n": "2"}
                assert await values(items, 2) == [1, 2]

    run(main())


@pytest.mark.parametrize("shown", [None, OLDER], ids=["node", "older"])
@pytest.mark.parametrize(
    "wish",
    [
        {"topics": ("a.*",)},
        {"topics": ("a", ">")},
        {"topics": ("a",), "group": "g"},
        {"topics": ("a",), "overflow": "block"},
    ],
    ids=str,
)
def test_server_that_does_not_know_is_not_asked(run, address, shown, wish):
    async def main() -> None:
        wishes = dict(wish)
        topics = wishes.pop("topics")
        async with Raw.serve(address) as comers:
            client = Client(address, backoff=None)
            connecting = asyncio.ensure_future(client.connect())
            raw = await comers.get()
            await raw.let_in(**({} if shown is None else {"interphone": shown}))
            await connecting
            with pytest.raises(Unsupported) as raised:
                await client.subscribe(*topics, **wishes).__aenter__()
            assert raised.value.delivery == "not_sent"
            with pytest.raises(Unsupported):
                client.on_topic(*topics, **wishes)(print)
            with pytest.raises(Unsupported):
                await client.publish("a", 1, retain=True)
            with pytest.raises(Unsupported):
                await client.publish("a", 1, ack="delivered")
            with pytest.raises(Unsupported):
                await client.forget("a")
            await client.send("nothing before this")
            assert (await raw.packet())["d"] == "nothing before this"
            client.abort()

    run(main())


def test_older_server_is_told_names_only(run, address):
    async def main() -> None:
        async with Raw.serve(address) as comers:
            client, errors = Client(address, backoff=None), []
            client.on_error(errors.append)
            got: list[Any] = []
            client.on_topic("a.*")(print)
            client.on_topic("a", "b", group="g")(print)
            client.on_topic("a")(got.append)
            connecting = asyncio.ensure_future(client.connect())
            raw = await comers.get()
            await raw.let_in(interphone=OLDER)
            packet = await raw.packet()
            assert packet == {"t": 2, "d": {"sub": "a"}, "n": "1", "k": "sub"}
            raw.write({"t": 3, "d": {"result": True}, "n": "1"})
            await connecting
            assert [type(error) for error in errors] == [Unsupported] * 2
            raw.write({"t": 1, "d": {"pub": "a", "message": 1}, "k": "pub", "o": {"to": [9]}})
            await until(lambda: got)
            assert got == [Publication("a", 1)]
            publishing = asyncio.ensure_future(client.publish("a", 2))
            assert "o" not in await raw.packet()
            raw.write({"t": 3, "d": {"result": True, "matched": 1}, "n": "2"})
            assert await publishing == Receipt(1, None, None)
            client.abort()

    run(main())


def test_subscription_has_an_id_and_stays_in_its_group(run, address):
    async def main() -> None:
        server = Server(address)
        async with server, Raw.connect(address) as raw:
            await raw.open(interphone=OURS)
            answers = [
                (await sub(raw, "a", id=0))[0],
                (await sub(raw, "a", id=1, group="$g"))[0],
                (await sub(raw, "a", id=-1))[0],
                (await sub(raw, "a", id=1, credit=[1]))[0],
                (await sub(raw, "a", id=1, group="g"))[0],
                (await sub(raw, "b", id=1, group="h"))[0],
                (await sub(raw, "b", id=1, group="g", later={}))[0],
                (await sub(raw, "b", id=1, group="g"))[0],
            ]
            codes = [answer.get("e", {}).get("code") for answer in answers]
            assert codes == ["invalid"] * 4 + [None, "invalid", None, None]
            assert [answer["d"]["result"] for answer in answers[6:]] == [True, False]

    run(main())


def test_subscription_to_nothing_is_refused_and_costs_nothing(run, address):
    async def main() -> None:
        server = Server(address)
        async with server, Raw.connect(address) as raw:
            await raw.open(interphone=OURS)
            assert (await sub(raw))[0]["e"]["code"] == "invalid"
            assert not server._exchange._lanes
            await sub(raw, "a")
            raw.write({"t": 2, "d": {"unsub": "a"}, "n": "u", "k": "unsub", "o": {"id": 1}})
            assert (await raw.packet())["d"] == {"result": True}
            assert not server._exchange._lanes

    run(main())


def test_subscriptions_are_limited_together(run, address):
    async def main() -> None:
        server = Server(address, limits=Limits(max_subscriptions=3), max_subscriptions=4)
        server.on_topic("own.*", "own")(print)  # counts for no limit of the peers
        async with meeting(server) as client, Client(address) as other:
            async with client.subscribe("a.*"), client.subscribe("a.*", "b"):
                with pytest.raises(Overloaded, match="over 3"):
                    await client.subscribe("c").__aenter__()
                async with other.subscribe("a"):
                    with pytest.raises(Overloaded, match="too many"):
                        await other.subscribe("b").__aenter__()
            async with client.subscribe("a", "b", "c"):
                pass

    run(main())


# Last values


@both_dialects
@both_publishers
def test_new_subscription_gets_the_last_value_first(run, address, dialect, by):
    async def main() -> None:
        async with everybody(address, dialect) as (server, client):
            publisher = server if by == "server" else client
            await publisher.publish("a", "old", retain=True)
            assert await publisher.publish("a", "last", retain=True) == Receipt(0, 0, 0)
            await publisher.publish("a", "passing")
            async with client.subscribe("a") as theirs, server.subscribe("a") as ours:
                await publisher.publish("a", "next")
                for items in (theirs, ours):
                    assert await anext(items) == Publication("a", "last", retained=True)
                    assert await anext(items) == Publication("a", "next")

    run(main())


def test_last_value_is_there_when_the_subscription_is_entered(run, address):
    async def main() -> None:
        async with everybody(address, "native") as (server, client):
            await server.publish("a", 1, retain=True)
            async with client.subscribe("a") as items:
                assert items.unread[0] == 1

    run(main())


def test_second_subscription_gets_it_and_the_first_not_again(run, address):
    async def main() -> None:
        async with everybody(address, "native") as (server, client):
            await client.publish("a", 1, retain=True)
            async with client.subscribe("a") as first, client.subscribe("a") as second:
                await server.publish("a", 2)
                assert await values(first, 2) == await values(second, 2) == [1, 2]
                assert first.unread[0] == second.unread[0] == 0

    run(main())


def test_pattern_gets_every_last_value_once(run, address):
    async def main() -> None:
        async with everybody(address, "native") as (server, client):
            for topic in ("n.a", "m", "n.b.c", "n.d", "n.a"):
                await server.publish(topic, topic, retain=True)
            async with client.subscribe("n.*", "n.>", "n.d") as items:
                assert await values(items, 3) == ["n.b.c", "n.d", "n.a"]
                assert items.unread[0] == 0

    run(main())


def test_last_value_is_as_it_was_published_in_every_dialect(run, address):
    async def main() -> None:
        moment = datetime(2026, 1, 2, tzinfo=UTC)
        server = Server(address)
        async with meeting(server) as native, Client(address, dialect="classic") as classic:
            await server.publish("s", [b"\xff", moment], retain=True)
            await native.publish("n", [b"\xff", moment], retain=True)
            await server.publish("big", 2**70, retain=True)  # no form in the native dialect
            for topic in ("s", "n"):
                async with native.subscribe(topic) as items:
                    assert await values(items, 1) == [[b"\xff", moment]]
                async with classic.subscribe(topic) as items:
                    assert await values(items, 1) == [["/w==", "2026-01-02T00:00:00Z"]]
            async with classic.subscribe("big") as items, server.subscribe("big") as ours:
                assert await values(items, 1) == await values(ours, 1) == [2**70]
            async with native.subscribe("big") as items:
                assert items.unread[0] == 0

    run(main())


def test_restored_subscription_gets_the_current_value(run, address):
    async def main() -> None:
        async with everybody(address, "native") as (server, client):
            got: list[Any] = []
            client.on_topic("a")(lambda publication: got.append(publication))
            async with client.subscribe("*") as items:
                await server.publish("a", 1, retain=True)
                await cut(server, client)
                assert await values(items, 2) == [1, 1]
                await until(lambda: len(got) == 2)
                assert [publication.retained for publication in got] == [False, True]

    run(main())


@both_publishers
def test_last_value_can_be_forgotten(run, address, by):
    async def main() -> None:
        async with everybody(address, "native") as (server, client):
            end = server if by == "server" else client
            await client.publish("a", None, retain=True)
            assert await end.forget("a") is True
            assert await end.forget("a") is False
            with pytest.raises(TopicError):
                await end.forget("")
            async with client.subscribe("a") as items:
                assert items.unread[0] == 0

    run(main())


def test_last_value_is_forgotten_in_its_turn(run, address):
    async def main() -> None:
        async with everybody(address, "native") as (server, client):
            server.pause()
            publishing = asyncio.ensure_future(client.publish("a", 1, retain=True))
            forgetting = asyncio.ensure_future(client.forget("a"))
            (peer,) = server.peers.values()
            await until(lambda: len(peer.inbox._deferred) == 2)
            server.resume()
            await publishing
            assert await forgetting is True
            assert len(server._exchange.retained) == 0

    run(main())


@both_publishers
def test_too_many_last_values_are_refused_and_not_published(run, address, by):
    async def main() -> None:
        limits = {"max_retained": 2, "max_retained_bytes": 100}
        async with everybody(address, "native", **limits) as (server, client):
            end = server if by == "server" else client
            async with client.subscribe(">") as items:
                await end.publish("a", 1, retain=True)
                await end.publish("b", 1, retain=True)
                with pytest.raises(Overloaded, match="over 2 topics"):
                    await end.publish("c", 1, retain=True)
                with pytest.raises(Overloaded, match="over 100 bytes"):
                    await end.publish("b", "x" * 100, retain=True)
                async with server.subscribe(">") as kept:
                    assert await values(kept, 2) == [1, 1]
                    assert kept.unread[0] == 0
                await end.forget("a")
                await end.publish("c", 2, retain=True)
                assert await values(items, 3) == [1, 1, 2]

    run(main())


def test_last_values_live_as_long_as_the_server(run, address):
    async def main() -> None:
        server = Server(address)
        async with server:
            await server.publish("a", 1, retain=True)
        async with meeting(server) as client, client.subscribe("a") as items:
            assert await anext(items) == Publication("a", 1, retained=True)

    run(main())


def test_handler_of_the_server_gets_the_last_value(run, address):
    async def main() -> None:
        server, got = Server(address), []
        async with server:
            await server.publish("a", 1, retain=True)
            server.on_topic("a")(got.append)
            await until(lambda: got)
            assert got == [Publication("a", 1, retained=True)]

    run(main())


@pytest.mark.parametrize("shown", [None, OLDER], ids=["node", "older"])
def test_who_cannot_tell_a_last_value_gets_none(run, address, shown):
    async def main() -> None:
        server = Server(address)
        async with server, Raw.connect(address) as raw:
            await raw.open(**({} if shown is None else {"interphone": shown}))
            await server.publish("a", 1, retain=True)
            raw.write({"t": 2, "d": {"sub": "a"}, "n": "1", "k": "sub"})
            assert (await raw.packet())["d"] == {"result": True}
            await server.publish("a", 2, retain=True)
            assert (await raw.packet())["d"] == {"pub": "a", "message": 2}

    run(main())


def test_publication_looks_as_it_always_did():
    assert repr(Publication("a", 1)) == "Publication(topic='a', value=1)"
    assert "retained=True" in repr(Publication("a", 1, retained=True))


# Queue groups


@both_dialects
def test_each_publication_goes_to_one_member(run, address, dialect):
    async def main() -> None:
        got: dict[str, list[int]] = {"first": [], "again": [], "other": [], "own": []}
        async with everybody(address, dialect) as (server, client), Client(address) as other:

            def worker(name: str) -> Any:
                return lambda publication: got[name].append(publication.value)

            client.on_topic("jobs.*", group="g")(worker("first"))
            client.on_topic("jobs.a", group="g")(worker("again"))
            other.on_topic("jobs.>", group="g")(worker("other"))
            server.on_topic("jobs.*", group="g")(worker("own"))
            async with client.subscribe("jobs.a") as everything:
                await other.ping()
                for number in range(40):
                    assert await client.publish("jobs.a", number) == Receipt(2, 2, 0)
                assert await values(everything, 40) == list(range(40))
            await other.ping()
            await until(lambda: sum(map(len, got.values())) == 40)
            assert sorted(chain.from_iterable(got.values())) == list(range(40))
            assert {len(numbers) for numbers in got.values()} == {10}
            assert all(numbers == sorted(numbers) for numbers in got.values())

    run(main())


def test_groups_do_not_share_with_each_other(run, address):
    async def main() -> None:
        async with (
            everybody(address, "native") as (server, client),
            client.subscribe("a", group="g") as g,
            client.subscribe("a", group="h") as h,
            client.subscribe("a") as alone,
        ):
            assert await server.publish("a", 1) == Receipt(3, 3, 0)
            for items in (g, h, alone):
                assert await values(items, 1) == [1]

    run(main())


def test_group_gets_no_last_value(run, address):
    async def main() -> None:
        async with everybody(address, "native") as (server, client):
            await server.publish("a", 1, retain=True)
            async with client.subscribe("a", group="g") as items, server.subscribe("a") as own:
                assert (items.unread[0], own.unread[0]) == (0, 1)

    run(main())


@pytest.mark.parametrize("overflow", ["block", "drop_newest", "drop_oldest", "disconnect"])
def test_member_that_is_full_is_passed_over(run, address, overflow):
    async def main() -> None:
        async with (
            everybody(address, "native") as (server, client),
            server.subscribe("a", group="g", queue=1, overflow=overflow) as full,
            client.subscribe("a", group="g") as free,
        ):
            receipts = [await server.publish("a", number) for number in range(6)]
            assert receipts == [Receipt(1, 1, 0)] * 6
            assert await values(full, 1) == [0]
            assert await values(free, 5) == [1, 2, 3, 4, 5]
            assert full.dropped == 0

    run(main())


@pytest.mark.parametrize(
    ("overflow", "queued", "lost"),
    [("drop_newest", 0, 1), ("disconnect", 0, 1), ("drop_oldest", 1, 1)],
)
def test_full_group_loses_a_publication_at_one_member(run, address, overflow, queued, lost):
    async def main() -> None:
        server = Server(address)
        wishes = {"group": "g", "queue": 1, "overflow": overflow}
        async with (
            server,
            server.subscribe("a", **wishes) as one,
            server.subscribe("a", **wishes) as two,
        ):
            for number in range(2):
                await server.publish("a", number)
            assert await server.publish("a", 2) == Receipt(1, queued, 1 - queued)
            assert (one.dropped, two.dropped) == (lost, 0)

    run(main())


def test_member_that_is_gone_eats_nothing(run, address):
    async def main() -> None:
        async with (
            everybody(address, "native") as (server, client),
            Client(address) as other,
            client.subscribe("a", group="g"),
            other.subscribe("a", group="g") as items,
            server.subscribe("a", group="g") as own,
        ):
            own.end()
            closing = asyncio.ensure_future(client.peer.close())
            peer = server.peers[client.id]
            peer.connection._session.drain("going", peer._react)  # no longer open, not gone
            for number in range(4):
                assert await server.publish("a", number) == Receipt(1, 1, 0)
            assert await values(items, 4) == [0, 1, 2, 3]
            await closing

    run(main())


def test_publication_a_member_cannot_be_sent_goes_to_another(run, address):
    async def main() -> None:
        server = Server(address)
        async with meeting(server) as native, Client(address, dialect="classic") as classic:
            async with (
                native.subscribe("a", group="g") as one,
                classic.subscribe("a", group="g") as other,
            ):
                for number in range(4):  # the native dialect has no such integers
                    assert await server.publish("a", 2**70 + number) == Receipt(1, 1, 0)
                assert await values(other, 4) == [2**70 + number for number in range(4)]
                assert one.unread[0] == 0
            async with native.subscribe("a", group="g"):
                assert await server.publish("a", 2**70) == Receipt(1, 0, 1)

    run(main())


def test_group_survives_a_reconnection(run, address):
    async def main() -> None:
        async with (
            everybody(address, "native") as (server, client),
            Client(address) as other,
            client.subscribe("a.*", group="g") as one,
            other.subscribe("a.*", group="g") as two,
        ):
            await cut(server, client)
            for number in range(4):
                assert await server.publish("a.b", number) == Receipt(1, 1, 0)
            assert sorted(await values(one, 2) + await values(two, 2)) == [0, 1, 2, 3]

    run(main())


@pytest.mark.parametrize("group", ["", "$g", "a\n", "x" * 256])
def test_group_with_a_bad_name_is_refused(address, group):
    with pytest.raises(ValueError, match="queue group"):
        Server(address).subscribe("a", group=group)


# Acks


@both_dialects
@both_publishers
def test_delivered_means_that_it_has_left_to_everybody(run, address, dialect, by):
    async def main() -> None:
        async with everybody(address, dialect) as (server, client):
            publisher = server if by == "server" else client
            async with client.subscribe("a"), client.subscribe("*"), server.subscribe("a"):
                receipt = await publisher.publish("a", "x" * 1_000_000, ack="delivered")
                assert receipt == Receipt(3, 3, 0, 3)
                (peer,) = server.peers.values()
                assert peer.backlog == 0

    run(main())


@both_publishers
def test_delivered_to_nobody_returns_at_once(run, address, by):
    async def main() -> None:
        async with everybody(address, "native") as (server, client):
            publisher = server if by == "server" else client
            assert await publisher.publish("a", 1, ack="delivered") == Receipt(0, 0, 0, 0)

    run(main())


@asynccontextmanager
async def deaf_subscriber(server: Server, address: str, topic: str) -> AsyncIterator[Raw]:
    """A subscriber that takes nothing after its subscription."""
    async with Raw.connect(address) as raw:
        await raw.open(interphone=OURS)
        await sub(raw, topic)
        raw.writer.transport.pause_reading()
        yield raw


@both_publishers
def test_time_of_an_ack_runs_out_and_the_receipt_says_so(run, address, by):
    async def main() -> None:
        async with (
            everybody(address, "native") as (server, client),
            deaf_subscriber(server, address, "a") as deaf,
        ):
            publisher = server if by == "server" else client
            async with client.subscribe("a"):
                receipt = await publisher.publish("a", "x" * 1_000_000, ack="delivered", timeout=1)
                assert receipt == Receipt(2, 2, 0, 1)
            deaf.writer.transport.resume_reading()

    run(main())


def test_subscriber_lost_on_the_way_ends_the_wait(run, address):
    async def main() -> None:
        server = Server(address)
        async with server, deaf_subscriber(server, address, "a"):
            publishing = asyncio.ensure_future(
                server.publish("a", "x" * 4_000_000, ack="delivered", timeout=None)
            )
            (peer,) = server.peers.values()
            await until(lambda: peer.backlog)
            assert not publishing.done()
            peer.abort()
            assert await publishing == Receipt(1, 1, 0, 0)

    run(main())


def test_cancelled_wait_for_an_ack_leaves_nothing(run, address):
    async def main() -> None:
        server = Server(address)
        async with server, deaf_subscriber(server, address, "a") as deaf:
            publishing = asyncio.ensure_future(
                server.publish("a", "x" * 4_000_000, ack="delivered", timeout=None)
            )
            (peer,) = server.peers.values()
            await until(lambda: peer.connection._departures)
            publishing.cancel()
            assert isinstance(await raised_by_any(publishing), asyncio.CancelledError)
            deaf.writer.transport.resume_reading()
            assert (await deaf.packet())["d"]["pub"] == "a"
            await until(lambda: not peer.connection._departures)

    run(main())


async def raised_by_any(awaitable: Any) -> BaseException | None:
    try:
        await awaitable
    except BaseException as exc:
        return exc
    return None


@both_publishers
def test_timeout_no_clock_can_hold_is_none(run, address, by):
    async def main() -> None:
        async with (
            everybody(address, "native") as (server, client),
            client.subscribe("a", overflow="block", queue=1) as items,
        ):
            publisher = server if by == "server" else client
            for number in range(2):
                publishing = asyncio.ensure_future(
                    publisher.publish("a", number, ack="delivered", timeout=1e300)
                )
                await until(lambda: items.unread[0])
                assert await values(items, 1) == [number]
                assert await publishing == Receipt(1, 1, 0, 1)

    run(main())


def test_unknown_ack_is_refused(run, address):
    async def main() -> None:
        server = Server(address)
        async with server, Raw.connect(address) as raw:
            await raw.open(interphone=OURS)
            for options in ({"ack": "processed"}, {"deadline": 0}, {"retain": 1}, []):
                raw.write({"t": 2, "d": {"pub": "a"}, "n": "1", "k": "pub", "o": options})
                assert (await raw.packet())["e"]["code"] == "invalid"

    run(main())


# Publishers that wait


@both_dialects
@both_publishers
@pytest.mark.parametrize("queue", [1, 2, 7])
def test_nothing_is_lost_by_a_subscription_that_blocks(run, address, dialect, by, queue):
    async def main() -> None:
        async with everybody(address, dialect) as (server, client):
            publisher = server if by == "server" else client
            async with (
                client.subscribe("a.*", overflow="block", queue=queue) as theirs,
                server.subscribe("a.*", overflow="block", queue=queue) as ours,
            ):
                reading = asyncio.gather(values(theirs, 100), values(ours, 100))
                for number in range(100):
                    assert await publisher.publish("a.b", number) == Receipt(2, 2, 0)
                assert await reading == [list(range(100))] * 2

    run(main())


@both_publishers
def test_publisher_waits_for_room_and_nobody_else_does(run, address, by):
    async def main() -> None:
        async with everybody(address, "native") as (server, client), Client(address) as other:
            server.on_request(lambda peer, data: data)
            publisher = server if by == "server" else other
            async with (
                client.subscribe("a", overflow="block", queue=2) as slow,
                client.subscribe("a") as quick,
                other.subscribe("a") as another,
            ):
                for number in range(2):
                    await publisher.publish("a", number)
                waiting = asyncio.ensure_future(publisher.publish("a", 2, timeout=None))
                assert await values(quick, 3) == await values(another, 3) == [0, 1, 2]
                assert await client.request("busy?") == "busy?"
                assert await other.request("and you?") == "and you?"
                assert await publisher.publish("b", 1) == Receipt(0, 0, 0)
                assert not waiting.done()
                assert await values(slow, 1) == [0]
                assert await waiting == Receipt(3, 3, 0)
                assert await values(slow, 2) == [1, 2]

    run(main())


def test_waiting_publications_keep_their_order(run, address):
    async def main() -> None:
        async with everybody(address, "native") as (server, client):
            async with client.subscribe("a", overflow="block", queue=1) as items:
                waiting = [asyncio.ensure_future(client.publish("a", n)) for n in range(20)]
                assert await values(items, 20) == list(range(20))
                assert {(await receipt).queued for receipt in waiting} == {1}
            assert not room_taken(server)

    run(main())


@both_dialects
@both_publishers
def test_publisher_gives_up_and_the_subscriber_is_told(run, address, dialect, by):
    async def main() -> None:
        async with everybody(address, dialect) as (server, client):
            publisher = server if by == "server" else client
            async with (
                client.subscribe("a", overflow="block", queue=1) as theirs,
                server.subscribe("a", overflow="block", queue=1) as ours,
            ):
                await publisher.publish("a", 0)
                for number in (1, 2):
                    receipt = await publisher.publish("a", number, timeout=0.4)
                    assert receipt == Receipt(2, 0, 2)
                for items in (theirs, ours):
                    assert await values(items, 1) == [0]
                    error = await raised_by(anext(items))
                    assert isinstance(error, Overflow)
                    assert (error.topic, error.dropped, items.dropped) == ("a", 2, 2)
                assert await publisher.publish("a", 3) == Receipt(2, 2, 0)
                assert await values(theirs, 1) == await values(ours, 1) == [3]
            assert server._exchange._traffic.dropped == 4

    run(main())


def test_subscriber_that_leaves_frees_who_waits(run, address):
    async def main() -> None:
        async with everybody(address, "native") as (server, client):
            for leave in ("close", "unsubscribe", "abort"):
                items = client.subscribe("a", "b", overflow="block", queue=1)
                await items.__aenter__()
                await server.publish("a", 0)
                waiting = asyncio.ensure_future(server.publish("a", 1, timeout=None))
                await until(lambda: room_taken(server))
                await until(lambda: items.unread[0])  # noqa: B023  awaited at once
                if leave == "close":
                    await items.close()
                elif leave == "unsubscribe":
                    await items.unsubscribe("a")
                    assert not items.ended
                else:
                    next(iter(server.peers.values())).abort()
                assert await waiting == Receipt(1, 0, 1)
                if leave == "unsubscribe":
                    await values(items, 1)
                    assert (await server.publish("b", 2)).queued == 1
                    assert await values(items, 1) == [2]
                    await items.close()

    run(main())


@pytest.mark.parametrize("gives_up", ["in time", "cancelled"])
def test_leaving_is_told_in_the_end_even_if_nobody_waits_for_it(
    run, address, monkeypatch, gives_up
):
    assert feed.DEFAULT_TIMEOUT == 10

    async def main() -> None:
        async with everybody(address, "native") as (server, client):
            items = await client.subscribe("a", overflow="block", queue=1).__aenter__()
            await server.publish("a", 0)
            waiting = asyncio.ensure_future(server.publish("a", 1, timeout=None))
            await until(lambda: room_taken(server))
            server.pause()
            if gives_up == "in time":
                monkeypatch.setattr(feed, "DEFAULT_TIMEOUT", 0.01)
            leaving = asyncio.ensure_future(items.close())
            (peer,) = server.peers.values()
            await until(lambda: peer.inbox._deferred)
            if gives_up == "cancelled":
                leaving.cancel()
                assert isinstance(await raised_by_any(leaving), asyncio.CancelledError)
            else:
                await leaving
            await client.ping()
            server.resume()
            assert await waiting == Receipt(1, 0, 1)
            assert (await server.publish("a", 2)).matched == 0

    run(main())


def test_server_that_goes_on_after_the_end_is_told_once_more(run, address):
    async def main() -> None:
        async with Raw.serve(address) as comers:
            client = Client(address, backoff=None)
            connecting = asyncio.ensure_future(client.connect())
            raw = await comers.get()
            await raw.let_in(interphone=OURS)
            await connecting
            items = client.subscribe("a.*", "b")
            entering = asyncio.ensure_future(items.__aenter__())
            raw.write({"t": 3, "d": {"result": True}, "n": (await raw.packet())["n"]})
            await entering
            leaving = asyncio.ensure_future(items.close())
            told = await raw.packet()
            marks = {"to": [1, 7]}  # there never was a 7
            late = {"t": 1, "d": {"pub": "a.x", "message": 1}, "k": "pub", "o": marks}
            failure = {"code": "overloaded", "message": "not now"}
            raw.write(late, {"t": 4, "n": "p"}, {"t": 3, "n": told["n"], "e": failure})
            assert (await raw.packet())["t"] == 5  # it is being told: nothing is late
            await leaving
            raw.write(late)
            again = await raw.packet()
            for packet in (told, again):
                assert (packet["d"], packet["o"]) == ({"unsub": ["a.*", "b"]}, {"id": 1})
            raw.write({"t": 3, "d": {"result": True}, "n": again["n"]}, late, {"t": 4, "n": "q"})
            assert (await raw.packet())["t"] == 5
            client.abort()

    run(main())


@pytest.mark.parametrize("how", ["close", "unsubscribe", "server"])
def test_own_subscription_that_leaves_frees_who_waits(run, address, how):
    async def main() -> None:
        server = Server(address)
        async with server:
            items = server.subscribe("a", "b", overflow="block", queue=1)
            await items.__aenter__()
            await server.publish("a", 0)
            waiting = asyncio.ensure_future(server.publish("a", 1, timeout=None))
            await until(lambda: room_taken(server))
            if how == "close":
                await items.close()
            elif how == "unsubscribe":
                await items.unsubscribe("a")
            else:
                await server.close()
            assert await waiting == Receipt(1, 0, 1)

    run(main())


def test_cancelled_publisher_is_not_waited_for(run, address):
    async def main() -> None:
        async with everybody(address, "native") as (server, client):
            for publisher in (server, client):
                async with client.subscribe("a", overflow="block", queue=1) as items:
                    await publisher.publish("a", 0)
                    waiting = asyncio.ensure_future(publisher.publish("a", 1, timeout=None))
                    await until(lambda: room_taken(server))
                    waiting.cancel()
                    await until(lambda: not room_taken(server))
                    assert isinstance(await raised_by_any(waiting), asyncio.CancelledError)
                    assert await values(items, 1) == [0]
                    assert isinstance(await raised_by(anext(items)), Overflow)
                    await publisher.publish("a", 2)
                    assert await values(items, 1) == [2]

    run(main())


def test_publication_and_its_cancel_in_one_read_leave_nothing(run, address):
    async def main() -> None:
        server = Server(address)
        async with (
            server,
            Raw.connect(address) as raw,
            server.subscribe("a", overflow="block", queue=1) as items,
        ):
            await raw.open(interphone=OURS)
            await server.publish("a", 0)
            asking = {"t": 2, "d": {"pub": "a", "message": 1}, "n": "p", "k": "pub"}
            raw.write(asking, {"t": 8, "n": "p"})
            assert (await raw.packet())["e"]["code"] == "cancelled"
            assert not room_taken(server)
            assert not any(server._exchange._publishing.values())
            assert await values(items, 1) == [0]
            assert isinstance(await raised_by(anext(items)), Overflow)

    run(main())


def test_publisher_that_is_gone_waits_no_more(run, address):
    async def main() -> None:
        async with everybody(address, "native") as (server, client):
            publisher = await Client(address, backoff=None).connect()
            async with client.subscribe("a", overflow="block", queue=1) as items:
                await publisher.publish("a", 0)
                waiting = asyncio.ensure_future(publisher.publish("a", 1, timeout=None))
                await until(lambda: room_taken(server))
                publisher.abort()
                await until(lambda: not room_taken(server))
                assert await raised_by(waiting) is not None
                assert items.unread[0] == 1
            assert not server._exchange._publishing

    run(main())


def test_waiting_publications_of_a_peer_are_bounded(run, address):
    async def main() -> None:
        limits = Limits(max_inflight=3)
        async with (
            everybody(address, "native", limits=limits) as (server, client),
            client.subscribe("a", overflow="block", queue=1) as items,
        ):
            publisher = await Client(address).connect()
            waiting = [asyncio.ensure_future(publisher.publish("a", n)) for n in range(9)]
            await until(lambda: len(room_taken(server)) == 3)
            await publisher.ping()  # it keeps the rest to itself, and is read on
            assert len(room_taken(server)) == 3
            assert not server.peers[publisher.id].connection.stopped
            assert await values(items, 9) == list(range(9))
            for receipt in waiting:
                assert await receipt == Receipt(1, 1, 0)
            await publisher.close()

    run(main())


def test_bytes_on_the_way_to_who_blocks_are_bounded(run, address):
    async def main() -> None:
        async with (
            everybody(address, "native") as (server, client),
            client.subscribe("a", overflow="block") as items,
        ):
            chunk = "x" * 400_000
            for _ in range(3):  # 1 MiB, overdrawn by one
                await server.publish("a", chunk)
            waiting = asyncio.ensure_future(server.publish("a", chunk, timeout=None))
            await until(lambda: room_taken(server))
            assert await values(items, 2) == [chunk] * 2
            assert await waiting == Receipt(1, 1, 0)
            await server.publish("a", "y" * 3_000_000)  # larger than all of it, and goes
            assert len((await values(items, 3))[2]) == 3_000_000

    run(main())


def test_restored_subscription_is_sent_only_what_it_has_room_for(run, address):
    async def main() -> None:
        async with (
            everybody(address, "native") as (server, client),
            client.subscribe("a", overflow="block", queue=3) as items,
        ):
            for number in range(2):
                await server.publish("a", number)
            await until(lambda: items.unread[0] == 2)
            await cut(server, client)
            assert await server.publish("a", 2) == Receipt(1, 1, 0)
            waiting = asyncio.ensure_future(server.publish("a", 3, timeout=None))
            await until(lambda: room_taken(server))
            await until(lambda: items.unread[0] == 3)
            assert await values(items, 4) == [0, 1, 2, 3]
            await waiting
            assert items.dropped == 0

    run(main())


def test_last_values_wait_for_room_too(run, address):
    async def main() -> None:
        async with everybody(address, "native") as (server, client):
            for number in range(10):
                await server.publish(f"a.{number}", number, retain=True)
            async with (
                client.subscribe("a.*", overflow="block", queue=2) as theirs,
                server.subscribe("a.*", overflow="block", queue=2) as ours,
            ):
                waiting = asyncio.ensure_future(server.publish("a.x", "new", timeout=None))
                for items in (theirs, ours):
                    assert await values(items, 11) == [*range(10), "new"]
                assert await waiting == Receipt(2, 2, 0)
            async with client.subscribe("a.*", overflow="block", queue=2):
                await until(lambda: sum(map(len, room_taken(server))) == 8)
            assert not room_taken(server)
            assert server._exchange._traffic.dropped == 0

    run(main())


def test_last_values_without_room_cost_their_names_only(run, address):
    async def main() -> None:
        server = Server(address)
        async with server, Raw.connect(address) as raw:
            await raw.open(interphone=OURS)
            for number in range(10):
                await server.publish(f"a.{number}", number, retain=True)
            assert (await sub(raw, "a.*", credit=[0, 0]))[1] == []
            assert [len(arrears) for arrears in room_taken(server)] == [10]
            await server.forget("a.0")
            again = asyncio.ensure_future(server.publish("a.1", "new", retain=True, timeout=None))
            await until(lambda: len(room_taken(server)) == 2)
            raw.write({"t": 20, "n": 1, "d": [9, 1000]})
            came = [await raw.packet() for _ in range(9)]
            assert [packet["d"]["message"] for packet in came] == [*range(2, 10), "new"]
            retained = [packet["o"].get("retained", False) for packet in came]
            assert retained == [True] * 8 + [False]
            assert await again == Receipt(1, 1, 0)
            assert not room_taken(server)

    run(main())


def test_last_values_of_a_topic_that_was_left_wait_no_more(run, address):
    async def main() -> None:
        server = Server(address)
        async with server, Raw.connect(address) as raw:
            await raw.open(interphone=OURS)
            for topic in ("a", "b.x", "b.y", "c"):
                await server.publish(topic, topic, retain=True)
            await sub(raw, "a", "b.*", "c", credit=[0, 0])
            await sub(raw, "d", id=1)
            for topics, left in ((["c"], 3), (["b.*", "d"], 1), (["a"], 0)):
                raw.write({"t": 2, "d": {"unsub": topics}, "n": "u", "k": "unsub", "o": {"id": 1}})
                assert (await raw.packet())["d"] == {"result": True}
                assert sum(map(len, room_taken(server))) == left
            assert server._exchange.dropped == 0

    run(main())


def test_handler_that_blocks_loses_nothing(run, address):
    async def main() -> None:
        got: dict[str, list[int]] = {"client": [], "server": []}
        async with everybody(address, "native") as (server, client):

            def handler(name: str) -> Any:
                async def handle(publication: Publication[int]) -> None:
                    await asyncio.sleep(0)
                    got[name].append(publication.value)

                return handle

            client.on_topic("a", overflow="block")(handler("client"))
            server.on_topic("a", overflow="block")(handler("server"))
            await client.ping()
            for number in range(50):
                assert (await server.publish("a", number)).dropped == 0
            await until(lambda: got == {"client": [*range(50)], "server": [*range(50)]})

    run(main())


def test_handler_that_publishes_in_its_turn_keeps_the_order(run, address):
    async def main() -> None:
        server, got = Server(address), []
        async with meeting(server) as client, client.subscribe("a", "b") as items:

            @server.on_topic("a", overflow="block")
            async def follow(publication: Publication[int]) -> None:
                got.append(publication.value)
                await server.publish("b", publication.value)

            for number in range(3):
                await server.publish("a", number)
            heard = [await anext(items) for _ in range(6)]
            for number in range(3):
                topics = [item.topic for item in heard if item.value == number]
                assert topics == ["a", "b"]
            assert got == [0, 1, 2]

    run(main())


def test_full_group_makes_publishers_wait_for_the_first_with_room(run, address):
    async def main() -> None:
        async with everybody(address, "native") as (server, client), Client(address) as other:
            wishes = {"group": "g", "overflow": "block", "queue": 1}
            async with (
                client.subscribe("a", **wishes) as one,
                other.subscribe("a", **wishes) as two,
                server.subscribe("a", **wishes) as own,
            ):
                for number in range(3):
                    await server.publish("a", number)
                waiting = [
                    asyncio.ensure_future(server.publish("a", number, timeout=None))
                    for number in (3, 4)
                ]
                await until(lambda: len(room_taken(server)) == 6)
                for items in (two, own):
                    await values(items, 1)
                assert [await receipt for receipt in waiting] == [Receipt(1, 1, 0)] * 2
                assert sorted(await values(two, 1) + await values(own, 1)) == [3, 4]
                assert one.unread[0] == 1
                assert await server.publish("a", 5) == Receipt(1, 1, 0)

    run(main())


def test_publication_that_waited_for_a_member_that_leaves_goes_to_another(run, address):
    async def main() -> None:
        async with (
            everybody(address, "native") as (server, client),
            server.subscribe("a", group="g", overflow="block", queue=1) as full,
        ):
            await server.publish("a", 0)
            waiting = asyncio.ensure_future(server.publish("a", 1, timeout=None))
            await until(lambda: room_taken(server))
            async with client.subscribe("a", group="g") as newcomer:
                await full.close()
                assert await waiting == Receipt(1, 1, 0)
                assert await values(newcomer, 1) == [1]

    run(main())


def test_group_of_a_publisher_that_gives_up_counts_it(run, address):
    async def main() -> None:
        server = Server(address)
        wishes = {"group": "g", "overflow": "block", "queue": 1}
        async with server, server.subscribe("a", **wishes), server.subscribe("a", **wishes):
            for number in range(2):
                await server.publish("a", number)
            assert await server.publish("a", 2, timeout=0.01) == Receipt(1, 0, 1)
            assert server._exchange._traffic.dropped == 1

    run(main())


def test_value_without_a_form_does_not_wait(run, address):
    async def main() -> None:
        async with (
            everybody(address, "native") as (server, client),
            client.subscribe("a", overflow="block", queue=1),
        ):
            await server.publish("a", 0)
            assert await server.publish("a", 2**70, timeout=None) == Receipt(1, 0, 1)
            with pytest.raises(PayloadError):
                await server.publish("a", object())

    run(main())


def test_small_publication_goes_when_the_large_one_before_it_was_given_up(run, address):
    async def main() -> None:
        server = Server(address)
        async with server, server.subscribe("a", overflow="block") as items:
            await server.publish("a", "x" * 5_000_000)
            large = asyncio.ensure_future(server.publish("a", "y" * 5_000_000, timeout=None))
            await until(lambda: len(room_taken(server)) == 1)
            small = asyncio.ensure_future(server.publish("a", "z", timeout=None))
            await until(lambda: len(room_taken(server)) == 2)
            large.cancel()
            assert await small == Receipt(1, 1, 0)
            assert (await values(items, 1))[0][0] == "x"
            assert isinstance(await raised_by(anext(items)), Overflow)
            assert await values(items, 1) == ["z"]
            assert isinstance(await raised_by_any(large), asyncio.CancelledError)

    run(main())


def test_server_that_sends_more_than_it_may_ends_the_subscription(run, address):
    async def main() -> None:
        async with Raw.serve(address) as comers:
            client = Client(address, backoff=None)
            connecting = asyncio.ensure_future(client.connect())
            raw = await comers.get()
            await raw.let_in(interphone=OURS)
            await connecting
            items = client.subscribe("a", overflow="block", queue=1)
            entering = asyncio.ensure_future(items.__aenter__())
            packet = await raw.packet()
            assert packet["o"] == {"id": 1, "credit": [1, 1024 * 1024]}
            for value in (0, 1):
                marks = {"to": [1, 7], "later": None}
                raw.write({"t": 1, "d": {"pub": "a", "message": value}, "k": "pub", "o": marks})
            raw.write({"t": 3, "d": {"result": True}, "n": packet["n"]})
            await entering
            assert await values(items, 1) == [0]
            assert isinstance(await raised_by(anext(items)), Overflow)
            assert await raw.packet() == {"t": 20, "n": 1, "d": [1, 1]}
            client.abort()

    run(main())


@pytest.mark.parametrize("many", [3, 4])
def test_server_that_sends_more_bytes_than_it_may_ends_the_subscription(run, address, many):
    async def main() -> None:
        async with Raw.serve(address) as comers:
            client = Client(address, backoff=None)
            connecting = asyncio.ensure_future(client.connect())
            raw = await comers.get()
            await raw.let_in(interphone=OURS)
            await connecting
            items = client.subscribe("a", overflow="block")
            entering = asyncio.ensure_future(items.__aenter__())
            packet = await raw.packet()
            value = "x" * 500_000  # the third overdraws 1 MiB, which is right
            for _ in range(many):
                late = {"t": 1, "d": {"pub": "a", "message": value}, "k": "pub", "o": {"to": [1]}}
                raw.write(late)
            raw.write({"t": 3, "d": {"result": True}, "n": packet["n"]})
            await entering
            assert items.ended is (many > 3)
            assert items.unread == (3, 3 * 500_002)
            assert await values(items, 3) == [value] * 3
            if many > 3:
                assert isinstance(await raised_by(anext(items)), Overflow)
            client.abort()

    run(main())


def test_only_a_subscription_that_blocks_can_miss_publications(run, address):
    async def main() -> None:
        async with Raw.serve(address) as comers:
            client = Client(address, backoff=None)
            connecting = asyncio.ensure_future(client.connect())
            raw = await comers.get()
            await raw.let_in(interphone=OURS)
            await connecting
            items = client.subscribe("a", overflow="drop_oldest", queue=1)
            entering = asyncio.ensure_future(items.__aenter__())
            packet = await raw.packet()
            for value in range(3):
                said = {"t": 1, "d": {"pub": "a", "message": value}, "k": "pub", "o": {"to": [1]}}
                raw.write(said, {"t": 21, "n": 1, "d": [1, "a"]})
            raw.write({"t": 3, "d": {"result": True}, "n": packet["n"]})
            await entering
            assert await values(items, 1) == [2]
            assert items.dropped == 2
            items.end()
            assert [item async for item in items] == []
            client.abort()

    run(main())


def test_publication_that_comes_after_leaving_its_topic_is_given_back(run, address):
    async def main() -> None:
        async with Raw.serve(address) as comers:
            client = Client(address, backoff=None)
            connecting = asyncio.ensure_future(client.connect())
            raw = await comers.get()
            await raw.let_in(interphone=OURS)
            await connecting
            items = client.subscribe("a", "b", overflow="block", queue=1)
            entering = asyncio.ensure_future(items.__aenter__())
            raw.write({"t": 3, "d": {"result": True}, "n": (await raw.packet())["n"]})
            await entering
            leaving = asyncio.ensure_future(items.unsubscribe("a"))
            packet = await raw.packet()
            assert (packet["d"], packet["o"]) == ({"unsub": "a"}, {"id": 1})
            marks = {"to": [1]}
            raw.write({"t": 1, "d": {"pub": "a", "message": 1}, "k": "pub", "o": marks})
            raw.write({"t": 3, "d": {"result": True}, "n": packet["n"]})
            assert await raw.packet() == {"t": 20, "n": 1, "d": [1, 1]}
            await leaving
            assert (client.peer.unheard, items.unread) == (1, (0, 0))
            client.abort()

    run(main())


def test_node_publisher_waits_as_long_as_node_would(run, address):
    async def main() -> None:
        server = Server(address)
        async with server, Raw.connect(address) as node:
            await node.open()
            async with server.subscribe("a", overflow="block", queue=1) as items:
                for number in range(2):
                    node.write({"t": 2, "d": {"pub": "a", "message": number}, "n": str(number)})
                assert (await node.packet())["n"] == "0"
                await until(lambda: room_taken(server))
                node.write({"t": 4, "n": "p"})
                assert (await node.packet())["t"] == 5  # it is still read
                assert await values(items, 2) == [0, 1]
                assert await node.packet() == {"t": 3, "d": {"result": True}, "n": "1"}

    run(main())


def test_publication_of_node_is_given_up_when_node_would(run, address, monkeypatch):
    assert exchange.DEFAULT_TIMEOUT == 10
    monkeypatch.setattr(exchange, "DEFAULT_TIMEOUT", 0.05)

    async def main() -> None:
        server = Server(address)
        async with server, Raw.connect(address) as node:
            await node.open()
            async with server.subscribe("a", overflow="block", queue=1) as items:
                for number in range(2):
                    node.write({"t": 2, "d": {"pub": "a", "message": number}, "n": str(number)})
                for number in range(2):
                    packet = await node.packet()
                    assert packet == {"t": 3, "d": {"result": True}, "n": str(number)}
                assert await values(items, 1) == [0]
                assert isinstance(await raised_by(anext(items)), Overflow)
                assert items.dropped == 1

    run(main())


def test_peer_has_no_say_in_the_subscriptions_of_others(run, address):
    async def main() -> None:
        async with (
            everybody(address, "native") as (server, client),
            Raw.connect(address) as raw,
            client.subscribe("a", overflow="block", queue=1) as items,
        ):
            await raw.open(interphone=OURS)
            raw.write({"t": 20, "n": 1, "d": [1000, 1000]})
            raw.write({"t": 2, "d": {"unsub": "a"}, "n": "u", "k": "unsub", "o": {"id": 1}})
            assert (await raw.packet())["d"] == {"result": False}
            await server.publish("a", 0)
            waiting = asyncio.ensure_future(server.publish("a", 1, timeout=None))
            await until(lambda: room_taken(server))
            assert await values(items, 2) == [0, 1]
            await waiting

    run(main())


# Odd moments


def test_publication_too_big_for_its_way_is_dropped_at_once_and_after_waiting(run, address):
    async def main() -> None:
        limits = Limits(max_frame=2000)
        async with (
            everybody(address, "native", limits=limits) as (server, client),
            client.subscribe("a", overflow="block", queue=1) as items,
        ):
            large = "x" * 1990  # fits alone, not with what is around it
            assert await server.publish("a", large) == Receipt(1, 0, 1)
            await server.publish("a", 0)
            waiting = [
                asyncio.ensure_future(server.publish("a", value, timeout=None))
                for value in (large, 1)
            ]
            await until(lambda: len(room_taken(server)) == 2)
            assert await values(items, 2) == [0, 1]
            assert [await receipt for receipt in waiting] == [Receipt(1, 0, 1), Receipt(1, 1, 0)]

    run(main())


def test_publication_too_big_for_a_member_after_waiting_goes_to_another(run, address):
    async def main() -> None:
        limits = Limits(max_frame=2000)
        wishes = {"group": "g", "overflow": "block", "queue": 1}
        async with (
            everybody(address, "native", limits=limits) as (server, client),
            client.subscribe("a", **wishes) as theirs,
            server.subscribe("a", **wishes) as ours,
        ):
            for number in range(2):
                await server.publish("a", number)
            waiting = asyncio.ensure_future(server.publish("a", "x" * 1990, timeout=None))
            await until(lambda: room_taken(server))
            await values(theirs, 1)
            await values(ours, 1)
            assert len((await values(ours, 1))[0]) == 1990
            assert await waiting == Receipt(1, 1, 0)

    run(main())


def test_publisher_that_is_faster_than_a_subscriber_is_answered_after_a_moment(run, address):
    async def main() -> None:
        limits = Limits(high_water=1000, low_water=100)
        async with (
            everybody(address, "native", limits=limits) as (server, client),
            deaf_subscriber(server, address, "a") as deaf,
        ):
            for _ in range(3):
                assert await client.publish("a", "x" * 1_000_000) == Receipt(1, 1, 0)
            assert any(peer.connection.blocked for peer in server.peers.values())
            deaf.writer.transport.resume_reading()

    run(main())


def test_who_took_nothing_is_not_waited_for_again_until_it_has_caught_up(run, address):
    def at_once(publishing: Any) -> bool:
        """Whether it ends without waiting; it is given up if not."""
        try:
            publishing.send(None)
        except StopIteration:
            return True
        publishing.close()
        return False

    async def main() -> None:
        limits = Limits(high_water=1000, low_water=100)
        server = Server(address, limits=limits)
        async with server, deaf_subscriber(server, address, "a") as deaf:
            (peer,) = server.peers.values()
            for _ in range(2):
                assert not at_once(server.publish("a", "x" * 1_000_000))  # it gets a moment
                assert await server.publish("a", 1) == Receipt(1, 1, 0)  # and has taken nothing
                assert [at_once(server.publish("a", 2)) for _ in range(3)] == [True] * 3
                deaf.writer.transport.resume_reading()
                heard = [(await deaf.packet())["d"]["message"] for _ in range(5)]
                assert heard[1:] == [1, 2, 2, 2]
                await until(lambda: not peer.connection.blocked)
                deaf.writer.transport.pause_reading()

    run(main())


def test_subscription_the_server_does_not_restore_is_reported_and_the_others_live(run, address):
    async def main() -> None:
        server, errors = Server(address, max_subscriptions=3), []
        server.on_error(lambda error, peer: None)
        async with (
            meeting(server, backoff=Backoff(initial=0.001)) as client,
            Client(address) as other,
        ):
            client.on_error(errors.append)
            async with client.subscribe("a") as first, client.subscribe("b", "c"):
                server._exchange._max_subscriptions = 2
                await cut(server, client)
                assert [type(error) for error in errors] == [Overloaded]
                assert (await other.publish("a", 1)).matched == 1
                assert (await other.publish("b", 1)).matched == 0
                assert await values(first, 1) == [1]

    run(main())


def test_handler_the_server_refuses_is_reported(run, address):
    async def main() -> None:
        server, errors = Server(address, max_subscriptions=1), []
        async with meeting(server) as client:
            client.on_error(errors.append)
            client.on_topic("a", "b")(print)
            await until(lambda: errors)
            assert isinstance(errors[0], Overloaded)

    run(main())


def test_closed_subscription_hears_nothing_of_what_it_missed(run, address):
    async def main() -> None:
        async with Raw.serve(address) as comers:
            client = Client(address, backoff=None)
            connecting = asyncio.ensure_future(client.connect())
            raw = await comers.get()
            await raw.let_in(interphone=OURS)
            await connecting
            items = client.subscribe("a", overflow="block")
            entering = asyncio.ensure_future(items.__aenter__())
            packet = await raw.packet()
            raw.write({"t": 21, "n": 1, "d": [3, "a"]}, {"t": 21, "n": 1, "d": [2, "b"]})
            raw.write({"t": 21, "n": 9, "d": [3, "a"]})
            raw.write({"t": 3, "d": {"result": True}, "n": packet["n"]})
            await entering
            error = await raised_by(anext(items))
            assert isinstance(error, Overflow)
            assert (error.topic, error.dropped, items.dropped) == ("a", 5, 5)
            items.end()
            raw.write({"t": 21, "n": 1, "d": [3, "a"]}, {"t": 4, "n": "p"})
            assert (await raw.packet())["t"] == 5
            assert items.dropped == 5
            client.abort()

    run(main())


def test_node_client_that_is_back_has_its_stars_as_they_stand(run, address):
    async def main() -> None:
        server = Server(address)
        server.on_error(lambda error, peer: None)
        async with server:
            async with Raw.connect(address) as node:
                reply = await node.open()
                node.write({"t": 2, "d": {"sub": "a.*"}, "n": "1"})
                await node.packet()
            await until(lambda: not server.peers)
            async with Raw.connect(address) as node:
                await node.open(id=reply["d"]["id"])
                assert (await server.publish("a.b", 1)).matched == 0
                node.write({"t": 2, "d": {"pub": "a.*", "message": 1}, "n": "2"})
                assert (await node.packet())["d"] == {"pub": "a.*", "message": 1}

    run(main())


@pytest.mark.parametrize("changed", ["nothing", "time", "user"])
def test_node_client_has_its_topics_again_in_time_and_as_the_same_user(
    run, address, monkeypatch, changed
):
    assert exchange.REMEMBERED == 10
    if changed == "time":
        monkeypatch.setattr(exchange, "REMEMBERED", 0)

    async def main() -> None:
        server = Server(address)
        server.on_error(lambda error, peer: None)
        async with server:
            async with Raw.connect(address) as node:
                reply = await node.open()
                node.write({"t": 2, "d": {"sub": "a"}, "n": "1"})
                await node.packet()
                (peer,) = server.peers.values()
                if changed == "user":
                    peer.connection.credentials = Credentials(4_000_000_000)
            await until(lambda: not server.peers)
            assert (await server.publish("a", "lost")).matched == 0
            async with Raw.connect(address) as node:
                await node.open(id=reply["d"]["id"])
                assert (await server.publish("a", 1)).matched == int(changed == "nothing")
                await server.broadcast("next")
                topics = [{"pub": "a", "message": 1}] if changed == "nothing" else []
                for data in (*topics, "next"):
                    assert (await node.packet())["d"] == data

    run(main())
