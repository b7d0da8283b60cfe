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
    """A client and a server in one dialect; the server answers what it is asked.

    What is looked up here is looked up once: a crossing is to cost what the Session costs.
    """

    def __init__(self, dialect: str, of: Any = Any) -> None:
        dialects = ("native", "classic") if dialect == "native" else ("classic",)
        self.client = client = Session("client", dialects=dialects)
        self.server = server = Session("server", dialects=dialects)
        self.carry = carrier(client, server, reactions(opened=nothing), reactions())
        client.open()
        self.carry()
        server.accept("1")
        self.carry()
        encode, decode, respond = client.codec.encode, client.codec.decode, server.respond
        self.encode = encode

        def on_request(nonce: Any, raw: msgspec.Raw, options: object) -> None:
            respond(nonce, encode(decode(raw, of)))

        def on_message(raw: msgspec.Raw) -> None:
            decode(raw, of)

        def on_answer(token: object, raw: msgspec.Raw) -> None:
            decode(raw, of)

        reacts = reactions(request=on_request, message=on_message)
        server.resume(reacts)
        self.carry = carrier(client, server, reactions(answered=on_answer), reacts)

    def requests(self, at_once: int) -> Callable[[int], None]:
        encode, request, carry = self.encode, self.client.request, self.carry

        def run(times: int) -> None:
            for _ in range(times // at_once):
                for _ in range(at_once):
                    request(encode(PAYLOAD), None, now=0.0, timeout=10.0)
                carry()

        return run

    def messages(self, at_once: int) -> Callable[[int], None]:
        encode, send, carry = self.encode, self.client.send, self.carry

        def run(times: int) -> None:
            for _ in range(times // at_once):
                for _ in range(at_once):
                    send(encode(PAYLOAD))
                carry()

        return run


def carrier(
    client: Session, server: Session, client_reacts: Reactions, server_reacts: Reactions
) -> Callable[[], None]:
    """Return what carries everything there, then everything back."""
    from_client, to_server = client.data_to_send, server.receive
    from_server, to_client = server.data_to_send, client.receive

    def carry() -> None:
        if data := from_client():
            to_server(data, server_reacts)
        if data := from_server():
            to_client(data, client_reacts)

    return carry


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
