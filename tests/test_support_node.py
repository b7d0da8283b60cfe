"""The Node helper itself, Node to Node: what the real tests stand on."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from support.node import (
    UNDEFINED,
    BigInt,
    JSMap,
    NodeError,
    NodeProcess,
    decode,
    digest_of,
    encode,
    open_streams,
)

pytestmark = pytest.mark.node
Run = Callable[[Any], Any]
one_loop = pytest.mark.parametrize("run", ["asyncio"], indirect=True)

VALUES = [
    None,
    UNDEFINED,
    True,
    0,
    -1.5,
    math.inf,
    -math.inf,
    "héllo \ud83d\ude00 \ud800",
    b"\x00\xff",
    BigInt(2**70),
    datetime(2024, 2, 29, 12, tzinfo=UTC),
    JSMap([("a", 1), (2, b"")]),
    {"$bytes": "not bytes", "__proto__": [1, {"a": UNDEFINED}]},
]


@asynccontextmanager
async def pair(address: str, **options: Any) -> AsyncIterator[NodeProcess]:
    """A server "s" and a connected client "c" in one Node."""
    kind = options.pop("kind", "net")
    async with NodeProcess("agent.js") as node:
        served = {"path": address, "retries": 1}
        await node.ask(do="create-server", key="s", kind=kind, options=served, ids=["first"])
        asked = {"path": address, **options}
        await node.ask(do="create-client", key="c", kind=kind, options=asked)
        joined = await node.ask(do="connect", key="c", payload={"who": "me"})
        assert joined == {"id": "first", "status": 3}
        yield node
        await node.ask(do="destroy", key="c")  # after a burst net-ipc's close() never ends
        await node.event("disconnect", key="s")
        await node.ask(do="close", key="s")


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_values_survive_the_tags(value: Any) -> None:
    assert decode(encode(value)) == value


def test_a_command_runs_and_fails(run: Run) -> None:
    async def main() -> None:
        async with NodeProcess("agent.js") as node:
            assert (await node.ask(do="versions"))["net_ipc"] == "2.2.2"
            with pytest.raises(NodeError, match="no such command"):
                await node.ask(do="dance")

    run(main())


def test_a_killed_node_fails_who_waits(run: Run) -> None:
    async def main() -> None:
        async with NodeProcess("agent.js") as node:
            await node.event("hello")
            node.kill()
            with pytest.raises(NodeError, match="ended"):
                await node.event("message")

    run(main())


@one_loop
@pytest.mark.parametrize(
    "options",
    [{}, {"compress": True}, {"messagepack": True}, {"compress": True, "messagepack": True}],
    ids=lambda options: "+".join(options) or "plain",
)
def test_net_ipc_talks_to_itself(run: Run, address: str, options: dict[str, Any]) -> None:
    async def main() -> None:
        async with pair(address, **options) as node:
            assert (await node.event("connect"))["data"] == {"who": "me"}
            agreed = await node.ask(do="status", key="c")
            assert agreed["compress"] is ("compress" in options)
            assert agreed["messagepack"] is ("messagepack" in options)
            assert await node.ask(do="request", key="c", data=["é", 5]) == ["é", 5]
            assert await node.ask(do="request", key="s", data=None) is None
            assert await node.ask(do="ping", key="c") >= 0
            await node.ask(do="broadcast", key="s", data="all")
            assert (await node.event("message", key="c"))["data"] == "all"
            assert await node.ask(do="survey", key="s", data=1) == [{"value": 1}]

            await node.ask(do="set-reply", key="s", reply="manual")
            waiting = asyncio.create_task(node.ask(do="request", key="c", data=1))
            token = (await node.event("request", key="s", data=1))["token"]
            await node.ask(do="reply", key="s", token=token, data="by hand")
            assert await waiting == "by hand"

            await node.ask(do="set-reply", key="s", reply="none")
            with pytest.raises(NodeError, match="timed out"):
                await node.ask(do="request", key="c", data=1, timeout=20)

            sent = await node.ask(do="big", key="c", bytes=300_000)
            assert (await node.event("message", key="s"))["data"] == sent["sent"]
            await node.ask(do="burst", key="c", count=2000)
            last = await node.event("message", key="s", data=1999)
            assert last["peer"] == "first"
            assert (await node.ask(do="status", key="s"))["in_order"]

    run(main())


@one_loop
def test_messagepack_carries_what_json_cannot(run: Run, address: str) -> None:
    async def main() -> None:
        async with pair(address, messagepack=True) as node:
            for value in (b"\x00\xff", math.inf, UNDEFINED, datetime(2024, 1, 1, tzinfo=UTC)):
                assert await node.ask(do="request", key="c", data=value) == value

    run(main())


@one_loop
def test_isdk_publishes_and_subscribes(run: Run, address: str) -> None:
    async def main() -> None:
        async with pair(address, kind="isdk") as node:
            assert await node.ask(do="subscribe", key="c", topic="news") == {"result": True}
            assert await node.ask(do="subscribe", key="c", topic=["news"]) == {"result": False}
            published = await node.ask(do="publish", key="c", topic="news", message="hi")
            assert published == {"result": True}
            told = await node.event("pub", key="c")
            assert (told["topic"], told["data"]) == ("news", "hi")
            await node.ask(do="publish", key="s", topic="news", message=0)  # falsy: a message
            falsy = await node.event("message", key="c")
            assert falsy["data"] == {"pub": "news", "message": 0}
            assert await node.ask(do="unsubscribe", key="c", topic="news") == {"result": True}

    run(main())


@one_loop
def test_isdk_has_its_defects(run: Run, address: str) -> None:
    async def main() -> None:
        async with pair(address, kind="isdk") as node:
            assert await node.ask(do="request", key="c", data="what time?") == {"result": True}
            assert await node.ask(do="request", key="c", data="again?") == {"result": False}
            assert await node.ask(do="request", key="c", data=["echo"]) == ["echo"]
            await node.ask(do="set-reply", key="s", reply="unheard")
            with pytest.raises(NodeError) as caught:
                await node.ask(do="request", key="c", data=5, timeout=20)
            assert caught.value.code == 408

    run(main())


@one_loop
def test_isdk_stalls_on_a_lone_last_byte(run: Run, address: str) -> None:
    async def main() -> None:
        async with NodeProcess("agent.js") as node:
            options = {"path": address}
            await node.ask(do="create-server", key="s", kind="isdk", options=options, ids=["x"])
            reader, writer = await open_streams(address)
            writer.write(b"IPC" + frame(b'{"t":0,"d":{}}'))
            assert await reader.readexactly(22) == frame(b'{"t":0,"d":{"id":"x"}}'[:21] + b"}")[:22]
            message = frame(b'{"t":1,"d":"hi"}')
            await node.event("connect")

            writer.write(message[:-1])
            await node.ask(do="versions")
            await asyncio.sleep(0.05)
            writer.write(message[-1:])
            with pytest.raises(TimeoutError):
                await node.event("message", timeout=0.2)
            writer.write(frame(b'{"t":7}'))

            assert (await node.event("message"))["data"] == "hi"
            writer.close()
            await writer.wait_closed()

    run(main())


@one_loop
def test_isdk_reassembles_what_is_large(run: Run, address: str) -> None:
    async def main() -> None:
        async with pair(address, kind="isdk") as node:
            told = await node.ask(do="big", key="c", bytes=20_000_000)
            assert (await node.event("message", key="s"))["data"] == told["sent"]

    run(main())


def frame(body: bytes) -> bytes:
    assert len(body) < 128
    return bytes([128 + len(body)]) + body


def test_digests_agree_with_node() -> None:
    assert digest_of("a\U0001f600").length == 3
