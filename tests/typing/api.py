"""What type checkers make of the API: each `reveal_type` is followed by what it must say."""

# pyright: strict

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, reveal_type

import msgspec

from interphone import (
    Call,
    Client,
    Contract,
    Gap,
    Outcome,
    Peer,
    Publication,
    Receipt,
    Server,
    Stream,
    Subscription,
    contract,
)


class User(msgspec.Struct):
    name: str


server = Server("x")
client = Client("x")


# Hooks and requests


@server.on_connect
async def greet(peer: Peer, payload: object) -> None:
    reveal_type(await peer.request(1, returns=User))  # User
    reveal_type(await peer.request(1, returns=list[int]))  # list[int]
    reveal_type(await peer.request(1))  # Any
    reveal_type(await peer.ping())  # float


reveal_type(greet)  # (Peer, Any) -> Coroutine[Any, Any, None]


@server.on_request(on="inline")
def answer(peer: Peer, data: Any) -> int:
    return 1


@client.on_request
async def answer_too(data: Any) -> str:
    return ""


# Methods and contracts


@contract("user.get")
def get_user(id: int, *, full: bool = False) -> User:
    raise NotImplementedError


@contract("users")
def list_users(prefix: str) -> AsyncIterator[User]:
    raise NotImplementedError


@contract("users.add")
def add_users(users: AsyncIterator[User], *, group: str = "") -> int:
    raise NotImplementedError


@contract("users.rename")
def rename_users(users: AsyncIterator[User]) -> AsyncIterator[str]:
    raise NotImplementedError


@server.method
async def double(number: int) -> int:
    return 2 * number


@server.method("text.upper", on="thread", limit=2)
def upper(text: str) -> str:
    return text.upper()


@server.method(get_user)
async def found_user(call: Call, id: int, *, full: bool = False) -> User:
    reveal_type(call.peer)  # Peer
    reveal_type(call.deadline)  # float | None
    return User(str(id))


@server.method(list_users)
async def listed_users(prefix: str) -> AsyncIterator[User]:
    yield User(prefix)


@server.method(add_users)
async def added_users(users: AsyncIterator[User], *, group: str = "") -> int:
    return len([user async for user in users])


@client.method(rename_users)
async def renamed_users(users: AsyncIterator[User]) -> AsyncIterator[str]:
    async for user in users:
        yield user.name


reveal_type(double)  # (number: int) -> Coroutine[Any, Any, int]
reveal_type(upper)  # (text: str) -> str
reveal_type(listed_users)  # (prefix: str) -> AsyncIterator[User]
reveal_type(get_user.returns)  # Any


async def some_users() -> AsyncIterator[User]:
    yield User("Ada")


async def call_methods(peer: Peer) -> None:
    reveal_type(await client.call("add", 1, 2, returns=int))  # int
    reveal_type(await client.call("add", 1, 2))  # Any
    reveal_type(await client.call("sum", items=[1, 2], returns=int))  # int
    reveal_type(await client.call(get_user, 7, full=True))  # User
    reveal_type(await client.call(add_users, some_users(), group="a"))  # int
    reveal_type(await peer.call(get_user, id=7))  # User
    reveal_type(await peer.call(add_users, some_users()))  # int
    reveal_type(await client.within(2).call(get_user, 7))  # User
    reveal_type(await client.within(2, on_progress=print).call("add", returns=int))  # int
    reveal_type(await peer.within(None).call(add_users, some_users()))  # int


# Streams


async def read_streams(peer: Peer) -> None:
    async with client.stream(list_users, "A") as users:
        reveal_type(users)  # Stream[User]
        async for user in users:
            reveal_type(user)  # User
        reveal_type(await users.result())  # Any
    async with client.stream(rename_users, some_users()) as names:
        reveal_type([name async for name in names])  # list[str]
    async with client.stream("users", "A", of=User, window=8) as some:
        reveal_type(await anext(some))  # User
    async with client.stream("sum", items=range(3)) as untyped:
        reveal_type(await anext(untyped))  # Any
    reveal_type(client.within(5).stream(list_users, prefix="A"))  # Stream[User]
    reveal_type(client.within(5).stream("users", of=User))  # Stream[User]
    reveal_type(peer.stream(list_users, "A"))  # Stream[User]
    reveal_type(peer.within(5).stream(rename_users, some_users()))  # Stream[str]


# Topics


@client.on_topic("a", of=User)
def read(publication: Publication[User]) -> None: ...


async def read_topics() -> None:
    reveal_type(client.subscribe("a", of=User))  # Subscription[Publication[User]]
    reveal_type(client.subscribe("a.*", gaps=True))  # Subscription[Publication[Any] | Gap]
    reveal_type(server.subscribe("a", of=User))  # Subscription[Publication[User]]
    async with client.subscribe("a", of=User, overflow="block", group="g") as users:
        async for user in users:
            reveal_type(user)  # Publication[User]
            reveal_type(user.value)  # User
        reveal_type(users.dropped)  # int
    async with client.subscribe("a", of=User, gaps=True) as some:
        async for item in some:
            reveal_type(item)  # Publication[User] | Gap
            assert not isinstance(item, Gap)
            reveal_type(item)  # Publication[User]
    async with server.subscribe("a") as anything:
        async for each in anything:
            reveal_type(each)  # Publication[Any]
    reveal_type(await client.publish("a", 1))  # Receipt
    reveal_type((await server.publish("a", 1, ack="delivered")).matched)  # int | None


# Errors that both ends declare


@server.error
class Short(Exception):
    def __init__(self, missing: int) -> None:
        self.missing = missing


@client.error("late")
class Late(Exception): ...


reveal_type(Short(3).missing)  # int
reveal_type(Late())  # Late
reveal_type(client.error(Short))  # type[Short]
reveal_type(client.error("late")(Late))  # type[Late]
reveal_type(server.error.classes)  # tuple[type[Exception], ...]


# Many peers


async def ask_everybody() -> None:
    reveal_type(await server.survey(1, returns=User))  # list[Outcome[User]]
    reveal_type(await server.ping())  # list[Outcome[float]]
    reveal_type(server.peers)  # Mapping[str, Peer]
    reveal_type(server.peers["a"].session)  # Any


named: tuple[
    type[Contract[[int], User]],
    type[Mapping[str, int]],
    type[Outcome[int]],
    type[Receipt],
    type[Stream[int]],
    type[Subscription[Gap]],
]
