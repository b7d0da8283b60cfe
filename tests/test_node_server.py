"""Node clients of net-ipc at our Server."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from interphone import (
    Call,
    ConnectionClosed,
    ConnectionLost,
    Limits,
    Peer,
    Refuse,
    RemoteError,
    RequestTimeout,
    Server,
)
from support.node import (
    FLAVOURS,
    UNDEFINED,
    BigInt,
    JSMap,
    NodeError,
    NodeProcess,
    Proxy,
    RawPeer,
    Told,
    big_text,
    digest_of,
    flavours,
    one_loop,
)

pytestmark = pytest.mark.node
Run = Callable[[Any], Any]

AT_ONCE = 5.0  # seconds; a Node asker that is not answered waits 10


@dataclass
class Meeting:
    server: Server
    told: Told
    node: NodeProcess
    peer: Peer


@asynccontextmanager
async def meeting(
    address: str,
    flavour: str = "plain",
    *,
    reply: Any = "echo",
    payload: Any = UNDEFINED,
    through: str | None = None,
    **options: Any,
) -> AsyncIterator[Meeting]:
    """A server of ours and a Node client "c" that has connected; the server echoes."""
    server = Server(address, compress=True, messagepack=True, **options)
    told = Told(server)
    async with server, NodeProcess() as node:
        peer = await join(node, "c", told, through or address, flavour, reply, payload)
        yield Meeting(server, told, node, peer)


async def join(
    node: NodeProcess,
    key: str,
    told: Told,
    address: str,
    flavour: str = "plain",
    reply: Any = "echo",
    payload: Any = UNDEFINED,
    **options: Any,
) -> Peer:
    """Connect one more Node client; the peer it is here."""
    asked = {"path": address, **FLAVOURS[flavour], **options}
    await node.ask(do="create-client", key=key, options=asked, reply=reply)
    joined = await node.ask(do="connect", key=key, payload=payload)
    peer: Peer = (await told.next("connect"))[0]
    assert joined == {"id": peer.id, "status": 3}
    return peer


def echo(server: Server) -> None:
    @server.on_request
    async def answer(peer: Peer, data: object) -> object:
        return data


def same(left: Any, right: Any) -> bool:
    """Equal, and True is not 1; 1.0 is 1, as in JavaScript, and NaN is NaN."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, float) and isinstance(right, float) and math.isnan(left):
        return math.isnan(right)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return bool(left == right)


# A whole conversation


@pytest.mark.smoke
@flavours
def test_a_conversation(run: Run, address: str, flavour: str) -> None:
    async def main() -> None:
        payload = {"who": "né", "n": 1}
        async with meeting(address, flavour, payload=payload) as met:
            node, peer = met.node, met.peer
            echo(met.server)
            assert peer.payload == payload
            assert not peer.interphone
            assert peer.open
            assert peer.credentials.pid is not None
            agreed = await node.ask(do="status", key="c")
            for option in ("compress", "messagepack"):
                assert agreed[option] is (option in FLAVOURS[flavour])

            await node.ask(do="send", key="c", data={"hello": ["wörld"]})
            assert await met.told.next("message") == (peer, {"hello": ["wörld"]})
            await peer.send("back")
            assert (await node.event("message", key="c"))["data"] == "back"

            assert await node.ask(do="request", key="c", data={"a": 1}) == {"a": 1}
            assert (
                await node.ask(do="request", key="c", data="what time is it?") == "what time is it?"
            )
            assert await peer.request({"b": [2]}) == {"b": [2]}
            assert await peer.request("a string") == "a string"

            assert await node.ask(do="ping", key="c") >= 0
            assert 0 < await peer.ping() < AT_ONCE

            assert await node.ask(do="close", key="c", reason="enough") is True
            assert await met.told.next("disconnect") == (peer, "enough")
            assert not met.server.peers
            assert (await node.event("close", key="c"))["data"] is None

    run(main())


# Values

PLAIN_VALUES = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2**31,
    -(2**31) - 1,
    2**53 - 1,
    1.5,
    -2.5e-7,
    1e300,
    "",
    "0",
    "héllo \u4e2d\u6587 \U0001f600",
    '\x00 \x01\x1f\x7f \u2028\u2029 " \\ \ufeff',
    "x" * 70_000,
    "\U0001f600" * 20_000,
    [],
    {},
    [[], {}, [None, False, 0, ""]],
    {"": {"a": {"b": [1, {"c": None}]}}},
    {"10": 1, "2": 2, "b": 3, "a": 4},
    {"constructor": 1, "toString": 2},
    {"t": 3, "d": 4, "n": 5, "k": "sub", "e": {"code": "failed"}, "interphone": 1},
    {"$bytes": "none", "jsonrpc": "2.0"},
]

