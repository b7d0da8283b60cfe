"""Our Client at Node servers of net-ipc."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from interphone import (
    Backoff,
    Client,
    ConnectError,
    ConnectionClosed,
    ConnectionLost,
    Limits,
    PayloadError,
    RemoteError,
    RequestTimeout,
    Status,
    Unsupported,
)
from support.node import (
    FLAVOURS,
    UNDEFINED,
    NodeError,
    NodeProcess,
    Proxy,
    Told,
    big_text,
    digest_of,
    flavours,
    one_loop,
)

pytestmark = pytest.mark.node
Run = Callable[[Any], Any]

AT_ONCE = 5.0  # seconds; a Node asker that is not answered waits 10
SOON = Backoff(initial=0.05, factor=1.0, jitter=False)


@dataclass
class Visit:
    client: Client
    told: Told
    node: NodeProcess
    id: str

    async def server_does(self, do: str, **given: Any) -> Any:
        """Have the Node server do something to its connection with us."""
        return await self.node.ask(do=do, key="s", **given)


@asynccontextmanager
async def visit(
    address: str,
    flavour: str = "plain",
    *,
    reply: Any = "echo",
    payload: Any = None,
    through: str | None = None,
    server: dict[str, Any] | None = None,
    **options: Any,
) -> AsyncIterator[Visit]:
    """A Node server "s" and a connected client of ours."""
    options = {"backoff": SOON, **FLAVOURS[flavour], **options}
    client = Client(through or address, **options)
    told = Told(client)
    async with NodeProcess() as node:
        await serve(node, address, reply, **server or {})
        try:
            await client.connect(payload)
            peer = (await node.event("connect", key="s"))["peer"]
            assert peer == client.id
            yield Visit(client, told, node, peer)
        finally:
            await client.close(grace=0)


async def serve(node: NodeProcess, address: str, reply: Any = "echo", **options: Any) -> None:
    given = {"path": address, **options}
    await node.ask(do="create-server", key="s", options=given, reply=reply)


def echo(client: Client) -> None:
    @client.on_request
    async def answer(data: object) -> object:
        return data


# A whole conversation


@pytest.mark.smoke
@flavours
def test_a_conversation(run: Run, address: str, flavour: str) -> None:
    async def main() -> None:
        payload = {"who": "né", "n": [1, None]}
        client = Client(address, **FLAVOURS[flavour])
        told = Told(client)
        echo(client)
        async with NodeProcess() as node:
            await serve(node, address)
            await client.connect(payload)
            joined = await node.event("connect", key="s")
            assert joined["data"] == payload
            assert joined["peer"] == client.id
            assert client.status is Status.READY
            assert [status for (status,) in told.so_far("status")] == [1, 2, 3]
            assert not client.peer.interphone

            await client.send({"hello": ["wörld"]})
            heard = await node.event("message", key="s")
            assert (heard["data"], heard["peer"]) == ({"hello": ["wörld"]}, client.id)
            await node.ask(do="send", key="s", data="back")
            assert await told.next("message") == ("back",)

            assert await client.request({"a": 1}) == {"a": 1}
            assert await client.request("a string") == "a string"
            assert await node.ask(do="request", key="s", data={"b": [2]}) == {"b": [2]}
            assert await node.ask(do="request", key="s", data="what time?") == "what time?"

            assert 0 < await client.ping() < AT_ONCE
            assert await node.ask(do="ping", key="s") >= 0

            assert await client.close("enough") is True
            gone = await node.event("disconnect", key="s")
            assert (gone["data"], gone["peer"]) == ("enough", joined["peer"])
            assert await told.next("close") == ("enough",)
            assert client.status is Status.IDLE

    run(main())


VALUES = [
    None,
    True,
    False,
    0,
    -1.5,
    2**53 - 1,
    "",
    "héllo \u4e2d \U0001f600 \x00\x7f\u2028",
    "x" * 65_000,
    [],
    {},
    {"a": [{}, [], None, False, 0, ""], "": {"é": "ü"}},
    {"t": 1, "d": 2, "n": 3, "k": "pub", "e": 4},
    {"pub": "topic", "message": 1},
    {"sub": "topic"},
    {"unsub": ["topic"]},
]


@one_loop
@flavours
def test_values(run: Run, address: str, flavour: str) -> None:
    async def main() -> None:
        async with visit(address, flavour) as met:
            echo(met.client)
            for value in VALUES:
                await met.client.send(value)
                assert (await met.node.event("message", key="s"))["data"] == value
                await met.server_does("send", data=value)
                assert await met.told.message() == value
                assert await met.client.request(value) == value
                assert await met.server_does("request", data=value) == value
            await met.server_does("send", data=UNDEFINED)
            assert await met.told.message() is None
            lone = "\ud83d and \ude00"
            await met.server_does("send", data=lone)
            survives = "messagepack" not in FLAVOURS[flavour]
            back = lone if survives else "\ufffd\ufffd\ufffd and \ufffd\ufffd\ufffd"
            assert await met.told.message() == back
            await met.client.send(lone)
            assert (await met.node.event("message", key="s"))["data"] == back

    run(main())


@one_loop
def test_payloads_of_connect(run: Run, address: str) -> None:
    async def main() -> None:
        async with NodeProcess() as node:
            await serve(node, address)
            for payload in (None, 0, "", False, "\ud800", [None], {"a": {}}, "x" * 10_000):
                async with Client(address) as client:
                    assert client.id is not None
                    await client.close()
                client = Client(address)
                await client.connect(payload)
                await node.event("connect", key="s", data=UNDEFINED)
                expected = UNDEFINED if payload is None else payload
                assert (await node.event("connect", key="s"))["data"] == expected
                await client.close()

    run(main())


# Requests


@one_loop
@flavours
def test_our_failures_reach_node_at_once(run: Run, address: str, flavour: str) -> None:
    async def main() -> None:
        async with visit(address, flavour) as met:
            began = time.monotonic()
            unhandled = await met.server_does("request", data="anybody?")
            assert unhandled["error"]["code"] == -32601

            @met.client.on_request
            def fail(data: object) -> object:
                if data == "remote":
                    raise RemoteError("chosen", kind="Mine", data=[1])
                if data == "object":
                    return object()
                raise KeyError("böom")

            told = await met.server_does("request", data="key")
            assert told == {
                "jsonrpc": "2.0",
                "error": {"code": -32000, "message": "KeyError: 'böom'"},
            }
            told = await met.server_does("request", data="remote")
            assert told["error"] == {"code": -32000, "message": "Mine: chosen", "data": [1]}
            told = await met.server_does("request", data="object")
            assert told["error"]["code"] == -32000
            assert time.monotonic() - began < AT_ONCE
            reported = [error for (error,) in met.told.so_far("error")]
            assert [type(error) for error in reported] == [KeyError, PayloadError]

    run(main())


@one_loop
@flavours
def test_nodes_silences(run: Run, address: str, flavour: str) -> None:
    async def main() -> None:
        async with visit(address, flavour, reply="unheard") as met:
            assert await met.client.request("anybody?") is None
            await met.server_does("set-reply", reply="none")
            with pytest.raises(RequestTimeout):
                await met.client.request("hello?", timeout=0.05)
            await met.server_does("set-reply", reply={"value": False})
            assert await met.client.request("hello?") is False
            with pytest.raises(PayloadError):
                await met.client.request("hello?", returns=int)

    run(main())


@one_loop
def test_pings_are_answered_while_both_are_busy(run: Run, address: str) -> None:
    async def main() -> None:
        async with visit(address, reply="none") as met:
            done, started = asyncio.Event(), asyncio.Event()

            @met.client.on_message
            async def dawdle(data: object) -> None:
                started.set()
                await done.wait()

            await met.server_does("send", data="work")
            waiting = asyncio.create_task(met.client.request("never answered", timeout=None))
            await started.wait()
            for _ in range(3):
                assert await met.server_does("ping", data=[0]) >= 0
                assert await met.client.ping() < AT_ONCE
            done.set()
            waiting.cancel()

    run(main())


@one_loop
def test_broadcast_survey_and_server_ping_reach_us(run: Run, address: str) -> None:
    async def main() -> None:
        async with visit(address) as met, Client(address, messagepack=True) as other:
            echo(met.client)
            told = Told(other)

            @other.on_request(on="inline")
            def answer(data: object) -> object:
                return ["other", data]

            await met.server_does("broadcast", data={"to": "all"})
            assert await met.told.message() == await told.message() == {"to": "all"}
            assert await met.server_does("survey", data=5) == [
                {"value": 5},
                {"value": ["other", 5]},
            ]
            pings = await met.server_does("server-ping")
            assert [ping["value"] >= 0 for ping in pings] == [True, True]

    run(main())


# Pausing


@one_loop
@flavours
def test_nothing_is_delivered_while_we_pause_and_then_everything(
    run: Run, address: str, flavour: str
) -> None:
    async def main() -> None:
        async with visit(address, flavour) as met, Client(address) as other:
            echo(met.client)
            told = Told(other)
            met.client.pause()
            await met.server_does("burst", peer=met.id, count=2000)
            asked = asyncio.create_task(met.server_does("request", peer=met.id, data="later"))
            for number in range(20):
                await met.server_does("send", peer=other.id, data=number)
                assert await told.message() == number
            assert met.told.so_far("message") == []
            assert not asked.done()
            met.client.resume()
            assert [await met.told.message() for _ in range(2000)] == list(range(2000))
            assert await asked == "later"

    run(main())


@one_loop
def test_a_paused_node_gets_everything_after(run: Run, address: str) -> None:
    # net-ipc's own pause() keeps nothing back (wire.md D22): it is the process that stands still.
    async def main() -> None:
        async with visit(address) as met:
            met.node.freeze()
            sending = asyncio.gather(*(met.client.send(["x" * 9999, n]) for n in range(400)))
            _, pending = await asyncio.wait([sending], timeout=0.3)
            assert pending
            met.node.thaw()
            await sending
            heard = [(await met.node.event("message", key="s"))["data"][1] for _ in range(400)]
            assert heard == list(range(400))

    run(main())


# Ending

REASONS = ["bye", 0, "", False, None, {"why": ["é"]}]


@one_loop
@pytest.mark.parametrize("reason", REASONS, ids=repr)
def test_reasons_of_a_close(run: Run, address: str, reason: Any) -> None:
    async def main() -> None:
        async with visit(address) as met:
            assert await met.server_does("close", peer=met.id, reason=reason) is True
            assert await met.told.next("close") == (reason,)
            assert met.client.status is Status.IDLE
            assert await met.client.wait_closed() == reason
            with pytest.raises(ConnectionClosed) as caught:
                await met.client.send("too late")
            assert (caught.value.reason, caught.value.delivery) == (reason, "not_sent")
            assert await met.client.close() is False

            await met.client.connect("once more")
            again = await met.node.event("connect", key="s")
            assert (again["peer"], again["data"]) == (met.id, "once more")
            assert await met.client.request("there?") == "there?"
            await met.client.close(reason)
            gone = await met.node.event("disconnect", key="s")
            gone = await met.node.event("disconnect", key="s")
            assert gone["data"] == (reason or None)

    run(main())


@one_loop
@pytest.mark.parametrize("ending", ["close", "abort", "killed", "closed by node", "node's server"])
def test_pending_requests_fail_at_once(run: Run, address: str, ending: str) -> None:
    async def main() -> None:
        async with visit(address, reply="none", backoff=None) as met:
            client = met.client
            asked = [asyncio.create_task(client.request(n, timeout=None)) for n in range(20)]
            await met.node.event("request", key="s", data=19)
            began = time.monotonic()
            match ending:
                case "close":
                    await client.close("over")
                case "abort":
                    client.abort("over")
                case "killed":
                    met.node.kill()
                case "closed by node":
                    await met.server_does("close", peer=met.id, reason="over")
                case _:
                    await met.server_does("close", allow_reconnect=False)
            errors = await asyncio.gather(*asked, return_exceptions=True)
            assert time.monotonic() - began < AT_ONCE
            kind = ConnectionLost if ending == "killed" else ConnectionClosed
            assert {type(error) for error in errors} == {kind}
            assert {error.delivery for error in errors} == {"maybe_sent"}
            (reason,) = await met.told.next("close")
            expected = "Server was shut down" if ending == "node's server" else "over"
            assert reason == expected or ending == "killed"
            assert client.status is Status.IDLE

    run(main())


# Coming back


@one_loop
@flavours
def test_a_lost_connection_comes_back_with_payload_and_id(
    run: Run, address: str, flavour: str
) -> None:
    async def main() -> None:
        outer = address + "-outer"
        async with (
            Proxy(outer, address) as proxy,
            visit(address, flavour, payload={"p": "é"}, through=outer) as met,
        ):
            for _ in range(3):
                met.told.so_far("status")
                asked = asyncio.create_task(met.client.request("lost"))
                await asyncio.sleep(0)
                await proxy.cut()
                await met.node.event("disconnect", key="s")
                back = await met.node.event("connect", key="s")
                assert (back["peer"], back["data"]) == (met.id, {"p": "é"})
                assert await met.client.request("there?") == "there?"
                assert met.client.id == met.id
                seen = [status for (status,) in met.told.so_far("status")]
                assert seen[:2] == [Status.DISCONNECTED, Status.RECONNECTING]
                assert seen[-1] is Status.READY
                with pytest.raises(ConnectionLost):
                    await asked

    run(main())


@one_loop
def test_a_restarted_node_server_gets_payload_and_id_again(run: Run, address: str) -> None:
    async def main() -> None:
        async with visit(address, payload="p") as met:
            met.node.kill()
            await met.node.stop()
            while met.client.status is Status.READY:
                await met.told.next("status")
            began_away = asyncio.create_task(met.client.request("while away"))
            with pytest.raises(RequestTimeout) as caught:
                await met.client.request("hurry", timeout=0.05)
            assert caught.value.delivery == "not_sent"
            async with NodeProcess() as second:
                await serve(second, address)
                back = await second.event("connect", key="s")
                assert (back["peer"], back["data"]) == (met.id, "p")
                assert await began_away == "while away"
                await met.client.close()

    run(main())


@one_loop
@pytest.mark.parametrize("allow", [True, False])
def test_a_closing_node_server_says_whether_to_come_back(
    run: Run, address: str, allow: bool
) -> None:
    async def main() -> None:
        async with visit(address, payload="p") as met:
            await met.server_does("close", allow_reconnect=allow)
            if not allow:
                assert await met.told.next("close") == ("Server was shut down",)
                assert met.client.status is Status.IDLE
                return
            await met.node.event("close", key="s")
            await met.server_does("start")
            back = await met.node.event("connect", key="s")
            assert (back["peer"], back["data"]) == (met.id, "p")
            assert await met.client.request("there?") == "there?"
            assert not met.told.so_far("close")

    run(main())


@one_loop
def test_node_may_let_one_connection_come_back(run: Run, address: str) -> None:
    async def main() -> None:
        async with visit(address) as met:
            await met.server_does("close", peer=met.id, reason="again", allow_reconnect=True)
            await met.node.event("disconnect", key="s")
            assert (await met.node.event("connect", key="s"))["peer"] == met.id
            assert await met.client.request(1) == 1

    run(main())


@one_loop
def test_a_client_gives_up_when_told_to(run: Run, address: str) -> None:
    async def main() -> None:
        backoff = Backoff(initial=0.01, factor=1.0, attempts=3)
        async with visit(address, backoff=backoff) as met:
            met.node.kill()
            (error,) = await met.told.next("close")
            assert isinstance(error, ConnectError)
            assert met.client.status is Status.IDLE
            with pytest.raises(ConnectionLost):
                await met.client.send("nobody there")

    run(main())


@one_loop
def test_a_server_that_comes_later_is_found(run: Run, address: str) -> None:
    async def main() -> None:
        client = Client(address, backoff=SOON)
        told = Told(client)
        async with NodeProcess() as node:
            connecting = asyncio.create_task(client.connect("early"))
            while (await told.next("status"))[0] is not Status.RECONNECTING:
                pass
            await serve(node, address)
            await connecting
            assert (await node.event("connect", key="s"))["data"] == "early"
            await client.close()

    run(main())


@one_loop
def test_a_node_server_that_is_full_drops_us_and_we_say_so(run: Run, address: str) -> None:
    async def main() -> None:
        async with visit(address, server={"max": 1}):
            second = Client(address, connect_timeout=1.0, backoff=SOON)
            with pytest.raises(ConnectError):
                await second.connect()
            assert second.status is Status.IDLE
            assert await second.close() is False

    run(main())


@one_loop
def test_a_node_server_that_turns_us_away(run: Run, address: str) -> None:
    # The Node way of authentication: close() in the connect handler, behind the reply.
    async def main() -> None:
        async with visit(address) as met:
            await met.server_does("close", peer=met.id, reason="go away")
            assert await met.client.wait_closed() == "go away"

    run(main())


# Much


BIG = 64 * 1024 * 1024


@one_loop
@pytest.mark.slow
def test_64_mib_both_ways(run: Run, address: str) -> None:
    async def main() -> None:
        async with visit(address, limits=Limits(max_frame=BIG + 1024)) as met:
            echo(met.client)
            sent = await met.server_does("big", bytes=BIG)
            assert digest_of(await met.told.message()) == sent["sent"]
            asked = {"as": "request", "timeout": 60_000}
            told = await met.server_does("big", bytes=BIG, **asked)
            assert told["answer"] == told["sent"]

            text = big_text(BIG)
            await met.client.send(text)
            arrived = (await met.node.event("message", timeout=60, key="s"))["data"]
            assert arrived == digest_of(text)
            assert await met.client.request(text, timeout=60) == text

    run(main())


@one_loop
@flavours
def test_20_000_sends_that_nobody_awaits(run: Run, address: str, flavour: str) -> None:
    async def main() -> None:
        async with visit(address, flavour) as met:
            count = 20_000
            await met.server_does("burst", count=count)
            assert [await met.told.message() for _ in range(count)] == list(range(count))

            await met.server_does("events", events=["disconnect"])
            sends = [asyncio.ensure_future(met.client.send(number)) for number in range(count)]
            await asyncio.gather(*sends)
            assert await met.client.request("done") == "done"  # behind the messages
            status = await met.server_does("status")
            assert status["counts"]["message"] == count
            assert status["in_order"]

    run(main())


@one_loop
@pytest.mark.parametrize("flavour", ["plain", "both"])
def test_10_000_requests_at_once(run: Run, address: str, flavour: str) -> None:
    async def main() -> None:
        async with visit(address, flavour) as met:
            echo(met.client)
            count = 10_000
            await met.server_does("events", events=[])
            asked = (met.client.request(number, timeout=60) for number in range(count))
            assert await asyncio.gather(*asked) == list(range(count))
            many = {"as": "request", "count": count, "timeout": 60_000}
            assert await met.server_does("burst", **many) == {"answered": count, "same": count}
            assert met.client.peer.pending == 0
            assert met.client.peer.inflight == 0

    run(main())


# What net-ipc cannot do


@one_loop
def test_net_ipc_has_no_publish_and_subscribe(run: Run, address: str) -> None:
    async def main() -> None:
        for reply in ("unheard", "echo"):
            async with visit(address + reply, reply=reply) as met:
                with pytest.raises(Unsupported):
                    async with met.client.subscribe("news"):
                        pass
                with pytest.raises(Unsupported):
                    await met.client.publish("news", 1)
                assert await met.client.request("a string") in ("a string", None)

    run(main())


@one_loop
def test_compression_and_messagepack_are_not_forced_on_node(run: Run, address: str) -> None:
    async def main() -> None:
        async with NodeProcess() as node:
            await node.ask(do="create-server", key="s", kind="isdk", options={"path": address})
            async with Client(address, compress=True, messagepack=True) as client:
                await client.send({"plain": ["é"]})
                assert (await node.event("message", key="s"))["data"] == {"plain": ["é"]}
                assert await client.request(["x"]) == ["x"]

    run(main())


@one_loop
def test_a_failing_send_raises(run: Run, address: str) -> None:
    async def main() -> None:
        async with visit(address) as met:
            with pytest.raises(PayloadError):
                await met.client.send(object())
            cycle: list[Any] = []
            cycle.append(cycle)
            with pytest.raises(PayloadError):
                await met.client.request(cycle)
            assert await met.client.request("fine") == "fine"
            with pytest.raises(NodeError):
                await met.server_does("send", peer="nobody", data=1)

    run(main())
