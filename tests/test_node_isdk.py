"""The stand-in of @isdk/ipc-server (tests/node/isdk.js), above all its publish/subscribe."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from interphone import Backoff, Client, Limits, Peer, Publication, Server, Unsupported
from support.ends import until
from support.node import (
    FLAVOURS,
    UNDEFINED,
    NodeProcess,
    Proxy,
    RawPeer,
    Told,
    flavours,
    one_loop,
)

pytestmark = [pytest.mark.node, one_loop]
Run = Callable[[Any], Any]

AT_ONCE = 5.0  # seconds; a Node asker that is not answered waits 10
SOON = Backoff(initial=0.05, factor=1.0, jitter=False)
FALSY = [0, "", False, None, [], {}]
LIFECYCLE = ["ready", "close", "error", "message", "status", "connect", "pub", "/.*/"]
INHERITED = ["constructor", "toString", "__proto__", "hasOwnProperty"]


# Our Client at an isdk server


@dataclass
class Visit:
    client: Client
    told: Told
    node: NodeProcess


@asynccontextmanager
async def visit(address: str, through: str | None = None, **options: Any) -> AsyncIterator[Visit]:
    """An isdk server "s" that echoes, and our client."""
    client = Client(through or address, **{"backoff": SOON, **options})
    told = Told(client)
    async with NodeProcess() as node:
        await serve(node, address)
        try:
            await client.connect({"p": 1})
            await node.event("connect", key="s", data={"p": 1})
            yield Visit(client, told, node)
        finally:
            await client.close(grace=0)


async def serve(node: NodeProcess, address: str) -> None:
    await node.ask(do="create-server", key="s", kind="isdk", options={"path": address})


async def next_of(items: Any) -> Any:
    async with asyncio.timeout(10):
        item = await anext(items)
    return item.topic, item.value


def test_our_client_subscribes_and_publishes(run: Run, address: str) -> None:
    async def main() -> None:
        async with visit(address) as met:
            client, node = met.client, met.node
            async with client.subscribe("news", "ö.x*") as items:
                await node.ask(do="publish", key="s", topic="news", message={"a": ["é"]})
                assert await next_of(items) == ("news", {"a": ["é"]})
                receipt = await client.publish("ö.x*", [1])
                assert receipt
                assert receipt.matched is None
                assert await next_of(items) == ("ö.x*", [1])

                await items.unsubscribe("ö.x*")
                await node.ask(do="publish", key="s", topic="ö.x*", message="gone")
                await node.ask(do="publish", key="s", topic="news", message="left")
                assert await next_of(items) == ("news", "left")
            await node.ask(do="publish", key="s", topic="news", message="nobody")
            assert await client.request({"still": "here"}) == {"still": "here"}
            assert not met.told.so_far("message")

    run(main())


@pytest.mark.parametrize("value", FALSY, ids=repr)
def test_falsy_publications_arrive(run: Run, address: str, value: Any) -> None:
    async def main() -> None:
        async with visit(address) as met, met.client.subscribe("t", of=Any) as items:
            await met.node.ask(do="publish", key="s", topic="t", message=value)
            assert await next_of(items) == ("t", value)
            await met.client.publish("t", value)
            assert await next_of(items) == ("t", value)
            await met.node.ask(do="publish", key="s", topic="t", message=UNDEFINED)
            assert await next_of(items) == ("t", None)

    run(main())


def test_a_handler_of_a_topic(run: Run, address: str) -> None:
    async def main() -> None:
        heard: asyncio.Queue[Publication[int]] = asyncio.Queue()
        client = Client(address, backoff=SOON)

        @client.on_topic("numbers", of=int)
        async def note(publication: Publication[int]) -> None:
            heard.put_nowait(publication)

        async with NodeProcess() as node:
            await serve(node, address)
            async with client:
                for value in range(3):
                    await node.ask(do="publish", key="s", topic="numbers", message=value)
                told = [(await heard.get()).value for _ in range(3)]
                assert told == [0, 1, 2]

    run(main())


def test_subscriptions_come_back_and_nothing_waits_for_ghosts(run: Run, address: str) -> None:
    async def main() -> None:
        outer = address + "-outer"
        async with (
            Proxy(outer, address) as proxy,
            visit(address, through=outer) as met,
            met.client.subscribe("a", "b", gaps=True) as items,
        ):
            node = met.node
            for round_ in range(1, 3):
                await proxy.cut()
                await node.event("disconnect", key="s")
                await node.event("connect", key="s", data={"p": 1})
                while met.client.status != 3:
                    await met.told.next("status")
                assert not (await asyncio.wait_for(anext(items), 10)).resumed
                assert items.gaps == round_
                began = time.monotonic()
                for number in range(10):
                    await node.ask(do="publish", key="s", topic="b", message=number)
                    assert await next_of(items) == ("b", number)
                # A ghost of the connection before would delay each of them by half a second.
                assert time.monotonic() - began < 2.5

    run(main())


def test_a_restarted_isdk_server_gets_the_subscriptions_again(run: Run, address: str) -> None:
    async def main() -> None:
        async with visit(address) as met, met.client.subscribe("a") as items:
            met.node.kill()
            await met.node.stop()
            async with NodeProcess() as second:
                await serve(second, address)
                await second.event("connect", key="s", data={"p": 1})
                while met.client.status != 3:
                    await met.told.next("status")
                await second.ask(do="publish", key="s", topic="a", message=0)
                assert await next_of(items) == ("a", 0)
                await met.client.close()

    run(main())


@pytest.mark.parametrize("name", [*LIFECYCLE, *INHERITED])
def test_names_of_events_are_only_topics(run: Run, address: str, name: str) -> None:
    async def main() -> None:
        async with visit(address) as met:
            met.told.so_far("status")
            async with met.client.subscribe(name) as items:
                await met.client.publish(name, {"not": "an event"})
                assert await next_of(items) == (name, {"not": "an event"})
            assert await met.client.request({"fine": 1}) == {"fine": 1}
            for event in Told.NAMES:
                assert event == "ready" or not met.told.so_far(event), event

    run(main())


def test_what_isdk_would_take_for_a_subscription_is_refused_here(run: Run, address: str) -> None:
    async def main() -> None:
        async with visit(address) as met:
            for data in ("what time is it?", "", {"sub": "x"}, {"unsub": ["x"]}, {"pub": "x"}):
                with pytest.raises(Unsupported):
                    await met.client.request(data)
            for data in (["what time is it?"], {"sub": ""}, {"q": "sub"}, None, 0, ["pub"]):
                assert await met.client.request(data) == data
            await met.client.send("a message may be a string")
            await met.node.event("message", key="s", data="a message may be a string")

    run(main())


def test_a_publication_that_nobody_asked_for_is_a_message(run: Run, address: str) -> None:
    async def main() -> None:
        async with visit(address) as met, met.client.subscribe("mine") as items:
            await met.node.ask(do="broadcast", key="s", data={"pub": "other", "message": 1})
            assert await met.told.message() == {"pub": "other", "message": 1}
            await met.node.ask(do="broadcast", key="s", data={"pub": "mine", "message": 2})
            assert await next_of(items) == ("mine", 2)

    run(main())


def _sizes(overhead: int) -> list[int]:
    """Lengths of a text that make the whole frame 65536*k+1 bytes long, and its neighbours."""
    return [65536 * k + 1 - 3 - overhead + off for k in (1, 2, 3, 16) for off in (-1, 0, 1)]


def test_no_frame_to_an_isdk_server_stalls(run: Run, address: str) -> None:
    async def main() -> None:
        async with visit(address) as met:
            await met.node.ask(do="set-reply", key="s", reply={"value": "got it"})
            request = len('{"t":2,"d":["?"],"n":"12"}') - 1
            for size in _sizes(request):
                for off in (-1, 0, 1):  # the nonce grows
                    assert await met.client.request(["x" * (size + off)]) == "got it"
            message = len('{"t":1,"d":""}')
            for size in _sizes(message):
                await met.client.send("x" * size)
                heard = (await met.node.event("message", key="s"))["data"]
                assert getattr(heard, "length", None) == size or heard == "x" * size

    run(main())


@pytest.mark.skipif(sys.platform == "win32", reason="a pipe never holds more than 64 KiB")
def test_no_two_writes_that_isdk_reads_as_one_stall(run: Run, address: str) -> None:
    async def main() -> None:
        async with visit(address) as met:
            met.node.freeze()  # what is written now waits together
            for total in (30_000, 35_537):
                await met.client.send("x" * (total - 3 - len('{"t":1,"d":""}')))
                await until(lambda: met.client.peer.backlog == 0)  # the system has it
            met.node.thaw()
            for _ in range(2):
                await met.node.event("message", key="s")

    run(main())


# isdk clients at our Server


@dataclass
class Meeting:
    server: Server
    told: Told
    node: NodeProcess


@asynccontextmanager
async def meeting(address: str, *keys: str, **options: Any) -> AsyncIterator[Meeting]:
    """Our server and connected isdk clients of these keys."""
    server = Server(address, **options)
    told = Told(server)
    async with server, NodeProcess() as node:
        for key in keys:
            await join(node, key, address)
        yield Meeting(server, told, node)


async def join(node: NodeProcess, key: str, address: str, payload: Any = None) -> None:
    options = {"path": address}
    await node.ask(do="create-client", key=key, kind="isdk", options=options)
    joined = await node.ask(do="connect", key=key, payload=payload)
    assert joined["status"] == 3


def test_isdk_clients_subscribe_and_publish_here(run: Run, address: str) -> None:
    async def main() -> None:
        async with meeting(address, "a", "b") as met:
            server, node = met.server, met.node
            assert await node.ask(do="subscribe", key="a", topic="t") == {"result": True}
            assert await node.ask(do="subscribe", key="a", topic="t") == {"result": False}
            assert await node.ask(do="subscribe", key="a", topic=["t", "u"]) == {"result": True}
            assert await node.ask(do="subscribe", key="b", topic="u") == {"result": True}
            assert await node.ask(do="unsubscribe", key="b", topic="t") == {"result": False}

            async with server.subscribe("t") as items:
                told = await node.ask(do="publish", key="b", topic="t", message={"n": "é"})
                assert told == {"result": True}
                assert await next_of(items) == ("t", {"n": "é"})
            heard = await node.event("pub", key="a")
            assert (heard["topic"], heard["data"]) == ("t", {"n": "é"})

            receipt = await server.publish("u", 5)
            assert (receipt.matched, receipt.queued, receipt.dropped) == (2, 2, 0)
            for key in ("a", "b"):
                assert (await node.event("pub", key=key))["data"] == 5

            assert await node.ask(do="publish", key="a", topic="nobody", message=1) == {
                "result": True
            }
            assert await node.ask(do="unsubscribe", key="a", topic=["t", "u"]) == {"result": True}
            assert (await server.publish("t", 1)).matched == 0
            assert not met.told.so_far("message")

    run(main())


def test_deliveries_are_whole_and_falsy_ones_come_too(run: Run, address: str) -> None:
    async def main() -> None:
        async with meeting(address, "a", "b") as met, await RawPeer.join(address) as raw:
            node = met.node
            await node.ask(do="subscribe", key="a", topic="t")
            assert (await raw.ask({"sub": "t"}))["d"] == {"result": True}
            for value in FALSY[:4]:
                await node.ask(do="publish", key="b", topic="t", message=value)
                # isdk's client shows what is falsy as a message with the whole object.
                heard = await node.event("message", key="a")
                assert heard["data"] == {"pub": "t", "message": value}
                assert await raw.read() == {"t": 1, "d": {"pub": "t", "message": value}}
                await met.server.publish("t", value)
                heard = await node.event("message", key="a")
                assert heard["data"] == {"pub": "t", "message": value}
                assert await raw.read() == {"t": 1, "d": {"pub": "t", "message": value}}
            await node.ask(do="publish", key="b", topic="t", message=UNDEFINED)
            assert await raw.read() == {"t": 1, "d": {"pub": "t"}}
            extra = {"pub": "t", "message": 1, "ttl": [5], "x": None}
            assert await node.ask(do="request", key="b", data=extra) == {"result": True}
            assert await raw.read() == {"t": 1, "d": extra}

    run(main())


def test_string_requests_reach_the_handler(run: Run, address: str) -> None:
    async def main() -> None:
        async with meeting(address, "a") as met:
            heard = []

            @met.server.on_request
            async def echo(peer: Peer, data: object) -> object:
                heard.append(data)
                return data

            mine = [
                "what time is it?",
                "sub",
                "",
                {"sub": "x", "more": 1},
                {"sub": 5},
                {"sub": ""},
                {"pub": None},
                {"pub": ["x"]},
                {"unsub": {"a": "x"}},
                [{"sub": "x"}],
            ]
            for data in mine:
                assert await met.node.ask(do="request", key="a", data=data) == data
            assert heard == mine
            assert (await met.server.publish("x", 1)).matched == 0

    run(main())


def test_an_unhandled_request_of_isdk_is_answered_at_once(run: Run, address: str) -> None:
    async def main() -> None:
        async with meeting(address, "a") as met:
            began = time.monotonic()
            told = await met.node.ask(do="request", key="a", data="what time is it?")
            assert told["error"]["code"] == -32601
            assert time.monotonic() - began < AT_ONCE

    run(main())


def test_a_publisher_hears_itself_before_its_answer(run: Run, address: str) -> None:
    async def main() -> None:
        async with meeting(address), await RawPeer.join(address) as raw:
            assert (await raw.ask({"sub": "t"}))["d"] == {"result": True}
            for number in range(50):
                whole = {"pub": "t", "message": number}
                raw.write({"t": 2, "d": whole, "n": number + 1})
                assert await raw.read() == {"t": 1, "d": whole}
                assert await raw.read() == {"t": 3, "d": {"result": True}, "n": number + 1}

    run(main())


def test_topics_of_a_lost_client_are_kept_for_a_moment(run: Run, address: str) -> None:
    async def main() -> None:
        outer = address + "-outer"
        async with Proxy(outer, address) as proxy, meeting(address) as met:
            node = met.node
            await join(node, "a", outer)
            (old, _) = await met.told.next("connect")
            await node.ask(do="subscribe", key="a", topic=["t", "u"])
            await proxy.cut()
            await met.told.next("disconnect")
            assert (await met.server.publish("t", "while away")).matched == 0
            (back, _) = await met.told.next("connect")
            assert back.id == old.id
            await node.event("ready", key="a")
            assert (await met.server.publish("t", "again")).matched == 1
            assert (await node.event("pub", key="a"))["data"] == "again"
            assert await node.ask(do="unsubscribe", key="a", topic="u") == {"result": True}
            assert (await met.server.publish("u", 1)).matched == 0

    run(main())


def test_topics_end_with_a_goodbye_and_are_nobody_elses(run: Run, address: str) -> None:
    async def main() -> None:
        async with meeting(address) as met:
            raw = await RawPeer.join(address, id="mine")
            await raw.ask({"sub": "t"})
            await raw.close()  # lost, and another takes the id
            await met.told.next("disconnect")
            async with await RawPeer.join(address, id="other") as other:
                assert (await met.server.publish("t", 1)).matched == 0
                async with await RawPeer.join(address, id="mine") as back:
                    assert (await met.server.publish("t", 2)).matched == 1
                    assert await back.read() == {"t": 1, "d": {"pub": "t", "message": 2}}
                    # It said goodbye: what it subscribed to ends with it.
                    back.write({"t": 6, "d": {"a": False}})
                    assert await back.read() is None
                await met.told.next("disconnect")
                async with await RawPeer.join(address, id="mine"):
                    assert (await met.server.publish("t", 3)).matched == 0
                assert (await other.ask({"unsub": "t"}))["d"] == {"result": False}

    run(main())


def test_nobody_subscribes_or_unsubscribes_for_somebody_else(run: Run, address: str) -> None:
    async def main() -> None:
        async with (
            meeting(address) as met,
            await RawPeer.join(address, id="a") as first,
            await RawPeer.join(address, id="a") as second,
        ):
            assert first.welcome != second.welcome
            assert (await first.ask({"sub": "t"}))["d"] == {"result": True}
            assert (await second.ask({"sub": "t"}))["d"] == {"result": True}
            assert (await second.ask({"unsub": "t"}))["d"] == {"result": True}
            assert (await met.server.publish("t", 1)).matched == 1
            assert await first.read() == {"t": 1, "d": {"pub": "t", "message": 1}}

    run(main())


@pytest.mark.parametrize("fate", ["frozen", "killed"])
def test_a_dead_or_slow_node_subscriber_delays_nobody(run: Run, address: str, fate: str) -> None:
    async def main() -> None:
        async with meeting(address, "quick") as met, NodeProcess() as other:
            await join(other, "slow", address)
            await other.ask(do="subscribe", key="slow", topic="t")
            await met.node.ask(do="subscribe", key="quick", topic="t")
            other.freeze()
            if fate == "killed":
                other.kill()
            text = "x" * 20_000
            began = time.monotonic()
            for number in range(100):
                await met.server.publish("t", [text, number])
                assert (await met.node.event("pub", key="quick"))["data"] == [text, number]
            assert time.monotonic() - began < AT_ONCE  # net waits 3 s for each, isdk for ever
            asked = {"pub": "t", "message": "from Node"}
            assert await met.node.ask(do="request", key="quick", data=asked) == {"result": True}
            if fate == "frozen":
                other.thaw()
                told = [(await other.event("pub", key="slow"))["data"] for _ in range(101)]
                assert [item[1] for item in told[:-1]] == list(range(100))

    run(main())


@pytest.mark.parametrize("name", [*LIFECYCLE, *INHERITED])
def test_names_of_events_and_inherited_ones_are_topics(run: Run, address: str, name: str) -> None:
    async def main() -> None:
        async with meeting(address) as met, await RawPeer.join(address) as raw:
            for event in Told.NAMES:
                met.told.so_far(event)
            assert (await raw.ask({"sub": [name]}))["d"] == {"result": True}
            raw.write({"t": 2, "d": {"pub": name, "message": {"a": 1}}, "n": "p"})
            assert await raw.read() == {"t": 1, "d": {"pub": name, "message": {"a": 1}}}
            assert await raw.read() == {"t": 3, "d": {"result": True}, "n": "p"}
            assert (await raw.ask({"unsub": name}))["d"] == {"result": True}
            assert [event for event in Told.NAMES if met.told.so_far(event)] == []

    run(main())


@pytest.mark.parametrize("topic", ["\n", "$info", "x" * 256, "é" * 128])
def test_a_name_that_cannot_be_a_topic_is_refused_at_once(
    run: Run, address: str, topic: str
) -> None:
    async def main() -> None:
        async with meeting(address), await RawPeer.join(address) as raw:
            for data in ({"sub": topic}, {"sub": ["fine", topic]}, {"pub": topic, "message": 1}):
                assert (await raw.ask(data))["d"]["error"]["code"] == -32602
            assert (await raw.ask({"unsub": ["fine"]}))["d"] == {"result": False}

    run(main())


@pytest.mark.parametrize("subscribers", ["one", "all"])
def test_subscriptions_have_limits(run: Run, address: str, subscribers: str) -> None:
    async def main() -> None:
        limits = Limits(max_subscriptions=3 if subscribers == "one" else 10)
        async with (
            meeting(address, limits=limits, max_subscriptions=3),
            await RawPeer.join(address) as raw,
        ):
            assert (await raw.ask({"sub": ["a", "b", "c"]}))["d"] == {"result": True}
            assert (await raw.ask({"sub": "d"}))["d"]["error"]["code"] == -32001
            assert (await raw.ask({"sub": "c"}))["d"] == {"result": False}
            assert (await raw.ask({"unsub": "a"}))["d"] == {"result": True}
            assert (await raw.ask({"sub": "d"}))["d"] == {"result": True}

    run(main())


def test_no_frame_to_an_isdk_client_stalls(run: Run, address: str) -> None:
    async def main() -> None:
        async with meeting(address, "a") as met:
            (peer, _) = await met.told.next("connect")
            await met.node.ask(do="set-reply", key="a", reply={"value": "got it"})
            for size in _sizes(len('{"t":1,"d":""}')):
                await peer.send("x" * size)
                heard = (await met.node.event("message", key="a"))["data"]
                assert getattr(heard, "length", None) == size or heard == "x" * size
            for size in _sizes(len('{"t":2,"d":"","n":"1"}')):
                for off in (-1, 0, 1):
                    assert await peer.request("x" * (size + off)) == "got it"

    run(main())


# net-ipc's clients, by hand


@flavours
def test_net_ipc_clients_may_subscribe_by_hand(run: Run, address: str, flavour: str) -> None:
    async def main() -> None:
        async with meeting(address, compress=True, messagepack=True) as met:
            node = met.node
            for key in ("a", "b"):
                options = {"path": address, **FLAVOURS[flavour if key == "a" else "plain"]}
                await node.ask(do="create-client", key=key, options=options)
                await node.ask(do="connect", key=key)
                asked = {"sub": ["t"]}
                assert await node.ask(do="request", key=key, data=asked) == {"result": True}
            for value in ([1.5, {"é": None}], 0, "", "\u4e2d"):
                asked = {"pub": "t", "message": value}
                for key in ("a", "b"):
                    assert await node.ask(do="request", key=key, data=asked) == {"result": True}
                    for hearer in ("a", "b"):
                        heard = (await node.event("message", key=hearer))["data"]
                        assert heard == {"pub": "t", "message": value}
                await met.server.publish("t", value)
                for hearer in ("a", "b"):
                    heard = (await node.event("message", key=hearer))["data"]
                    assert heard == {"pub": "t", "message": value}

    run(main())