# What we send, and what Node has then: in JSON, in MessagePack.
TO_NODE: list[tuple[Any, Any, Any]] = [
    ("lone \ud800 surrogate", "lone \ud800 surrogate", "lone \ufffd\ufffd\ufffd surrogate"),
    (2**53 + 2, 2**53 + 2, 2**53 + 2),
    (2**63, 9223372036854776000, 9223372036854776000),
    (2**60 + 1, 1152921504606847000, BigInt(2**60 + 1)),
    (math.inf, None, math.inf),
    (math.nan, None, math.nan),
    ({"__proto__": 1}, {"__proto__": 1}, {"__proto_": 1}),
    (b"\x00\xff", "AP8=", b"\x00\xff"),
    (("a", "tuple"), ["a", "tuple"], ["a", "tuple"]),
]

DAY = datetime(2024, 2, 29, 12, 30, 1, 250_000, tzinfo=UTC)

# What Node sends, and what we have then: in JSON, in MessagePack.
FROM_NODE: list[tuple[Any, Any, Any]] = [
    (UNDEFINED, None, None),
    ([1, UNDEFINED], [1, None], [1, None]),
    ("lone \ud800 surrogate", "lone \ud800 surrogate", "lone \ufffd\ufffd\ufffd surrogate"),
    (math.inf, None, math.inf),
    (math.nan, None, math.nan),
    (-0.0, 0, -0.0),
    (2**53, 2**53, 2**53),
    (b"\x00\xff", {"type": "Buffer", "data": [0, 255]}, b"\x00\xff"),
    (DAY, "2024-02-29T12:30:01.250Z", DAY),
    (JSMap([("a", 1)]), {}, {"a": 1}),
    ({"__proto__": {"a": 1}}, {"__proto__": {"a": 1}}, {"__proto__": {"a": 1}}),
]


@one_loop
@flavours
def test_values_to_node(run: Run, address: str, flavour: str) -> None:
    async def main() -> None:
        async with meeting(address, flavour) as met:
            column = 2 if "messagepack" in FLAVOURS[flavour] else 1
            table = [(value, value, value) for value in PLAIN_VALUES] + TO_NODE
            await met.node.ask(do="events", key="c", events=["message"])
            for row in table:
                await met.peer.send(row[0])
                arrived = (await met.node.event("message", key="c"))["data"]
                expected = row[column]
                if isinstance(expected, str) and len(expected) > 65_536 // 2:
                    arrived, expected = _digests(arrived, expected)
                assert same(arrived, expected), row

    run(main())


def _digests(arrived: Any, expected: str) -> tuple[Any, Any]:
    return (digest_of(arrived) if isinstance(arrived, str) else arrived), digest_of(expected)


@one_loop
@flavours
def test_values_from_node(run: Run, address: str, flavour: str) -> None:
    async def main() -> None:
        async with meeting(address, flavour) as met:
            column = 2 if "messagepack" in FLAVOURS[flavour] else 1
            for row in [(value, value, value) for value in PLAIN_VALUES] + FROM_NODE:
                await met.node.ask(do="send", key="c", data=row[0])
                assert same(await met.told.message(), row[column]), row

    run(main())


@one_loop
@flavours
def test_values_as_requests_and_answers(run: Run, address: str, flavour: str) -> None:
    async def main() -> None:
        async with meeting(address, flavour) as met:
            echo(met.server)
            for value in PLAIN_VALUES:
                answer = await met.node.ask(do="request", key="c", data=value)
                if isinstance(value, str):
                    answer, expected = _digests(answer, value)
                    assert answer == expected
                else:
                    assert same(answer, value), value
                assert same(await met.peer.request(value), value), value

    run(main())


@one_loop
def test_an_integer_beyond_32_bits_is_no_bigint_in_node(run: Run, address: str) -> None:
    async def main() -> None:
        async with meeting(address, "messagepack") as met:
            for number in (2**32, 2**40, -(2**40), 2**53):
                assert type(await met.peer.request(number)) is not BigInt
                told = await met.node.event("request", key="c")
                assert type(told["data"]) is int
                assert told["data"] == number

    run(main())


