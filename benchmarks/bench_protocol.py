"""The protocol alone: nanoseconds of the Session for each crossing of a message.

Two Sessions hand each other bytes in memory. A crossing is one message on its way: encoded and
queued by one end, read and told by the other. A request and its answer are two crossings.
`msgspec` is the floor: encoding and decoding the same payload, and nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import msgspec
from harness import compare_calls

from interphone.errors import InterphoneError
from interphone.protocol import Reactions, Session

PAYLOAD = {"id": 7, "name": "a name", "value": 1.5, "tags": ["a", "b"]}


class Item(msgspec.Struct):
    id: int
    name: str
    value: float
    tags: list[str]


class Ends:
    """A client and a server in one dialect; the server answers what it is asked."""

    def __init__(self, dialect: str, of: Any = Any) -> None:
        dialects = ("native", "classic") if dialect == "native" else ("classic",)
        self.client = Session("client", dialects=dialects)
        self.server = Session("server", dialects=dialects)
        self.of = of
        self.client_reacts = reactions(answered=self.on_answer, opened=nothing)
        self.server_reacts = reactions(request=self.on_request, message=self.on_message)
        self.client.open()
        self.carry()
        self.server.accept("1")
        self.server.resume(self.server_reacts)
        self.carry()
        self.encode = self.client.codec.encode
        self.decode = self.client.codec.decode

    def carry(self) -> None:
        """Carry everything there, then everything back."""
        if data := self.client.data_to_send():
            self.server.receive(data, self.server_reacts)
        if data := self.server.data_to_send():
            self.client.receive(data, self.client_reacts)

    def on_request(self, nonce: Any, raw: msgspec.Raw, options: object) -> None:
        value = self.decode(raw, self.of)
        self.server.respond(nonce, self.encode(value))

    def on_message(self, raw: msgspec.Raw) -> None:
        self.decode(raw, self.of)

    def on_answer(self, token: object, raw: msgspec.Raw) -> None:
        self.decode(raw, self.of)

    def requests(self, at_once: int) -> Callable[[int], None]:
        def run(times: int) -> None:
            for _ in range(times // at_once):
                for _ in range(at_once):
                    self.client.request(self.encode(PAYLOAD), None, now=0.0, timeout=10.0)
                self.carry()

        return run

    def messages(self, at_once: int) -> Callable[[int], None]:
        def run(times: int) -> None:
            for _ in range(times // at_once):
                for _ in range(at_once):
                    self.client.send(self.encode(PAYLOAD))
                self.carry()

        return run


def nothing(*_: object) -> None: ...


def reactions(**mine: Callable[..., None]) -> Reactions:
    def wrong(*facts: object) -> None:
        errors = [fact for fact in facts if isinstance(fact, InterphoneError)]
        raise SystemExit(f"not expected: {errors or facts}")

    known = dict.fromkeys(Reactions._fields, wrong) | {"hello": nothing} | mine
    return Reactions(**known)


def floor(codec: Any, crossings: int) -> Callable[[int], None]:
    encode, decode = codec.Encoder().encode, codec.Decoder().decode

    def run(times: int) -> None:
        for _ in range(times * crossings):
            decode(encode(PAYLOAD))

    return run


def main() -> None:
    for title, crossings, verb in (
        ("a message", 1, "messages"),
        ("a request and its answer", 2, "requests"),
    ):
        variants = {"msgspec": floor(msgspec.msgpack, crossings)}
        for dialect in ("native", "classic"):
            for at_once in (1, 64):
                run = getattr(Ends(dialect), verb)(at_once)
                variants[f"{dialect}, {at_once} at once"] = run
        variants["native, 1 at once, typed"] = getattr(Ends("native", Item), verb)(1)
        variants["native, 64 at once, typed"] = getattr(Ends("native", Item), verb)(64)
        compare_calls(title, "msgspec", variants, times=6_400, per=crossings)


if __name__ == "__main__":
    print(f"Python {sys.version.split()[0]}", end="")
    main()
