"""The protocol alone: nanoseconds of the Session for each crossing of a message.

Two Sessions hand each other bytes in memory. A crossing is one message on its way: encoded and
queued by one end, read and told by the other. A request and its answer are two crossings.
`floor` is this benchmark without a Session: the same payload encoded and decoded by msgspec, in
the same functions. What is beyond it is the Session's.
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
        encode, decode, respond = client.codec.pack, client.codec.decode, server.respond
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


def floor(codec: Any, crossings: int, at_once: int) -> Callable[[int], None]:
    """Return the benchmark itself, with C's functions in place of the Sessions."""
    encode, decode = codec.Encoder().encode, codec.Decoder().decode
    say = respond = bool

    def on_request(nonce: Any, raw: bytes, options: object) -> None:
        respond(encode(decode(raw)))

    def on_message(raw: bytes) -> None:
        decode(raw)

    def on_answer(token: object, raw: bytes) -> None:
        decode(raw)

    raws = [encode(PAYLOAD)] * at_once

    def carry() -> None:
        for raw in raws:
            if crossings == 1:
                on_message(raw)
            else:
                on_request(None, raw, None)
        if crossings == 2:
            for raw in raws:
                on_answer(None, raw)

    def run(times: int) -> None:
        for _ in range(times // at_once):
            for _ in range(at_once):
                say(encode(PAYLOAD))
            carry()

    return run


def main() -> None:
    codecs = {"native": msgspec.msgpack, "classic": msgspec.json}
    for title, crossings, verb in (
        ("a message", 1, "messages"),
        ("a request and its answer", 2, "requests"),
    ):
        for at_once in (1, 64):
            variants = {}
            for dialect, codec in codecs.items():
                of, name = f"{dialect}: floor", f"{dialect}: Session"
                variants[of] = of, floor(codec, crossings, at_once)
                variants[name] = of, getattr(Ends(dialect), verb)(at_once)
                variants[f"{name}, typed"] = of, getattr(Ends(dialect, Item), verb)(at_once)
            compare_calls(f"{title}, {at_once} at once", variants, times=6_400, per=crossings)


if __name__ == "__main__":
    print(f"Python {sys.version.split()[0]}", end="")
    main()