# Requests


@one_loop
@flavours
def test_every_failure_is_answered_at_once(run: Run, address: str, flavour: str) -> None:
    async def main() -> None:
        async with meeting(address, flavour) as met:
            node = met.node

            async def ask(data: Any) -> Any:
                answer = await node.ask(do="request", key="c", data=data)
                assert answer.keys() == {"jsonrpc", "error"}
                assert answer["jsonrpc"] == "2.0"
                return answer["error"]

            began = time.monotonic()
            unhandled = await ask("anybody?")
            assert (unhandled["code"], unhandled.keys()) == (-32601, {"code", "message"})

            @met.server.on_request
            async def fail(peer: Peer, data: Any) -> object:
                match data:
                    case "value":
                        raise ValueError("böom")
                    case "remote":
                        raise RemoteError("chosen", kind="Mine", data={"x": [1]})
                    case "cancelled":
                        raise asyncio.CancelledError
                    case "unencodable":
                        return object()
                    case "unencodable error":
                        raise RemoteError("chosen", data=object())
                return data

            assert await ask("value") == {"code": -32000, "message": "ValueError: böom"}
            assert await ask("remote") == {
                "code": -32000,
                "message": "Mine: chosen",
                "data": {"x": [1]},
            }
            for data in ("cancelled", "unencodable", "unencodable error"):
                assert (await ask(data))["code"] == -32000
            assert await node.ask(do="request", key="c", data="fine") == "fine"
            assert time.monotonic() - began < AT_ONCE

    run(main())


@one_loop
def test_handlers_that_are_plain_functions(run: Run, address: str) -> None:
    async def main() -> None:
        async with meeting(address) as met:
            main_thread = threading.get_ident()

            @met.server.on_request
            def answer(peer: Peer, data: object) -> object:
                return [data, threading.get_ident() == main_thread]

            assert await met.node.ask(do="request", key="c", data=1) == [1, False]
            met.server.on_request.remove(answer)
            met.server.on_request(on="inline")(answer)
            assert await met.node.ask(do="request", key="c", data=1) == [1, True]

    run(main())


@one_loop
@flavours
def test_nodes_silences(run: Run, address: str, flavour: str) -> None:
    async def main() -> None:
        async with meeting(address, flavour, reply="unheard") as met:
            assert await met.peer.request({"a": 1}) is None
            await met.node.ask(do="set-reply", key="c", reply="none")
            with pytest.raises(RequestTimeout):
                await met.peer.request("hello?", timeout=0.05)
            await met.node.ask(do="set-reply", key="c", reply={"value": UNDEFINED})
            assert await met.peer.request("hello?") is None
            await met.node.ask(do="set-reply", key="c", reply={"value": 0})
            assert await met.peer.request("hello?") == 0

    run(main())


@one_loop
def test_a_late_answer_is_counted_and_hurts_nobody(run: Run, address: str) -> None:
    async def main() -> None:
        async with meeting(address, reply="manual") as met:
            with pytest.raises(RequestTimeout):
                await met.peer.request("first", timeout=0.05)
            late = await met.node.event("request", key="c", data="first")
            second = asyncio.create_task(met.peer.request("second"))
            token = (await met.node.event("request", key="c", data="second"))["token"]
            await met.node.ask(do="reply", key="c", token=late["token"], data="late")
            await met.node.ask(do="reply", key="c", token=token, data="in time")
            assert await second == "in time"
            assert met.peer.counts.late == 1

    run(main())


@one_loop
def test_answers_come_in_any_order(run: Run, address: str) -> None:
    async def main() -> None:
        async with meeting(address, reply="manual") as met:
            gates = [asyncio.Event(), asyncio.Event()]

            @met.server.on_request
            async def wait(peer: Peer, data: int) -> int:
                await gates[data].wait()
                return data

            first = asyncio.create_task(met.node.ask(do="request", key="c", data=0))
            assert await met.node.ask(do="ping", key="c") >= 0
            second = asyncio.create_task(met.node.ask(do="request", key="c", data=1))
            gates[1].set()
            assert await second == 1
            assert not first.done()
            gates[0].set()
            assert await first == 0

    run(main())


