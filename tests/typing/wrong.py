"""What a type checker must refuse: every line marked `# wrong` is an error, and no other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from interphone import Call, Client, Peer, Server, Status, contract

server = Server("x")
client = Client("x")


# Hooks


async def no_peer(payload: object) -> None: ...
def wrong_types(peer: int, data: Any) -> None: ...
def right(peer: Peer, data: Any) -> None: ...


server.on_connect(no_peer)  # wrong
server.on_message(wrong_types)  # wrong
server.on_request(no_peer)  # wrong
server.on_request(on="inline")(wrong_types)  # wrong
server.on_close(right)  # wrong
server.on_disconnect(right)
client.on_message(right)  # wrong
client.on_status(lambda status: print(status is Status.READY))


# Options


client.subscribe("a", overflow="forget")  # wrong
client.subscribe("a", queue="long")  # wrong
Client("x", upgrade="websocket")  # wrong
server.method(on="somewhere")  # wrong


# Contracts


@contract("double")
def double(number: int, *, times: int = 1) -> int:
    raise NotImplementedError


@contract("count")
def count(last: int) -> AsyncIterator[int]:
    raise NotImplementedError


@contract("sum")
def add_up(numbers: AsyncIterator[int]) -> int:
    raise NotImplementedError


async def doubled_text(number: str, *, times: int = 1) -> int:
    return 0


async def doubled_to_text(number: int, *, times: int = 1) -> str:
    return ""


async def doubled(number: int, *, times: int = 1) -> int:
    return number * times


async def doubled_for_a_caller(call: Call, number: int, *, times: int = 1) -> int:
    return number * times


async def doubled_for_a_peer(peer: Peer, number: int, *, times: int = 1) -> int:
    return number * times


async def counted_at_once(last: int) -> int:
    return last


server.method(double)(doubled_text)  # wrong
server.method(double)(doubled_to_text)  # wrong
server.method(double)(doubled)
server.method(double)(doubled_for_a_caller)
server.method(double)(doubled_for_a_peer)  # wrong
server.method(count)(counted_at_once)  # wrong


async def texts() -> AsyncIterator[str]:
    yield ""


async def numbers() -> AsyncIterator[int]:
    yield 1


async def call(peer: Peer) -> None:
    await client.call(double, 1, times=2)
    await client.call(double, "1")  # wrong
    await client.call(double)  # wrong
    await client.call(double, 1, 2)  # wrong
    await client.call(double, 1, often=2)  # wrong
    await client.call(double, 1, timeout=2)  # wrong
    await peer.call(double, None)  # wrong
    await client.within(2).call(double, "1")  # wrong
    await client.call("double", returns=int, wait=1)  # wrong
    text: str = await client.call(double, 1)  # wrong
    print(text)


async def stream(peer: Peer) -> None:
    client.stream(count, 3)
    client.stream(count, "3")  # wrong
    client.stream(count)  # wrong
    client.stream(double, 1)  # wrong
    client.within(2).stream(count, last="3")  # wrong
    peer.stream(count, None)  # wrong
    client.stream("count", window="wide")  # wrong
    await client.call(add_up, numbers())
    await client.call(add_up, texts())  # wrong
    await client.call(add_up, [1, 2])  # wrong
    client.stream(add_up, numbers())  # wrong
    async with client.stream(count, 3) as counted:
        async for number in counted:
            number.upper()  # wrong


async def read() -> None:
    async with client.subscribe("a", of=int) as items:
        async for item in items:
            item.value.upper()  # wrong
    async with client.subscribe("a", of=int, gaps=True) as some:
        async for each in some:
            print(each.value)  # wrong


# Declared errors


server.error(int)  # wrong
client.error("late")(int)  # wrong
server.error(ValueError("late"))  # wrong
