"""What type checkers make of the API: each `reveal_type` is followed by what it must say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, reveal_type

import msgspec

from interphone import Client, Gap, Outcome, Peer, Publication, Server


class User(msgspec.Struct):
    name: str


server = Server("x")
client = Client("x")


@server.on_connect
async def greet(peer: Peer, payload: object) -> None:
    reveal_type(await peer.request(1, returns=User))  # User
    reveal_type(await peer.request(1, returns=list[int]))  # list[int]
    reveal_type(await peer.request(1))  # Any
    reveal_type(await peer.ping())  # float


reveal_type(greet)  # def (Peer, Any) -> Coroutine[Any, Any, None]


@server.on_request(on="inline")
def answer(peer: Peer, data: Any) -> int:
    return 1


@client.on_request
async def answer_too(data: Any) -> str:
    return ""


@client.on_topic("a", of=User)
def read(publication: Publication[User]) -> None: ...


@server.error
class Short(Exception): ...


@client.error("late")
class Late(Exception): ...


reveal_type(Short)  # def (*args: object) -> Short
reveal_type(client.error(Short))  # type[Short]


async def use() -> None:
    async with client.subscribe("a", of=User) as users:
        async for user in users:
            reveal_type(user)  # Publication[User]
            reveal_type(user.value)  # User
    async with client.subscribe("a", of=User, gaps=True) as some:
        async for item in some:
            reveal_type(item)  # Publication[User] | Gap
            assert not isinstance(item, Gap)
    async with server.subscribe("a") as anything:
        async for each in anything:
            reveal_type(each)  # Publication[Any]
    reveal_type(await server.survey(1, returns=User))  # list[Outcome[User]]
    reveal_type(await server.ping())  # list[Outcome[float]]
    reveal_type(server.peers)  # Mapping[str, Peer]
    reveal_type((await client.publish("a", 1)).matched)  # int | None


unused: tuple[type[Outcome[int]], type[Mapping[str, int]]]