@one_loop
def test_pings_are_answered_while_handlers_are_busy(run: Run, address: str) -> None:
    async def main() -> None:
        async with meeting(address, reply="none") as met:
            done, thread_done, started = asyncio.Event(), threading.Event(), asyncio.Event()

            @met.server.on_message
            async def dawdle(peer: Peer, data: object) -> None:
                started.set()
                await done.wait()

            @met.server.on_request
            def block(peer: Peer, data: object) -> object:
                return thread_done.wait(60)

            await met.node.ask(do="send", key="c", data="work")
            await met.node.ask(do="send", key="c", data="more work")
            asked = asyncio.create_task(met.node.ask(do="request", key="c", data="block"))
            waiting = asyncio.create_task(met.peer.request("never answered", timeout=None))
            await started.wait()
            for _ in range(3):
                assert 0 <= await met.node.ask(do="ping", key="c", data={"x": 1}) < 5000
                assert await met.peer.ping() < AT_ONCE
            done.set()
            thread_done.set()
            assert await asked is True
            assert not waiting.done()
            waiting.cancel()

    run(main())


# To many


@one_loop
def test_broadcast_survey_and_ping(run: Run, address: str) -> None:
    async def main() -> None:
        async with meeting(address) as met:
            server, node, told = met.server, met.node, met.told
            await join(node, "mp", told, address, "messagepack", reply={"value": "second"})
            silent = await join(node, "both", told, address, "both", reply="none")

            receipt = await server.broadcast({"to": "all", "é": 0.5})
            assert (receipt.matched, receipt.queued, receipt.dropped) == (3, 3, 0)
            for key in ("c", "mp", "both"):
                assert (await node.event("message", key=key))["data"] == {"to": "all", "é": 0.5}

            outcomes = await server.survey("who?", timeout=0.3)
            assert [outcome.value for outcome in outcomes] == ["who?", "second", None]
            assert [outcome.ok for outcome in outcomes] == [True, True, False]
            assert isinstance(outcomes[2].error, RequestTimeout)
            assert outcomes[2].peer is silent

            pings = await server.ping()
            assert len(pings) == 3
            assert all(ping.ok and ping.value < AT_ONCE for ping in pings)

    run(main())


@one_loop
def test_a_killed_and_a_frozen_node_stop_no_broadcast(run: Run, address: str) -> None:
    async def main() -> None:
        async with (
            meeting(address) as met,
            NodeProcess() as doomed,
            NodeProcess() as frozen,
        ):
            await join(doomed, "x", met.told, address)
            stuck = await join(frozen, "y", met.told, address)
            late = await join(met.node, "z", met.told, address)
            frozen.freeze()
            text = "x" * 100_000
            began = time.monotonic()
            for _ in range(20):
                await met.server.broadcast(text)
            doomed.kill()
            await met.server.broadcast("last")
            assert (await met.node.event("message", key="z", data="last"))["data"] == "last"
            assert time.monotonic() - began < AT_ONCE
            assert stuck.open
            assert await late.request(1) == 1
            frozen.thaw()
            assert (await frozen.event("message", key="y", data="last"))["data"] == "last"

    run(main())


# Pausing


@one_loop
@flavours
def test_nothing_of_a_paused_node_is_delivered_and_then_everything(
    run: Run, address: str, flavour: str
) -> None:
    async def main() -> None:
        async with meeting(address, flavour) as met:
            node, told = met.node, met.told
            echo(met.server)
            other = await join(node, "other", told, address)
            met.peer.pause()
            assert met.peer.paused
            await node.ask(do="burst", key="c", count=2000)
            asked = asyncio.create_task(node.ask(do="request", key="c", data="later"))
            for number in range(20):
                await node.ask(do="send", key="other", data=["free", number])
                assert await told.next("message") == (other, ["free", number])
            assert not asked.done()
            assert told.so_far("message") == []
            met.peer.resume()
            assert [await told.message() for _ in range(2000)] == list(range(2000))
            assert await asked == "later"

    run(main())


@one_loop
def test_a_paused_server_pauses_newcomers_too(run: Run, address: str) -> None:
    async def main() -> None:
        async with meeting(address) as met:
            met.server.pause()
            newcomer = await join(met.node, "new", met.told, address)
            await met.node.ask(do="send", key="c", data=1)
            await met.node.ask(do="send", key="new", data=2)
            await met.peer.send("we may still speak")
            await met.node.event("message", key="c", data="we may still speak")
            assert met.told.so_far("message") == []
            met.server.resume()
            assert {await met.told.next("message"), await met.told.next("message")} == {
                (met.peer, 1),
                (newcomer, 2),
            }

    run(main())


@one_loop
def test_a_node_that_reads_nothing_holds_us_back_and_gets_everything(
    run: Run, address: str
) -> None:
    async def main() -> None:
        async with meeting(address) as met:
            met.node.freeze()
            sent = 0

            async def flood() -> None:
                nonlocal sent
                for number in range(400):
                    await met.peer.send(["x" * 20_000, number])
                    sent += 1

            flooding = asyncio.create_task(flood())
            _, pending = await asyncio.wait([flooding], timeout=0.5)
            assert pending
            assert sent < 200
            assert met.peer.backlog < 1024 * 1024
            met.node.thaw()
            await flooding
            told = [(await met.node.event("message", key="c"))["data"] for _ in range(400)]
            assert [number for _, number in told] == list(range(400))

    run(main())


# Ending

REASONS = ["bye", 0, "", False, None, UNDEFINED, {"why": ["é"]}]


@one_loop
@pytest.mark.parametrize("reason", REASONS, ids=repr)
def test_reasons_of_a_close(run: Run, address: str, reason: Any) -> None:
    async def main() -> None:
        async with meeting(address, "both") as met:
            other = await join(met.node, "other", met.told, address, "plain")
            await met.node.ask(do="close", key="other", reason=reason)
            ours = None if reason is UNDEFINED else reason
            assert await met.told.next("disconnect") == (other, ours)

            assert await met.peer.close(ours) is True
            assert await met.peer.close("again") is False
            assert (await met.node.event("close", key="c"))["data"] == (ours or None)
            assert await met.told.next("disconnect") == (met.peer, ours)
            with pytest.raises(ConnectionClosed):
                await met.peer.send("too late")
            status = await met.node.ask(do="status", key="c")
            assert status["status"] == 0

    run(main())


@one_loop
@flavours
def test_a_client_that_may_come_back_does(run: Run, address: str, flavour: str) -> None:
    async def main() -> None:
        async with meeting(address, flavour, payload=["again", 0]) as met:
            await met.peer.close("restart", reconnect=True)
            back, payload = await met.told.next("connect")
            assert (back.id, payload) == (met.peer.id, ["again", 0])
            assert await back.request("hello") == "hello"

            back.abort()  # the end of the stream, without END: as lost as can be
            again, payload = await met.told.next("connect")
            assert (again.id, payload) == (met.peer.id, ["again", 0])
            await met.node.ask(do="send", key="c", data="here")
            assert await met.told.next("message") == (again, "here")
            assert not met.node.events("close")

    run(main())


@one_loop
@pytest.mark.parametrize("ending", ["close", "abort", "killed", "closed by node"])
def test_pending_requests_fail_at_once(run: Run, address: str, ending: str) -> None:
    async def main() -> None:
        async with meeting(address, reply="none") as met:
            asked = [
                asyncio.create_task(met.peer.request(number, timeout=None)) for number in range(20)
            ]
            pinged = asyncio.create_task(met.node.ask(do="ping", key="c"))
            await met.node.event("request", key="c", data=19)
            await pinged
            began = time.monotonic()
            match ending:
                case "close":
                    await met.peer.close("over")
                case "abort":
                    met.peer.abort("over")
                case "killed":
                    met.node.kill()
                case _:
                    await met.node.ask(do="close", key="c", reason="over")
            errors = await asyncio.gather(*asked, return_exceptions=True)
            assert time.monotonic() - began < AT_ONCE
            kind = ConnectionLost if ending == "killed" else ConnectionClosed
            assert {type(error) for error in errors} == {kind}
            assert {error.delivery for error in errors} == {"maybe_sent"}
            if ending != "killed":
                assert {error.reason for error in errors} == {"over"}
            peer, reason = await met.told.next("disconnect")
            assert peer is met.peer
            assert reason == "over" or ending == "killed"
            assert not met.server.peers

    run(main())


@one_loop
def test_a_close_waits_for_running_handlers(run: Run, address: str) -> None:
    async def main() -> None:
        async with meeting(address) as met:
            started, go = asyncio.Event(), asyncio.Event()

            @met.server.on_request
            async def slow(peer: Peer, data: object) -> object:
                started.set()
                await go.wait()
                return data

            asked = asyncio.create_task(met.node.ask(do="request", key="c", data="in time"))
            await started.wait()
            closing = asyncio.create_task(met.peer.close("done"))
            await asyncio.sleep(0)  # it has begun
            refused = await met.node.ask(do="request", key="c", data="too late")
            assert refused["error"]["code"] == -32002
            go.set()
            assert await asked == "in time"
            assert await closing is True
            assert (await met.node.event("close", key="c"))["data"] == "done"

    run(main())


@one_loop
@pytest.mark.parametrize("allow", [True, False])
def test_a_closed_server_and_its_restart(run: Run, address: str, allow: bool) -> None:
    async def main() -> None:
        async with NodeProcess() as node:
            first = Server(address)
            told = Told(first)
            async with first:
                old = await join(node, "c", told, address, payload={"p": 1})
                await first.close("maintenance", allow_reconnect=allow)
            assert await told.next("close") == ()
            if not allow:
                assert (await node.event("close", key="c"))["data"] == "maintenance"
                assert (await node.ask(do="status", key="c"))["status"] == 0
                return
            await node.event("status", key="c", data=5)
            second = Server(address)
            told = Told(second)
            async with second:
                back, payload = await told.next("connect")
                assert (back.id, payload) == (old.id, {"p": 1})
                assert await back.request("there?") == "there?"
                assert not node.events("close")

    run(main())


@one_loop
def test_a_node_client_finds_a_server_that_comes_later(run: Run, address: str) -> None:
    async def main() -> None:
        async with NodeProcess() as node:
            await node.ask(do="create-client", key="c", options={"path": address})
            connecting = asyncio.create_task(node.ask(do="connect", key="c", payload="early"))
            await node.event("status", key="c", data=5)
            server = Server(address)
            told = Told(server)
            async with server:
                assert (await told.next("connect"))[1] == "early"
                assert (await connecting)["status"] == 3

    run(main())


# Ids


@one_loop
def test_an_id_is_kept_unless_somebody_has_it(run: Run, address: str) -> None:
    async def main() -> None:
        outer = address + "-outer"
        ids = iter(["one", "two", "three"])
        async with (
            Proxy(outer, address) as proxy,
            meeting(address, payload="p", through=outer, generate_id=lambda: next(ids)) as met,
        ):
            assert met.peer.id == "one"
            await proxy.cut()
            assert (await met.told.next("disconnect"))[0] is met.peer
            back, payload = await met.told.next("connect")
            assert (back.id, payload) == ("one", "p")
            assert met.server.peers["one"] is back

            await proxy.cut()
            await met.told.next("disconnect")
            async with await RawPeer.join(address, id="one") as raw:
                assert raw.welcome == {"t": 0, "d": {"id": "one"}}
                usurper = (await met.told.next("connect"))[0]
                other, _ = await met.told.next("connect")
                assert other.id == "two"
                await met.node.event("ready", key="c", data={"id": "two", **_no_codec})
                assert (await met.node.ask(do="status", key="c"))["id"] == "two"
                assert met.server.peers == {"one": usurper, "two": other}
                assert await other.request("still you?") == "still you?"

    run(main())


_no_codec = {"compress": False, "messagepack": False}


# Letting in


@one_loop
@flavours
def test_authorize_decides(run: Run, address: str, flavour: str) -> None:
    async def main() -> None:
        server = Server(address, compress=True, messagepack=True)
        told = Told(server)

        @server.authorize
        async def check(peer: Peer, payload: Any) -> object:
            await asyncio.sleep(0)
            if payload != {"password": "é"}:
                raise Refuse({"why": "wrong password"})
            return {"user": 1}

        async with server, NodeProcess() as node:
            options = {"path": address, **FLAVOURS[flavour]}
            await node.ask(do="create-client", key="bad", options=options)
            began = time.monotonic()
            await node.ask(do="connect", key="bad", payload={"password": "guess"})
            told_reason = (await node.event("close", key="bad"))["data"]
            assert told_reason == {"why": "wrong password"}
            assert time.monotonic() - began < AT_ONCE
            assert (await node.ask(do="status", key="bad"))["status"] == 0

            good = await join(node, "good", told, address, flavour, payload={"password": "é"})
            assert good.session == {"user": 1}
            assert list(server.peers.values()) == [good]
            assert not told.so_far("connect")

    run(main())


@one_loop
def test_a_refused_peer_that_ignores_it_is_never_served(run: Run, address: str) -> None:
    async def main() -> None:
        server = Server(address)
        told = Told(server)
        asked = []

        @server.authorize
        def check(peer: Peer, payload: Any) -> None:
            raise Refuse("no")

        @server.on_request
        async def answer(peer: Peer, data: object) -> object:
            asked.append(data)
            return data

        async with server, await RawPeer.dial(address) as raw:
            hello = {"t": 0, "d": {"id": None}}
            says = {"t": 1, "d": "let me in"}
            asks = {"t": 2, "d": "let me in", "n": "1"}
            raw.write(b"IPC", hello, says, asks)
            assert (await raw.read() or {})["t"] == 0
            assert await raw.read() == {"t": 6, "d": {"m": "no", "a": False}}
            raw.write(hello, says, asks, {"t": 4, "n": "2"}, {"t": 2, "d": {"sub": "x"}, "n": "3"})
            assert await raw.read() is None
            await raw.cut_off()
            assert not server.peers
            assert not asked
            assert [told.so_far(name) for name in ("connect", "message", "disconnect")] == [[]] * 3

    run(main())


@one_loop
def test_one_connection_too_many_is_told_so(run: Run, address: str) -> None:
    async def main() -> None:
        async with meeting(address, max_connections=1) as met:
            options = {"path": address}
            await met.node.ask(do="create-client", key="more", options=options)
            began = time.monotonic()
            await met.node.ask(do="connect", key="more")
            told = await met.node.event("close", key="more")
            assert "too many connections" in told["data"]
            assert time.monotonic() - began < AT_ONCE
            assert list(met.server.peers.values()) == [met.peer]

            await met.node.ask(do="close", key="c")
            await met.told.next("disconnect")
            await join(met.node, "next", met.told, address)

    run(main())


# Much


BIG = 64 * 1024 * 1024


@one_loop
@pytest.mark.slow
@pytest.mark.parametrize("flavour", ["plain", "both"])
def test_64_mib_both_ways(run: Run, address: str, flavour: str) -> None:
    async def main() -> None:
        async with meeting(address, flavour, limits=Limits(max_frame=BIG + 1024)) as met:
            echo(met.server)
            sent = await met.node.ask(do="big", key="c", bytes=BIG)
            assert digest_of(await met.told.message()) == sent["sent"]
            text = big_text(BIG)
            await met.peer.send(text)
            arrived = (await met.node.event("message", timeout=60, key="c"))["data"]
            assert arrived == digest_of(text)
            if flavour == "plain":  # deflating takes its time
                asked = {"as": "request", "timeout": 60_000}
                told = await met.node.ask(do="big", key="c", bytes=BIG, **asked)
                assert told["answer"] == told["sent"] == sent["sent"]
                assert await met.peer.request(text, timeout=60) == text
            assert await met.peer.ping(timeout=60) < 60

    run(main())


@one_loop
@flavours
def test_20_000_sends_that_nobody_awaits(run: Run, address: str, flavour: str) -> None:
    async def main() -> None:
        async with meeting(address, flavour) as met:
            count = 20_000
            await met.node.ask(do="burst", key="c", count=count)
            assert [await met.told.message() for _ in range(count)] == list(range(count))

            await met.node.ask(do="events", key="c", events=["close"])
            sends = [asyncio.ensure_future(met.peer.send(number)) for number in range(count)]
            await asyncio.gather(*sends)
            assert await met.peer.request("done") == "done"  # behind the messages
            status = await met.node.ask(do="status", key="c")
            assert status["counts"]["message"] == count
            assert status["in_order"]

    run(main())


def test_coroutines_handle_messages_one_at_a_time(run: Run, address: str) -> None:
    async def main() -> None:
        server = Server(address)
        heard: asyncio.Queue[list[int]] = asyncio.Queue()
        busy = []

        @server.on_message
        async def note(peer: Peer, turns: int) -> None:
            busy.append(turns)
            for _ in range(turns):
                await asyncio.sleep(0)
            heard.put_nowait(busy.copy())
            busy.remove(turns)

        async with server, await RawPeer.join(address) as raw:
            for first in range(8):
                for second in range(8):  # turns of the loop between one message and the next
                    raw.write({"t": 1, "d": 0})
                    for _ in range(first):
                        await asyncio.sleep(0)
                    raw.write({"t": 1, "d": 30})
                    for _ in range(second):
                        await asyncio.sleep(0)
                    raw.write({"t": 1, "d": 1})
                    for turns in (0, 30, 1):
                        assert await asyncio.wait_for(heard.get(), 10) == [turns]

    run(main())


@one_loop
@pytest.mark.parametrize("flavour", ["plain", "both"])
def test_10_000_requests_at_once(run: Run, address: str, flavour: str) -> None:
    async def main() -> None:
        async with meeting(address, flavour) as met:
            echo(met.server)
            count = 10_000
            await met.node.ask(do="events", key="c", events=[])
            many = {"as": "request", "count": count, "timeout": 60_000}
            told = await met.node.ask(do="burst", key="c", **many)
            assert told == {"answered": count, "same": count}

            asked = (met.peer.request(number, timeout=60) for number in range(count))
            assert await asyncio.gather(*asked) == list(range(count))
            assert met.peer.pending == 0
            assert met.peer.inflight == 0

    run(main())


@one_loop
def test_a_ping_is_answered_behind_much_that_waits(run: Run, address: str) -> None:
    async def main() -> None:
        async with meeting(address, limits=Limits(max_frame=BIG)) as met:
            met.node.freeze()
            sending = asyncio.create_task(met.peer.send(big_text(BIG // 2)))
            asked = asyncio.create_task(met.peer.request("behind it", timeout=None))
            await asyncio.wait([sending], timeout=0.2)
            async with await RawPeer.join(address) as other:
                assert (await other.ask(1))["d"]["error"]["code"] == -32601
            met.node.thaw()
            assert await asked == "behind it"
            await sending

    run(main())


# Faults of a Node peer's program


@one_loop
def test_node_hears_a_timeout_as_its_own(run: Run, address: str) -> None:
    async def main() -> None:
        async with meeting(address) as met:
            never = asyncio.Event()

            @met.server.on_request
            async def sleep(peer: Peer, data: object) -> None:
                await never.wait()

            with pytest.raises(NodeError, match="timed out"):
                await met.node.ask(do="request", key="c", data=1, timeout=50)
            assert await met.node.ask(do="ping", key="c") >= 0
            never.set()

    run(main())


@one_loop
def test_a_frame_over_the_limit_ends_its_connection_only(run: Run, address: str) -> None:
    async def main() -> None:
        async with meeting(address, limits=Limits(max_frame=20_000)) as met:
            other = await join(met.node, "other", met.told, address, "both")
            await met.node.ask(do="big", key="other", bytes=60_000)  # compresses to less
            assert (await met.told.next("disconnect"))[0] is other
            assert "20000" in (await met.node.event("close", key="other"))["data"]
            assert await met.peer.request("fine") == "fine"

    run(main())


# Methods


@one_loop
@flavours
def test_node_calls_methods_hears_progress_and_cancels(
    run: Run, address: str, flavour: str
) -> None:
    async def main() -> None:
        async with meeting(address, flavour) as met:
            node, method, ended = met.node, met.server.method, asyncio.Event()

            @method
            async def add(a: int, b: int = 1) -> int:
                return a + b

            @method(collect=True)
            async def count(last: int) -> AsyncIterator[int]:
                for number in range(last):
                    yield number

            @method
            async def build(call: Call) -> None:
                try:
                    await call.progress({"done": [1, "ö"]})
                    await asyncio.get_running_loop().create_future()
                finally:
                    ended.set()

            async def ask(name: str, *params: Any, **more: Any) -> Any:
                envelope = {"jsonrpc": "2.0", "method": name, "params": [*params], **more}
                return await node.ask(do="request", key="c", data=envelope)

            assert await ask("add", 1, 2) == {"jsonrpc": "2.0", "result": 3}
            named = {"jsonrpc": "2.0", "method": "add", "params": {"a": 5}}
            answer = await node.ask(do="request", key="c", data=named)
            assert answer == {"jsonrpc": "2.0", "result": 6}
            error = (await ask("add", 1, "two"))["error"]
            assert error["code"] == -32602
            assert error["data"]["parameter"] == "b"
            assert (await ask("ad", 1))["error"]["data"]["nearest"] == "add"
            assert (await ask("count", 3))["result"] == [0, 1, 2]

            await node.ask(do="events", key="c", events=["message"])
            building = asyncio.ensure_future(ask("build", id=7))
            told = await node.event("message", key="c")
            progress = {"token": 7, "value": {"done": [1, "ö"]}}
            assert told["data"] == {"jsonrpc": "2.0", "method": "$/progress", "params": progress}
            cancel = {"jsonrpc": "2.0", "method": "$/cancelRequest", "params": {"id": 7}}
            await node.ask(do="send", key="c", data=cancel)
            answer = await building
            assert (answer["error"]["code"], answer["id"]) == (-32800, 7)
            assert ended.is_set()

    run(main())
